"""Series to be answered, whatever they were read from: their slices, their intake, and what is known of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import polars as pl

from cspine.core.answers import IntakeRow
from cspine.core.types import Slice
from cspine.ct.annotations import Box, LabelTable, Segmentations, SeriesTruth, find_levels, find_truth
from cspine.ct.importing import read_series_labels
from cspine.ct.intake import IntakePolicy
from cspine.ct.sources import Format, FoundSeries, Progress, RsnaLabels, Skip, find_series, read_rsna_labels
from cspine.ct.volume import OnBegin, Volume
from cspine.data.manifest import Manifest

Floats = npt.NDArray[np.float64]


class SeriesSlices(Protocol):
    """The slices of one series, from feet to head, to be read one by one."""

    @property
    def slice_ids(self) -> tuple[str, ...]:
        """Of all slices, in order."""

    @property
    def positions_mm(self) -> Floats:
        """(n,) Along the normal, growing."""

    def read(self, index: int, offsets_mm: Sequence[float]) -> Slice:
        """One of them, with those at `offsets_mm` from it in `around`; may be called by several threads."""


@dataclass(frozen=True)
class VolumeSlices:
    """The slices of a volume in memory."""

    volume: Volume

    @property
    def slice_ids(self) -> tuple[str, ...]:
        """Of all slices, in order."""
        return tuple(self.volume.slice_id(index) for index in range(len(self.volume)))

    @property
    def positions_mm(self) -> Floats:
        """(n,) Along the normal, growing."""
        return self.volume.positions_mm

    def read(self, index: int, offsets_mm: Sequence[float]) -> Slice:
        """One of them, with those at `offsets_mm` from it in `around`."""
        return self.volume.slice(index, offsets_mm)


@dataclass(frozen=True)
class ManifestSlices:
    """The slices of one series of an imported set.

    Attributes:
        manifest: The set.
        slice_ids: Of the series, in order of position.
        positions_mm: (n,) Growing.
    """

    manifest: Manifest
    slice_ids: tuple[str, ...]
    positions_mm: Floats

    def read(self, index: int, offsets_mm: Sequence[float]) -> Slice:
        """One of them, with those at `offsets_mm` from it in `around`."""
        return self.manifest.read_slice(self.slice_ids[index], offsets_mm)


@dataclass(frozen=True)
class SeriesToAnswer:
    """One series, or one file that belongs to none.

    Attributes:
        intake: How it was read.
        slices: None where intake refused it.
        levels: The cervical vertebra of each slice, or None; empty where nothing says.
        truth: 1 where the study is known to be broken, 0 where it is known to be whole, else None.
        volume: What the slices are of, where they were read into one.
        boxes: Around fractures, where they are known.
        fractures: (slice, row, column) uint8 mask of them, where it is known.
        frames: Headers of the DICOM series that it was read from; else empty.
        done, total: How far the source is read; total is 0 where nobody knows.
    """

    intake: IntakeRow
    slices: SeriesSlices | None
    levels: tuple[str | None, ...] = ()
    truth: int | None = None
    volume: Volume | None = None
    boxes: tuple[Box, ...] = ()
    fractures: npt.NDArray[np.uint8] | None = None
    frames: tuple[Any, ...] = ()
    done: int = 0
    total: int = 0

    @property
    def key(self) -> str:
        """What it is called by: its series, or where it was read from."""
        return self.intake.series_uid or self.intake.source

    @property
    def voxels(self) -> int:
        """In memory."""
        return 0 if self.volume is None else int(self.volume.hu.size)


def read_series(
    source: Path,
    source_format: Format,
    policy: IntakePolicy,
    *,
    labels: LabelTable | None = None,
    segmentations: Segmentations | None = None,
    skip: Skip | None = None,
    progress: Progress | None = None,
    on_begin: OnBegin | None = None,
) -> Iterator[SeriesToAnswer]:
    """Read the series of a CT source one by one; one is in memory at a time.

    Args:
        source, source_format, policy: As for `find_series`.
        labels: What is known of slices, series or studies; the RSNA layout has its own tables.
        segmentations: Where vertebrae are segmented; the RSNA layout has its own.
        skip: Called with key and Patient ID of a series before its pixels are read; where it is true, it is left out.
        progress, on_begin: As for `find_series`.

    Raises:
        InputError, MissingExtraError: as `find_series`, or a table does not fit.
    """
    rsna = read_rsna_labels(source) if source_format == "rsna" else None
    for found in find_series(source, source_format, policy, progress=progress, skip=skip, on_begin=on_begin):
        volume = found.result.volume
        if volume is None:
            yield SeriesToAnswer(
                found.result.row, None, frames=found.frames, done=found.done, total=found.total
            )
            continue
        truth = _find_truth(found, volume, rsna, labels)
        levels: Sequence[str | None] = truth.levels
        if not any(levels) and segmentations is not None:
            mask = segmentations.find(volume)
            levels = () if mask is None else find_levels(mask)
        yield SeriesToAnswer(
            intake=found.result.row,
            slices=VolumeSlices(volume),
            levels=tuple(levels) if any(levels) else (),
            truth=_find_label(truth),
            volume=volume,
            boxes=tuple(truth.boxes),
            fractures=truth.fractures,
            frames=found.frames,
            done=found.done,
            total=found.total,
        )
        del found, volume, truth  # or they would be held while the next series is read


def _find_truth(
    found: FoundSeries, volume: Volume, rsna: RsnaLabels | None, labels: LabelTable | None
) -> SeriesTruth:
    notes: Counter[str] = Counter()
    if rsna is not None:
        return rsna.find_truth(volume, found.frames, notes)
    return find_truth(volume, found.name, labels, notes)


def _find_label(truth: SeriesTruth) -> int | None:
    """The study's own label, else what its slices say: one that shows a fracture, or all of them whole."""
    if truth.overall is not None:
        return truth.overall
    if 1 in truth.labels:
        return 1
    return None if None in truth.labels else 0


def read_imported(manifest: Manifest, source: str, skip: Skip | None = None) -> Iterator[SeriesToAnswer]:
    """The series of an imported set, or of any manifest whose slices name theirs, one by one.

    Slices without a series are left out.
    """
    table = manifest.table.filter(pl.col("series_uid").is_not_null())
    known = read_series_labels(manifest.root)
    parts = table.sort("position", "slice_id").partition_by("series_uid", as_dict=True)
    keys = sorted(str(key[0]) for key in parts)
    for done, key in enumerate(keys):
        part = parts[(key,)]
        if skip is not None and skip(key, part["patient_id"][0]):
            continue
        yield _take_imported(manifest, source, part, key, known, (done + 1, len(keys)))


def _take_imported(
    manifest: Manifest,
    source: str,
    part: pl.DataFrame,
    key: str,
    known: Mapping[str, int],
    progress: tuple[int, int],
) -> SeriesToAnswer:
    first = part.row(0, named=True)
    labels = part["label"].to_list()
    truth = known.get(key, 1 if 1 in labels else None if None in labels else 0)
    levels = part["vertebra_level"].to_list()
    positions = part["position"]
    return SeriesToAnswer(
        intake=IntakeRow(
            source=source,
            format="imported",
            study_uid=first["study_uid"],
            series_uid=key,
            patient_id=first["patient_id"],
            slices_found=len(part),
            slices=len(part),
            size_px=(first["height_px"], first["width_px"]),
        ),
        slices=ManifestSlices(
            manifest,
            tuple(part["slice_id"]),
            np.arange(len(part), dtype=np.float64)
            if positions.null_count()
            else positions.to_numpy().astype(np.float64),
        ),
        levels=tuple(levels) if any(levels) else (),
        truth=truth,
        done=progress[0],
        total=progress[1],
    )
