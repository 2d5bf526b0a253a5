"""From CT series to a set that can be learned from: a folder with a manifest, the slices in HU, and intake's rows.

manifest.parquet     one row a slice
volumes/NNNN.npz     the slices of a series; -vertebrae and -fractures: masks beside it
series.parquet       one row a series: where it lies, ids, split, and the study's targets if they are known
boxes.parquet        boxes around fractures, if there are any
intake.json          the policy, and a row for every series and every file that could not be used
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
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
from cspine.core.types import Slice
from cspine.ct.annotations import (
    CtSeries,
    LabelTable,
    RsnaLabels,
    SeriesAnnotations,
    read_label_table,
    read_rsna_labels,
)
from cspine.ct.intake import IntakePolicy
from cspine.ct.series import Format, ReadOptions, Skip, read_series, recognise_format
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

CLASSES = Classes("fracture", "normal")
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
        """Return the report as JSON-able values, with the rows under `intake`; no patient is named."""
        return {**self.report.as_dict(), "intake": [row.as_dict() for row in self.rows]}


def import_ct(
    source: Path,
    output: Path,
    *,
    source_format: Format | None = None,
    labels: Path | None = None,
    policy: IntakePolicy | None = None,
    classes: Classes = CLASSES,
    strict: bool = False,
    on_series: Callable[[CtSeries], None] = lambda series: None,
) -> CtImport:
    """Import the CT series of a source into a new folder, which appears whole at the end or not at all.

    Args:
        source: See `ct.series`.
        output: A new or empty folder.
        source_format: None decides by what is there.
        labels: A table (`read_label_table`); None takes a `labels.csv`, `.tsv` or `.parquet` in the source folder, if
            there is one. The RSNA layout has its own tables.
        policy: What to do about what intake finds; None is the default one.
        classes: What the labels are called in the table; 1 and 0 are understood too.
        strict: Refuse the import if any series is refused.
        on_series: Called with every series when it has been imported or refused.

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
    known = read_rsna_labels(source) if source_format == "rsna" else _find_table(source, labels, classes)
    with atomic_folder(output) as folder:
        (folder / VOLUMES_NAME).mkdir()
        builder = _Builder(folder)
        options = ReadOptions(known.volumes if known else None, on_ignored=builder.ignore)
        for series in read_series(source, source_format, policy, known, options=options):
            builder.rows.append(series.intake)
            if series.volume is not None:
                builder.add(series.volume, series.annotations or SeriesAnnotations.of(series.volume))
            on_series(series)
            del series  # or its voxels would be held while the next series is read
        _refuse_empty(builder, source, strict)
        table = pl.concat(builder.tables)
        manifest = Manifest(table, folder, source_format, classes.positive, classes.negative)
        write_manifest(manifest, folder / MANIFEST_NAME)
        builder.write_tables(policy)
    manifest = Manifest(table, Path(output), source_format, classes.positive, classes.negative)
    notes = known.describe(table["label"]) if known else []
    if builder.ignored:
        files = "file that is not DICOM was" if builder.ignored == 1 else "files that are not DICOM were"
        notes.append(f"{builder.ignored:,} {files} passed over.")
    return CtImport(manifest, report_manifest(manifest, notes), tuple(builder.rows))


def _find_table(source: Path, labels: Path | None, classes: Classes) -> LabelTable | RsnaLabels | None:
    names = TABLE_NAMES if labels is None and source.is_dir() else ()
    path = labels or next((source / name for name in names if (source / name).is_file()), None)
    return None if path is None else read_label_table(path, classes)


def _refuse_empty(builder: _Builder, source: Path, strict: bool) -> None:
    refused = [row for row in builder.rows if row.decision == "refused"]
    if builder.tables and not (strict and refused):
        return
    reasons = Counter(
        str(finding.reason) for row in refused for finding in row.findings if finding.action == "refuse"
    )
    listed = ", ".join(f"{reason} ({count:,})" for reason, count in reasons.most_common()) or "no series"
    count = f"{len(refused):,}" if builder.tables else "none"
    verb = "are refused" if builder.tables else "can be taken"
    raise InputError(
        f"{count} of {len(builder.rows):,} series {verb}: {listed}",
        where=str(source),
        fix="see docs/intake.md for what the reasons mean, and which a policy may correct",
    )


@dataclass
class _Builder:
    """Writes what is imported into a folder, and collects its tables."""

    folder: Path
    rows: list[IntakeRow] = field(default_factory=list)
    tables: list[pl.DataFrame] = field(default_factory=list)
    series: list[dict[str, Any]] = field(default_factory=list)
    boxes: list[dict[str, Any]] = field(default_factory=list)
    ignored: int = 0

    def ignore(self, files: int) -> None:
        self.ignored += files

    def add(self, volume: Volume, known: SeriesAnnotations) -> None:
        stem = f"{VOLUMES_NAME}/{len(self.series):04d}"
        stored = write_stack(self.folder / (stem + SUFFIX), volume.hu)
        vertebrae = self._write_mask(f"{stem}-vertebrae{SUFFIX}", known.vertebrae)
        fractures = self._write_mask(f"{stem}-fractures{SUFFIX}", known.fractures)
        count = len(volume)
        shown = np.zeros(count, bool) if known.fractures is None else known.fractures.any(axis=(1, 2))
        columns: dict[str, Any] = {
            "slice_id": volume.slice_ids,
            "path": [stem + SUFFIX] * count,
            "label": known.labels,
            "split": [known.split] * count,
            "patient_id": [known.patient_id] * count,
            "study_uid": [volume.study_uid] * count,
            "series_uid": [volume.series_uid or volume.source] * count,
            "position": volume.positions_mm,
            "vertebra_level": known.levels,
            "fracture_type": known.kinds,
            "mask_path": [fractures if there else None for there in np.asarray(shown)],
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
        schema = {name: SCHEMA[name] for name in columns}
        self.tables.append(complete_table(pl.DataFrame(columns, schema=schema, strict=False)))
        self.series.append(
            {
                "path": stem + SUFFIX,
                "slices": count,
                "study_uid": volume.study_uid,
                "series_uid": volume.series_uid,
                "patient_id": known.patient_id,
                "split": known.split,
                "vertebrae_path": vertebrae,
                "fractures_path": fractures,
                **(known.study or {OVERALL: known.overall}),
            }
        )
        self.boxes += [
            {
                "slice_id": volume.slice_id(box.index),
                "x_px": box.x_px,
                "y_px": box.y_px,
                "width_px": box.width_px,
                "height_px": box.height_px,
            }
            for box in known.boxes
        ]

    def _write_mask(self, name: str, mask: npt.NDArray[np.uint8] | None) -> str | None:
        if mask is None:
            return None
        write_stack(self.folder / name, mask)
        return name

    def write_tables(self, policy: IntakePolicy) -> None:
        series = [{name: row.get(name) for name in SERIES_SCHEMA} for row in self.series]
        pl.DataFrame(series, schema=SERIES_SCHEMA).write_parquet(self.folder / SERIES_NAME)
        if self.boxes:
            pl.DataFrame(self.boxes, schema=BOXES_SCHEMA).write_parquet(self.folder / BOXES_NAME)
        rows = [row.as_dict() for row in self.rows]
        write_json(self.folder / INTAKE_NAME, {"policy": policy.model_dump(mode="json"), "intake": rows})


def read_series_labels(folder: Path) -> dict[str, int]:
    """Return what an imported folder knows of whole studies: series UID to 1 or 0; empty if it says nothing.

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


@dataclass(frozen=True)
class ImportedSlices:
    """The slices of one series of an imported set, in order of position; see `SeriesSlices`."""

    manifest: Manifest
    slice_ids: tuple[str, ...]
    positions_mm: npt.NDArray[np.float64]

    def slice(self, index: int, offsets_mm: Sequence[float]) -> Slice:
        """Return one slice, with those at `offsets_mm` from it in `around`."""
        return self.manifest.read_slice(self.slice_ids[index], offsets_mm)


def read_imported(manifest: Manifest, source: str, skip: Skip | None = None) -> Iterator[CtSeries]:
    """Read the series of an imported set, or of any manifest whose slices name theirs, one by one.

    Slices without a series are left out.
    """
    table = manifest.table.filter(pl.col("series_uid").is_not_null())
    labels = read_series_labels(manifest.root)
    parts = table.sort("position", "slice_id").partition_by("series_uid", as_dict=True)
    by_key = {str(key[0]): part for key, part in parts.items()}
    for done, key in enumerate(sorted(by_key), start=1):
        part = by_key[key]
        if skip is None or not skip(key, part["patient_id"][0]):
            known = SeriesAnnotations(
                labels=part["label"].to_list(),
                levels=part["vertebra_level"].to_list(),
                overall=labels.get(key),
            )
            slices = ImportedSlices(manifest, tuple(part["slice_id"]), _find_positions(part))
            row = _describe(source, key, part)
            yield CtSeries(row, slices, known, done=done, total=len(parts))


def _find_positions(part: pl.DataFrame) -> npt.NDArray[np.float64]:
    if part["position"].null_count():
        return np.arange(len(part), dtype=np.float64)
    return part["position"].to_numpy().astype(np.float64)


def _describe(source: str, key: str, part: pl.DataFrame) -> IntakeRow:
    first = part.row(0, named=True)
    return IntakeRow(
        source=source,
        format="imported",
        study_uid=first["study_uid"],
        series_uid=key,
        patient_id=first["patient_id"],
        slices_found=len(part),
        slices=len(part),
        size_px=(first["height_px"], first["width_px"]),
    )
