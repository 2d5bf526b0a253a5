"""`cspine audit`: from a set, or a finished run, to findings, a page and an exit code. No torch here."""

from __future__ import annotations

import json
from pathlib import Path

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cspine.audit.audit import AuditedSet, audit_manifest
from cspine.audit.findings import VERDICT_WORDS, AuditResult, Change
from cspine.audit.leaks import Choices
from cspine.audit.repair import Repaired, repair_manifest
from cspine.cli.screen import Bars, show_findings
from cspine.data.layouts import import_dataset
from cspine.data.manifest import Manifest, write_manifest
from cspine.errors import CspineError, InputError, OutputError
from cspine.experiment import Experiment
from cspine.files import atomic_file, refuse_to_replace, write_text
from cspine.reporting.audit_page import write_audit_page
from cspine.reporting.report import RESULTS_FILE, read_results
from cspine.reporting.results import ComparisonResults
from cspine.reporting.text import format_estimate

MANIFEST_FILE = "manifest.parquet"
EXPERIMENT_FILE = "experiment.json"


def run_audit(
    source: Path,
    page: Path | None,
    fixed: Path | None,
    as_json: bool,
    positive_class: str,
    negative_class: str,
) -> AuditResult:
    """Audit a set, write the page, print the findings.

    Args:
        source: A manifest, a folder of slices, a labels table; or the folder of a finished run, whose manifest is
            audited together with what its splits were used for.
        page: Where the HTML goes; None writes none.
        fixed: Where a repaired manifest goes; None writes none.
        as_json: Print one JSON object to standard output and nothing else there.
        positive_class, negative_class: As for `cspine import`.

    Raises:
        InputError: the set cannot be read, or the page would replace it.
    """
    _check_outputs(source, page, fixed)
    choices = reported = None
    if (source / RESULTS_FILE).is_file() and (source / MANIFEST_FILE).is_file():
        run = read_results(source)
        choices, reported = list_choices(run, source / EXPERIMENT_FILE), run.reported_split
        source = source / MANIFEST_FILE
    with Bars(quiet=as_json) as bars:
        bars.start("Reading slices", 0)
        manifest, report = import_dataset(
            source, positive_class=positive_class, negative_class=negative_class, progress=bars.advance
        )
        bars.finish(f"{len(manifest):,} slices")
        # Folds alone are reported as a whole, in words; the manifest has the splits of the first of them.
        known = reported if reported in manifest.splits else None
        audited = _audit_with_bars(manifest, report.unreadable, choices, known, bars)
        repaired = None if fixed is None else repair_manifest(manifest, audited, report.unreadable)
        result = audited.result
        if repaired is not None and fixed is not None:
            changes = tuple(Change(**row) for row in repaired.changes.iter_rows(named=True))
            result = result.model_copy(update={"changes": changes})
            # Inside one another, so that a table of changes that cannot be written leaves no manifest behind.
            with atomic_file(fixed) as staged:
                write_manifest(repaired.manifest, staged)
                write_text(_name_changes(fixed), repaired.changes.write_csv())
        if page is not None:
            bars.start("Drawing the page", 0)
            write_audit_page(result, manifest.as_display(), page, bars.advance)
            bars.finish(str(page))
    if as_json:
        typer.echo(json.dumps(result.model_dump(mode="json"), indent=2, allow_nan=False))
        return result
    show_audit(result, page)
    if repaired is not None and fixed is not None:
        show_changes(repaired, fixed)
    return result


def list_choices(run: ComparisonResults, experiment: Path) -> Choices:
    """What a finished run chose, and on which split.

    Args:
        run: Its results.
        experiment: Its experiment as JSON; where it is not there, what the results themselves show.

    Raises:
        InputError: the experiment is there and is none.
    """
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
    outputs = [page, fixed, _name_changes(fixed) if fixed is not None else None]
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


def _name_changes(fixed: Path) -> Path:
    """The table of what was changed, beside the repaired manifest."""
    return fixed.with_suffix(".changes.csv")


def _audit_with_bars(
    manifest: Manifest,
    unreadable: tuple[tuple[str, str], ...],
    choices: Choices | None,
    reported: str | None,
    bars: Bars,
) -> AuditedSet:
    stage = ""

    def show(name: str, done: int, total: int) -> None:
        nonlocal stage
        if name != stage:
            if stage:
                bars.finish(f"{len(manifest):,} slices")
            bars.start(name, total)
            stage = name
        bars.advance(done, total)

    audited = audit_manifest(
        manifest.as_display(), unreadable=unreadable, choices=choices, reported=reported, progress=show
    )
    bars.finish(f"{len(manifest):,} slices")
    return audited


def show_audit(result: AuditResult, page: Path | None) -> None:
    """The verdict, the findings and the baselines."""
    console = Console()
    colour = {"sound": "green", "limited": "yellow", "not evidence": "red"}[result.verdict]
    console.print(f"[bold {colour}]{result.verdict}[/]  {VERDICT_WORDS[result.verdict]}", soft_wrap=True)
    show_findings(console, result.findings)
    if result.baselines:
        table = Table(title="baselines that see no anatomy", title_justify="left", box=None)
        for name in ("baseline", "scored", "accuracy", "AUROC"):
            table.add_column(name, justify="right" if name in ("accuracy", "AUROC") else "left")
        for baseline in result.baselines:
            values = (format_estimate(baseline.accuracy), format_estimate(baseline.auroc))
            table.add_row(baseline.name, baseline.protocol, *(escape(value) for value in values))
        console.print(table)
    size = result.effective_n
    counts = [f"{size.files:,} files", f"{size.distinct_slices:,} distinct slices"]
    counts.append("series unknown" if size.series is None else f"{size.series:,} series")
    counts.append("patients unknown" if size.patients is None else f"{size.patients:,} patients")
    console.print("effective size: " + ", ".join(counts), highlight=False)
    if page is not None:
        console.print(f"page: {escape(str(page))}", soft_wrap=True, highlight=False)


def show_changes(repaired: Repaired, output: Path) -> None:
    """Every change, one a line, and where the new manifest is."""
    console = Console()
    for path, change, reason in repaired.changes.iter_rows():
        console.print(f"{change:>9} {escape(path)}: {reason}", soft_wrap=True, highlight=False)
    console.print(
        f"{repaired.changes.height:,} changes, {len(repaired.manifest):,} slices left; the files were not touched",
        highlight=False,
    )
    changes = _name_changes(output)
    console.print(
        f"repaired manifest: {escape(str(output))}; its changes: {escape(str(changes))}",
        soft_wrap=True,
        highlight=False,
    )
