"""Sets of any size to measure on: small slices bent from a drawn phantom, and predictions drawn at once.

Drawing 100,000 slices takes a quarter of an hour of CPU. So a few patients are drawn, and every patient of the set
is one of these, bent smoothly, with noise of its own: `cspine.auditing.copies` takes no two slices for copies.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import polars as pl

from cspine.core.files import write_text
from cspine.core.predictions import SCHEMA as PREDICTIONS
from cspine.core.predictions import compute_sigmoid, write_predictions
from cspine.phantom.patient import PhantomSettings, make_patient
from cspine.phantom.scanner import sample_slices, to_display8

SLICES_A_PATIENT = 10
DRAWN_PATIENTS = 60

_GRID = 5
_BEND = 0.05  # of the side: standard deviation of how far a knot of the grid is moved
_NOISE = (4.0, 10.0)  # grey levels: least and greatest standard deviation of a patient's noise
_SPREAD = 1.5

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class _Drawn:
    """A drawn patient: its split, and of each slice the pixels, the class and the height."""

    split: str
    slices: list[tuple[Pixels, str, float]]


def write_slices(
    folder: Path, count: int, size_px: int, progress: Callable[[int, int], None] | None = None
) -> None:
    """Write PNG files and `rows.parquet`, the labels table of them; the first slices do not depend on `count`."""
    patients = -(-count // SLICES_A_PATIENT)
    drawn = _draw_patients(min(patients, DRAWN_PATIENTS), size_px)
    rows: list[dict[str, str]] = []
    for patient in range(patients):
        rows += _write_patient(folder, patient, drawn[patient % len(drawn)], size_px)
        if progress is not None and patient % 100 == 0:
            progress(min(len(rows), count), count)
    pl.DataFrame(rows[:count]).write_parquet(folder / "rows.parquet")


def write_labels(folder: Path, count: int) -> Path:
    """The labels table of the first `count` slices, as a user has it."""
    table = pl.read_parquet(folder / "rows.parquet").head(count)
    return write_text(folder / f"labels-{count}.csv", table.write_csv())


def _draw_patients(count: int, size_px: int) -> list[_Drawn]:
    settings = PhantomSettings(
        patients=DRAWN_PATIENTS,
        slices_per_patient=SLICES_A_PATIENT,
        size_px=size_px,
        fracture_fraction=0.8,
        seed=0,
    )
    found = []
    for index in range(count):
        patient = make_patient(index, settings)
        slices = [
            (
                to_display8(one.hu, settings.window_center_hu, settings.window_width_hu),
                one.label,
                one.z_mm,
            )
            for one in sample_slices(patient, settings)
        ]
        found.append(_Drawn(patient.split, slices))
    return found


def _write_patient(folder: Path, patient: int, drawn: _Drawn, size_px: int) -> list[dict[str, str]]:
    """The slices of one patient as files, and their rows; a patient depends on its number alone."""
    rng = np.random.default_rng((0, patient))
    name = f"p{patient:06d}"
    place = folder / "slices" / name
    place.mkdir(parents=True)
    across, down = np.meshgrid(*[np.arange(size_px, dtype=np.float32)] * 2)
    knots = rng.normal(0, _BEND * size_px, (2, _GRID, _GRID)).astype(np.float32)
    bent = [cv2.resize(part, (size_px, size_px), interpolation=cv2.INTER_CUBIC) for part in knots]
    noise = np.float32(rng.uniform(*_NOISE))
    rows = []
    for number, (pixels, label, z_mm) in enumerate(drawn.slices):
        moved = cv2.remap(pixels, across + bent[0], down + bent[1], cv2.INTER_LINEAR).astype(np.float32)
        moved += noise * rng.standard_normal(moved.shape, np.float32)
        _, png = cv2.imencode(".png", np.clip(np.rint(moved), 0, 255).astype(np.uint8))
        (place / f"{number:02d}.png").write_bytes(png.tobytes())
        rows.append(
            {
                "path": f"slices/{name}/{number:02d}.png",
                "label": label,
                "patient_id": name,
                "study_uid": f"{name}-study",
                "series_uid": f"{name}-series",
                "position": f"{z_mm:.2f}",
                "split": drawn.split,
            }
        )
    return rows


def draw_predictions(path: Path, count: int) -> Path:
    """Predictions of `count` slices, ten a patient, whose patients differ as well as their slices."""
    rng = np.random.default_rng((1, count))
    patient = np.arange(count) // SLICES_A_PATIENT
    ids = pl.Series("patient_id", patient).cast(pl.String)
    y_true = rng.random(count) < 0.3
    bias = rng.normal(0, 1, patient[-1] + 1)
    logit = np.where(y_true, _SPREAD, -_SPREAD) + bias[patient] + rng.normal(0, _SPREAD, count)
    table = pl.DataFrame(
        {
            "slice_id": pl.Series(np.arange(count)).cast(pl.String).str.zfill(8),
            "patient_id": ids,
            "study_uid": ids,
            "series_uid": ids,
            "source_id": pl.Series([None], dtype=pl.String).new_from_index(0, count),
            "split": pl.Series(["test"]).new_from_index(0, count),
            "y_true": pl.Series(y_true).cast(pl.Int8),
            "logit": logit,
            "prob": compute_sigmoid(logit),
        }
    ).with_columns(
        **{name: pl.lit(name) for name in ("model", "checkpoint_hash", "recipe_hash", "manifest_hash")}
    )
    return write_predictions(table.select(*PREDICTIONS), path)
