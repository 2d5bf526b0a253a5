"""Labels of CT series: a table joined by id, masks on the grid of the volume, boxes.

A slice is called by what is known of that very slice, in this order: its own row in a table of slices; a box or a
fracture mask, which also tell the slices that show nothing; or a study that is whole, all of whose slices are. That a
study is broken says of none of its slices that it shows the fracture: those have no label, and the report counts them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

from cspine.core.errors import InputError
from cspine.ct.nifti import SUFFIXES, read_nifti_labels
from cspine.ct.volume import Volume
from cspine.data.layouts import SPLIT_NAMES, Classes
from cspine.data.tables import OVERALL, TARGETS, VERTEBRAE, number_rows, read_text_table, refuse_cells

KEYS = ("slice_id", "series_uid", "study_uid", "volume")
"""Columns by which a table may name what its rows are of; the first that it has counts."""
_TEXTS = ("patient_id", "vertebra_level", "fracture_type", "segmentation", "fracture_mask")
_COLUMNS = ("label", "split", *_TEXTS)


@dataclass(frozen=True, slots=True)
class Box:
    """Around a fracture, in pixels of a slice of the volume: the first pixel's middle is 0, 0."""

    index: int
    x_px: float
    y_px: float
    width_px: float
    height_px: float


@dataclass
class SeriesTruth:
    """What is known of the slices of one volume.

    Attributes:
        labels: 1, 0 or None, for each slice; `levels` and `kinds` likewise.
        vertebrae, fractures: (slice, row, column) uint8 beside the HU, where a mask was given.
        study: The challenge's targets, where they are known.
        overall: Whether the study shows a fracture, where that is known.
    """

    labels: list[int | None]
    levels: list[str | None]
    kinds: list[str | None]
    patient_id: str | None = None
    split: str | None = None
    study: dict[str, int] | None = None
    overall: int | None = None
    vertebrae: npt.NDArray[np.uint8] | None = None
    fractures: npt.NDArray[np.uint8] | None = None
    boxes: list[Box] = field(default_factory=list)


Row = dict[str, str | int | None]


@dataclass
class LabelTable:
    """A table of labels.

    Attributes:
        path: Where it lies; the paths in it start from its folder.
        key: Which of `KEYS` its rows are named by.
        rows: Key to what the row says: `label` 0, 1 or None, `split`, texts, and `TARGETS` where it has them all.
        used: Keys that a series or slice was found for.
    """

    path: Path
    key: str
    rows: Mapping[str, Row]
    used: set[str] = field(default_factory=set)

    def find(self, key: str | None) -> Row | None:
        """The row of a key, which is then used."""
        row = self.rows.get(key) if key is not None else None
        if row is not None and key is not None:
            self.used.add(key)
        return row

    def list_volumes(self) -> list[str] | None:
        """The NIfTI files that it names; None where its rows are of something else."""
        return list(self.rows) if self.key == "volume" else None


def read_label_table(path: Path, classes: Classes) -> LabelTable:
    """Read a table: one of `KEYS`, and any of label, split, patient_id, vertebra_level, fracture_type, segmentation,
    fracture_mask, patient_overall and C1 to C7.

    Raises:
        InputError: it cannot be read, lacks a key, or a cell does not fit; the message names the row, never an id.
    """  # noqa: D205
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
    words = {classes.positive.casefold(): 1, classes.negative.casefold(): 0, "1": 1, "0": 0}
    columns: dict[str, list[str | int | None]] = {
        name: list(table[name]) for name in _TEXTS if name in table.columns
    }
    for name, meaning in (("label", words), ("split", {n: str(s) for n, s in SPLIT_NAMES.items()})):
        if name in table.columns:
            columns[name] = _translate(table, name, meaning, path)
    if set(table.columns) >= {target.lower() for target in TARGETS}:
        for target in TARGETS:
            columns[target] = _translate(table, target.lower(), {"0": 0, "1": 1}, path)
    rows = {
        str(value): {name: cells[number] for name, cells in columns.items()}
        for number, value in enumerate(table[key])
    }
    return LabelTable(path, key, rows)


def _translate(
    table: pl.DataFrame, name: str, words: Mapping[str, str | int], path: Path
) -> list[str | int | None]:
    cells = [cell if cell is None else cell.casefold() for cell in table[name]]
    wrong = pl.Series([cell is not None and cell not in words for cell in cells], dtype=pl.Boolean)
    refuse_cells(table, wrong, name, f"a {name} that is none of {', '.join(words)}", path)
    return [None if cell is None else words[cell] for cell in cells]


def find_truth(
    volume: Volume, name: str | None, table: LabelTable | None, notes: Counter[str]
) -> SeriesTruth:
    """What a table says of a volume, and the masks that it names.

    Args:
        volume: Taken by intake.
        name: By which a table may name it, for `volume`.
        table: None is none at all.
        notes: Gets what could not be joined, to how many.
    """
    nothing: list[None] = [None] * len(volume)
    truth = SeriesTruth(labels=[*nothing], levels=[*nothing], kinds=[*nothing], patient_id=volume.patient_id)
    if table is None:
        return truth
    if table.key == "slice_id":
        _take_slice_rows(truth, volume, table)
        return truth
    key = {"series_uid": volume.series_uid, "study_uid": volume.study_uid, "volume": name}[table.key]
    row = table.find(key)
    if row is None:
        notes["series are not in the table of labels"] += 1
        return truth
    truth.patient_id = _text(row, "patient_id") or truth.patient_id
    truth.split = _text(row, "split")
    targets = {target: value for target in TARGETS if (value := row.get(target)) is not None}
    # An empty cell says that nothing is known, not that nothing is broken.
    truth.study = (
        {name: int(value) for name, value in targets.items()} if len(targets) == len(TARGETS) else None
    )
    folder = table.path.parent
    truth.vertebrae = read_mask(_find_mask(folder, row, "segmentation"), volume, notes)
    truth.fractures = read_mask(_find_mask(folder, row, "fracture_mask"), volume, notes)
    label, overall = row.get("label"), row.get(OVERALL)
    complete_truth(truth, _first_known(label, overall))
    truth.overall = _first_known(overall, label)
    return truth


def _first_known(*values: str | int | None) -> int | None:
    return next((int(value) for value in values if value is not None), None)


def _take_slice_rows(truth: SeriesTruth, volume: Volume, table: LabelTable) -> None:
    for index in range(len(volume)):
        row = table.find(volume.slice_id(index))
        if row is None:
            continue
        label = row.get("label")
        truth.labels[index] = None if label is None else int(label)
        truth.levels[index], truth.kinds[index] = _text(row, "vertebra_level"), _text(row, "fracture_type")
        truth.patient_id = _text(row, "patient_id") or truth.patient_id
        truth.split = _text(row, "split") or truth.split


def _text(row: Row, name: str) -> str | None:
    value = row.get(name)
    return None if value is None else str(value)


def _find_mask(folder: Path, row: Row, name: str) -> Path | None:
    text = _text(row, name)
    return None if text is None else folder / text


def read_mask(path: Path | None, volume: Volume, notes: Counter[str]) -> npt.NDArray[np.uint8] | None:
    """A label map on the grid of a volume; None, and a note, where it cannot be used."""
    if path is None:
        return None
    try:
        return read_nifti_labels(path, volume)
    except InputError as error:
        notes[f"masks could not be used: {error.what}"] += 1
        return None


def complete_truth(truth: SeriesTruth, study_label: int | None) -> None:
    """Fill in what masks, boxes and the study's label say of slices; labels that are there stay."""
    truth.overall = study_label
    if truth.vertebrae is not None:
        for index, level in enumerate(find_levels(truth.vertebrae)):
            truth.levels[index] = truth.levels[index] or level
    shown: set[int] | None = None
    if truth.fractures is not None:
        shown = {int(index) for index in np.flatnonzero(truth.fractures.any(axis=(1, 2)))}
    elif truth.boxes:
        shown = {box.index for box in truth.boxes}
    for index, label in enumerate(truth.labels):
        if label is not None:
            continue
        if shown is not None:
            truth.labels[index] = int(index in shown)
        elif study_label == 0:
            truth.labels[index] = 0


def find_levels(vertebrae: npt.NDArray[np.uint8]) -> list[str | None]:
    """The cervical vertebra of which each slice shows most; None where it shows none. Labels 1 to 7 are C1 to C7."""
    levels: list[str | None] = []
    for mask in vertebrae:
        areas = np.bincount(mask.ravel(), minlength=8)[1:8]
        levels.append(VERTEBRAE[int(areas.argmax())] if areas.any() else None)
    return levels


def describe_join(
    table: LabelTable | None, notes: Mapping[str, int], labels: Iterable[int | None]
) -> Sequence[str]:
    """Sentences for the report."""
    sentences = [f"{count:,} {what}." for what, count in notes.items()]
    if table is not None and (left := len(table.rows) - len(table.used)):
        sentences.append(f"{left:,} rows of {table.path.name} name a {table.key} that was not taken.")
    if table is not None and table.key != "slice_id" and (unknown := sum(label is None for label in labels)):
        sentences.append(
            f"{unknown:,} slices are of studies with a fracture, and nothing says which of their slices show it."
        )
    return sentences


# Vertebrae that another program segmented: found by the name of the series or study, on the grid of its volume.
#
#     <UID>.nii or .nii.gz            one label map: 1 to 7 are C1 to C7 (RSNA 2022, the phantom); or
# TotalSegmentator's
#                                     (`--ml`), whose class map calls C7 to C1 44 to 50
#     <UID>/vertebrae_C1.nii.gz ...   TotalSegmentator's folder of one structure a file
#
# <UID> is a Series or Study Instance UID, or for a NIfTI volume the name of its file. A folder that holds structures
# itself is taken for every series whose grid it fits.


Mask = npt.NDArray[np.uint8]

TOTALSEGMENTATOR = {44 + place: 7 - place for place in range(7)}
"""Labels of the task `total`, version 2, to those here (its class map: 44 is vertebrae_C7, 50 is vertebrae_C1)."""

_MOST_BY_VERTEBRA = 28
"""The highest label of a numbering that counts vertebrae down from C1 (VerSe's: a thirteenth thoracic one)."""


@dataclass(frozen=True)
class Segmentations:
    """A folder of them.

    Attributes:
        root: The folder.
        unusable: What was wrong with those that are called after a volume and do not fit it, in words.
    """

    root: Path
    unusable: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not self.root.is_dir():
            raise InputError(
                "there is no such folder of segmentations", where=str(self.root), fix="name a folder"
            )

    def find(self, volume: Volume) -> Mask | None:
        """(slice, row, column) uint8, 1 to 7 where C1 to C7 are; None where no segmentation is of this volume.

        One that is called after it and cannot be used is noted in `unusable`: an answer needs no levels.
        """
        for name in _list_names(volume):
            try:
                found = _read(self.root, name, volume)
            except InputError as error:
                self.unusable.append(f"{error.where}: {error.what}")
                return None
            if found is not None:
                return found
        try:
            return _read_structures(self.root, volume)
        except InputError:
            return None  # not called after this volume, and of another one


def _list_names(volume: Volume) -> Iterator[str]:
    stem = Path(volume.source).name.removesuffix(".gz").removesuffix(".nii")
    yield from dict.fromkeys(name for name in (volume.series_uid, volume.study_uid, stem) if name)


def _read(root: Path, name: str, volume: Volume) -> Mask | None:
    # A UID or a file's name may hold what leads out of the folder.
    if Path(name).name != name:
        return None
    for suffix in SUFFIXES:
        path = root / f"{name}{suffix}"
        if path.is_file():
            return translate_labels(read_nifti_labels(path, volume))
    return _read_structures(root / name, volume)


def _read_structures(folder: Path, volume: Volume) -> Mask | None:
    whole: Mask | None = None
    for number, vertebra in enumerate(VERTEBRAE, start=1):
        path = next(
            (p for p in (folder / f"vertebrae_{vertebra}{suffix}" for suffix in SUFFIXES) if p.is_file()),
            None,
        )
        if path is None:
            continue
        mask = read_nifti_labels(path, volume)
        whole = np.zeros_like(mask) if whole is None else whole
        whole[mask > 0] = number
    return whole


def translate_labels(labels: Mask) -> Mask:
    """Labels of either numbering as 1 to 7 for C1 to C7, 0 elsewhere.

    TotalSegmentator's is known by any label that no vertebra has: its own 1 to 7 are organs, from the spleen on.
    """
    table = np.zeros(256, np.uint8)
    if labels.max() > _MOST_BY_VERTEBRA:
        for theirs, ours in TOTALSEGMENTATOR.items():
            table[theirs] = ours
    else:
        table[1:8] = range(1, 8)
    return table[labels]
