"""Small sets made by hand, in which the right answer of an audit is known."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import polars as pl

from cspine.data.layouts import import_dataset
from cspine.data.manifest import Manifest
from cspine.phantom.dataset import write_phantom
from cspine.phantom.patient import PhantomSettings


def make_phantom(folder: Path, *, patients: int = 24, seed: int = 5) -> Path:
    """A clean phantom set, split by patient."""
    settings = PhantomSettings(
        patients=patients, slices_per_patient=6, size_px=64, field_of_view_mm=80, seed=seed
    )
    write_phantom(folder, settings)
    return folder


def read_set(folder: Path) -> Manifest:
    """The manifest of a folder."""
    return import_dataset(folder)[0]


def make_rows(**columns: Sequence[object]) -> pl.DataFrame:
    """Rows as the leak checks read them; what is not given is unknown."""
    count = len(next(iter(columns.values())))
    base: dict[str, Sequence[object]] = {
        "slice_id": [f"s{row}" for row in range(count)],
        "path": [f"s{row}.png" for row in range(count)],
        "label": [row % 2 for row in range(count)],
        "patient_id": [None] * count,
        "study_uid": [None] * count,
        "series_uid": [None] * count,
        "source_id": [None] * count,
        "position": [None] * count,
        "family": list(range(count)),
        "file_sha256": [f"h{row}" for row in range(count)],
    }
    kinds = {"position": pl.Float64, "family": pl.Int64, "label": pl.Int8}
    merged = {**base, **columns}
    return pl.DataFrame(
        {
            name: pl.Series(name, list(values), dtype=kinds.get(name, pl.String))
            for name, values in merged.items()
        }
    )


def edit_image(path: Path, change: str) -> None:
    """Plant a fault in one PNG."""
    pixels = np.asarray(cv2.imread(str(path), cv2.IMREAD_GRAYSCALE))
    height, width = pixels.shape
    if change == "blank":
        pixels = np.zeros_like(pixels)
    elif change == "inverted":
        pixels = 255 - cv2.copyMakeBorder(pixels, 12, 12, 12, 12, cv2.BORDER_CONSTANT, value=0)
    elif change == "saturated":
        pixels = np.where(pixels > 60, 255, pixels).astype(np.uint8)
    elif change == "border":
        pixels = cv2.copyMakeBorder(pixels, 10, 10, 10, 10, cv2.BORDER_CONSTANT, value=0)
    elif change == "burnt-in-text":
        pixels = cv2.copyMakeBorder(
            cv2.resize(pixels, (256, 256)), 40, 40, 0, 0, cv2.BORDER_CONSTANT, value=0
        )
        cv2.putText(pixels, "ANON 1234", (10, 25), cv2.FONT_HERSHEY_SIMPLEX, 0.6, 255, 1)
    elif change == "colour":
        pixels = np.dstack([pixels, pixels // 2, pixels])
    elif change == "odd-shape":
        pixels = cv2.resize(pixels, (width * 3, height))
    elif change == "unlike-the-set":
        pixels = np.random.default_rng(3).integers(0, 256, pixels.shape, dtype=np.uint8)
    else:
        raise AssertionError(change)
    cv2.imwrite(str(path), pixels)
