"""`cspine import`: pictures to a manifest, CT studies to a folder with one. No torch here."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl
import typer
from pydantic import ValidationError
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cspine.auditing.audit import AuditedSet, Repaired, audit_manifest, repair_manifest, settle_groups
from cspine.auditing.findings import VERDICT_WORDS, AuditResult, Change
from cspine.auditing.leaks import Choices
from cspine.cli.screen import Bars, show_findings, show_import
from cspine.core.answers import IntakeRow
from cspine.core.errors import CspineError, InputError, MissingExtraError, OutputError
from cspine.core.files import atomic_file, atomic_folder, refuse_other_suffix, refuse_to_replace, write_text
from cspine.ct.importing import INTAKE_NAME, import_ct
from cspine.ct.intake import IntakePolicy, read_policy
from cspine.ct.series import FORMATS, Format, recognise_format
from cspine.ct.volume import CtSeries
from cspine.data.layouts import MANIFEST_NAME, TABLE_NAMES, Classes, import_dataset
from cspine.data.manifest import Manifest, write_manifest
from cspine.data.splits import Fold, Scheme, find_fold_column, make_folds
from cspine.experiment import Experiment
from cspine.phantom.dataset import write_phantom, write_phantom_nifti
from cspine.phantom.patient import PhantomSettings
from cspine.report.audit_page import write_audit_page
from cspine.report.report import RESULTS_FILE, read_results
from cspine.report.results import ComparisonResults
from cspine.report.text import format_estimate

PICTURES_OUTPUT, CT_OUTPUT = Path(MANIFEST_NAME), Path("imported")
_MOST_ROWS = 40
_COLOURS = {"refused": "red", "corrected": "yellow", "noted": "yellow", "taken": "green"}
_LONGEST_NAME = 20  # a UID is longer, a file's name hardly ever


def run_import(
    source: Path,
    output: Path | None,
    *,
    source_format: str,
    labels: Path | None,
    policy: Path | None,
    positive_class: str,
    negative_class: str,
    strict: bool,
    as_json: bool,
) -> None:
    """Import, and print what was found.

    Raises:
        InputError: an unknown format, an option that the format has no use for, or a set that cannot be used.
    """
    known = ("auto", "pictures", *FORMATS)
    if source_format not in known:
        raise InputError(
            f"no such format: {source_format}", where="--format", fix=f"choose one of {', '.join(known)}"
        )
    chosen: Format | None = next((name for name in FORMATS if name == source_format), None)
    if source_format == "auto":
        chosen = recognise_format(source)
    if chosen is not None:
        _import_studies(
            source,
            output or CT_OUTPUT,
            source_format=chosen,
            labels=labels,
            policy=IntakePolicy() if policy is None else read_policy(policy),
            classes=(positive_class, negative_class),
            strict=strict,
            as_json=as_json,
        )
        return
    for option, value in (("--labels", labels), ("--policy", policy)):
        if value is not None:
            raise InputError(
                "pictures have no use for it", where=option, fix="leave it out, or name DICOM or NIfTI files"
            )
    _import_pictures(source, output or PICTURES_OUTPUT, (positive_class, negative_class), strict, as_json)


def _import_pictures(
    source: Path, output: Path, classes: tuple[str, str], strict: bool, as_json: bool
) -> None:
    refuse_to_replace(output, source, *(source / name for name in TABLE_NAMES))
    refuse_other_suffix(output, ".parquet", "a manifest")
    with Bars(quiet=as_json) as bars:
        bars.start("Reading slices", 0)
        manifest, report = import_dataset(
            source,
            positive_class=classes[0],
            negative_class=classes[1],
            strict=strict,
            progress=bars.advance,
        )
        bars.finish(f"{len(manifest):,} slices")
    write_manifest(manifest, output)
    if as_json:
        typer.echo(json.dumps(report.as_dict(), indent=2))
    else:
        show_import(report, output)


def _import_studies(
    source: Path,
    output: Path,
    *,
    source_format: Format,
    labels: Path | None,
    policy: IntakePolicy,
    classes: tuple[str, str],
    strict: bool,
    as_json: bool,
) -> None:
    if output.suffix.lower() == ".parquet":
        raise InputError(
            "CT studies are imported into a folder: the manifest, the slices in HU, and what intake says",
            where=str(output),
            fix="name a new folder with -o",
        )
    rows: list[IntakeRow] = []

    def note(series: CtSeries) -> None:
        rows.append(series.intake)
        if series.total:
            bars.advance(series.done, series.total)

    try:
        with Bars(quiet=as_json) as bars:
            bars.start("Reading series", 0)
            found = import_ct(
                source,
                output,
                source_format=source_format,
                labels=labels,
                policy=policy,
                classes=Classes(classes[0].strip(), classes[1].strip()),
                strict=strict,
                on_series=note,
            )
            bars.finish(f"{len(found.manifest):,} slices")
    except InputError:
        # The reasons are of most use where nothing could be taken.
        if rows and not as_json:
            show_intake(rows, source)
        raise
    if as_json:
        typer.echo(json.dumps(found.as_dict(), indent=2))
        return
    show_intake(rows, source)
    show_import(found.report, output)


def show_intake(rows: Sequence[IntakeRow], source: Path) -> None:
    """One row a series: what it is, what was done and why; refused ones first. No patient is named."""
    counts = Counter(row.decision for row in rows)
    listed = ", ".join(
        f"{counts[name]:,} {name}" for name in ("taken", "corrected", "refused", "noted") if counts[name]
    )
    table = Table(title=f"intake: {listed}", title_justify="left", box=box.SIMPLE)
    table.add_column("", no_wrap=True)
    table.add_column("from", overflow="fold")
    for name in ("slices", "size px", "slice mm"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("what was found", overflow="fold")
    order = list(_COLOURS)
    for row in sorted(rows, key=lambda row: order.index(row.decision))[:_MOST_ROWS]:
        findings = "\n".join(f"{item.reason} ({item.action}): {item.detail}" for item in row.findings)
        table.add_row(
            f"[{_COLOURS[row.decision]}]{row.decision}[/]",
            escape(_shorten(row.source, source)),
            f"{row.slices:,} of {row.slices_found:,}",
            "x".join(map(str, row.size_px)) if row.size_px else "",
            f"{row.spacing_mm[0]:.2f}" if row.spacing_mm else "",
            escape(findings),
        )
    console = Console()
    console.print(table)
    if len(rows) > _MOST_ROWS:
        console.print(f"and {len(rows) - _MOST_ROWS:,} more: see {INTAKE_NAME}, or --json")


def _shorten(text: str, source: Path) -> str:
    """A path from the source on, long names in it cut in the middle."""
    folder = source if source.is_dir() else source.parent
    half = _LONGEST_NAME // 2 - 1
    return "/".join(
        part if len(part) <= _LONGEST_NAME else f"{part[:half]}…{part[-half:]}"
        for part in text.removeprefix(f"{folder}/").split("/")
    )


# `cspine phantom`: a drawn set in the format that was asked for. No torch here.


PHANTOM_FORMATS = ("png", "nifti", "dicom", "rsna")


def run_phantom(output: Path, settings: PhantomSettings, file_format: str, slice_spacing_mm: float) -> None:
    """Write the set.

    Raises:
        InputError: an unknown format, or no distance of slices.
        OutputError: the folder exists and is not empty.
    """
    if not 0.1 <= slice_spacing_mm <= 10:
        raise InputError(
            f"slice_spacing_mm is {slice_spacing_mm:g}", where="--slice-spacing-mm", fix="give 0.1 to 10"
        )
    write = _find_writer(file_format, slice_spacing_mm)
    with Bars() as bars:
        bars.start("Drawing patients", settings.patients)
        write(output, settings, progress=bars.advance)
        bars.finish(str(output))


def _find_writer(file_format: str, slice_spacing_mm: float) -> Callable[..., Any]:
    if file_format not in PHANTOM_FORMATS:
        raise InputError(
            f"no such format: {file_format}",
            where="--format",
            fix=f"choose one of {', '.join(PHANTOM_FORMATS)}",
        )
    if file_format == "png":
        return write_phantom
    if file_format == "nifti":
        return partial(write_phantom_nifti, slice_spacing_mm=slice_spacing_mm)
    try:
        from cspine.phantom.series import write_phantom_dicom, write_phantom_rsna
    except ImportError:
        raise MissingExtraError("DICOM", "studies") from None
    write = write_phantom_rsna if file_format == "rsna" else write_phantom_dicom
    return partial(write, slice_spacing_mm=slice_spacing_mm)


# `cspine split`: one set, divided by whole groups into manifests of train, val and test. No torch here.


def run_split(
    source: Path,
    folder: Path,
    *,
    scheme: Scheme,
    folds: int,
    test_fraction: float,
    by: str,
    seed: int,
    repeats: int,
    positive_class: str,
    negative_class: str,
) -> None:
    """Divide a set and write one manifest a fold into a new folder.

    Raises:
        InputError: the set cannot be read, or cannot be divided in this way; the message has the counts.
        OutputError: the folder exists and is not empty.
    """
    with Bars() as bars:
        bars.start("Reading slices", 0)
        manifest, _ = import_dataset(
            source, positive_class=positive_class, negative_class=negative_class, progress=bars.advance
        )
        bars.finish(f"{len(manifest):,} slices")
        bars.start("Finding groups", 0)
        grouped, column = settle_groups(manifest, by, lambda _, done, total: bars.advance(done, total))
        bars.finish(f"by {column}")
    found = make_folds(
        grouped,
        scheme=scheme,
        folds=folds,
        test_fraction=test_fraction,
        by=column,
        seed=seed,
        repeats=repeats,
    )
    with atomic_folder(folder) as staging:
        for fold in found:
            write_manifest(fold.manifest, staging / f"{fold.name}.parquet")
    known = find_fold_column(manifest.table.filter(pl.col("label").is_not_null()))
    show_folds(found, column if known or by != "auto" else f"{column} (copies found from pixels)", folder)


def show_folds(found: list[Fold], column: str, folder: Path) -> None:
    """Counts of every part of every fold."""
    table = Table(title=f"whole groups by {column}; fracture + normal slices", title_justify="left", box=None)
    for name in ("fold", "train", "val", "test", "groups held out"):
        table.add_column(name, justify="left" if name == "fold" else "right")
    for fold in found:
        counts = []
        for split in ("train", "val", "test"):
            labels = fold.manifest.select(split).table["label"]
            counts.append(f"{int((labels == 1).sum()):,} + {int((labels == 0).sum()):,}")
        table.add_row(fold.name, *counts, f"{fold.groups:,}")
    console = Console()
    console.print(table)
    console.print(f"{len(found)} manifests in {escape(str(folder))}", soft_wrap=True, highlight=False)


# `cspine audit`: from a set, or a finished run, to findings, a page and an exit code. No torch here.


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
