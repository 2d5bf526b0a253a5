"""What a stored slice is to a corruption: Hounsfield units, a pixel size, and where its random part comes from.

    Slice ──to HU──▶ Scene ──corruption──▶ (H, W) float32 HU ──back──▶ Slice of the same domain

A slice in domain "hu" is what it is. An 8-bit one says neither its window nor its pixel size, so both are assumed,
and stated: `PixelMeaning`. The way there and back leaves every grey level as it was.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from cspine.data.types import Slice

Field = npt.NDArray[np.float32]

AIR_HU = -1000.0
LOWEST_HU, HIGHEST_HU = -1024, 3071
"""What 12 bits of a CT image hold."""


@dataclass(frozen=True, slots=True)
class PixelMeaning:
    """What is taken as known of slices that do not say it.

    Attributes:
        center_hu, width_hu: The window through which 8-bit slices were made: black is center - width / 2 and less,
            white is center + width / 2 and more.
        field_of_view_mm: Length of a slice's longer side, where it has no spacing.
    """

    center_hu: float = 400.0
    width_hu: float = 1800.0
    field_of_view_mm: float = 180.0

    @property
    def black_hu(self) -> float:
        """The number of Hounsfield units that is shown as 0, with all below it."""
        return self.center_hu - self.width_hu / 2

    def read_grey(self, grey: npt.NDArray[np.uint8]) -> Field:
        """(H, W) grey levels as HU."""
        return np.asarray(self.black_hu + grey.astype(np.float32) * (self.width_hu / 255), np.float32)

    def show_grey(self, hu: Field) -> npt.NDArray[np.uint8]:
        """(H, W) HU as grey levels; what lies outside the window is clipped."""
        return np.asarray(np.clip(np.rint((hu - self.black_hu) * (255 / self.width_hu)), 0, 255), np.uint8)


@dataclass(frozen=True, slots=True)
class Scene:
    """One slice as a corruption sees it.

    Attributes:
        hu: (H, W) float32.
        pixel_mm: Side of a pixel.
        black_hu: What comes in from outside the picture, and what is taken for air together with all below it.
        meaning: The window of 8-bit slices; also the one through which a lossy copy of HU is made.
        rng: The random part: the same for one seed, kind and slice at every severity.
    """

    hu: Field
    pixel_mm: float
    black_hu: float
    meaning: PixelMeaning
    rng: np.random.Generator

    @property
    def size_px(self) -> tuple[int, int]:
        """(height, width)."""
        height, width = self.hu.shape
        return height, width


def make_scene(item: Slice, meaning: PixelMeaning, rng: np.random.Generator) -> Scene:
    """The scene of a slice of either domain."""
    pixel_mm = item.spacing_mm[0] if item.spacing_mm else meaning.field_of_view_mm / max(item.pixels.shape)
    if item.domain == "hu":
        return Scene(item.pixels.astype(np.float32), pixel_mm, AIR_HU, meaning, rng)
    return Scene(
        meaning.read_grey(np.asarray(item.pixels, np.uint8)), pixel_mm, meaning.black_hu, meaning, rng
    )


def store_hu(item: Slice, hu: Field, meaning: PixelMeaning) -> Slice:
    """The slice with other pixels, in its own domain; values outside what it can hold are clipped."""
    if item.domain == "hu":
        whole = np.clip(np.rint(hu), LOWEST_HU, HIGHEST_HU).astype(np.int16)
        return replace(item, pixels=whole)
    return replace(item, pixels=meaning.show_grey(hu))
