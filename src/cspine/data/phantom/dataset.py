"""The phantom on disk: folders by split and class, masks, and a table of labels."""

from __future__ import annotations

import csv
import json
import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from cspine.data.phantom.patient import SPLITS, PhantomSettings, make_patient
from cspine.data.phantom.sampling import sample_slices
from cspine.data.phantom.scanner import to_display8
from cspine.errors import InputError, OutputError
from cspine.files import atomic_folder

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

Row = dict[str, str]


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
        _write_labels(folder / "labels.csv", [row for index in sorted(rows) for row in rows[index]])
        about = {"package": "cspine", "version": _package_version(), "settings": settings.to_dict()}
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
    rows = []
    for number, one in enumerate(sample_slices(patient, settings)):
        name = f"{patient.patient_id}-{number:03d}"
        path = f"{patient.split}/{one.label}/{name}.png"
        mask_path = f"masks/{name}-fracture.png" if one.fracture_type else ""
        display = to_display8(one.hu, settings.window_center_hu, settings.window_width_hu)
        _write_png(folder / path, display)
        _write_png(folder / "masks" / f"{name}.png", one.vertebra_mask)
        if mask_path:
            _write_png(folder / mask_path, one.fracture_mask * np.uint8(255))
        values: tuple[Any, ...] = (
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
        rows.append(dict(zip(LABEL_COLUMNS, values, strict=True)))
    return rows


def _write_png(path: Path, pixels: npt.NDArray[np.uint8]) -> None:
    done, data = cv2.imencode(".png", pixels, [cv2.IMWRITE_PNG_COMPRESSION, 3])
    if not done:
        raise OutputError("a slice could not be encoded as PNG", where=str(path))
    path.write_bytes(data.tobytes())


def _write_labels(path: Path, rows: list[Row]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, LABEL_COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def _package_version() -> str:
    try:
        return version("cspine")
    except PackageNotFoundError:
        return "unknown"
