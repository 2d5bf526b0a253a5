"""The phantom on disk: folders by split and class, masks, and a table of labels."""

from __future__ import annotations

import csv
import json
import multiprocessing
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

import cspine
from cspine.core.errors import InputError, OutputError
from cspine.core.files import atomic_folder
from cspine.ct.nifti import write_nifti
from cspine.ct.volume import CANONICAL_DIRECTION, Volume, grid_origins
from cspine.data.tables import OVERALL, VERTEBRAE
from cspine.phantom.patient import SPLITS, PhantomPatient, make_patient
from cspine.phantom.patient import PhantomSettings as PhantomSettings
from cspine.phantom.scanner import PhantomVolume, render_volume, sample_slices, to_display8

LABEL_COLUMNS = (
    "path",
    "label",
    "patient_id",
    "study_uid",
    "series_uid",
    "position",
    "split",
    "vertebra_level",
    "fracture_type",
    "mask_path",
)
Row = tuple[str, ...]
"""One line of a table, in the order of its columns."""

NIFTI_COLUMNS = ("volume", "segmentation", "fracture_mask", "patient_id", "split", OVERALL, *VERTEBRAE)


def write_phantom(
    dest: Path,
    settings: PhantomSettings,
    *,
    workers: int = 2,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Make a set of 8-bit slices: the same settings give the same bytes, whatever `workers` is.

    Layout: `train|val|test/fracture|normal/<slice>.png`, `masks/<slice>.png` (vertebra 1..7),
    `masks/<slice>-fracture.png` (255 in the gaps; only where there is a fracture), `labels.csv` (LABEL_COLUMNS, one
    row a slice) and `phantom.json` (the settings).

    Args:
        dest: A new or empty folder; it appears whole at the end, or not at all.
        settings: What to make.
        workers: Processes; 1 makes everything in this one.
        progress: Called with (patients done, patients in all) after every patient.

    Returns:
        `dest`.

    Raises:
        InputError: `dest` exists and is not empty, or `workers` is below 1.
        OutputError: it cannot be written.
    """
    dest = Path(dest)
    if workers < 1:
        raise InputError(f"workers is {workers}", fix="give 1 or more")
    if dest.exists() and (not dest.is_dir() or any(dest.iterdir())):
        raise InputError(
            "the output folder exists and is not empty",
            where=str(dest),
            fix="name a new folder, or remove this one",
        )
    with atomic_folder(dest) as folder:
        for split in SPLITS:
            for label in ("fracture", "normal"):
                (folder / split / label).mkdir(parents=True)
        (folder / "masks").mkdir()
        rows: dict[int, list[Row]] = {}
        for index, part in _write_patients(folder, settings, workers):
            rows[index] = part
            if progress:
                progress(len(rows), settings.patients)
        labels = (row for index in sorted(rows) for row in rows[index])
        write_rows(folder / "labels.csv", LABEL_COLUMNS, labels)
        about = {"package": "cspine", "version": cspine.__version__, "settings": settings.to_dict()}
        (folder / "phantom.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
    return dest


def _write_patients(folder: Path, settings: PhantomSettings, workers: int) -> Iterator[tuple[int, list[Row]]]:
    """Write all patients; yields (index, rows) as each is done."""
    if workers == 1:
        for index in range(settings.patients):
            yield index, _write_patient(folder, settings, index)
        return
    # Not fork: the caller may hold threads (Polars, torch), whose locks a forked child would inherit.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=cv2.setNumThreads, initargs=(1,))
    try:
        jobs = {
            pool.submit(_write_patient, folder, settings, index): index for index in range(settings.patients)
        }
        for job in as_completed(jobs):
            yield jobs[job], job.result()
    finally:
        # Patients already begun are finished before the folder is taken away: none is written after it is gone.
        pool.shutdown(wait=True, cancel_futures=True)


def _write_patient(folder: Path, settings: PhantomSettings, index: int) -> list[Row]:
    patient = make_patient(index, settings)
    rows: list[Row] = []
    for number, one in enumerate(sample_slices(patient, settings)):
        name = f"{patient.patient_id}-{number:03d}"
        path = f"{patient.split}/{one.label}/{name}.png"
        mask_path = f"masks/{name}-fracture.png" if one.fracture_type else ""
        display = to_display8(one.hu, settings.window_center_hu, settings.window_width_hu)
        _write_png(folder / path, display)
        _write_png(folder / "masks" / f"{name}.png", one.vertebra_mask)
        if mask_path:
            _write_png(folder / mask_path, one.fracture_mask * np.uint8(255))
        rows.append(
            (
                path,
                one.label,
                patient.patient_id,
                patient.study_uid,
                patient.series_uid,
                f"{one.z_mm:.2f}",
                patient.split,
                one.level,
                one.fracture_type,
                mask_path,
            )
        )
    return rows


def _write_png(path: Path, pixels: npt.NDArray[np.uint8]) -> None:
    done, data = cv2.imencode(".png", pixels, [cv2.IMWRITE_PNG_COMPRESSION, 3])
    if not done:
        raise OutputError("a slice could not be encoded as PNG", where=str(path))
    path.write_bytes(data.tobytes())


# Whole volumes: what the three formats of CT studies share, and the set in NIfTI.


def draw_patients(
    settings: PhantomSettings, progress: Callable[[int, int], None] | None
) -> Iterator[tuple[int, PhantomPatient]]:
    """Every patient of a set in turn; `progress` is told of each once its files are written."""
    for index in range(settings.patients):
        yield index, make_patient(index, settings)
        if progress:
            progress(index + 1, settings.patients)


def list_truth(patient: PhantomPatient) -> list[int]:
    """1 or 0 for the whole neck and then for C1 to C7: is it broken?"""
    broken = {fracture.number for fracture in patient.fractures}
    return [int(bool(broken)), *(int(number in broken) for number in range(1, 8))]


def write_rows(path: Path, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a CSV table whose bytes do not depend on the platform."""
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([columns, *rows])


def make_volume(patient: PhantomPatient, rendered: PhantomVolume) -> Volume:
    """A rendered neck as a volume, the middle of its planes at x = y = 0."""
    half_mm = [(length - 1) / 2 * rendered.spacing_mm[1] for length in rendered.hu.shape[1:]]
    origin_mm = (-half_mm[1], -half_mm[0], rendered.first_z_mm)
    return Volume(
        hu=rendered.hu,
        spacing_mm=rendered.spacing_mm,
        direction=CANONICAL_DIRECTION,
        origins_mm=grid_origins(origin_mm, CANONICAL_DIRECTION[0], rendered.spacing_mm[0], len(rendered.hu)),
        patient_id=patient.patient_id,
        study_uid=patient.study_uid,
        series_uid=patient.series_uid,
        source=patient.patient_id,
    )


def write_phantom_nifti(
    dest: Path,
    settings: PhantomSettings,
    *,
    slice_spacing_mm: float = 1.0,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Make a set of CT volumes: the same settings give the same bytes.

    Layout: `volumes/<patient>.nii.gz` (HU), `segmentations/<patient>.nii.gz` (vertebra 1..7),
    `fractures/<patient>.nii.gz` (1 in the gaps) and `labels.csv` (NIFTI_COLUMNS, a row a patient; 1 where broken).

    Args:
        dest: A new or empty folder; it appears whole at the end, or not at all.
        settings: Whom to make; rows and columns are `field_of_view_mm / size_px` apart. The window and the slices per
            patient are not used.
        slice_spacing_mm: Distance of the slices.
        progress: Called with (patients done, patients in all) after every patient.

    Raises:
        MissingExtraError: nibabel is not installed.
        OutputError: `dest` exists and is not empty, or cannot be written.
    """
    pixel_mm = settings.field_of_view_mm / settings.size_px
    rows = []
    with atomic_folder(dest) as folder:
        for _, patient in draw_patients(settings, progress):
            rendered = render_volume(patient, (slice_spacing_mm, pixel_mm, pixel_mm))
            volume = make_volume(patient, rendered)
            name = f"{patient.patient_id}.nii.gz"
            paths = [f"{place}/{name}" for place in ("volumes", "segmentations", "fractures")]
            labels = (None, rendered.vertebra_mask, rendered.fracture_mask)
            for path, part in zip(paths, labels, strict=True):
                write_nifti(folder / path, volume, part)
            rows.append([*paths, patient.patient_id, patient.split, *list_truth(patient)])
        write_rows(folder / "labels.csv", NIFTI_COLUMNS, rows)
    return Path(dest)
