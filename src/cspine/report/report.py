"""The report: one HTML file that opens offline, its figures as files, its tables as Markdown, its numbers as JSON.

write_report(results, folder)      # folder/report.html, robustness.html, results.json, tables.md, figures/, and the
                                   # model cards and checklists of `cspine.report.checklists`
results = read_results(folder / "results.json")
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from markupsafe import Markup
from pydantic import ValidationError

from cspine.auditing.findings import VERDICT_WORDS, list_reasons
from cspine.core.errors import InputError, OutputError
from cspine.core.files import explain_os_error, write_json, write_text
from cspine.core.html import show_table
from cspine.metrics.evaluation import POSITIVE_CLASS
from cspine.report.calibration import draw_in_use, explain_sizes, list_uses, tabulate_sizes, view_use
from cspine.report.checklists import CARD_PAGE, list_card_folders, render_documents
from cspine.report.explanations import view_explanations
from cspine.report.figures import (
    NEGATIVE_CLASS,
    Drawing,
    draw_all,
    draw_forest,
    draw_precision_recalls,
    draw_rocs,
    list_entries,
)
from cspine.report.markdown import render_markdown
from cspine.report.page import Numbering, make_environment
from cspine.report.pictures import draw_missed
from cspine.report.results import SCHEMA_VERSION, ComparisonResults, Sample
from cspine.report.robustness import (
    ROBUSTNESS_FILE,
    draw_robustness,
    list_panels,
    render_robustness_page,
    view_robustness,
)
from cspine.report.tables import (
    FURTHER,
    MAIN,
    describe_copies,
    find_usual_interval,
    list_definitions,
    list_facts,
    list_intervals,
    list_other_tests,
    list_study_entries,
    tabulate_beside,
    tabulate_comparison,
    tabulate_folds,
    tabulate_pairs,
    tabulate_rules,
    tabulate_seeds,
    tabulate_study_metrics,
    tabulate_subgroups,
)
from cspine.report.text import SEVERITY_WORDS, format_estimate, group_findings, list_remarks

REPORT_FILE = "report.html"
RESULTS_FILE = "results.json"
TABLES_FILE = "tables.md"
MISSED_FILE = "missed.png"
FIGURES_FOLDER = "figures"
_FIX_RESULTS = "name a results.json that `cspine compare` wrote"

_OUTCOMES: Mapping[str, tuple[str, bool, bool]] = {  # words, truth is positive, called positive
    "fn": ("missed fracture", True, False),
    "fp": ("false alarm", False, True),
    "tp": ("fracture found", True, True),
    "tn": ("normal, called normal", False, False),
}


def write_report(results: ComparisonResults, folder: Path) -> Path:
    """Write the report of a comparison; returns the path of its HTML.

    All of it is made and written aside first, then moved into place: a failure leaves what was there before.
    `folder` may hold other files; the SVG files in its `figures/` and the picture of what is
    missed are the report's own, replaced as a set.

    Raises:
        OutputError: the folder cannot be written.
    """
    folder = Path(folder)
    entries = list_entries(results)
    drawings = draw_all(results) | draw_in_use(list_uses(results), entries)
    drawings |= draw_robustness(results.robustness, entries)
    html = render_report(results, drawings)
    documents = render_documents(results, REPORT_FILE)
    created = _make_folder(folder)
    done = False
    try:
        with tempfile.TemporaryDirectory(prefix=".report.", suffix=".partial", dir=folder) as aside:
            staging = Path(aside)
            write_text(staging / REPORT_FILE, html)
            if results.robustness:
                write_text(staging / ROBUSTNESS_FILE, render_robustness_page(results, drawings))
            write_json(staging / RESULTS_FILE, results.model_dump(mode="json"))
            write_text(staging / TABLES_FILE, render_markdown(results))
            for drawing in drawings.values():
                write_text(staging / FIGURES_FOLDER / f"{drawing.name}.svg", drawing.svg + "\n")
            for name, text in documents.items():
                write_text(staging / name, text)
            draw_missed(results, staging / FIGURES_FOLDER / MISSED_FILE)
            _publish(staging, folder, tuple(documents))
        done = True
    except OSError as error:
        raise explain_os_error(error, folder) from error
    except OutputError as error:
        # The file at fault lies in the folder aside, which the reader never sees.
        raise OutputError(error.what, where=str(folder), fix=error.fix) from error
    finally:
        if not done:
            for path in created:
                path.rmdir()
    return folder / REPORT_FILE


class ShownResults(ComparisonResults):
    """Results that a notebook shows: the verdict, the main metrics, ROC and precision-recall curves, intervals."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ComparisonResults) and self.model_dump() == other.model_dump()

    __hash__ = ComparisonResults.__hash__

    def _repr_html_(self) -> str:
        entries = list_entries(self)
        metrics = ("accuracy", "precision", "recall", "f1", "fpr", "auroc", "auprc")
        rows = [
            (key, *(format_estimate(one.evaluation.metrics.get(key)) for one in entries)) for key in metrics
        ]
        table = show_table(("metric", *(one.name for one in entries)), rows)
        curves = draw_rocs(entries, "roc"), draw_precision_recalls(entries, "precision-recall")
        figures = (*curves, draw_forest(entries, "forest"))
        verdict = f"<p><b>{self.verdict or 'no verdict'}</b></p>"
        return verdict + table + "".join(one.embed() for one in figures)


def read_results(path: str | Path) -> ShownResults:
    """Read a `results.json`, or the one in a report's folder.

    Raises:
        InputError: the file cannot be read, or is not the results of a comparison of this schema version.
    """
    path = Path(path)
    if path.is_dir():
        path = path / RESULTS_FILE
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = (error.strerror or "").lower() if isinstance(error, OSError) else "it is not UTF-8 text"
        raise InputError(f"cannot read results: {reason}", where=str(path), fix=_FIX_RESULTS) from error
    try:
        results = ShownResults.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"]) or "the file as a whole"
        raise InputError(
            f"this is not the results of a comparison: {place}: {first['msg']}",
            where=str(path),
            fix=_FIX_RESULTS,
        ) from error
    if results.schema_version != SCHEMA_VERSION:
        raise InputError(
            f"the results have schema version {results.schema_version}; this version reads {SCHEMA_VERSION}",
            where=str(path),
            fix="read them with the version of cspine that wrote them, or run the comparison again",
        )
    return results


def render_report(results: ComparisonResults, drawings: Mapping[str, Drawing]) -> str:
    """The report as one HTML text without any reference to the outside."""
    entries = list_entries(results)
    positive = entries[0].evaluation.positive_class if entries else POSITIVE_CLASS
    environment = make_environment()
    template = environment.get_template("report.html.j2")
    return template.render(
        results=results,
        entries=entries,
        main=entries[0].evaluation if entries else None,
        css=Markup(environment.get_template("report.css").render()),
        svg={name: drawing.embed() for name, drawing in drawings.items()},
        titles={name: drawing.title for name, drawing in drawings.items()},
        panels=list_panels(drawings, "robustness"),
        number=Numbering(),
        verdict_words=VERDICT_WORDS[results.verdict] if results.verdict else "",
        reasons=group_findings(list_reasons(results.findings or ())),
        remarks=group_findings(list_remarks(results.findings or ())),
        severity_words=SEVERITY_WORDS,
        notes=sorted(results.notes, key=lambda note: note.severity != "warning"),
        comparison=tabulate_comparison(entries),
        definitions=list_definitions(entries),
        intervals=list_intervals(entries),
        usual=find_usual_interval(entries),
        robustness=view_robustness(results),
        subgroups=tabulate_subgroups(results.subgroups) if results.subgroups else None,
        folded=results.folded,
        beside=tabulate_beside(results, MAIN),
        beside_further=tabulate_beside(results, FURTHER),
        fold_table=tabulate_folds(results, results.folded) if results.folded else None,
        seed_table=tabulate_seeds(results.folded) if results.folded else None,
        copied_words=describe_copies(results.folded) if results.folded else "",
        differences=tabulate_pairs(results.pairs) if results.pairs else None,
        other_tests=list_other_tests(results.pairs) if results.pairs else [],
        use=view_use(results),
        slugs={entry.name: entry.slug for entry in reversed(entries)},
        sizes=tabulate_sizes(results.sizes) if results.sizes else None,
        sizes_words=explain_sizes(results.sizes) if results.sizes else "",
        positive=positive,
        explained=view_explanations(results.explanations),
        studies=tabulate_study_metrics(list_study_entries(results.studies)) if results.studies else None,
        study_rules=tabulate_rules(results.studies) if results.studies else None,
        samples=_arrange_samples(results, positive),
        cards=[f"{quote(name)}/{CARD_PAGE}" for name in list_card_folders(results)],
        facts=[list_facts(model) for model in results.models],
    )


@dataclass(frozen=True, slots=True)
class SampleView:
    """One slice to show, in words."""

    sample: Sample
    words: str
    truth: str
    called: str
    wrong: bool


def _arrange_samples(results: ComparisonResults, positive: str) -> list[tuple[str, list[SampleView]]]:
    """For every model that has samples: wrong ones first, then right ones, otherwise in their order."""
    classes = {True: positive, False: NEGATIVE_CLASS}
    arranged = []
    for name in dict.fromkeys(sample.model for sample in results.samples):
        views = []
        for sample in results.samples:
            if sample.model == name:
                words, truth, called = _OUTCOMES[sample.outcome]
                views.append(SampleView(sample, words, classes[truth], classes[called], truth != called))
        arranged.append((name, sorted(views, key=lambda view: list(_OUTCOMES).index(view.sample.outcome))))
    return arranged


def _make_folder(folder: Path) -> list[Path]:
    """Make `folder` and its parents; returns those that did not exist before, innermost first."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise explain_os_error(error, folder) from error
    return missing


def _publish(staging: Path, folder: Path, documents: Sequence[str]) -> None:
    """Move what was written into place, the page last: a new page never lacks its figures."""
    figures = folder / FIGURES_FOLDER
    figures.mkdir(exist_ok=True)
    fresh = sorted((staging / FIGURES_FOLDER).iterdir())
    for path in fresh:
        os.replace(path, figures / path.name)
    for old in (*figures.glob("*.svg"), figures / MISSED_FILE):
        if old.exists() and old.name not in {path.name for path in fresh}:
            old.unlink()
    for name in documents:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        os.replace(staging / name, folder / name)
    for name in (RESULTS_FILE, TABLES_FILE, ROBUSTNESS_FILE, REPORT_FILE):
        if (staging / name).exists():
            os.replace(staging / name, folder / name)
        else:
            (folder / name).unlink(missing_ok=True)  # that of an earlier run with more in it
