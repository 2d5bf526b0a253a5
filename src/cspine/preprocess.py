"""The recipe: what is done to a slice before a network sees it, as data.

    Slice ──[Window]──[Equalise]──[Resize]──▶ uint8 (H, W) ──Scale──▶ what the backbone expects

The steps up to `Resize` are deterministic and their result is what the `SliceCache` keeps. `Scale` (y / 255, paper
eq. 1, then the mean and std that the backbone was pretrained with) is arithmetic on the batch and runs on the device,
from this same object. Random augmentation is not part of a recipe. A recipe is stored inside the checkpoint, so
training and prediction cannot drift apart.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, assert_never

import cv2
import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, model_validator

from cspine.data.types import Domain, Slice
from cspine.errors import RecipeError
from cspine.files import compute_hash


class _Step(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Window(_Step):
    """Hounsfield units to 0..255 (DICOM PS3.3 C.11.2.1.3.2, LINEAR_EXACT): the one step from "hu" to "display8"."""

    kind: Literal["window"] = "window"
    center_hu: float = 400.0
    width_hu: float = Field(default=1800.0, gt=0)

    def __str__(self) -> str:
        return f"window {self.center_hu:g}/{self.width_hu:g} HU"


class Equalise(_Step):
    """Histogram equalisation. `global` is the paper's; `clahe` works on `tiles` x `tiles` regions."""

    kind: Literal["equalise"] = "equalise"
    method: Literal["global", "clahe", "none"] = "global"
    clip_limit: float = Field(default=2.0, gt=0)
    tiles: int = Field(default=8, ge=1, le=64)

    def __str__(self) -> str:
        if self.method == "clahe":
            return f"equalise clahe(clip {self.clip_limit:g}, {self.tiles}x{self.tiles})"
        return f"equalise {self.method}"


class Resize(_Step):
    """To `height_px` x `width_px`: averaging where it shrinks, linear where it grows, so that nothing aliases."""

    kind: Literal["resize"] = "resize"
    height_px: int = Field(default=224, ge=16, le=4096)
    width_px: int = Field(default=224, ge=16, le=4096)

    def __str__(self) -> str:
        return f"resize {self.height_px}x{self.width_px}"


class Scale(_Step):
    """y = x / 255 (paper eq. 1), repeated to as many channels as `mean` has, then (y - mean) / std."""

    kind: Literal["scale"] = "scale"
    divisor: float = Field(default=255.0, gt=0)
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)

    @model_validator(mode="after")
    def _same_length(self) -> Scale:
        if len(self.mean) != len(self.std) or not self.mean:
            raise ValueError("mean and std need one value a channel, and as many of each")
        if min(self.std) <= 0:
            raise ValueError("std must be above 0")
        return self

    @property
    def channels(self) -> int:
        """How many equal channels the backbone gets."""
        return len(self.mean)

    def __str__(self) -> str:
        text = f"x/{self.divisor:g} to {self.channels} channels"
        if set(self.mean) == {0.0} and set(self.std) == {1.0}:
            return text
        return f"{text}, mean {_short(self.mean)}, std {_short(self.std)}"


def _short(values: tuple[float, ...]) -> str:
    texts = [f"{value:.3g}" for value in values]
    return texts[0] if len(set(texts)) == 1 else "/".join(texts)


PixelStep = Annotated[Window | Equalise | Resize, Field(discriminator="kind")]


class Recipe(BaseModel):
    """Typed, ordered, hashed preprocessing.

    Attributes:
        steps: Applied to a slice in this order; the last is a `Resize`, so that every slice comes out the same size.
        scale: Applied to a batch on the device.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    steps: tuple[PixelStep, ...] = (Equalise(), Resize())
    scale: Scale = Scale()

    @model_validator(mode="after")
    def _ends_in_one_size(self) -> Recipe:
        if not self.steps or not isinstance(self.steps[-1], Resize):
            raise ValueError("the last step must be a resize, so that every slice has the same size")
        if any(isinstance(step, Window) for step in self.steps[1:]):
            raise ValueError("a window must be the first step: later ones work on 0..255")
        return self

    @property
    def domain(self) -> Domain:
        """The domain of the slices that this recipe takes."""
        return "hu" if isinstance(self.steps[0], Window) else "display8"

    @property
    def size_px(self) -> tuple[int, int]:
        """(height, width) of what `apply` returns."""
        last = self.steps[-1]
        assert isinstance(last, Resize)
        return last.height_px, last.width_px

    @property
    def pixel_hash(self) -> str:
        """Identifies what `apply` computes; recipes that differ in `scale` only share a cache."""
        return compute_hash([step.model_dump(mode="json") for step in self.steps])

    @property
    def hash(self) -> str:
        """Identifies the whole recipe."""
        return compute_hash(self.model_dump(mode="json"))

    def __str__(self) -> str:
        return " > ".join(str(step) for step in (*self.steps, self.scale)) + f"  [{self.hash}]"

    def check_domain(self, domain: Domain, where: str) -> None:
        """Raise unless slices of `domain` are what this recipe takes.

        Raises:
            RecipeError: HU where 8-bit is wanted, or the other way round.
        """
        if domain != self.domain:
            raise RecipeError(
                f"the recipe takes {_DOMAIN_NAMES[self.domain]} but the slices hold {_DOMAIN_NAMES[domain]}",
                where=where,
                fix="add a window for Hounsfield units (preprocess.window), or leave it out for pictures",
            )

    def apply(self, item: Slice) -> npt.NDArray[np.uint8]:
        """Run the pixel steps on one slice.

        Returns:
            (height, width) uint8, contiguous; the same bits for the same slice on one machine.

        Raises:
            RecipeError: the slice is in the other domain (HU where 8-bit is wanted, or the other way round).
        """
        self.check_domain(item.domain, item.slice_id)
        pixels: npt.NDArray[Any] = item.pixels
        for step in self.steps:
            pixels = _apply_step(step, pixels)
        return np.ascontiguousarray(pixels, dtype=np.uint8)


_DOMAIN_NAMES = {"hu": "Hounsfield units", "display8": "8-bit display values"}


def _apply_step(step: Window | Equalise | Resize, pixels: npt.NDArray[Any]) -> npt.NDArray[Any]:
    match step:
        case Window():
            return apply_window(pixels, step.center_hu, step.width_hu)
        case Equalise(method="none"):
            return pixels
        case Equalise(method="global"):
            return np.asarray(cv2.equalizeHist(pixels))
        case Equalise():
            clahe = cv2.createCLAHE(clipLimit=step.clip_limit, tileGridSize=(step.tiles, step.tiles))
            return np.asarray(clahe.apply(pixels))
        case Resize():
            return resize_pixels(pixels, step.height_px, step.width_px)
        case _:
            assert_never(step)


def apply_window(pixels_hu: npt.NDArray[Any], center_hu: float, width_hu: float) -> npt.NDArray[np.uint8]:
    """Map Hounsfield units to 0..255 with the given window (DICOM PS3.3 C.11.2.1.3.2, LINEAR_EXACT).

    Args:
        pixels_hu: (H, W), any numeric type.
        center_hu: Value shown as mid-grey.
        width_hu: Range from black to white; must be above 0.

    Returns:
        (H, W) uint8; below the window is 0, above it 255.
    """
    low_hu = center_hu - width_hu / 2
    scaled = (pixels_hu.astype(np.float32) - low_hu) * (255.0 / width_hu)
    return np.asarray(np.clip(np.rint(scaled), 0, 255), dtype=np.uint8)


def resize_pixels(pixels: npt.NDArray[Any], height_px: int, width_px: int) -> npt.NDArray[Any]:
    """Resize (H, W) to (height_px, width_px); area averaging when either side shrinks, else bilinear."""
    if pixels.shape == (height_px, width_px):
        return pixels
    shrinks = pixels.shape[0] > height_px or pixels.shape[1] > width_px
    interpolation = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(pixels, (width_px, height_px), interpolation=interpolation))
