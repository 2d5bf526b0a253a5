"""Where in a slice a fracture is known to be: masks and boxes of a manifest, as one kind of thing."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import polars as pl

from cspine.core.errors import InputError
from cspine.data.images import read_image
from cspine.data.manifest import HU_MODE, Manifest, read_stack_slice

BOXES_NAME = "boxes.parquet"
"""In the root folder of an imported set."""
BOXES_SCHEMA = pl.Schema(
    {
        "slice_id": pl.String,
        "x_px": pl.Float64,
        "y_px": pl.Float64,
        "width_px": pl.Float64,
        "height_px": pl.Float64,
    }
)
Kind = Literal["mask", "box"]


@dataclass(frozen=True)
class Region:
    """mask: (H, W) of the slice. kind: what it was drawn from; a box also holds what is about a fracture."""

    mask: npt.NDArray[np.bool_]
    kind: Kind


@dataclass(frozen=True)
class Regions:
    """The regions of a manifest's slices.

    Raises:
        InputError: the table of boxes is damaged.
    """

    manifest: Manifest
    _boxes: dict[str, list[tuple[float, float, float, float]]] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_boxes", read_boxes(self.manifest.root / BOXES_NAME))

    @cached_property
    def slice_ids(self) -> list[str]:
        """Slices with a region, in the order of the manifest."""
        rows = self.manifest.table.select("slice_id", "mask_path").iter_rows()
        return [slice_id for slice_id, mask in rows if mask is not None or slice_id in self._boxes]

    def read(self, slice_id: str) -> Region | None:
        """The region of one slice: its mask where there is one, else all its boxes; None where nothing is known.

        Raises:
            ManifestError: there is no such slice.
            ImageError: a mask is missing or damaged.
            InputError: a mask is not of the slice's size.
        """
        entry = self.manifest.table.row(self.manifest.find_row(slice_id), named=True)
        shape = entry["height_px"], entry["width_px"]
        if entry["mask_path"] is not None:
            return Region(_read_mask(self.manifest.root, entry, shape), "mask")
        boxes = self._boxes.get(slice_id)
        return Region(fill_boxes(boxes, shape), "box") if boxes else None


def read_boxes(path: Path) -> dict[str, list[tuple[float, float, float, float]]]:
    """Boxes (x, y, width, height in pixels) by slice; none where there is no such file.

    Raises:
        InputError: the file is no table of boxes.
    """
    if not path.is_file():
        return {}
    try:
        table = pl.read_parquet(path, columns=BOXES_SCHEMA.names())
    except (pl.exceptions.PolarsError, OSError):
        raise InputError(
            "the table of boxes is damaged", where=str(path), fix="import the set again"
        ) from None
    boxes: dict[str, list[tuple[float, float, float, float]]] = {}
    for slice_id, *box in table.iter_rows():
        boxes.setdefault(slice_id, []).append((box[0], box[1], box[2], box[3]))
    return boxes


def _read_mask(root: Path, entry: dict[str, Any], shape: tuple[int, int]) -> npt.NDArray[np.bool_]:
    path = root / entry["mask_path"]
    if entry["mode"] == HU_MODE:
        values = read_stack_slice(path, entry["frame"])
    else:
        values = read_image(path, slice_id=entry["slice_id"]).pixels
    if values.shape != shape:
        raise InputError(
            f"a mask of {values.shape[0]} x {values.shape[1]} pixels is beside a slice of {shape[0]} x {shape[1]}",
            where=str(path),
            fix="make masks on the grid of their slices",
        )
    return np.asarray(values > 0)


def fill_boxes(
    boxes: list[tuple[float, float, float, float]], shape: tuple[int, int]
) -> npt.NDArray[np.bool_]:
    """Pixels whose middle lies in a box; the first pixel's middle is 0, 0."""
    mask = np.zeros(shape, bool)
    rows, columns = np.arange(shape[0])[:, None], np.arange(shape[1])[None, :]
    for x, y, width, height in boxes:
        mask |= (rows >= y) & (rows <= y + height) & (columns >= x) & (columns <= x + width)
    return mask
