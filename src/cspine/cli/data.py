"""What `cspine import`, `phantom`, `split` and `audit` do and show. No torch here."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl
import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cspine.auditing.audit import settle_groups
from cspine.auditing.findings import VERDICT_WORDS, AuditResult, Change
from cspine.cli.screen import Bars, say, show_findings, show_import
from cspine.comparison.audit import audit, name_changes
from cspine.core.answers import IntakeRow
from cspine.core.errors import InputError, MissingExtraError
from cspine.core.files import atomic_folder, refuse_other_suffix, refuse_to_replace
from cspine.ct.annotations import CtSeries
from cspine.ct.importing import INTAKE_NAME, import_ct
from cspine.ct.intake import IntakePolicy, read_policy
from cspine.ct.series import FORMATS, Format, recognise_format
from cspine.data.layouts import MANIFEST_NAME, TABLE_NAMES, Classes, import_dataset
from cspine.data.manifest import read_manifest, write_manifest
from cspine.data.splits import Fold, Scheme, find_fold_column, make_folds
from cspine.phantom.dataset import write_phantom, write_phantom_nifti
from cspine.phantom.patient import PhantomSettings
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
    Console().print(table)
    say(f"{len(found)} manifests in {folder}")


def run_audit(
    source: Path, page: Path | None, fixed: Path | None, as_json: bool, classes: tuple[str, str]
) -> AuditResult:
    """Audit, write the page and the repaired manifest, print the findings. Errors as of `comparison.audit.audit`."""
    with Bars(quiet=as_json) as bars:
        result = audit(source, page, fixed, classes, bars)
    if as_json:
        typer.echo(json.dumps(result.model_dump(mode="json"), indent=2, allow_nan=False))
        return result
    show_audit(result, page)
    if fixed is not None:
        show_changes(result.changes or (), fixed)
    return result


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
        say(f"page: {page}")


def show_changes(changes: Sequence[Change], output: Path) -> None:
    """Every change, one a line, and where the new manifest is."""
    for one in changes:
        say(f"{one.change:>9} {one.path}: {one.reason}")
    say(f"{len(changes):,} changes, {len(read_manifest(output)):,} slices left; the files were not touched")
    say(f"repaired manifest: {output}; its changes: {name_changes(output)}")
