"""`cspine import`: pictures to a manifest, CT studies to a folder with one. No torch here."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cspine.cli.screen import Bars, show_import
from cspine.data.labels_table import TABLE_NAMES
from cspine.data.layouts import MANIFEST_NAME, import_dataset
from cspine.data.manifest import write_manifest
from cspine.errors import InputError
from cspine.files import refuse_other_suffix, refuse_to_replace
from cspine.studies.ct_import import INTAKE_NAME, import_ct
from cspine.studies.ct_sources import FORMATS, Format, recognise_format
from cspine.studies.intake import IntakePolicy, IntakeRow, read_policy

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
    try:
        with Bars(quiet=as_json) as bars:
            bars.start("Reading series", 0)
            found = import_ct(
                source,
                output,
                source_format=source_format,
                labels=labels,
                policy=policy,
                positive_class=classes[0],
                negative_class=classes[1],
                strict=strict,
                on_row=rows.append,
                progress=bars.advance,
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
