"""From CT studies to a set that can be learned from: a manifest of slices in HU, and what intake took and refused.

    source ── series by series ──▶ intake ──▶ volume ── labels ──▶ slices in a store ──▶ manifest

What is imported is one new folder:

    manifest.parquet     one row a slice
    volumes/NNNN.npz     the slices of a series (`data.hu_store`); -vertebrae and -fractures: masks beside it
    series.parquet       one row a series: where it lies, ids, split, and the study's targets where they are known
    boxes.parquet        boxes around fractures, where there are some
    intake.json          the policy, and a row for every series and every file that could not be used
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
from polars.exceptions import PolarsError

from cspine.core.answers import IntakeRow
from cspine.core.errors import InputError
from cspine.core.files import atomic_folder, write_json
from cspine.ct.annotations import Box, LabelTable, SeriesTruth, describe_join, find_truth, read_label_table
from cspine.ct.intake import IntakePolicy
from cspine.ct.sources import Format, FoundSeries, RsnaLabels, find_series, read_rsna_labels, recognise_format
from cspine.ct.volume import Volume
from cspine.data.layouts import MANIFEST_NAME, TABLE_NAMES, Classes, ImportReport, report_manifest
from cspine.data.manifest import (
    HU_BITS,
    HU_MODE,
    SCHEMA,
    SUFFIX,
    Manifest,
    complete_table,
    write_manifest,
    write_stack,
)
from cspine.data.regions import BOXES_NAME, BOXES_SCHEMA
from cspine.data.tables import OVERALL, TARGETS

SERIES_NAME, INTAKE_NAME, VOLUMES_NAME = "series.parquet", "intake.json", "volumes"
SERIES_SCHEMA = pl.Schema(
    {
        "path": pl.String,
        "slices": pl.Int32,
        "study_uid": pl.String,
        "series_uid": pl.String,
        "patient_id": pl.String,
        "split": pl.String,
        "vertebrae_path": pl.String,
        "fractures_path": pl.String,
        **{target: pl.Int8 for target in TARGETS},
    }
)
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class CtImport:
    """What an import made and met.

    Attributes:
        manifest: Its root is the folder.
        report: As for an import of pictures.
        rows: Of intake, in the order of the source.
    """

    manifest: Manifest
    report: ImportReport
    rows: tuple[IntakeRow, ...]

    def as_dict(self) -> dict[str, Any]:
        """JSON-able: the report, and the rows under `intake`; no patient is named."""
        return {**self.report.as_dict(), "intake": [row.as_dict() for row in self.rows]}


def read_series_labels(folder: Path) -> dict[str, int]:
    """What an imported folder knows of whole studies: series UID to 1 or 0; empty where it says nothing.

    Raises:
        InputError: the table cannot be read.
    """
    path = Path(folder) / SERIES_NAME
    if not path.is_file():
        return {}
    try:
        table = pl.read_parquet(path, columns=["series_uid", OVERALL]).drop_nulls()
    except (PolarsError, OSError) as error:
        raise InputError("not a table of series", where=str(path), fix="import the set again") from error
    return dict(table.iter_rows())


def import_ct(
    source: Path,
    output: Path,
    *,
    source_format: Format | None = None,
    labels: Path | None = None,
    policy: IntakePolicy | None = None,
    positive_class: str = "fracture",
    negative_class: str = "normal",
    strict: bool = False,
    on_row: Callable[[IntakeRow], None] | None = None,
    progress: Progress | None = None,
) -> CtImport:
    """Import the CT series of a source into a new folder, which appears whole at the end or not at all.

    Args:
        source: See `ct_sources`.
        output: A new or empty folder.
        source_format: None decides by what is there.
        labels: A table (`ct_truth.read_label_table`); None takes a `labels.csv`, `.tsv` or `.parquet` in the source
            folder, where there is one. The RSNA layout has its own tables.
        policy: What to do about what intake finds; None is the default one.
        positive_class, negative_class: What the labels are called in the table; 1 and 0 are understood too.
        strict: Refuse the import where any series is refused.
        on_row: Called with every row of intake as it is met.
        progress: Called as (series or studies done, all of them).

    Raises:
        InputError: there is nothing to import, everything is refused, or a table does not fit.
        MissingExtraError: the format's packages are not installed.
        OutputError: the folder is in use, or cannot be written.
    """
    source, policy = Path(source), policy or IntakePolicy()
    source_format = source_format or recognise_format(source)
    if source_format is None:
        raise InputError(
            "there are no DICOM or NIfTI files",
            where=str(source),
            fix="name a file, folder or zip that has some",
        )
    classes = Classes(positive_class.strip(), negative_class.strip())
    rsna = read_rsna_labels(source) if source_format == "rsna" else None
    table = None if rsna else _find_table(source, labels, classes)
    volumes = table.list_volumes() if table else None
    builder = _Builder(rows=[], tables=[], series=[], boxes=[])
    with atomic_folder(output) as folder:
        (folder / VOLUMES_NAME).mkdir()
        for found in find_series(
            source, source_format, policy, volumes=volumes, on_passed_over=builder.pass_over
        ):
            builder.rows.append(found.result.row)
            if on_row is not None:
                on_row(found.result.row)
            if found.result.volume is not None:
                truth = _find_truth(found, found.result.volume, table, rsna, builder.notes)
                builder.add(folder, found.result.volume, truth)
            if progress is not None and found.total:
                progress(found.done, found.total)
        _refuse_empty(builder, source, strict)
        whole = pl.concat(builder.tables)
        manifest = Manifest(whole, folder, source_format, classes.positive, classes.negative)
        write_manifest(manifest, folder / MANIFEST_NAME)
        _write_tables(folder, builder, policy)
    manifest = Manifest(whole, Path(output), source_format, classes.positive, classes.negative)
    notes = [*describe_join(table, builder.notes, whole["label"]), *(rsna.describe() if rsna else [])]
    if builder.passed_over:
        files = "file that is not DICOM was" if builder.passed_over == 1 else "files that are not DICOM were"
        notes.append(f"{builder.passed_over:,} {files} passed over.")
    return CtImport(manifest, report_manifest(manifest, notes), tuple(builder.rows))


def _find_table(source: Path, labels: Path | None, classes: Classes) -> LabelTable | None:
    if labels is not None:
        return read_label_table(labels, classes)
    if not source.is_dir():
        return None
    there = [source / name for name in TABLE_NAMES if (source / name).is_file()]
    return read_label_table(there[0], classes) if there else None


def _find_truth(
    found: FoundSeries,
    volume: Volume,
    table: LabelTable | None,
    rsna: RsnaLabels | None,
    notes: Counter[str],
) -> SeriesTruth:
    if rsna is not None:
        return rsna.find_truth(volume, found.frames, notes)
    return find_truth(volume, found.name, table, notes)


def _refuse_empty(builder: _Builder, source: Path, strict: bool) -> None:
    refused = [row for row in builder.rows if row.decision == "refused"]
    if builder.tables and not (strict and refused):
        return
    reasons = Counter(
        str(finding.reason) for row in refused for finding in row.findings if finding.action == "refuse"
    )
    listed = ", ".join(f"{reason} ({count:,})" for reason, count in reasons.most_common()) or "no series"
    count = (
        f"{len(refused):,} of {len(builder.rows):,}" if builder.tables else f"none of {len(builder.rows):,}"
    )
    verb = "are refused" if builder.tables else "can be taken"
    raise InputError(
        f"{count} series {verb}: {listed}",
        where=str(source),
        fix="see docs/intake.md for what the reasons mean, and which a policy may correct",
    )


@dataclass
class _Builder:
    """Collects what is imported."""

    rows: list[IntakeRow]
    tables: list[pl.DataFrame]
    series: list[dict[str, Any]]
    boxes: list[dict[str, Any]]
    notes: Counter[str] = field(default_factory=Counter)
    passed_over: int = 0

    def pass_over(self, files: int) -> None:
        """Count files that are not DICOM."""
        self.passed_over += files

    def add(self, folder: Path, volume: Volume, truth: SeriesTruth) -> None:
        """Write a volume and note its slices."""
        stem = f"{VOLUMES_NAME}/{len(self.series):04d}"
        stored = write_stack(folder / (stem + SUFFIX), volume.hu)
        vertebrae = _write_mask(folder, f"{stem}-vertebrae{SUFFIX}", truth.vertebrae)
        fractures = _write_mask(folder, f"{stem}-fractures{SUFFIX}", truth.fractures)
        self.tables.append(_make_rows(volume, truth, stem + SUFFIX, fractures, stored))
        self.series.append(
            {
                "path": stem + SUFFIX,
                "slices": len(volume),
                "study_uid": volume.study_uid,
                "series_uid": volume.series_uid,
                "patient_id": truth.patient_id,
                "split": truth.split,
                "vertebrae_path": vertebrae,
                "fractures_path": fractures,
                **(truth.study or {OVERALL: truth.overall}),
            }
        )
        self.boxes += [_make_box(volume, box) for box in truth.boxes]


def _write_mask(folder: Path, name: str, mask: npt.NDArray[np.uint8] | None) -> str | None:
    if mask is None:
        return None
    write_stack(folder / name, mask)
    return name


def _make_box(volume: Volume, box: Box) -> dict[str, Any]:
    return {
        "slice_id": volume.slice_id(box.index),
        "x_px": box.x_px,
        "y_px": box.y_px,
        "width_px": box.width_px,
        "height_px": box.height_px,
    }


def _make_rows(
    volume: Volume, truth: SeriesTruth, path: str, fractures: str | None, stored: Sequence[tuple[int, str]]
) -> pl.DataFrame:
    count = len(volume)
    shown = np.zeros(count, bool) if truth.fractures is None else np.asarray(truth.fractures.any(axis=(1, 2)))
    columns: dict[str, Any] = {
        "slice_id": [volume.slice_id(index) for index in range(count)],
        "path": [path] * count,
        "label": truth.labels,
        "split": [truth.split] * count,
        "patient_id": [truth.patient_id] * count,
        "study_uid": [volume.study_uid] * count,
        "series_uid": [volume.series_uid or volume.source] * count,
        "position": volume.positions_mm,
        "vertebra_level": truth.levels,
        "fracture_type": truth.kinds,
        "mask_path": [fractures if there else None for there in shown.tolist()],
        "width_px": [volume.hu.shape[2]] * count,
        "height_px": [volume.hu.shape[1]] * count,
        "mode": [HU_MODE] * count,
        "bits_stored": [HU_BITS] * count,
        "channels_differ": [False] * count,
        "file_bytes": [size for size, _ in stored],
        "file_sha256": [digest for _, digest in stored],
        "frame": range(count),
        "row_spacing_mm": [volume.spacing_mm[1]] * count,
        "column_spacing_mm": [volume.spacing_mm[2]] * count,
    }
    return complete_table(
        pl.DataFrame(columns, schema={name: SCHEMA[name] for name in columns}, strict=False)
    )


def _write_tables(folder: Path, builder: _Builder, policy: IntakePolicy) -> None:
    series = [{name: row.get(name) for name in SERIES_SCHEMA} for row in builder.series]
    pl.DataFrame(series, schema=SERIES_SCHEMA).write_parquet(folder / SERIES_NAME)
    if builder.boxes:
        pl.DataFrame(builder.boxes, schema=BOXES_SCHEMA).write_parquet(folder / BOXES_NAME)
    intake = {
        "policy": policy.model_dump(mode="json"),
        "intake": [row.as_dict() for row in builder.rows],
    }
    write_json(folder / INTAKE_NAME, intake)
