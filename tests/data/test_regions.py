"""Where fractures are known to be: masks and boxes of slices."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import polars as pl
import pytest

from cspine.core.errors import ImageError, InputError
from cspine.data.manifest import HU_MODE, SCHEMA, Manifest, complete_table, write_stack
from cspine.data.regions import BOXES_NAME, BOXES_SCHEMA, Regions


def make_manifest(root: Path, masks: list[str | None], *, hu: bool = False) -> Manifest:
    count = len(masks)
    columns = {
        "slice_id": [f"s{n}" for n in range(count)],
        "path": ["volume.npz" if hu else f"s{n}.png" for n in range(count)],
        "label": [1] * count,
        "mask_path": masks,
        "width_px": [20] * count,
        "height_px": [16] * count,
        "mode": [HU_MODE if hu else "L"] * count,
        "bits_stored": [16 if hu else 8] * count,
        "channels_differ": [False] * count,
        "file_bytes": [1] * count,
        "file_sha256": ["x"] * count,
        **({"frame": range(count), "row_spacing_mm": 1.0, "column_spacing_mm": 1.0} if hu else {}),
    }
    table = pl.DataFrame(columns, schema_overrides={name: SCHEMA[name] for name in columns}, strict=False)
    return Manifest(complete_table(table), root, "test")


def make_mask(height: int = 16) -> np.ndarray:
    mask = np.zeros((height, 20), np.uint8)
    mask[4:7, 5:9] = 255
    return mask


def test_a_mask_is_read_from_a_picture(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "m.png"), make_mask())
    regions = Regions(make_manifest(tmp_path, ["m.png", None]))
    region = regions.read("s0")
    assert region is not None
    assert region.kind == "mask"
    assert np.array_equal(region.mask, make_mask() > 0)
    assert regions.read("s1") is None
    assert regions.slice_ids == ["s0"]


def test_a_mask_of_a_volume_is_that_of_the_slices_own_number(tmp_path: Path) -> None:
    write_stack(tmp_path / "f.npz", [np.zeros((16, 20), np.uint8), make_mask()])
    region = Regions(make_manifest(tmp_path, [None, "f.npz"], hu=True)).read("s1")
    assert region is not None
    assert region.mask.sum() == 12


def test_boxes_are_joined_and_masks_go_before_boxes(tmp_path: Path) -> None:
    boxes = [("s0", 1.5, 2.5, 3.0, 2.0), ("s0", 10.0, 10.0, 1.0, 1.0), ("s1", 0.0, 0.0, 4.0, 4.0)]
    pl.DataFrame(boxes, schema=BOXES_SCHEMA, orient="row").write_parquet(tmp_path / BOXES_NAME)
    cv2.imwrite(str(tmp_path / "m.png"), make_mask())
    regions = Regions(make_manifest(tmp_path, [None, "m.png"]))
    region = regions.read("s0")
    assert region is not None
    assert region.kind == "box"
    # Columns 2 to 4 and rows 3 and 4 have their middles in the first, four pixels in the second.
    wanted = np.zeros((16, 20), bool)
    wanted[3:5, 2:5] = wanted[10:12, 10:12] = True
    assert np.array_equal(region.mask, wanted)
    other = regions.read("s1")
    assert other is not None
    assert other.kind == "mask"


def test_a_damaged_table_or_mask_is_refused(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "m.png"), make_mask(height=17))
    regions = Regions(make_manifest(tmp_path, ["m.png", "gone.png"]))
    with pytest.raises(InputError, match="a mask of 17 x 20"):
        regions.read("s0")
    with pytest.raises(ImageError, match="no such file"):
        regions.read("s1")
    (tmp_path / BOXES_NAME).write_bytes(b"no table")
    with pytest.raises(InputError, match="boxes is damaged"):
        Regions(make_manifest(tmp_path, [None]))
