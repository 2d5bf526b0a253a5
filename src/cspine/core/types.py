"""The types that carry pixels and labels. No torch here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum, StrEnum
from typing import Literal

import numpy as np
import numpy.typing as npt

Domain = Literal["hu", "display8"]


class Label(IntEnum):
    """The two classes. The positive class is `fracture`, everywhere."""

    NORMAL = 0
    FRACTURE = 1


class Split(StrEnum):
    """What a slice is used for. `external` marks another source, never trained on or tuned on."""

    TRAIN = "train"
    VAL = "val"
    TEST = "test"
    EXTERNAL = "external"


GROUP_NAMES: Mapping[str, str] = {
    "patient_id": "patient",
    "study_uid": "study",
    "series_uid": "series",
    "source_id": "source slice",
    "slice_id": "slice",
}
"""Columns by which slices belong together, from the surest to the weakest, and what one value is called."""


def plural(noun: str) -> str:
    """The plural of a name in `GROUP_NAMES`, or of another noun that takes an s."""
    return {"study": "studies", "series": "series"}.get(noun, f"{noun}s")


def find_nearest(
    positions_mm: npt.NDArray[np.float64], position_mm: float, offsets_mm: Sequence[float]
) -> list[int]:
    """Numbers of the slices of a series that lie nearest to `offsets_mm` from a position; of equal ones the first.

    At the ends of a series the last slice is there again.
    """
    away_mm = positions_mm - position_mm
    return [int(np.abs(away_mm - offset).argmin()) for offset in offsets_mm]


@dataclass(frozen=True, slots=True)
class Slice:
    """One axial CT slice in memory.

    Attributes:
        pixels: (H, W). int16 Hounsfield units when `domain` is "hu"; uint8 0..255, already windowed, when it is
            "display8". The two are never mixed up: a recipe that wants one and gets the other raises.
        domain: What a pixel value means.
        slice_id: Unique within a manifest; joins scores to labels.
        spacing_mm: (row, column) distance of pixel centres in mm, or None where the file does not say.
        patient_id, study_uid, series_uid: None where unknown; nothing here invents one.
        position: Order along the series: mm where the source has geometry, else the slice number. None if unknown.
        around: Pixels of the slices about this one, itself among them, from feet to head; empty where none were asked
            for. Of its size and domain.
    """

    pixels: npt.NDArray[np.uint8] | npt.NDArray[np.int16]
    domain: Domain
    slice_id: str
    spacing_mm: tuple[float, float] | None = None
    patient_id: str | None = None
    study_uid: str | None = None
    series_uid: str | None = None
    position: float | None = None
    around: tuple[npt.NDArray[np.int16], ...] = ()

    def __post_init__(self) -> None:
        wanted = np.int16 if self.domain == "hu" else np.uint8
        if self.pixels.ndim != 2 or self.pixels.dtype != wanted:
            raise ValueError(
                f"a slice in domain {self.domain!r} needs (H, W) {np.dtype(wanted)} pixels, "
                f"not {self.pixels.shape} {self.pixels.dtype}"
            )
