"""The report: one HTML file that opens offline, the same figures as files, and every number as JSON.

write_report(results, folder)      # folder/report.html, folder/results.json, folder/figures/*.svg
results = read_results(folder / "results.json")
"""

from __future__ import annotations

import datetime
import os
import statistics
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup
from pydantic import ValidationError

from cspine.errors import InputError, OutputError
from cspine.evaluation.evaluate import POSITIVE_CLASS
from cspine.evaluation.metrics import METRICS
from cspine.evaluation.robustness import CORRUPTIONS
from cspine.files import explain_os_error, write_json, write_text
from cspine.reporting.figures import NEGATIVE_CLASS, Entry, draw_all, list_entries
from cspine.reporting.results import (
    SCHEMA_VERSION,
    ComparisonResults,
    Estimate,
    EvaluationResult,
    ModelResult,
    RobustnessPoint,
    Sample,
)
from cspine.reporting.svg import Drawing
from cspine.reporting.text import (
    UNDEFINED,
    drop_controls,
    format_count,
    format_interval,
    format_value,
    label_corruption,
)

REPORT_FILE = "report.html"
RESULTS_FILE = "results.json"
FIGURES_FOLDER = "figures"
_FIX_RESULTS = "name a results.json that `cspine compare` wrote"

# What each metric is, in counts or words; the paper's equation number comes from the registry.
_DEFINITIONS: Mapping[str, str] = {
    "accuracy": "(TP + TN) / (TP + TN + FP + FN)",
    "precision": "TP / (TP + FP)",
    "recall": "TP / (TP + FN)",
    "specificity": "TN / (TN + FP)",
    "f1": "2 \u00d7 precision \u00d7 recall / (precision + recall)",
    "fpr": "FP / (TN + FP)",
    "npv": "TN / (TN + FN)",
    "mcc": "Matthews correlation: "
    "(TP \u00d7 TN \u2212 FP \u00d7 FN) / √((TP + FP)(TP + FN)(TN + FP)(TN + FN))",
    "balanced_accuracy": "(recall + specificity) / 2",
    "auroc": "area under the ROC curve: how often a fracture scores higher than a normal slice",
    "auprc": "average precision: step integral of the precision-recall curve",
    "brier": "mean squared difference of probability and truth",
    "log_loss": "mean negative log-likelihood of the truth, natural logarithm",
}

_OUTCOMES: Mapping[str, tuple[str, bool, bool]] = {  # words, truth is positive, called positive
    "fn": ("missed fracture", True, False),
    "fp": ("false alarm", False, True),
    "tp": ("fracture found", True, True),
    "tn": ("normal, called normal", False, False),
}


def write_report(results: ComparisonResults, folder: Path) -> Path:
    """Write the report of a comparison; returns the path of its HTML.

    All of it is made and written aside first, then moved into place: a failure leaves what was there before.
    `folder` may hold other files; the SVG files in its `figures/` are the report's own, replaced as a set.

    Raises:
        OutputError: the folder cannot be written.
    """
    folder = Path(folder)
    drawings = draw_all(results)
    html = render_report(results, drawings)
    created = _make_folder(folder)
    done = False
    try:
        with tempfile.TemporaryDirectory(prefix=".report.", suffix=".partial", dir=folder) as aside:
            staging = Path(aside)
            write_text(staging / REPORT_FILE, html)
            write_json(staging / RESULTS_FILE, results.model_dump(mode="json"))
            for drawing in drawings.values():
                write_text(staging / FIGURES_FOLDER / f"{drawing.name}.svg", drawing.svg + "\n")
            _publish(staging, folder)
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


def read_results(path: Path) -> ComparisonResults:
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
        results = ComparisonResults.model_validate_json(text)
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
    environment = _make_environment()
    template = environment.get_template("report.html.j2")
    return template.render(
        results=results,
        entries=entries,
        main=entries[0].evaluation if entries else None,
        css=Markup(environment.get_template("report.css").render()),
        svg={name: Markup(drawing.svg) for name, drawing in drawings.items()},
        titles={name: drawing.title for name, drawing in drawings.items()},
        panels=[name for name in drawings if name.startswith("robustness-")],
        number=_Numbering(),
        notes=sorted(results.notes, key=lambda note: note.severity != "warning"),
        comparison=_tabulate_comparison(entries),
        definitions=_list_definitions(entries),
        intervals=_list_intervals(entries),
        usual=_find_usual_interval(entries),
        robustness=[
            ("Accuracy", _tabulate_robustness(results.robustness, lambda point: point.accuracy)),
            ("AUROC", _tabulate_robustness(results.robustness, lambda point: point.auroc)),
        ],
        severities=_list_severities(results.robustness),
        positive=positive,
        samples=_arrange_samples(results, positive),
        facts=[_list_facts(model) for model in results.models],
    )


@dataclass(frozen=True, slots=True)
class Cell:
    """One estimate in a table; `mark` is that of the footnote that explains a gap."""

    value: str
    interval: str = ""
    mark: str = ""


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a table; `equation` and `lower_is_better` belong to metrics."""

    label: str
    cells: tuple[Cell, ...]
    equation: int | None = None
    lower_is_better: bool = False


@dataclass(slots=True)
class Table:
    """Rows in named groups, and the footnotes that their cells refer to."""

    columns: tuple[str, ...]
    groups: list[tuple[str, list[Row]]] = field(default_factory=list)
    footnotes: dict[str, str] = field(default_factory=dict)

    def fill(self, estimate: Estimate | None) -> Cell:
        """A cell; equal reasons share one footnote."""
        if estimate is None:
            return Cell(format_value(None), mark=self._mark("not computed"))
        mark = self._mark(estimate.reason) if estimate.reason else ""
        return Cell(format_value(estimate.value), format_interval(estimate), mark)

    def _mark(self, reason: str) -> str:
        place = len(self.footnotes)
        return self.footnotes.setdefault(reason, "abcdefghijklmnopqrstuvwxyz"[place % 26] * (place // 26 + 1))


class _Numbering:
    """Numbers tables and figures in the order in which the template asks."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}

    def __call__(self, kind: str) -> str:
        self._counts[kind] = self._counts.get(kind, 0) + 1
        return f"{kind} {self._counts[kind]}"


def _tabulate_comparison(entries: Sequence[Entry]) -> Table:
    """Metrics as rows, models and baselines as columns; then the counts they were made of."""
    table = Table(tuple(entry.name for entry in entries))
    names = list(dict.fromkeys(key for entry in entries for key in entry.evaluation.metrics))
    known = [key for key in METRICS if key in names]
    groups = (
        ("Calls at the threshold", [key for key in known if not _needs_no_threshold(key)]),
        ("Ranking, whatever the threshold", [key for key in known if METRICS[key].ranking]),
        ("Probabilities", [key for key in known if _needs_no_threshold(key) and not METRICS[key].ranking]),
        ("Other", [key for key in names if key not in METRICS]),
    )
    for title, keys in groups:
        rows = [
            Row(
                METRICS[key].label if key in METRICS else key,
                tuple(table.fill(entry.evaluation.metrics.get(key)) for entry in entries),
                METRICS[key].equation if key in METRICS else None,
                key in METRICS and not METRICS[key].higher_is_better,
            )
            for key in keys
        ]
        if rows:
            table.groups.append((title, rows))
    table.groups.append(("Counts", _list_counts(entries)))
    return table


def _needs_no_threshold(key: str) -> bool:
    return METRICS[key].ranking or key in ("brier", "log_loss")


def _list_counts(entries: Sequence[Entry]) -> list[Row]:
    results = [entry.evaluation for entry in entries]
    columns: dict[str, Iterable[str]] = {
        "True positives": (format_count(r.confusion.tp) for r in results),
        "False negatives": (format_count(r.confusion.fn) for r in results),
        "False positives": (format_count(r.confusion.fp) for r in results),
        "True negatives": (format_count(r.confusion.tn) for r in results),
        "Slices": (format_count(r.slices) for r in results),
        "of them positive": (format_count(r.positives) for r in results),
        **_list_units(results),
        "Threshold": (format_value(r.threshold) for r in results),
    }
    return [Row(label, tuple(Cell(text) for text in texts)) for label, texts in columns.items()]


def _list_units(results: Sequence[EvaluationResult]) -> dict[str, Iterable[str]]:
    """What was resampled: named in the row's label where it is the same for all, in the cells where not."""
    units = {result.unit for result in results}
    if len(units) == 1:
        return {f"Independent units ({units.pop()})": (format_count(r.units) for r in results)}
    return {"Independent units": (f"{format_count(r.units)} ({r.unit})" for r in results)}


def _list_definitions(entries: Sequence[Entry]) -> list[tuple[str, int | None, str]]:
    """Label, equation number in the paper and definition of every metric shown."""
    shown = {key for entry in entries for key in entry.evaluation.metrics}
    return [
        (metric.label, metric.equation, _DEFINITIONS[key])
        for key, metric in METRICS.items()
        if key in shown and key in _DEFINITIONS
    ]


Interval = tuple[str, float, str, int]  # method, level, unit, n


def _collect_intervals(entries: Sequence[Entry]) -> dict[Interval, dict[str, list[str]]]:
    """How intervals were made -> metric -> the models for which they were made so."""
    found: dict[Interval, dict[str, list[str]]] = {}
    for entry in entries:
        for key, estimate in entry.evaluation.metrics.items():
            made = (estimate.method, estimate.level, estimate.unit, estimate.n)
            label = METRICS[key].label if key in METRICS else key
            found.setdefault(made, {}).setdefault(label, []).append(entry.name)
    return found


def _find_usual_interval(entries: Sequence[Entry]) -> Interval | None:
    """The way in which most intervals were made, for the caption."""
    found = _collect_intervals(entries)
    return max(found, key=lambda made: sum(map(len, found[made].values())), default=None)


def _list_intervals(entries: Sequence[Entry]) -> list[tuple[Interval, str]]:
    """Every way in which intervals were made, and for which metrics (of which models, where not of all)."""
    rows = []
    for made, metrics in _collect_intervals(entries).items():
        parts = [
            label if len(names) == len(entries) else f"{label} ({', '.join(names)})"
            for label, names in metrics.items()
        ]
        rows.append((made, "; ".join(parts)))
    return rows


def _tabulate_robustness(
    points: Sequence[RobustnessPoint], pick: Callable[[RobustnessPoint], Estimate]
) -> Table:
    """Severities as columns, one group a corruption, one row a model."""
    severities = sorted({point.severity for point in points})
    table = Table(tuple(str(severity) for severity in severities))
    by_place = {(point.corruption, point.model, point.severity): point for point in points}
    models = list(dict.fromkeys(point.model for point in points))
    for corruption in dict.fromkeys(point.corruption for point in points):
        rows = []
        for model in models:
            found = [by_place.get((corruption, model, severity)) for severity in severities]
            rows.append(Row(model, tuple(table.fill(pick(point) if point else None) for point in found)))
        table.groups.append((label_corruption(corruption), rows))
    return table


def _list_severities(points: Sequence[RobustnessPoint]) -> list[str]:
    """What severities 1 to 5 are, for the corruptions that this version knows."""
    lines = []
    for key in dict.fromkeys(point.corruption for point in points):
        if key in CORRUPTIONS:
            kind = CORRUPTIONS[key]
            values = ", ".join(f"{value:g}" for value in kind.values)
            lines.append(f"{kind.label}: {kind.parameter} {values} {kind.unit}")
    return lines


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


def _list_facts(model: ModelResult) -> list[tuple[str, str]]:
    """What a reader needs to know of a model besides its metrics."""
    speed = statistics.median(row.slices_per_s for row in model.history) if model.history else None
    end = "stopped early" if model.stopped_early else "ran to the end"
    return [
        ("Backbone", model.backbone),
        ("Head", model.head),
        ("Weights at start", model.weights),
        ("Parameters", format_count(model.parameters)),
        ("FLOPs a slice", f"{format_count(model.flops)} ({model.flops / 1e9:.2f} G)"),
        ("Precision of arithmetic", model.precision),
        ("Epochs", f"{len(model.history)}, {end}"),
        ("Best epoch", str(model.best_epoch)),
        ("Training time", format_duration(model.train_s)),
        ("Training speed", UNDEFINED if speed is None else f"{speed:.1f} slices/s (median)"),
        ("Recipe", model.recipe),
        ("Checkpoint", model.checkpoint_hash),
    ]


def format_duration(seconds: float) -> str:
    """`2 h 3 min`, `4 min 5 s` or `6.7 s`."""
    if round(seconds, 1) < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def format_date(text: str) -> str:
    """An ISO time as a date for people, with its zone; anything else as it is."""
    try:
        moment = datetime.datetime.fromisoformat(text)
    except ValueError:
        return text
    return f"{moment.day} {moment:%B %Y, %H:%M} {moment.tzname() or ''}".strip()


def _make_environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("cspine.reporting", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_finalize,
    )
    filters: dict[str, Callable[..., Any]] = {
        "value": format_value,
        "count": format_count,
        "duration": format_duration,
        "date": format_date,
    }
    environment.filters.update(filters)
    return environment


def _finalize(value: Any) -> Any:
    """What every expression in a template passes through before it is escaped."""
    return drop_controls(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _make_folder(folder: Path) -> list[Path]:
    """Make `folder` and its parents; returns those that did not exist before, innermost first."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise explain_os_error(error, folder) from error
    return missing


def _publish(staging: Path, folder: Path) -> None:
    """Move what was written into place, the page last: a new page never lacks its figures."""
    figures = folder / FIGURES_FOLDER
    figures.mkdir(exist_ok=True)
    fresh = sorted((staging / FIGURES_FOLDER).iterdir())
    for path in fresh:
        os.replace(path, figures / path.name)
    for old in figures.glob("*.svg"):
        if old.name not in {path.name for path in fresh}:
            old.unlink()
    for name in (RESULTS_FILE, REPORT_FILE):
        os.replace(staging / name, folder / name)
