"""The recipe: what is done to a slice before a network sees it, as data.

    Slice ──[Neighbours][CropBody]──[Window(s)]──[Equalise][Resize]──▶ uint8 (H, W) ──Scale──▶ what the backbone expects
            in Hounsfield units        to 0..255

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
from cspine.hu_steps import CropBody, HuStep, Neighbours, crop_square, find_body_middle, place_square
from cspine.placement import Placement


class _Step(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Window(_Step):
    """Hounsfield units to 0..255 (DICOM PS3.3 C.11.2.1.3.2, LINEAR_EXACT): the one step from "hu" to "display8"."""

    kind: Literal["window"] = "window"
    center_hu: float = 400.0
    width_hu: float = Field(default=1800.0, gt=0)

    def __str__(self) -> str:
        return f"window {self.center_hu:g}/{self.width_hu:g} HU"


class Windows(_Step):
    """The same slice through several windows, each a channel; also from "hu" to "display8"."""

    kind: Literal["windows"] = "windows"
    windows: tuple[Window, ...] = Field(
        default=(Window(), Window(center_hu=50, width_hu=400), Window(center_hu=1000, width_hu=4000)),
        min_length=2,
        max_length=8,
    )

    def __str__(self) -> str:
        return (
            "windows "
            + ", ".join(f"{window.center_hu:g}/{window.width_hu:g}" for window in self.windows)
            + " HU"
        )


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


PixelStep = Annotated[
    CropBody | Neighbours | Window | Windows | Equalise | Resize, Field(discriminator="kind")
]


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
        kinds = [step.kind for step in self.steps]
        if any(kinds.count(kind) > 1 for kind in ("crop_body", "neighbours")):
            raise ValueError("crop_body and neighbours can each be there once")
        if kinds.count("neighbours") and kinds[0] != "neighbours":
            raise ValueError("neighbours must be the first step")
        # In order: steps on HU, one window, steps on 0..255.
        turns = [
            0 if isinstance(step, HuStep) else 1 if isinstance(step, Window | Windows) else 2
            for step in self.steps
        ]
        if turns != sorted(turns) or turns.count(1) > 1:
            raise ValueError(
                "a window must come before the steps that work on 0..255, after those on HU, and once"
            )
        if 0 in turns and 1 not in turns:
            raise ValueError("crop_body and neighbours work on Hounsfield units: add a window after them")
        if self.channels > 1 and self.scale.channels != self.channels:
            raise ValueError(
                f"the steps make {self.channels} channels, and the scale has {self.scale.channels}"
            )
        return self

    @property
    def domain(self) -> Domain:
        """The domain of the slices that this recipe takes."""
        return "hu" if any(isinstance(step, Window | Windows) for step in self.steps) else "display8"

    @property
    def offsets_mm(self) -> tuple[float, ...]:
        """Where the slices that `apply` wants in `Slice.around` lie from the slice itself; empty for none."""
        return next((step.offsets_mm for step in self.steps if isinstance(step, Neighbours)), ())

    @property
    def channels(self) -> int:
        """How many different channels `apply` makes; a single one is repeated by the scale."""
        windows = next((len(step.windows) for step in self.steps if isinstance(step, Windows)), 1)
        return max(1, len(self.offsets_mm)) * windows

    @property
    def shown_channel(self) -> int:
        """The channel that stands for the slice in a picture: of the middle slice the first window."""
        return (len(self.offsets_mm) // 2) * (self.channels // max(1, len(self.offsets_mm)))

    @property
    def shape(self) -> tuple[int, ...]:
        """Of what `apply` returns: (height, width), or (channels, height, width) where there are several."""
        return self.size_px if self.channels == 1 else (self.channels, *self.size_px)

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
            `shape` uint8, contiguous; the same bits for the same slice on one machine. Channels are slices from feet
            to head, and of each its windows.

        Raises:
            RecipeError: the slice is in the other domain (HU where 8-bit is wanted, or the other way round), says no
                spacing where that is needed, or comes without the slices around it.
        """
        self.check_domain(item.domain, item.slice_id)
        channels: list[npt.NDArray[Any]] = [item.pixels]
        for step in self.steps:
            channels = _apply_step(step, channels, item)
        return np.ascontiguousarray(channels[0] if len(channels) == 1 else np.stack(channels), dtype=np.uint8)

    def locate(self, item: Slice) -> Placement:
        """Where the pixels that `apply` makes of a slice lie in it.

        Raises:
            RecipeError: the slice says no spacing where that is needed.
        """
        start, size = (0, 0), (item.pixels.shape[0], item.pixels.shape[1])
        for step in self.steps:
            if isinstance(step, CropBody):
                spacing_mm, middle = _find_middle(item, step)
                start, size = place_square(middle, step.field_of_view_mm, spacing_mm)
        # Resizing keeps the edges of the picture in place, not the middles of its first and last pixels.
        scale = size[0] / self.size_px[0], size[1] / self.size_px[1]
        return Placement(
            size_px=self.size_px,
            slice_size_px=(item.pixels.shape[0], item.pixels.shape[1]),
            start_px=(start[0] + scale[0] / 2 - 0.5, start[1] + scale[1] / 2 - 0.5),
            step_px=scale,
        )


_AT_ONCE = (3, 4)  # so many channels OpenCV resizes together; of two, halved, some values would differ by one
_DOMAIN_NAMES = {"hu": "Hounsfield units", "display8": "8-bit display values"}


def _apply_step(step: PixelStep, channels: list[npt.NDArray[Any]], item: Slice) -> list[npt.NDArray[Any]]:
    match step:
        case Neighbours():
            if len(item.around) != step.count:
                raise RecipeError(
                    f"the recipe takes {step.count} neighbouring slices and got {len(item.around)}",
                    where=item.slice_id,
                    fix="read the slice with the recipe's offsets_mm",
                )
            return list(item.around)
        case CropBody():
            # Where the slice itself has its body, so that the channels stay on each other.
            spacing_mm, middle = _find_middle(item, step)
            return [crop_square(pixels, middle, step.field_of_view_mm, spacing_mm) for pixels in channels]
        case Window():
            return [apply_window(pixels, step.center_hu, step.width_hu) for pixels in channels]
        case Windows():
            return [
                apply_window(pixels, window.center_hu, window.width_hu)
                for pixels in channels
                for window in step.windows
            ]
        case Equalise(method="none"):
            return channels
        case Equalise(method="global"):
            return [np.asarray(cv2.equalizeHist(pixels)) for pixels in channels]
        case Equalise():
            clahe = cv2.createCLAHE(clipLimit=step.clip_limit, tileGridSize=(step.tiles, step.tiles))
            return [np.asarray(clahe.apply(pixels)) for pixels in channels]
        case Resize():
            return _resize_channels(channels, step)
        case _:
            assert_never(step)


def _resize_channels(channels: list[npt.NDArray[Any]], step: Resize) -> list[npt.NDArray[Any]]:
    if len(channels) not in _AT_ONCE:
        return [resize_pixels(pixels, step.height_px, step.width_px) for pixels in channels]
    # The same sums as one by one, in four fifths of the time.
    resized = resize_pixels(np.asarray(cv2.merge(channels)), step.height_px, step.width_px)
    return list(cv2.split(resized))


def _find_middle(item: Slice, step: CropBody) -> tuple[tuple[float, float], tuple[float, float]]:
    """Spacing of a slice, and the middle of its body."""
    if item.spacing_mm is None:
        raise RecipeError(
            "the recipe crops to a size in mm, and the slice says no pixel spacing",
            where=item.slice_id,
            fix="leave crop_body out",
        )
    return item.spacing_mm, find_body_middle(np.asarray(item.pixels, np.int16), item.spacing_mm, step.grid_mm)


def apply_window(pixels_hu: npt.NDArray[Any], center_hu: float, width_hu: float) -> npt.NDArray[np.uint8]:
    """Map Hounsfield units to 0..255 with the given window (DICOM PS3.3 C.11.2.1.3.2, LINEAR_EXACT).

    Args:
        pixels_hu: (H, W), any numeric type.
        center_hu: Value shown as mid-grey.
        width_hu: Range from black to white; must be above 0.

    Returns:
        (H, W) uint8; below the window is 0, above it 255.
    """
    # In place: a slice of 512x512 would else go through five arrays of a megabyte.
    scaled = pixels_hu.astype(np.float32)
    scaled -= center_hu - width_hu / 2
    scaled *= 255.0 / width_hu
    np.rint(scaled, out=scaled)
    np.clip(scaled, 0, 255, out=scaled)
    return scaled.astype(np.uint8)


def resize_pixels(pixels: npt.NDArray[Any], height_px: int, width_px: int) -> npt.NDArray[Any]:
    """Resize (H, W), with or without channels, to (height_px, width_px).

    Area averaging when either side shrinks, else bilinear.
    """
    if pixels.shape[:2] == (height_px, width_px):
        return pixels
    shrinks = pixels.shape[0] > height_px or pixels.shape[1] > width_px
    interpolation = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(pixels, (width_px, height_px), interpolation=interpolation))
