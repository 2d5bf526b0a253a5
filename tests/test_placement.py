"""Where a recipe's pixels lie in the slice: by hand, and with dots that are looked for again."""

from __future__ import annotations

import numpy as np
import pytest

from cspine.core.errors import RecipeError
from cspine.core.types import Slice
from cspine.preprocess import CropBody, Equalise, Placement, Recipe, Resize, Window, sample_grid

HU_STEPS = (CropBody(field_of_view_mm=60), Window())


def make_neck(height: int, width: int, dot: tuple[int, int], spacing_mm: tuple[float, float]) -> Slice:
    """A body of 50 HU off the middle of the picture, with a dot of bone of 3 x 3 pixels."""
    hu = np.full((height, width), -1000, np.int16)
    hu[height // 8 : height // 2 + height // 4, width // 4 : width - width // 8] = 50
    hu[dot[0] - 1 : dot[0] + 2, dot[1] - 1 : dot[1] + 2] = 1300
    return Slice(hu, "hu", "s", spacing_mm=spacing_mm)


@pytest.mark.parametrize(
    ("size_px", "spacing_mm", "made_px"),
    [((128, 128), (1.0, 1.0), 96), ((200, 160), (0.5, 0.4), 64), ((64, 90), (1.5, 1.0), 96)],
)
@pytest.mark.parametrize("cropped", [False, True])
def test_a_bright_dot_is_found_again_within_a_pixel(
    size_px: tuple[int, int], spacing_mm: tuple[float, float], made_px: int, cropped: bool
) -> None:
    dot = (round(size_px[0] * 0.4), round(size_px[1] * 0.6))
    item = make_neck(*size_px, dot, spacing_mm)
    steps = (*(HU_STEPS if cropped else HU_STEPS[1:]), Resize(height_px=made_px, width_px=made_px))
    recipe = Recipe(steps=steps)
    made = recipe.apply(item).astype(np.float32)
    placement = recipe.locate(item)
    bright = made == made.max()
    middle = np.argwhere(bright).mean(axis=0)
    assert placement.find_in_slice(middle) == pytest.approx(dot, abs=1.0)
    assert placement.find_in_recipe(dot) == pytest.approx(middle, abs=1.0)
    back = placement.bring_back(bright.astype(np.float32))
    assert back.shape == size_px
    weights = back / back.sum()
    found = [(weights.sum(axis=1 - axis) * np.arange(size_px[axis])).sum() for axis in (0, 1)]
    assert found == pytest.approx(dot, abs=1.0)


def test_halving_puts_each_pixel_between_two_of_the_slice() -> None:
    item = Slice(np.zeros((32, 64), np.uint8), "display8", "s")
    placement = Recipe(steps=(Equalise(method="none"), Resize(height_px=16, width_px=16))).locate(item)
    assert placement == Placement((16, 16), (32, 64), (0.5, 1.5), (2.0, 4.0))
    assert placement.find_in_slice([[0, 0], [15, 15]]).tolist() == [[0.5, 1.5], [30.5, 61.5]]


def test_outside_of_the_crop_a_map_is_zero() -> None:
    placement = Placement((2, 2), (8, 8), (3.0, 3.0), (1.0, 1.0))
    back = placement.bring_back(np.ones((2, 2), np.float32))
    assert np.argwhere(back > 0).tolist() == [[3, 3], [3, 4], [4, 3], [4, 4]]


def test_a_map_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match="the recipe makes"):
        Placement((2, 2), (8, 8), (0, 0), (1, 1)).bring_back(np.ones((3, 2), np.float32))


def test_locating_needs_a_spacing_where_the_recipe_crops_in_mm() -> None:
    item = Slice(np.zeros((32, 32), np.int16), "hu", "s")
    with pytest.raises(RecipeError, match="no pixel spacing"):
        Recipe(steps=(*HU_STEPS, Resize(height_px=16, width_px=16))).locate(item)


def test_a_coarse_grid_is_read_linearly_beyond_its_ends() -> None:
    values = np.array([[0.0, 4.0], [0.0, 4.0]])
    got = sample_grid(values, (0.0, 1.0), (2.0, 4.0), (3, 7))
    assert got[1].tolist() == [0, 0, 1, 2, 3, 4, 4]
