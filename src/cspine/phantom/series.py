"""The phantom as DICOM studies, as scanners of different habits write them, with the truth beside them."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset

from cspine.core.answers import Reason
from cspine.core.errors import InputError
from cspine.core.files import atomic_folder
from cspine.ct.nifti import write_nifti
from cspine.ct.sources import BOXES_TABLE, SEGMENTATIONS, TRAIN_IMAGES, TRAIN_TABLE
from cspine.ct.volume import PADDING_HU, Volume
from cspine.data.tables import OVERALL, VERTEBRAE
from cspine.phantom.anatomy import LEVELS
from cspine.phantom.dataset import make_volume
from cspine.phantom.dicom import (
    HABITS,
    PLAIN,
    Habit,
    find_outside,
    make_objects,
    require_encoder,
    write_objects,
)
from cspine.phantom.faults import FAULTS
from cspine.phantom.patient import PhantomPatient, PhantomSettings, make_patient
from cspine.phantom.scanner import PhantomVolume, render_volume

SLICE_COLUMNS = (
    "slice_id",
    "label",
    "patient_id",
    "study_uid",
    "series_uid",
    "split",
    "vertebra_level",
    "fracture_type",
)
MIN_SIZE_PX = 36
"""JPEG 2000 with the usual five resolutions needs 32 pixels, and a patient's field of view is up to 7% smaller."""
STUDY_COLUMNS = ("study_uid", "patient_id", "split", "habit", OVERALL, *VERTEBRAE)


@dataclass(frozen=True)
class PhantomSeries:
    """A neck as it is written: one part, or several where a fault puts other planes into the series.

    Attributes:
        patient: Whose.
        parts: HU, as a reader should find them.
        vertebrae, fractures: (slice, row, column) uint8 beside the HU of each part, as in `PhantomVolume`.
    """

    patient: PhantomPatient
    parts: tuple[Volume, ...]
    vertebrae: tuple[npt.NDArray[np.uint8], ...]
    fractures: tuple[npt.NDArray[np.uint8], ...]


def scan_patient(
    patient: PhantomPatient,
    spacing_mm: tuple[float, float, float],
    habit: Habit = PLAIN,
    faults: Sequence[Reason] = (),
) -> PhantomSeries:
    """Scan a neck at (slice, row, column) `spacing_mm`, as the habit and the faults on volumes have it."""
    return take_series(patient, render_volume(patient, spacing_mm), habit, faults)


def take_series(
    patient: PhantomPatient, rendered: PhantomVolume, habit: Habit = PLAIN, faults: Sequence[Reason] = ()
) -> PhantomSeries:
    """The same from a neck that is rendered already."""
    volume = make_volume(patient, rendered)
    parts = [(volume, False)]
    for mask in (rendered.vertebra_mask, rendered.fracture_mask):
        parts.append((replace(volume, hu=mask.astype(np.int16)), True))
    found: list[list[Volume]] = []
    for whole, labels in parts:
        pieces = [whole]
        for reason in faults:
            fault = FAULTS[reason]
            if fault.volume is not None:
                pieces = [piece for one in pieces for piece in fault.volume(one, labels)]
        found.append(pieces)
    hu, vertebrae, fractures = found
    return PhantomSeries(
        patient=patient,
        parts=tuple(_reconstruct(piece, habit) for piece in hu),
        vertebrae=tuple(np.maximum(piece.hu, 0).astype(np.uint8) for piece in vertebrae),
        fractures=tuple(np.maximum(piece.hu, 0).astype(np.uint8) for piece in fractures),
    )


def _reconstruct(volume: Volume, habit: Habit) -> Volume:
    """Where the habit has padding, what lies outside the circle is not known."""
    if habit.padding is None:
        return volume
    outside = find_outside((volume.hu.shape[1], volume.hu.shape[2]))
    return replace(volume, hu=np.where(outside, np.int16(PADDING_HU), volume.hu))


def write_series(
    folder: Path, series: PhantomSeries, habit: Habit = PLAIN, faults: Sequence[Reason] = ()
) -> list[Dataset]:
    """Write one series into a folder, with the faults on objects and files.

    Returns:
        The objects in the order of the parts' slices, as they would be without those faults.
    """
    if Reason.TURNED in faults:
        habit = replace(habit, patient_position="HFP")
    objects: list[Dataset] = []
    for part in series.parts:
        objects += make_objects(part, habit, len(objects))
    written = deepcopy(objects) if faults else objects
    for reason in faults:
        change = FAULTS[reason].objects
        written = written if change is None else change(written)
    paths = write_objects(folder, written, habit)
    for reason in faults:
        damage = FAULTS[reason].files
        if damage is not None:
            damage(paths)
    return objects


def refuse_small(settings: PhantomSettings) -> None:
    """Raise `InputError` where slices would have fewer than `MIN_SIZE_PX`."""
    if settings.size_px < MIN_SIZE_PX:
        raise InputError(
            f"size_px is {settings.size_px}",
            where="phantom.size_px",
            fix=f"give {MIN_SIZE_PX} or more for DICOM",
        )


def write_phantom_dicom(
    dest: Path,
    settings: PhantomSettings,
    *,
    slice_spacing_mm: float = 1.0,
    habits: Sequence[Habit] = HABITS,
    faults: Sequence[Reason] = (),
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Make a set of DICOM studies: the same arguments give the same bytes.

    Layout: `studies/<patient>/**` (a series each), `labels.csv` (SLICE_COLUMNS, a row a slice; a slice that shows a
    fracture too faintly to be called visible has no label) and `studies.csv` (STUDY_COLUMNS, a row a study).

    Args:
        dest: A new or empty folder; it appears whole at the end, or not at all.
        settings: Whom to make; rows and columns are `field_of_view_mm / size_px` apart. The window and the slices per
            patient are not used.
        slice_spacing_mm: Distance of the slices.
        habits: Dealt to the patients in this order, over and over.
        faults: Planted in every series, which is then written without multi-frame objects.
        progress: Called with (patients done, patients in all) after every patient.

    Raises:
        InputError: slices of fewer than `MIN_SIZE_PX`.
        MissingExtraError: an encoder is not installed.
        OutputError: `dest` exists and is not empty, or cannot be written.
    """
    refuse_small(settings)
    for habit in habits:
        require_encoder(habit.encoding)
    pixel_mm = settings.field_of_view_mm / settings.size_px
    with atomic_folder(dest) as folder:
        slices: list[tuple[str, ...]] = []
        studies: list[tuple[str | int, ...]] = []
        for index in range(settings.patients):
            patient = make_patient(index, settings)
            habit = habits[index % len(habits)]
            if faults:
                habit = replace(habit, multi_frame=False)
            series = scan_patient(patient, (slice_spacing_mm, pixel_mm, pixel_mm), habit, faults)
            objects = write_series(folder / "studies" / patient.patient_id, series, habit, faults)
            slices += list_truth(series, objects)
            broken = {fracture.number for fracture in patient.fractures}
            truth = [int(bool(broken)), *(int(number in broken) for number in range(1, 8))]
            studies.append((patient.study_uid, patient.patient_id, patient.split, habit.name, *truth))
            if progress:
                progress(index + 1, settings.patients)
        for name, columns, rows in (
            ("labels.csv", SLICE_COLUMNS, slices),
            ("studies.csv", STUDY_COLUMNS, studies),
        ):
            with (folder / name).open("w", newline="", encoding="utf-8") as file:
                csv.writer(file, lineterminator="\n").writerows([columns, *rows])
    return Path(dest)


def list_truth(series: PhantomSeries, objects: Sequence[Dataset]) -> Iterator[tuple[str, ...]]:
    """SLICE_COLUMNS of every slice; `slice_id` is the SOP Instance UID, with `#frame` in a multi-frame object."""
    patient, done = series.patient, 0
    for volume, vertebrae, fractures in zip(series.parts, series.vertebrae, series.fractures, strict=True):
        pixel_mm2 = volume.spacing_mm[1] * volume.spacing_mm[2]
        for index in range(len(volume)):
            multi = "NumberOfFrames" in objects[0]
            dataset = objects[0] if multi else objects[done]
            done += 1
            label, level, kind = judge_slice(patient, vertebrae[index], fractures[index], pixel_mm2)
            yield (
                str(dataset.SOPInstanceUID) + (f"#{index + 1}" if multi else ""),
                label,
                patient.patient_id,
                patient.study_uid,
                patient.series_uid,
                patient.split,
                level,
                kind,
            )


def judge_slice(
    patient: PhantomPatient,
    vertebrae: npt.NDArray[np.uint8],
    fractures: npt.NDArray[np.uint8],
    pixel_mm2: float,
) -> tuple[str, str, str]:
    """Label ("fracture", "normal", or "" for a break too faint to be called visible), level and kind of one slice."""
    areas = np.bincount(vertebrae.ravel(), minlength=8)[1:8]
    level = LEVELS[int(areas.argmax())] if areas.any() else ""
    if not fractures.any():
        return "normal", level, ""
    broken = np.bincount(vertebrae[fractures > 0].ravel(), minlength=8)[1:8] * pixel_mm2
    seen = [f for f in patient.fractures if broken[f.number - 1] >= f.visible_mm2]
    if not seen:
        return "", level, ""
    plainest = max(seen, key=lambda fracture: broken[fracture.number - 1])
    return "fracture", LEVELS[plainest.number - 1], plainest.kind


# The phantom in the layout of the RSNA 2022 challenge; see `rsna_layout` for what lies where.


# As the challenge's files are called and ordered: number 1 is nearest the head.
_HABITS = tuple(
    Habit(f"challenge-{encoding}", encoding, file_name="{instance}.dcm", top_first=True)
    for encoding in ("explicit", "jpeg-lossless")
)
_MARGIN_PX = 2
STUDY_COLUMNS_PHANTOM_RSNA = ("StudyInstanceUID", OVERALL, *VERTEBRAE)
BOX_COLUMNS = ("StudyInstanceUID", "x", "y", "width", "height", "slice_number")


def write_phantom_rsna(
    dest: Path,
    settings: PhantomSettings,
    *,
    slice_spacing_mm: float = 1.0,
    box_every: int = 1,
    segment_every: int = 2,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Make a set: the same arguments give the same bytes.

    Args:
        dest: A new or empty folder; it appears whole at the end, or not at all.
        settings: Whom to make; the splits are not written, as the challenge has none.
        slice_spacing_mm: Distance of the slices.
        box_every: Of the broken necks every how many-th gets its boxes; the challenge drew them in a part.
        segment_every: Every how many-th study gets a segmentation.
        progress: Called with (patients done, patients in all) after every patient.

    Raises:
        InputError: slices that are too small for DICOM.
        MissingExtraError: an encoder is not installed.
        OutputError: `dest` exists and is not empty, or cannot be written.
    """
    refuse_small(settings)
    for habit in _HABITS:
        require_encoder(habit.encoding)
    pixel_mm = settings.field_of_view_mm / settings.size_px
    studies: list[tuple[str | int, ...]] = []
    boxes: list[tuple[str | int | float, ...]] = []
    broken_studies = 0
    with atomic_folder(dest) as folder:
        for index in range(settings.patients):
            patient = make_patient(index, settings)
            habit = _HABITS[index % len(_HABITS)]
            # The challenge has no patient but the study.
            series = scan_patient(patient, (slice_spacing_mm, pixel_mm, pixel_mm), habit)
            series = replace(
                series, parts=tuple(replace(part, patient_id=part.study_uid) for part in series.parts)
            )
            objects = write_series(folder / TRAIN_IMAGES / patient.study_uid, series, habit)
            if index % segment_every == 0:
                path = folder / SEGMENTATIONS / f"{patient.study_uid}.nii"
                write_nifti(path, series.parts[0], series.vertebrae[0])
            broken = {fracture.number for fracture in patient.fractures}
            if broken:
                if broken_studies % box_every == 0:
                    boxes += _list_boxes(series, objects)
                broken_studies += 1
            truth = [int(bool(broken)), *(int(number in broken) for number in range(1, 8))]
            studies.append((patient.study_uid, *truth))
            if progress:
                progress(index + 1, settings.patients)
        for name, columns, rows in (
            (TRAIN_TABLE, STUDY_COLUMNS_PHANTOM_RSNA, studies),
            (BOXES_TABLE, BOX_COLUMNS, boxes),
        ):
            with (folder / name).open("w", newline="", encoding="utf-8") as file:
                csv.writer(file, lineterminator="\n").writerows([columns, *rows])
    return Path(dest)


def _list_boxes(
    series: PhantomSeries, objects: Sequence[Dataset]
) -> Iterator[tuple[str, float, float, float, float, int]]:
    """BOX_COLUMNS around the gaps of every slice that shows a fracture."""
    [volume], [vertebrae], [fractures] = series.parts, series.vertebrae, series.fractures
    pixel_mm2 = volume.spacing_mm[1] * volume.spacing_mm[2]
    rows, columns = volume.hu.shape[1:]
    for index, mask in enumerate(fractures):
        if judge_slice(series.patient, vertebrae[index], mask, pixel_mm2)[0] != "fracture":
            continue
        y, x = np.nonzero(mask)
        left, top = max(0, int(x.min()) - _MARGIN_PX), max(0, int(y.min()) - _MARGIN_PX)
        right = min(columns, int(x.max()) + 1 + _MARGIN_PX)
        bottom = min(rows, int(y.max()) + 1 + _MARGIN_PX)
        number = int(objects[index].InstanceNumber)
        yield (
            series.patient.study_uid,
            float(left),
            float(top),
            float(right - left),
            float(bottom - top),
            number,
        )
