"""The phantom in the layout of the RSNA 2022 challenge; see `rsna_layout` for what lies where."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset

from cspine.data.phantom import PhantomSettings, make_patient
from cspine.data.rsna_tables import OVERALL, VERTEBRAE
from cspine.files import atomic_folder
from cspine.studies.ct_sources import TRAIN_IMAGES, TRAIN_TABLE
from cspine.studies.nifti import write_nifti
from cspine.studies.phantom_dicom import PhantomSeries, judge_slice, refuse_small, scan_patient, write_series
from cspine.studies.phantom_habits import Habit, require_encoder
from cspine.studies.rsna_layout import BOXES_TABLE, SEGMENTATIONS

# As the challenge's files are called and ordered: number 1 is nearest the head.
_HABITS = tuple(
    Habit(f"challenge-{encoding}", encoding, file_name="{instance}.dcm", top_first=True)
    for encoding in ("explicit", "jpeg-lossless")
)
_MARGIN_PX = 2
STUDY_COLUMNS = ("StudyInstanceUID", OVERALL, *VERTEBRAE)
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
            (TRAIN_TABLE, STUDY_COLUMNS, studies),
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
