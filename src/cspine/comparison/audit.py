"""The audit of any set, or of a finished run: what `cspine.audit` and `cspine audit` do."""

from __future__ import annotations

from pathlib import Path

import polars as pl
from pydantic import ValidationError

from cspine.auditing.audit import audit_manifest, repair_manifest
from cspine.auditing.findings import VERDICT_WORDS, AuditResult, Change
from cspine.auditing.leaks import Choices
from cspine.core.errors import CspineError, InputError, OutputError
from cspine.core.files import atomic_file, refuse_to_replace, write_text
from cspine.core.html import show_table
from cspine.core.progress import Silent, Watcher
from cspine.data.layouts import import_dataset
from cspine.data.manifest import Manifest, write_manifest
from cspine.experiment import Experiment
from cspine.report.audit_page import write_audit_page
from cspine.report.report import RESULTS_FILE, read_results
from cspine.report.results import ComparisonResults
from cspine.report.text import format_estimate

MANIFEST_FILE, EXPERIMENT_FILE = "manifest.parquet", "experiment.json"


class Audit(AuditResult):
    """What an audit found: `verdict`, `findings`, `baselines`, `effective_n` and more."""

    def __repr__(self) -> str:
        return f"Audit({self.verdict}: {len(self.findings)} findings, {self.effective_n.files:,} files)"

    def to_frame(self) -> pl.DataFrame:
        """Return one row a finding: severity, code, text, remedy, files."""
        columns = {"severity": pl.String, "code": pl.String, "text": pl.String, "remedy": pl.String}
        rows = [one.model_dump(include={*columns, "files"}) for one in self.findings]
        return pl.DataFrame(rows, schema={**columns, "files": pl.List(pl.String)})

    def _repr_html_(self) -> str:
        rows = [(one.name, one.protocol, format_estimate(one.auroc)) for one in self.baselines]
        baselines = show_table(("baseline", "scored", "AUROC"), rows) if rows else ""
        findings = self.to_frame().drop("files")
        heading = f"<p><b>{self.verdict}</b>: {VERDICT_WORDS[self.verdict]}</p>"
        return heading + show_table(findings.columns, findings.iter_rows()) + baselines


def audit(
    source: str | Path | Manifest,
    output: str | Path | None = None,
    fix: str | Path | None = None,
    classes: tuple[str, str] = ("fracture", "normal"),
    watcher: Watcher | None = None,
) -> Audit:
    """Find copies, leaks, anomalies and shortcuts in a set.

    Args:
        source: A manifest, a folder of class folders, a table of labels; or the folder of a finished run, whose
            manifest is audited together with what its splits were used for.
        output: Where a page goes (HTML); None writes none.
        fix: Where a repaired manifest goes, and its table of changes beside it; None writes none.
        classes: Names of the positive and the negative class.
        watcher: Told about progress.

    Raises:
        InputError: the set cannot be read, or an output would replace it.
        OutputError: an output cannot be written.
    """
    watcher = watcher or Silent()
    page, fixed = (None if path is None else Path(path) for path in (output, fix))
    choices = reported = None
    unreadable: tuple[tuple[str, str], ...] = ()
    if isinstance(source, Manifest):
        manifest = source
    else:
        source = Path(source)
        _check_outputs(source, page, fixed)
        if (source / RESULTS_FILE).is_file() and (source / MANIFEST_FILE).is_file():
            run = read_results(source)
            choices, reported = list_run_choices(run, source / EXPERIMENT_FILE), run.reported_split
            source = source / MANIFEST_FILE
        watcher.start("Reading slices", 0)
        manifest, report = import_dataset(
            source, positive_class=classes[0], negative_class=classes[1], progress=watcher.advance
        )
        unreadable = report.unreadable
        watcher.finish(f"{len(manifest):,} slices")
    stages = _Stages(watcher, f"{len(manifest):,} slices")
    audited = audit_manifest(
        manifest.as_display(),
        unreadable=unreadable,
        choices=choices,
        # Folds alone are reported as a whole, in words; the manifest has the splits of the first of them.
        reported=reported if reported in manifest.splits else None,
        progress=stages.tell,
    )
    watcher.finish(stages.words)
    result = audited.result
    if fixed is not None:
        repaired = repair_manifest(manifest, audited, unreadable)
        changes = tuple(Change(**row) for row in repaired.changes.iter_rows(named=True))
        result = result.model_copy(update={"changes": changes})
        # Inside one another, so that a table of changes that cannot be written leaves no manifest behind.
        with atomic_file(fixed) as staged:
            write_manifest(repaired.manifest, staged)
            write_text(name_changes(fixed), repaired.changes.write_csv())
    if page is not None:
        watcher.start("Drawing the page", 0)
        write_audit_page(result, manifest.as_display(), page, watcher.advance)
        watcher.finish(str(page))
    return Audit.model_construct(**dict(result))


class _Stages:
    """The parts of an audit as stages of a watcher."""

    def __init__(self, watcher: Watcher, words: str) -> None:
        self.watcher, self.words, self._name = watcher, words, ""

    def tell(self, name: str, done: int, total: int) -> None:
        if name != self._name:
            if self._name:
                self.watcher.finish(self.words)
            self.watcher.start(name, total)
            self._name = name
        self.watcher.advance(done, total)


def list_run_choices(run: ComparisonResults, experiment: Path) -> Choices:
    """What a finished run chose, and on which split, by its `experiment.json`; without it, by the results alone."""
    watched = ["the choice of the best epoch"]
    if experiment.is_file():
        try:
            watched = list(Experiment.model_validate_json(experiment.read_bytes()).list_choices())
        except (ValidationError, CspineError, OSError):
            raise InputError("this is no experiment of cspine", where=str(experiment)) from None
    elif any(model.stopped_early for model in run.models):
        watched.insert(0, "early stopping")
    tuned = [
        f"the {noun} of {use.model}"
        for use in run.in_use
        for noun, splits in (
            ("threshold", [point.point.split for point in use.points]),
            ("calibration", [state.fit.split for state in use.states if state.fit is not None]),
        )
        if run.reported_split in splits
    ]
    backbones = {model.name: model.backbone for model in run.models}
    return Choices(run.selection_split, watched, tuned, backbones)


def _check_outputs(source: Path, page: Path | None, fixed: Path | None) -> None:
    outputs = [page, fixed, name_changes(fixed) if fixed is not None else None]
    for output in filter(None, outputs):
        refuse_to_replace(output, source, source / MANIFEST_FILE)
        if output.is_dir():
            raise OutputError("this is a folder", where=str(output), fix="name a file")
    if page is not None and page.suffix.lower() not in (".html", ".htm"):
        raise InputError(
            "the page of an audit is HTML", where=str(page), fix="name a file that ends in .html"
        )
    if fixed is not None and fixed.suffix.lower() != ".parquet":
        raise InputError("a manifest is parquet", where=str(fixed), fix="name a file that ends in .parquet")


def name_changes(fixed: Path) -> Path:
    """The table of what was changed, beside the repaired manifest."""
    return fixed.with_suffix(".changes.csv")
