"""Heat over slices: colours, scales and outlines; pictures are true to mm."""

from __future__ import annotations

import base64
from pathlib import Path

import cv2
import numpy as np
import pytest

from cspine.explain.drawing import (
    AXIAL_SIDES,
    COLOURS,
    PlaneView,
    SliceView,
    choose_scales,
    draw_legend,
    draw_planes,
    draw_slice_picture,
    draw_slice_sheet,
    draw_tile,
    encode_png,
    find_scale,
)

GREY = np.full((20, 30), 100, np.uint8)


def make_heat(row: int, column: int, value: float = 1.0) -> np.ndarray:
    heat = np.zeros((20, 30), np.float32)
    heat[row, column] = value
    return heat


def test_without_evidence_a_slice_stays_grey() -> None:
    tile = draw_tile(GREY, np.zeros((20, 30), np.float32), 1.0, side_px=30)
    assert tile.shape == (20, 30, 3)
    assert (tile == 100).all()


def test_evidence_is_drawn_where_it_is_and_outlines_around_it() -> None:
    region = np.zeros((20, 30), bool)
    region[8:13, 8:13] = True
    tile = draw_tile(GREY, make_heat(10, 10), 1.0, region, side_px=30).astype(int)
    assert tile[10, 10, 0] > 150 > tile[10, 10, 2]  # warm
    assert tile[8, 10, 2] > tile[8, 10, 0] + 80  # cold
    assert (tile[2, 2] == 100).all()


def test_more_evidence_is_never_less_visible() -> None:
    table = COLOURS(np.linspace(0, 1, 256))
    assert (np.diff(table[:, 3]) >= 0).all()
    luminance = table[:, :3] @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(luminance) >= -1e-6).all()


def test_scales_are_of_the_slice_but_have_a_least_value() -> None:
    heats = [make_heat(1, 1, value) for value in (5.0, 1.0, 0.01)]
    assert find_scale(heats) == 5.0
    assert choose_scales(heats) == pytest.approx([5.0, 1.0, 0.5])
    assert find_scale([np.zeros((2, 2), np.float32)]) == 1.0


def test_a_tile_goes_into_a_page_as_it_is() -> None:
    tile = draw_tile(GREY, make_heat(3, 4), 1.0, side_px=60)
    png = np.frombuffer(base64.b64decode(encode_png(tile)), np.uint8)
    assert np.array_equal(cv2.imdecode(png, cv2.IMREAD_COLOR)[..., ::-1], tile)
    assert draw_legend(160, 12).shape == (12, 160, 3)


def read(path: Path) -> np.ndarray:
    picture = cv2.imread(str(path))
    assert picture is not None
    return picture


def test_slices_and_sheets_are_written_whole(tmp_path: Path) -> None:
    views = [
        SliceView(
            GREY,
            make_heat(10, number),
            f"slice {number}",
            spacing_mm=(1.0, 1.0),
            region=make_heat(10, 10) > 0,
            sides=tuple(AXIAL_SIDES.items()),
        )
        for number in range(5)
    ]
    one = read(draw_slice_picture(views[0], tmp_path / "one.png", method="by hand"))
    sheet = read(draw_slice_sheet(views, tmp_path / "sheet.png", method="by hand", title="Five"))
    assert min(one.shape[:2]) > 300
    assert min(sheet.shape[:2]) > 300
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.png", "sheet.png"]


def test_planes_are_at_one_scale_in_mm(tmp_path: Path) -> None:
    # White planes of 40 x 60 mm and 80 x 60 mm, of different pixel sizes.
    planes = [
        PlaneView(name, np.full(shape, 255, np.uint8), np.zeros(shape, np.float32), spacing_mm, None, ())
        for name, shape, spacing_mm in (("axial", (40, 60), (1.0, 1.0)), ("coronal", (40, 120), (2.0, 0.5)))
    ]
    picture = read(draw_planes(planes, tmp_path / "p.png", scale=1.0, unit="", method="by hand", title="T"))
    white = (picture > 250).all(axis=2)
    columns = np.flatnonzero(white.mean(axis=0) > 0.3)
    first, second = np.split(columns, np.flatnonzero(np.diff(columns) > 3) + 1)[:2]
    rows = [np.flatnonzero(white[:, part].mean(axis=1) > 0.8) for part in (first, second)]
    assert len(first) == pytest.approx(len(second), abs=2)  # 60 mm each
    assert len(rows[0]) / len(first) == pytest.approx(40 / 60, abs=0.05)
    assert len(rows[1]) / len(second) == pytest.approx(80 / 60, abs=0.05)
