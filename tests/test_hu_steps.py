"""Steps of a recipe on Hounsfield units: a square about the body, neighbours and windows as channels."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from cspine.core.errors import RecipeError
from cspine.core.types import Slice
from cspine.experiment import PreprocessSettings
from cspine.preprocess import (
    OUTSIDE_HU,
    CropBody,
    Equalise,
    Neighbours,
    Recipe,
    Resize,
    Scale,
    Window,
    Windows,
    apply_window,
    crop_square,
    find_body_middle,
)

SIXTEEN = Resize(height_px=16, width_px=16)


def make_scan(spacing_mm: tuple[float, float] = (1.0, 1.0)) -> np.ndarray:
    """(100, 120): a body of 40 x 30 mm whose middle is at 44.5 mm down and 60.5 mm across, on a thin table."""
    rows, columns = round(100 / spacing_mm[0]), round(120 / spacing_mm[1])
    y, x = np.meshgrid(
        (np.arange(rows) + 0.5) * spacing_mm[0], (np.arange(columns) + 0.5) * spacing_mm[1], indexing="ij"
    )
    hu = np.full((rows, columns), -1000, np.int16)
    hu[(abs(y - 45) < 20) & (abs(x - 61) < 15)] = 40
    hu[(y > 80) & (y < 82)] = 100  # a table as wide as the picture, with more pixels than a thin body
    return hu


def make_slice(hu: np.ndarray, spacing_mm: tuple[float, float] | None = (1.0, 1.0), **more: object) -> Slice:
    return Slice(pixels=hu, domain="hu", slice_id="s", spacing_mm=spacing_mm, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("spacing_mm", [(1.0, 1.0), (0.5, 0.5), (0.5, 1.0)])
def test_the_middle_of_the_body_is_found_beside_a_table(spacing_mm: tuple[float, float]) -> None:
    row, column = find_body_middle(make_scan(spacing_mm), spacing_mm)
    assert (row + 0.5) * spacing_mm[0] == pytest.approx(45, abs=0.6)
    assert (column + 0.5) * spacing_mm[1] == pytest.approx(61, abs=0.6)


def test_without_a_body_the_middle_is_that_of_the_picture() -> None:
    assert find_body_middle(np.full((20, 31), -1000, np.int16), (1.0, 1.0)) == (9.5, 15.0)


def test_a_square_beyond_the_picture_is_filled_with_air() -> None:
    hu = np.arange(20, dtype=np.int16).reshape(4, 5)
    cut = crop_square(hu, (0.0, 4.0), 3.0, (1.0, 1.0))
    air = OUTSIDE_HU
    assert cut.tolist() == [[air, air, air], [3, 4, air], [8, 9, air]]
    assert crop_square(hu, (1.0, 2.0), 3.0, (1.0, 1.0)).tolist() == hu[:3, 1:4].tolist()
    assert (crop_square(hu, (50.0, 50.0), 3.0, (1.0, 1.0)) == air).all()


def test_slices_of_any_spacing_come_out_at_one_pixel_size() -> None:
    """The body is 40 x 30 mm in a square of 64 mm that becomes 32 pixels: 20 x 15 of them, whatever the scan had."""
    recipe = Recipe(steps=(CropBody(field_of_view_mm=64), Window(), Resize(height_px=32, width_px=32)))
    for spacing_mm in ((1.0, 1.0), (0.5, 0.5), (0.4, 0.8)):
        bright = recipe.apply(make_slice(make_scan(spacing_mm), spacing_mm)) > 50
        rows, columns = np.flatnonzero(bright.any(axis=1)), np.flatnonzero(bright.any(axis=0))
        body = rows[rows < 27]  # the table lies below
        assert np.ptp(body) + 1 == pytest.approx(20, abs=1)
        assert np.ptp(np.flatnonzero(bright[16])) + 1 == pytest.approx(15, abs=1)
        assert (body[0] + body[-1]) / 2 == pytest.approx(15.5, abs=1)
        assert len(columns)


def test_windows_are_channels_in_their_order() -> None:
    hu = np.arange(-1024, -1024 + 16 * 16 * 8, 8).reshape(16, 16).astype(np.int16)
    windows = (Window(), Window(center_hu=50, width_hu=400), Window(center_hu=0, width_hu=2000))
    scale = Scale()
    recipe = Recipe(steps=(Windows(windows=windows), Equalise(method="none"), SIXTEEN), scale=scale)
    assert (recipe.channels, recipe.shape, recipe.domain, recipe.shown_channel) == (3, (3, 16, 16), "hu", 0)
    made = recipe.apply(make_slice(hu))
    for channel, window in zip(made, windows, strict=True):
        np.testing.assert_array_equal(channel, apply_window(hu, window.center_hu, window.width_hu))


def test_neighbours_are_channels_cut_as_their_slice() -> None:
    middle = make_scan()
    around = tuple((middle + np.int16(step)).astype(np.int16) for step in (-300, 0, 300))
    shifted = (np.roll(around[0], 20, axis=1), *around[1:])
    steps = (Neighbours(count=3, distance_mm=2.5), CropBody(field_of_view_mm=40), Window(), SIXTEEN)
    recipe = Recipe(steps=steps)
    assert recipe.offsets_mm == (-2.5, 0.0, 2.5)
    assert (recipe.channels, recipe.shape, recipe.shown_channel) == (3, (3, 16, 16), 1)
    made = recipe.apply(make_slice(middle, around=shifted))
    alone = Recipe(steps=steps[1:]).apply(make_slice(middle))
    np.testing.assert_array_equal(made[1], alone)
    assert made[0].argmax(axis=1)[8] > made[1].argmax(axis=1)[8]  # the shifted neighbour stays shifted
    assert made[2].mean() > made[1].mean()


def test_windows_and_neighbours_multiply() -> None:
    windows = (Window(), Window(center_hu=50, width_hu=400))
    scale = Scale(mean=(0.0,) * 6, std=(1.0,) * 6)
    recipe = Recipe(steps=(Neighbours(), Windows(windows=windows), SIXTEEN), scale=scale)
    around = tuple(np.full((16, 16), value, np.int16) for value in (-200, 50, 200))
    made = recipe.apply(make_slice(around[1], around=around))
    values = made.reshape(6, -1)[:, 0].tolist()
    wanted = [apply_window(hu, w.center_hu, w.width_hu)[0, 0] for hu in around for w in windows]
    assert values == wanted
    assert recipe.shown_channel == 2
    assert made[recipe.shown_channel, 0, 0] == apply_window(around[1], 400, 1800)[0, 0]


def test_what_a_step_needs_and_does_not_get_is_said() -> None:
    hu = np.zeros((16, 16), np.int16)
    with pytest.raises(RecipeError, match="takes 3 neighbouring slices and got 0"):
        Recipe(steps=(Neighbours(), Window(), SIXTEEN)).apply(make_slice(hu))
    with pytest.raises(RecipeError, match="no pixel spacing"):
        Recipe(steps=(CropBody(), Window(), SIXTEEN)).apply(make_slice(hu, None))


@pytest.mark.parametrize(
    ("steps", "words"),
    [
        ((CropBody(), SIXTEEN), "add a window"),
        ((CropBody(), Neighbours(), Window(), SIXTEEN), "neighbours must be the first step"),
        ((Window(), CropBody(), SIXTEEN), "after those on HU"),
        ((Equalise(), Window(), SIXTEEN), "a window must come before"),
        ((Window(), Windows(), SIXTEEN), "and once"),
        ((CropBody(), CropBody(), Window(), SIXTEEN), "each be there once"),
        ((Windows(windows=(Window(), Window())), SIXTEEN), "2 channels, and the scale has 3"),
    ],
)
def test_steps_in_an_impossible_order_are_refused(steps: tuple[object, ...], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        Recipe(steps=steps)  # type: ignore[arg-type]


def test_an_experiment_says_the_steps_by_name() -> None:
    settings = PreprocessSettings.model_validate(
        {
            "neighbours": {"count": 5, "distance_mm": 3},
            "crop_body": {"field_of_view_mm": 160},
            "window": {},
            "image_size_px": 64,
        }
    )
    assert settings.channels == 5
    recipe = settings.make_recipe(Scale(mean=(0.0,) * 5, std=(1.0,) * 5))
    assert [step.kind for step in recipe.steps] == ["neighbours", "crop_body", "window", "equalise", "resize"]
    assert "neighbours 5 slices 3 mm apart > crop_body 160 mm > window 400/1800 HU" in str(recipe)
    assert PreprocessSettings().channels == 3
    with pytest.raises(ValidationError, match="not both"):
        PreprocessSettings(window=Window(), windows=(Window(), Window()))
    with pytest.raises(ValidationError, match="add a window"):
        PreprocessSettings(crop_body=CropBody())


def test_a_recipe_of_hu_steps_survives_its_json() -> None:
    recipe = Recipe(steps=(Neighbours(), CropBody(), Window(), SIXTEEN))
    assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe


def find_body_by_counting_all(hu: np.ndarray) -> tuple[float, float]:
    """What `find_body_middle` says at 1 mm, by scipy: open, number the parts, take the largest."""
    from scipy import ndimage

    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (5, 5)).astype(bool)
    eroded = ndimage.binary_erosion(hu > -400, kernel, border_value=1)
    parts, count = ndimage.label(ndimage.binary_dilation(eroded, kernel))
    sizes = [int((parts == part).sum()) for part in range(1, count + 1)]
    if not sizes or max(sizes) < hu.size / 100:
        return (hu.shape[0] - 1) / 2, (hu.shape[1] - 1) / 2
    rows, columns = ndimage.find_objects(parts)[int(np.argmax(sizes))]
    return (rows.start + rows.stop - 1) / 2, (columns.start + columns.stop - 1) / 2


@settings(max_examples=40, deadline=None)
@given(
    boxes=st.lists(st.tuples(*[st.integers(0, 50)] * 2, *[st.integers(1, 40)] * 2), min_size=0, max_size=6)
)
def test_the_body_is_the_largest_part_wherever_it_lies(boxes: list[tuple[int, int, int, int]]):
    hu = np.full((60, 64), -1000, np.int16)
    for top, left, height, width in boxes:
        hu[top : top + height, left : left + width] = 40
    found = find_body_middle(hu, (1.0, 1.0))
    assert found == find_body_by_counting_all(hu)


def test_a_finer_scan_has_its_body_where_a_coarse_one_has_it():
    fine, coarse = (find_body_middle(make_scan(step), step) for step in ((0.3, 0.3), (1.0, 1.0)))
    assert [0.3 * (one + 0.5) for one in fine] == pytest.approx([one + 0.5 for one in coarse], abs=1)
