"""The steps of a recipe that work on Hounsfield units, before any window: which part of the body, and what beside it.

Pixels are (H, W) int16 here. What lies outside the picture is air.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal, assert_never

import cv2
import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, model_validator

from cspine.core.errors import RecipeError
from cspine.core.files import compute_hash
from cspine.core.types import Domain, Slice

Pixels = npt.NDArray[np.int16]

OUTSIDE_HU = -1024
_BODY_HU = -400
_TABLE_MM = 4.0
_LEAST_BODY_FRACTION = 0.01


class HuStep(BaseModel):
    """What all of them share."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class CropBody(HuStep):
    """A square of fixed size in mm about the middle of the body; resized, all slices have one pixel size.

    Attributes:
        field_of_view_mm: The side of the square.
        grid_mm: The body is looked for in pixels about so far apart, and no farther.
    """

    kind: Literal["crop_body"] = "crop_body"
    field_of_view_mm: float = Field(default=180.0, ge=20, le=600)
    grid_mm: float = Field(default=1.0, gt=0, le=4)

    def __str__(self) -> str:
        return f"crop_body {self.field_of_view_mm:g} mm"


class Neighbours(HuStep):
    """The slices above and below as further channels, the middle one in the middle (2.5-D)."""

    kind: Literal["neighbours"] = "neighbours"
    count: Literal[3, 5, 7, 9] = 3
    distance_mm: float = Field(default=2.0, gt=0, le=20)

    @property
    def offsets_mm(self) -> tuple[float, ...]:
        """Where they lie from the slice, feet to head."""
        half = self.count // 2
        return tuple(self.distance_mm * step for step in range(-half, half + 1))

    def __str__(self) -> str:
        return f"neighbours {self.count} slices {self.distance_mm:g} mm apart"


def find_body_middle(
    hu: Pixels, spacing_mm: tuple[float, float], grid_mm: float = 1.0
) -> tuple[float, float]:
    """(row, column) of the middle of the box around the body, in pixels; of the picture where there is no body.

    The body is the largest connected part denser than fat and air mixed, after whatever is thinner than the table's
    shell was taken away. Only every so many rows and columns are looked at, `grid_mm` or less apart.
    """
    row_step, column_step = (max(1, int(grid_mm / step)) for step in spacing_mm)
    mask = (hu[::row_step, ::column_step] > _BODY_HU).astype(np.uint8)
    steps_mm = spacing_mm[0] * row_step, spacing_mm[1] * column_step
    size = tuple(max(1, 2 * round(_TABLE_MM / 2 / step) + 1) for step in steps_mm)
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (size[1], size[0]))
    mask = np.asarray(cv2.morphologyEx(mask, cv2.MORPH_OPEN, kernel), np.uint8)
    left, top, width, height, area = _find_largest(mask)
    if area < _LEAST_BODY_FRACTION * mask.size:
        return (hu.shape[0] - 1) / 2, (hu.shape[1] - 1) / 2
    return row_step * (top + (height - 1) / 2), column_step * (left + (width - 1) / 2)


def _find_largest(mask: npt.NDArray[np.uint8]) -> tuple[int, int, int, int, int]:
    """(left, top, width, height, pixels) of the largest part of a mask of 0 and 1, connected by edges; all 0 for none.

    A part with more than half of the pixels, which a body is, is found from its middle, ten times as fast as by
    counting every part.
    """
    moments = cv2.moments(mask, binaryImage=True)
    total = int(moments["m00"])
    if total == 0:
        return 0, 0, 0, 0, 0
    middle = round(moments["m10"] / total), round(moments["m01"] / total)
    if mask[middle[1], middle[0]]:
        area, _, _, box = cv2.floodFill(mask, None, middle, 2)  # which leaves what is not 0 so
        if 2 * area > total:
            return int(box[0]), int(box[1]), int(box[2]), int(box[3]), int(area)
    _, _, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=4)
    left, top, width, height, area = (int(value) for value in stats[1 + int(stats[1:, -1].argmax())])
    return left, top, width, height, area


def place_square(
    middle: tuple[float, float], field_of_view_mm: float, spacing_mm: tuple[float, float]
) -> tuple[tuple[int, int], tuple[int, int]]:
    """The first (row, column) of the square that `crop_square` cuts, which may lie outside, and its sides in pixels."""
    sides = [max(1, round(field_of_view_mm / step)) for step in spacing_mm]
    starts = [round(centre - (side - 1) / 2) for centre, side in zip(middle, sides, strict=True)]
    return (starts[0], starts[1]), (sides[0], sides[1])


def crop_square(
    hu: Pixels, middle: tuple[float, float], field_of_view_mm: float, spacing_mm: tuple[float, float]
) -> Pixels:
    """Cut a square of `field_of_view_mm` about `middle` (row, column), to whole pixels; outside is air.

    Returns:
        (rows, columns) int16 of the same pixel spacing; a view where nothing lies outside.
    """
    starts, sides = place_square(middle, field_of_view_mm, spacing_mm)
    ends = [start + side for start, side in zip(starts, sides, strict=True)]
    if min(starts) >= 0 and ends[0] <= hu.shape[0] and ends[1] <= hu.shape[1]:
        return hu[starts[0] : ends[0], starts[1] : ends[1]]
    cut = np.full(sides, OUTSIDE_HU, np.int16)
    inside = [
        slice(max(0, start), max(0, min(length, end)))
        for start, end, length in zip(starts, ends, hu.shape, strict=True)
    ]
    part = hu[inside[0], inside[1]]
    top, left = (max(0, -start) for start in starts)
    cut[top : top + part.shape[0], left : left + part.shape[1]] = part
    return cut


# Where the pixels of a recipe's result lie in the slice that they were made from.
#
# A recipe crops and resizes along rows and columns and never turns a picture, so one line a direction says it all:
#
#     slice pixel = start + step * recipe pixel          (the middles of pixels are whole numbers, from 0)


Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Placement:
    """The grid of a recipe's result on the grid of its slice.

    Attributes:
        size_px: (height, width) of the recipe's result.
        slice_size_px: (height, width) of the slice.
        start_px: (row, column) of the slice at which the recipe's first pixel has its middle.
        step_px: (row, column) Slice pixels from one of the recipe's pixels to the next.
    """

    size_px: tuple[int, int]
    slice_size_px: tuple[int, int]
    start_px: tuple[float, float]
    step_px: tuple[float, float]

    def find_in_slice(self, points: npt.ArrayLike) -> Floats:
        """(..., 2) rows and columns of the recipe's result -> those of the slice."""
        return np.asarray(points, np.float64) * self.step_px + self.start_px

    def find_in_recipe(self, points: npt.ArrayLike) -> Floats:
        """(..., 2) rows and columns of the slice -> those of the recipe's result."""
        return (np.asarray(points, np.float64) - self.start_px) / self.step_px

    def bring_back(self, heat: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """A map on the recipe's grid, brought to the grid of the slice, linearly between pixels.

        Args:
            heat: (height, width) float32 of `size_px`.

        Returns:
            `slice_size_px` float32; 0 where the recipe's result does not reach.
        """
        if heat.shape != self.size_px:
            raise ValueError(f"the map is {heat.shape}, the recipe makes {self.size_px}")
        back = sample_grid(heat, self.start_px, self.step_px, self.slice_size_px)
        rows, columns = (
            (at >= -0.5) & (at <= length - 0.5)
            for at, length in zip(self._slice_axes(), self.size_px, strict=True)
        )
        return np.where(rows[:, None] & columns[None, :], back, np.float32(0))

    def _slice_axes(self) -> list[Floats]:
        """Of every row and of every column of the slice, where it lies on the recipe's grid."""
        return [
            np.asarray((np.arange(length) - start) / step, np.float64)
            for length, start, step in zip(self.slice_size_px, self.start_px, self.step_px, strict=True)
        ]


def sample_grid(
    values: npt.NDArray[Any],
    start_px: tuple[float, float],
    step_px: tuple[float, float],
    size_px: tuple[int, int],
) -> npt.NDArray[np.float32]:
    """Values on a coarse grid, taken linearly at the pixels of another; beyond the outermost they go on as they are.

    Args:
        values: (rows, columns).
        start_px, step_px: (row, column) of `size_px` at which the first value lies, and from one value to the next.
        size_px: (height, width) of the result.
    """
    matrix = np.array([[step_px[1], 0, start_px[1]], [0, step_px[0], start_px[0]]], np.float64)
    return np.asarray(
        cv2.warpAffine(
            np.ascontiguousarray(values, np.float32),
            cv2.invertAffineTransform(matrix),
            (size_px[1], size_px[0]),
            flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
            borderMode=cv2.BORDER_REPLICATE,
        ),
        np.float32,
    )


# The recipe: what is done to a slice before a network sees it, as data.
#
#     Slice ──[Neighbours][CropBody]──[Window(s)]──[Equalise][Resize]──▶ uint8 (H, W) ──Scale──▶ what the backbone
# expects
#             in Hounsfield units        to 0..255
#
# The steps up to `Resize` are deterministic and their result is what the `SliceCache` keeps. `Scale` (y / 255, paper
# eq. 1, then the mean and std that the backbone was pretrained with) is arithmetic on the batch and runs on the
# device,
# from this same object. Random augmentation is not part of a recipe. A recipe is stored inside the checkpoint, so
# training and prediction cannot drift apart.


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
