"""What is known of CT series beside their pixels: labels from a table, boxes, segmentations.

A slice is labelled by what is known of that very slice, in this order: its own row in a table of slices; a box or a
fracture mask, which also tell the slices that show nothing; a study without a fracture, all of whose slices are 0.
A study with a fracture says of none of its slices that it shows it: they have no label, and the report counts them.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import polars as pl

from cspine.core.errors import InputError
from cspine.ct.nifti import SUFFIXES, read_nifti_labels
from cspine.ct.volume import SeriesSlices, Volume
from cspine.data.layouts import Classes, translate_labels
from cspine.data.tables import (
    OVERALL,
    TARGETS,
    VERTEBRAE,
    cast_numbers,
    number_rows,
    read_study_labels,
    read_text_table,
    refuse_cells,
)

if TYPE_CHECKING:
    from cspine.core.answers import IntakeRow
    from cspine.ct.dicom_files import Frame

KEYS = ("slice_id", "series_uid", "study_uid", "volume")
"""Columns by which a table may name what its rows are of; the first that it has counts."""
TRAIN_TABLE, BOXES_TABLE, SEGMENTATIONS = "train.csv", "train_bounding_boxes.csv", "segmentations"
TOTALSEGMENTATOR = {44 + place: 7 - place for place in range(7)}
"""Labels of the task `total`, version 2, to 1 to 7 for C1 to C7 (its class map: 44 is vertebrae_C7)."""

_TEXTS = ("patient_id", "vertebra_level", "fracture_type", "segmentation", "fracture_mask")
_BOX_NUMBERS = ("x", "y", "width", "height")
# The highest label of a numbering that counts vertebrae down from C1 (VerSe's: a thirteenth thoracic one).
_MOST_BY_VERTEBRA = 28

Mask = npt.NDArray[np.uint8]
LabelRow = dict[str, str | int | None]


@dataclass(frozen=True, slots=True)
class Box:
    """A box around a fracture, in pixels of a slice of the volume; the centre of the first pixel is 0, 0."""

    index: int
    x_px: float
    y_px: float
    width_px: float
    height_px: float


@dataclass
class SeriesAnnotations:
    """What is known of the slices of one volume.

    Attributes:
        labels: 1, 0 or None, for each slice; `levels` and `kinds` (of fracture) likewise.
        vertebrae, fractures: (slice, row, column) uint8 beside the HU, if a mask was given.
        study: `TARGETS` to 0 or 1, if all are known.
        overall: Whether the study shows a fracture, if known.
    """

    labels: list[int | None]
    levels: list[str | None]
    kinds: list[str | None] = field(default_factory=list)
    patient_id: str | None = None
    split: str | None = None
    study: dict[str, int] | None = None
    overall: int | None = None
    vertebrae: Mask | None = None
    fractures: Mask | None = None
    boxes: list[Box] = field(default_factory=list)

    @classmethod
    def of(cls, volume: Volume) -> SeriesAnnotations:
        """Return what a volume says by itself: its patient."""
        nothing: list[None] = [None] * len(volume)
        return cls([*nothing], [*nothing], [*nothing], patient_id=volume.patient_id)

    def complete(self, study_label: int | None) -> None:
        """Fill in what masks, boxes and the study's label say of slices; labels that are there stay."""
        self.overall = study_label
        if self.vertebrae is not None:
            found = find_levels(self.vertebrae)
            self.levels = [own or level for own, level in zip(self.levels, found, strict=True)]
        shown: set[int] | None = None
        if self.fractures is not None:
            shown = set(np.flatnonzero(self.fractures.any(axis=(1, 2))).tolist())
        elif self.boxes:
            shown = {box.index for box in self.boxes}
        for index, label in enumerate(self.labels):
            if label is None and shown is not None:
                self.labels[index] = int(index in shown)
            elif label is None and study_label == 0:
                self.labels[index] = 0

    def find_study_label(self) -> int | None:
        """Return the study's own label, else what its slices say: any fracture, or all of them without one."""
        if self.overall is not None:
            return self.overall
        if 1 in self.labels:
            return 1
        return None if None in self.labels else 0


@dataclass(frozen=True)
class CtSeries:
    """One series, or one file that belongs to none.

    Attributes:
        intake: How it was read.
        slices: None if intake refused it.
        annotations: None if nothing is known.
        name: By which a table may name it: the file's path from the source folder; None for DICOM.
        frames: DICOM headers of the series, whatever intake made of them; else empty.
        done, total: How far the source is read; total is 0 if unknown.
    """

    intake: IntakeRow
    slices: SeriesSlices | None = None
    annotations: SeriesAnnotations | None = None
    name: str | None = None
    frames: tuple[Frame, ...] = ()
    done: int = 0
    total: int = 0

    @property
    def key(self) -> str:
        """Its Series Instance UID, or where it was read from."""
        return self.intake.series_uid or self.intake.source

    @property
    def volume(self) -> Volume | None:
        """Its volume, if it was read into one."""
        return self.slices if isinstance(self.slices, Volume) else None

    @property
    def levels(self) -> tuple[str | None, ...]:
        """The cervical vertebra of each slice, or None; empty if nothing is known."""
        levels = () if self.annotations is None else self.annotations.levels
        return tuple(levels) if any(levels) else ()

    @property
    def truth(self) -> int | None:
        """1 if the study is known to show a fracture, 0 if it is known to show none, else None."""
        return None if self.annotations is None else self.annotations.find_study_label()


def find_levels(vertebrae: Mask) -> list[str | None]:
    """Return the cervical vertebra with the largest area in each slice (labels 1 to 7), or None."""
    levels: list[str | None] = []
    for mask in vertebrae:
        areas = np.bincount(mask.ravel(), minlength=8)[1:8]
        levels.append(VERTEBRAE[int(areas.argmax())] if areas.any() else None)
    return levels


@dataclass
class LabelTable:
    """A table of labels.

    Attributes:
        path: Paths in the table are relative to its folder.
        key: Which of `KEYS` its rows are named by.
        rows: Key to `label` 0, 1 or None, `split`, texts, and `TARGETS` if the table has all of them.
        used: Keys for which a series or slice was found.
        notes: What could not be joined, to how many.
    """

    path: Path
    key: str
    rows: Mapping[str, LabelRow]
    used: set[str] = field(default_factory=set)
    notes: Counter[str] = field(default_factory=Counter)

    @property
    def volumes(self) -> list[str] | None:
        """The NIfTI files that it names; None if its rows are of something else."""
        return list(self.rows) if self.key == "volume" else None

    def annotate(self, volume: Volume, name: str | None, frames: Sequence[Frame] = ()) -> SeriesAnnotations:
        """Return what the table says of a volume, and the masks that it names.

        Args:
            volume: Taken by intake.
            name: The file's path, for the key `volume`.
            frames: Not needed here.
        """
        found = SeriesAnnotations.of(volume)
        if self.key == "slice_id":
            self._take_slice_rows(found, volume)
            return found
        row = self._find(
            {"series_uid": volume.series_uid, "study_uid": volume.study_uid, "volume": name}[self.key]
        )
        if row is None:
            self.notes["series are not in the table of labels"] += 1
            return found
        found.patient_id = _text(row, "patient_id") or found.patient_id
        found.split = _text(row, "split")
        # An empty cell says that nothing is known, not that nothing is broken.
        study = {target: int(value) for target in TARGETS if (value := row.get(target)) is not None}
        found.study = study if len(study) == len(TARGETS) else None
        found.vertebrae = self._read_mask(row, "segmentation", volume)
        found.fractures = self._read_mask(row, "fracture_mask", volume)
        label, overall = row.get("label"), row.get(OVERALL)
        found.complete(_first_known(label, overall))
        found.overall = _first_known(overall, label)
        return found

    def describe(self, labels: Iterable[int | None]) -> list[str]:
        """Return sentences for the report; `labels` are those of all slices that were taken."""
        sentences = [f"{count:,} {what}." for what, count in self.notes.items()]
        if left := len(self.rows) - len(self.used):
            sentences.append(f"{left:,} rows of {self.path.name} name a {self.key} that was not taken.")
        if self.key != "slice_id" and (unknown := sum(label is None for label in labels)):
            sentences.append(
                f"{unknown:,} slices are of studies with a fracture, and nothing says which of their slices show it."
            )
        return sentences

    def _find(self, key: str | None) -> LabelRow | None:
        if key is None or key not in self.rows:
            return None
        self.used.add(key)
        return self.rows[key]

    def _take_slice_rows(self, found: SeriesAnnotations, volume: Volume) -> None:
        for index, slice_id in enumerate(volume.slice_ids):
            row = self._find(slice_id)
            if row is None:
                continue
            found.labels[index] = _first_known(row.get("label"))
            found.levels[index], found.kinds[index] = (
                _text(row, "vertebra_level"),
                _text(row, "fracture_type"),
            )
            found.patient_id = _text(row, "patient_id") or found.patient_id
            found.split = _text(row, "split") or found.split

    def _read_mask(self, row: LabelRow, column: str, volume: Volume) -> Mask | None:
        name = _text(row, column)
        return None if name is None else _read_mask(self.path.parent / name, volume, self.notes)


def read_label_table(path: Path, classes: Classes) -> LabelTable:
    """Read a table that has one of `KEYS`, and may have labels, splits, ids, levels, masks and study targets.

    Raises:
        InputError: it cannot be read, lacks a key, or a cell does not fit; the message names the row, never an id.
    """
    table = read_text_table(path, (), what="labels table", row="slice or study")
    key = next((name for name in KEYS if name in table.columns), None)
    if key is None:
        raise InputError(
            f"the labels table names neither slices nor studies; its columns: {', '.join(table.columns)}",
            where=str(path),
            fix=f"give it one of the columns {', '.join(KEYS)}",
        )
    table = number_rows(table, path)
    refuse_cells(table, pl.col(key).is_null(), key, f"no {key}", path)
    refuse_cells(table, pl.col(key).is_duplicated(), key, f"a {key} that another row has too", path)
    table = translate_labels(table, classes, path)
    targets = TARGETS if set(table.columns) >= {target.lower() for target in TARGETS} else ()
    for target in targets:
        name = target.lower()
        refuse_cells(table, ~pl.col(name).is_in(["0", "1"]), name, f"a {name} that is none of 0, 1", path)
        table = table.with_columns(pl.col(name).cast(pl.Int8).alias(target))
    kept = [name for name in (*_TEXTS, "label", "split", *targets) if name in table.columns]
    rows = {row[key]: {name: row[name] for name in kept} for row in table.iter_rows(named=True)}
    return LabelTable(path, key, rows)


def _first_known(*values: str | int | None) -> int | None:
    return next((int(value) for value in values if value is not None), None)


def _text(row: LabelRow, name: str) -> str | None:
    value = row.get(name)
    return None if value is None else str(value)


def _read_mask(path: Path, volume: Volume, notes: Counter[str]) -> Mask | None:
    """Read a label map on the grid of a volume; None, and a note, if it cannot be used."""
    try:
        return read_nifti_labels(path, volume)
    except InputError as error:
        notes[f"masks could not be used: {error.what}"] += 1
        return None


# The RSNA 2022 Cervical Spine Fracture Detection challenge (Lin et al., Radiology: Artificial Intelligence 2023,
# doi 10.1148/ryai.230034): boxes were drawn around fractures on axial slices of a part of the fractured studies.


@dataclass(frozen=True, slots=True)
class StoredBox:
    """A box in pixels of the DICOM file `slice_number`, from the corner of its first pixel."""

    slice_number: int
    x: float
    y: float
    width: float
    height: float


@dataclass
class RsnaLabels:
    """The tables and segmentations of the challenge's folder.

    Attributes:
        root: The folder; `segmentations/<StudyInstanceUID>.nii`: 1 to 7 are C1 to C7, 8 and above thoracic.
        studies: Study UID to `TARGETS`.
        patients: Study UID to patient, if the table has a column for it; the challenge's has not.
        boxes: Study UID to its boxes.
        taken: Studies for which a volume was found.
        notes: What could not be joined, to how many.
    """

    root: Path
    studies: dict[str, dict[str, int]]
    patients: dict[str, str | None]
    boxes: dict[str, list[StoredBox]]
    taken: set[str] = field(default_factory=set)
    notes: Counter[str] = field(default_factory=Counter)

    volumes = None

    def annotate(self, volume: Volume, name: str | None, frames: Sequence[Frame] = ()) -> SeriesAnnotations:
        """Return what the tables and the segmentation say of a volume; `frames`, read into it, place its boxes."""
        study = volume.study_uid or ""
        found = SeriesAnnotations.of(volume)
        found.study = self.studies.get(study)
        if found.study is None:
            self.notes[f"series are of studies that {TRAIN_TABLE} does not name"] += 1
        self.taken.add(study)
        found.patient_id = self.patients.get(study) or found.patient_id
        paths = (self.root / SEGMENTATIONS / f"{study}{suffix}" for suffix in SUFFIXES)
        path = next((path for path in paths if study and path.is_file()), None)
        found.vertebrae = None if path is None else _read_mask(path, volume, self.notes)
        by_number = {_find_number(frame): frame for frame in frames}
        for stored in self.boxes.get(study, ()):
            frame = by_number.get(stored.slice_number)
            if frame is None or frame.image_position_mm is None or frame.image_orientation is None:
                self.notes["boxes are of slices that were not taken"] += 1
            else:
                found.boxes.append(place_box(stored, frame, volume))
        found.complete(None if found.study is None else found.study[OVERALL])
        return found

    def describe(self, labels: Iterable[int | None]) -> list[str]:
        """Return sentences for the report; `labels` are not needed here."""
        sentences = [f"{count:,} {what}." for what, count in self.notes.items()]
        if left := len(self.studies.keys() - self.taken):
            sentences.append(f"{left:,} of {len(self.studies):,} studies of {TRAIN_TABLE} were not taken.")
        broken = [study for study in self.taken if self.studies.get(study, {}).get(OVERALL)]
        if unboxed := sum(study not in self.boxes for study in broken):
            sentences.append(
                f"{unboxed:,} of {len(broken):,} studies with a fracture have no boxes: nothing says which of their "
                "slices show it, and these stay without a label."
            )
        return sentences


def read_rsna_labels(root: Path) -> RsnaLabels:
    """Read the tables of the challenge's folder; boxes and segmentations may be missing.

    Raises:
        InputError: `train.csv` is missing, or a table cannot be read; the message names the row.
    """
    table_path, boxes_path = root / TRAIN_TABLE, root / BOXES_TABLE
    if not table_path.is_file():
        raise InputError(f"there is no {TRAIN_TABLE}", where=str(root), fix="name the challenge's folder")
    studies: dict[str, dict[str, int]] = {}
    patients: dict[str, str | None] = {}
    for row in read_study_labels(table_path).iter_rows(named=True):
        studies[row["study_uid"]] = {target: int(row[target]) for target in TARGETS}
        patients[row["study_uid"]] = row["patient_id"]
    boxes = _read_boxes(boxes_path, studies) if boxes_path.is_file() else {}
    return RsnaLabels(root, studies, patients, boxes)


def _read_boxes(path: Path, studies: Iterable[str]) -> dict[str, list[StoredBox]]:
    needed = ("studyinstanceuid", *_BOX_NUMBERS, "slice_number")
    table = number_rows(read_text_table(path, needed, what="table of boxes", row="box"), path)
    unknown = ~pl.col("studyinstanceuid").is_in(list(studies)).fill_null(False)
    refuse_cells(table, unknown, "studyinstanceuid", f"a study that is not in {TRAIN_TABLE}", path)
    for name in _BOX_NUMBERS:
        refuse_cells(table, pl.col(name).is_null(), name, f"no {name}", path)
        table = cast_numbers(table, name, pl.Float64, path)
    refuse_cells(table, pl.col("slice_number").is_null(), "slice_number", "no slice number", path)
    table = cast_numbers(table, "slice_number", pl.Int64, path)
    for name in ("width", "height"):
        refuse_cells(table, pl.col(name) <= 0, name, f"a {name} that is not above 0", path)
    boxes: dict[str, list[StoredBox]] = defaultdict(list)
    for row in table.iter_rows(named=True):
        numbers = (float(row[name]) for name in _BOX_NUMBERS)
        boxes[row["studyinstanceuid"]].append(StoredBox(row["slice_number"], *numbers))
    return dict(boxes)


def _find_number(frame: Frame) -> int | None:
    """Return the slice number of a file: its name, as the challenge has it."""
    stem = Path(frame.file.member or frame.file.path).stem
    return int(stem) if stem.isdigit() else None


def place_box(stored: StoredBox, frame: Frame, volume: Volume) -> Box:
    """Bring a box from the pixels of a DICOM file to those of the nearest slice of the volume.

    It goes through patient coordinates (PS3.3 C.7.6.2.1.1), so it fits whatever intake did: reversed rows, a corrected
    gantry tilt, filled gaps.
    """
    assert frame.image_orientation is not None
    assert frame.pixel_spacing_mm is not None
    right, down = (np.array(axis) for axis in frame.image_orientation)
    row_mm, column_mm = frame.pixel_spacing_mm
    # Boxes count from the corner of the first pixel, Image Position is that of its centre.
    corners = np.array(
        [
            np.array(frame.image_position_mm) + right * (x - 0.5) * column_mm + down * (y - 0.5) * row_mm
            for x, y in ((stored.x, stored.y), (stored.x + stored.width, stored.y + stored.height))
        ]
    )
    position = float(np.mean(corners @ np.asarray(volume.direction[0])))
    index = int(np.abs(volume.positions_mm - position).argmin())
    within = corners - volume.origins_mm[index]
    rows = within @ np.asarray(volume.direction[1]) / volume.spacing_mm[1]
    columns = within @ np.asarray(volume.direction[2]) / volume.spacing_mm[2]
    return Box(
        index=index,
        x_px=float(columns.min()),
        y_px=float(rows.min()),
        width_px=float(np.ptp(columns)),
        height_px=float(np.ptp(rows)),
    )


@dataclass(frozen=True)
class Segmentations:
    """A folder of vertebrae that another program segmented, on the grids of the volumes.

        <UID>.nii or .nii.gz            one label map: 1 to 7 are C1 to C7, or TotalSegmentator's (`--ml`) 50 to 44
        <UID>/vertebrae_C1.nii.gz ...   TotalSegmentator's folder of one structure a file

    <UID> is a Series or Study Instance UID, or the name of a NIfTI file. A folder that holds structures itself is taken
    for every series whose grid it fits.

    Attributes:
        root: The folder.
        unusable: What was wrong with those that are named after a volume and do not fit it.
    """

    root: Path
    unusable: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not self.root.is_dir():
            raise InputError(
                "there is no such folder of segmentations", where=str(self.root), fix="name a folder"
            )

    def find(self, volume: Volume) -> Mask | None:
        """Return (slice, row, column) uint8, 1 to 7 for C1 to C7; None if no segmentation is of this volume.

        One that is named after it and cannot be used is noted in `unusable`: an answer needs no levels.
        """
        for name in _list_names(volume):
            try:
                found = self._read(name, volume)
            except InputError as error:
                self.unusable.append(f"{error.where}: {error.what}")
                return None
            if found is not None:
                return found
        try:
            return _read_structures(self.root, volume)
        except InputError:
            return None  # not named after this volume, and of another one

    def _read(self, name: str, volume: Volume) -> Mask | None:
        # A UID or a file's name may hold what leads out of the folder.
        if Path(name).name != name:
            return None
        for suffix in SUFFIXES:
            path = self.root / f"{name}{suffix}"
            if path.is_file():
                return translate_mask(read_nifti_labels(path, volume))
        return _read_structures(self.root / name, volume)


def _list_names(volume: Volume) -> Iterator[str]:
    stem = Path(volume.source).name.removesuffix(".gz").removesuffix(".nii")
    yield from dict.fromkeys(name for name in (volume.series_uid, volume.study_uid, stem) if name)


def _read_structures(folder: Path, volume: Volume) -> Mask | None:
    whole: Mask | None = None
    for number, vertebra in enumerate(VERTEBRAE, start=1):
        paths = (folder / f"vertebrae_{vertebra}{suffix}" for suffix in SUFFIXES)
        path = next((path for path in paths if path.is_file()), None)
        if path is not None:
            mask = read_nifti_labels(path, volume)
            whole = np.zeros_like(mask) if whole is None else whole
            whole[mask > 0] = number
    return whole


def translate_mask(labels: Mask) -> Mask:
    """Return labels of either numbering as 1 to 7 for C1 to C7, 0 elsewhere."""
    table = np.zeros(256, np.uint8)
    # TotalSegmentator's own 1 to 7 are organs; its numbering is known by any label that no vertebra has.
    if labels.max() > _MOST_BY_VERTEBRA:
        for theirs, ours in TOTALSEGMENTATOR.items():
            table[theirs] = ours
    else:
        table[1:8] = range(1, 8)
    return table[labels]
