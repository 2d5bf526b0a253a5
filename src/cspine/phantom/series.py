"""The phantom as DICOM studies, as scanners of different habits write them, with the truth beside them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset

from cspine.core.errors import InputError
from cspine.core.files import atomic_folder
from cspine.ct.annotations import BOXES_TABLE, SEGMENTATIONS, TRAIN_TABLE
from cspine.ct.nifti import write_nifti
from cspine.ct.series import TRAIN_IMAGES
from cspine.ct.volume import PADDING_HU, Volume
from cspine.data.tables import OVERALL, VERTEBRAE
from cspine.phantom.anatomy import LEVELS
from cspine.phantom.dataset import draw_patients, list_truth, make_volume, write_rows
from cspine.phantom.dicom import (
    HABITS,
    PLAIN,
    Habit,
    find_outside,
    make_objects,
    require_encoder,
    write_objects,
)
from cspine.phantom.patient import PhantomPatient, PhantomSettings
from cspine.phantom.scanner import render_volume

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
STUDY_COLUMNS = ("study_uid", "patient_id", "split", "habit", OVERALL, *VERTEBRAE)
RSNA_COLUMNS = ("StudyInstanceUID", OVERALL, *VERTEBRAE)
BOX_COLUMNS = ("StudyInstanceUID", "x", "y", "width", "height", "slice_number")
MIN_SIZE_PX = 36
"""JPEG 2000 with the usual five resolutions needs 32 pixels, and a patient's field of view is up to 7% smaller."""

# The challenge names and orders its files so: number 1 is nearest the head.
_RSNA_HABITS = tuple(
    Habit(f"challenge-{encoding}", encoding, file_name="{instance}.dcm", top_first=True)
    for encoding in ("explicit", "jpeg-lossless")
)
# The challenge drew boxes in a part of its studies and segmented some; here every second one is segmented.
_SEGMENT_EVERY = 2
_BOX_MARGIN_PX = 2


@dataclass(frozen=True)
class PhantomSeries:
    """A scanned neck with its truth.

    Attributes:
        patient: Whose.
        volume: HU, as a reader should find them.
        vertebrae, fractures: (slice, row, column) uint8, as in `PhantomVolume`.
    """

    patient: PhantomPatient
    volume: Volume
    vertebrae: npt.NDArray[np.uint8]
    fractures: npt.NDArray[np.uint8]

    @property
    def pixel_mm2(self) -> float:
        """Area of a pixel."""
        return self.volume.spacing_mm[1] * self.volume.spacing_mm[2]


def scan_patient(
    patient: PhantomPatient, spacing_mm: tuple[float, float, float], habit: Habit = PLAIN
) -> PhantomSeries:
    """Scan a neck at (slice, row, column) `spacing_mm`."""
    rendered = render_volume(patient, spacing_mm)
    volume = mask_outside(make_volume(patient, rendered), habit)
    return PhantomSeries(patient, volume, rendered.vertebra_mask, rendered.fracture_mask)


def mask_outside(volume: Volume, habit: Habit) -> Volume:
    """Where the habit has padding, what lies outside the scanner's circle is not known."""
    if habit.padding is None:
        return volume
    outside = find_outside((volume.hu.shape[1], volume.hu.shape[2]))
    return replace(volume, hu=np.where(outside, np.int16(PADDING_HU), volume.hu))


def write_series(folder: Path, volume: Volume, habit: Habit = PLAIN) -> list[Dataset]:
    """Write one series into a folder; returns its objects in the order of the slices."""
    objects = make_objects(volume, habit)
    write_objects(folder, objects, habit)
    return objects


def write_phantom_dicom(
    dest: Path,
    settings: PhantomSettings,
    *,
    slice_spacing_mm: float = 1.0,
    habits: Sequence[Habit] = HABITS,
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
        progress: Called with (patients done, patients in all) after every patient.

    Raises:
        InputError: slices of fewer than `MIN_SIZE_PX`.
        MissingExtraError: an encoder is not installed.
        OutputError: `dest` exists and is not empty, or cannot be written.
    """
    pixel_mm = _check(settings, habits)
    slices: list[tuple[str, ...]] = []
    studies: list[tuple[object, ...]] = []
    with atomic_folder(dest) as folder:
        for index, patient in draw_patients(settings, progress):
            habit = habits[index % len(habits)]
            series = scan_patient(patient, (slice_spacing_mm, pixel_mm, pixel_mm), habit)
            objects = write_series(folder / "studies" / patient.patient_id, series.volume, habit)
            slices += _list_slices(series, objects)
            truth = list_truth(patient)
            studies.append((patient.study_uid, patient.patient_id, patient.split, habit.name, *truth))
        write_rows(folder / "labels.csv", SLICE_COLUMNS, slices)
        write_rows(folder / "studies.csv", STUDY_COLUMNS, studies)
    return Path(dest)


def write_phantom_rsna(
    dest: Path,
    settings: PhantomSettings,
    *,
    slice_spacing_mm: float = 1.0,
    box_every: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Make a set in the layout of the RSNA 2022 challenge (`cspine.ct.series`), which has no splits.

    Args:
        dest, settings, slice_spacing_mm, progress: As in `write_phantom_dicom`.
        box_every: Of the broken necks every how many-th gets its boxes.

    Raises:
        As `write_phantom_dicom`.
    """
    pixel_mm = _check(settings, _RSNA_HABITS)
    studies: list[tuple[object, ...]] = []
    boxes: list[tuple[object, ...]] = []
    broken_studies = 0
    with atomic_folder(dest) as folder:
        for index, patient in draw_patients(settings, progress):
            habit = _RSNA_HABITS[index % len(_RSNA_HABITS)]
            series = scan_patient(patient, (slice_spacing_mm, pixel_mm, pixel_mm), habit)
            # The challenge knows no patient but the study.
            volume = replace(series.volume, patient_id=patient.study_uid)
            objects = write_series(folder / TRAIN_IMAGES / patient.study_uid, volume, habit)
            if index % _SEGMENT_EVERY == 0:
                write_nifti(folder / SEGMENTATIONS / f"{patient.study_uid}.nii", volume, series.vertebrae)
            if patient.fractures:
                if broken_studies % box_every == 0:
                    boxes += _list_boxes(series, objects)
                broken_studies += 1
            studies.append((patient.study_uid, *list_truth(patient)))
        write_rows(folder / TRAIN_TABLE, RSNA_COLUMNS, studies)
        write_rows(folder / BOXES_TABLE, BOX_COLUMNS, boxes)
    return Path(dest)


def _check(settings: PhantomSettings, habits: Sequence[Habit]) -> float:
    """Refuse what cannot be written; returns the distance of pixels in mm."""
    if settings.size_px < MIN_SIZE_PX:
        raise InputError(
            f"size_px is {settings.size_px}",
            where="phantom.size_px",
            fix=f"give {MIN_SIZE_PX} or more for DICOM",
        )
    for habit in habits:
        require_encoder(habit.encoding)
    return settings.field_of_view_mm / settings.size_px


def _list_slices(series: PhantomSeries, objects: Sequence[Dataset]) -> Iterator[tuple[str, ...]]:
    """SLICE_COLUMNS of every slice; `slice_id` is the SOP Instance UID, with `#frame` in a multi-frame object."""
    patient = series.patient
    for index in range(len(series.volume)):
        if "NumberOfFrames" in objects[0]:
            slice_id = f"{objects[0].SOPInstanceUID}#{index + 1}"
        else:
            slice_id = str(objects[index].SOPInstanceUID)
        label, level, kind = judge_slice(
            patient, series.vertebrae[index], series.fractures[index], series.pixel_mm2
        )
        uids = (patient.patient_id, patient.study_uid, patient.series_uid)
        yield slice_id, label, *uids, patient.split, level, kind


def _list_boxes(series: PhantomSeries, objects: Sequence[Dataset]) -> Iterator[tuple[object, ...]]:
    """BOX_COLUMNS around the gaps of every slice that shows a fracture."""
    rows, columns = series.volume.hu.shape[1:]
    for index, mask in enumerate(series.fractures):
        label, _, _ = judge_slice(series.patient, series.vertebrae[index], mask, series.pixel_mm2)
        if label != "fracture":
            continue
        y, x = np.nonzero(mask)
        left, top = max(0, int(x.min()) - _BOX_MARGIN_PX), max(0, int(y.min()) - _BOX_MARGIN_PX)
        right = min(columns, int(x.max()) + 1 + _BOX_MARGIN_PX)
        bottom = min(rows, int(y.max()) + 1 + _BOX_MARGIN_PX)
        box = (float(left), float(top), float(right - left), float(bottom - top))
        yield series.patient.study_uid, *box, int(objects[index].InstanceNumber)


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
