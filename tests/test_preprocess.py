"""Each step of a recipe by hand, and what a recipe promises as a whole."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pydantic import ValidationError

from cspine.core.errors import RecipeError
from cspine.core.types import Slice
from cspine.preprocess import (
    Equalise,
    Neighbours,
    Recipe,
    Resize,
    Scale,
    Window,
    Windows,
    apply_window,
    resize_pixels,
)

RESIZE = Resize(height_px=16, width_px=16)
NONE = Equalise(method="none")


def show(pixels: npt.NDArray[np.uint8]) -> Slice:
    return Slice(pixels, "display8", "s1")


def make_hu(pixels: Any) -> Slice:
    return Slice(np.asarray(pixels, dtype=np.int16), "hu", "s1")


def make_noise(shape: tuple[int, int] = (16, 16), seed: int = 0) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(30, 90, shape, dtype=np.uint8)


def test_global_equalisation_follows_the_cumulated_histogram() -> None:
    pixels = make_noise()
    counts = np.bincount(pixels.ravel(), minlength=256)
    cumulated = np.cumsum(counts)
    lowest = counts[np.flatnonzero(counts)[0]]
    table = (cumulated - lowest) * 255.0 / (pixels.size - lowest)
    equalised = Recipe(steps=(Equalise(method="global"), RESIZE)).apply(show(pixels))
    assert np.abs(equalised - table[pixels]).max() <= 0.5001
    assert equalised.min() == 0
    assert equalised.max() == 255
    assert np.array_equal(equalised, cv2.equalizeHist(pixels))


def test_an_even_image_stays_even_when_equalised() -> None:
    equalised = Recipe(steps=(Equalise(), RESIZE)).apply(show(np.full((16, 16), 77, np.uint8)))
    assert len(np.unique(equalised)) == 1


def test_clahe_uses_its_clip_limit_and_tiles() -> None:
    pixels = make_noise((64, 64))
    step = Equalise(method="clahe", clip_limit=3.0, tiles=4)
    wanted = cv2.createCLAHE(clipLimit=3.0, tileGridSize=(4, 4)).apply(pixels)
    recipe = Recipe(steps=(step, Resize(height_px=64, width_px=64)))
    assert np.array_equal(recipe.apply(show(pixels)), wanted)
    other = step.model_copy(update={"tiles": 2})
    assert not np.array_equal(
        recipe.model_copy(update={"steps": (other, recipe.steps[1])}).apply(show(pixels)), wanted
    )


def test_no_equalisation_leaves_the_pixels_as_they_are() -> None:
    pixels = make_noise()
    assert np.array_equal(Recipe(steps=(NONE, RESIZE)).apply(show(pixels)), pixels)


def test_shrinking_averages_whole_blocks() -> None:
    pixels = make_noise((48, 64))
    wanted = pixels.reshape(16, 3, 16, 4).mean(axis=(1, 3))
    assert np.abs(resize_pixels(pixels, 16, 16) - wanted).max() <= 0.5001


def test_growing_is_linear_and_height_comes_first() -> None:
    grown = resize_pixels(np.array([[0, 100]], dtype=np.uint8), 3, 4)
    assert grown.shape == (3, 4)
    assert grown[0].tolist() == [0, 25, 75, 100]
    recipe = Recipe(steps=(NONE, Resize(height_px=16, width_px=40)))
    assert recipe.apply(show(make_noise((50, 30)))).shape == recipe.size_px == (16, 40)


def test_a_window_maps_hounsfield_units_to_greys() -> None:
    # 400 +- 900 HU: -500 is black, 1300 white, and one grey is 1800 / 255 HU.
    values = [-1000, -500, 400 - 90, 400, 1300, 3000]
    greys = apply_window(np.array([values]), 400, 1800)
    assert greys.dtype == np.uint8
    assert greys.tolist() == [[0, 0, round(810 * 255 / 1800), 128, 255, 255]]
    recipe = Recipe(steps=(Window(), NONE, RESIZE))
    assert np.unique(recipe.apply(make_hu(np.full((16, 16), 1300)))).tolist() == [255]


@pytest.mark.parametrize("window_first", [True, False])
def test_a_slice_of_the_other_domain_is_refused(window_first: bool) -> None:
    steps = (Window(), RESIZE) if window_first else (NONE, RESIZE)
    item = show(make_noise()) if window_first else make_hu(make_noise())
    with pytest.raises(RecipeError, match="Hounsfield units") as caught:
        Recipe(steps=steps).apply(item)
    assert caught.value.where == "s1"


def test_scaling_is_equation_1_to_three_equal_channels() -> None:
    scale = Scale()
    assert (scale.divisor, scale.mean, scale.std) == (255.0, (0.0,) * 3, (1.0,) * 3)
    assert scale.channels == 3


RECIPE = Recipe(steps=(Window(), Equalise(), RESIZE))

CHANGED = {
    "window centre": RECIPE.model_copy(update={"steps": (Window(center_hu=1), Equalise(), RESIZE)}),
    "window width": RECIPE.model_copy(update={"steps": (Window(width_hu=1), Equalise(), RESIZE)}),
    "no window": RECIPE.model_copy(update={"steps": (Equalise(), RESIZE)}),
    "method": RECIPE.model_copy(update={"steps": (Window(), NONE, RESIZE)}),
    "clip": RECIPE.model_copy(update={"steps": (Window(), Equalise(clip_limit=3), RESIZE)}),
    "tiles": RECIPE.model_copy(update={"steps": (Window(), Equalise(tiles=3), RESIZE)}),
    "height": RECIPE.model_copy(update={"steps": (Window(), Equalise(), Resize(height_px=17, width_px=16))}),
    "width": RECIPE.model_copy(update={"steps": (Window(), Equalise(), Resize(height_px=16, width_px=17))}),
}
SCALED = {
    "divisor": RECIPE.model_copy(update={"scale": Scale(divisor=256)}),
    "mean": RECIPE.model_copy(update={"scale": Scale(mean=(0.1, 0.0, 0.0))}),
    "std": RECIPE.model_copy(update={"scale": Scale(std=(1.0, 1.0, 2.0))}),
    "channels": RECIPE.model_copy(update={"scale": Scale(mean=(0.0,), std=(1.0,))}),
}


def test_any_changed_field_changes_the_hash() -> None:
    hashes = [RECIPE.hash, *(recipe.hash for recipe in (CHANGED | SCALED).values())]
    assert len(set(hashes)) == len(hashes)
    pixel_hashes = [RECIPE.pixel_hash, *(recipe.pixel_hash for recipe in CHANGED.values())]
    assert len(set(pixel_hashes)) == len(pixel_hashes)


@pytest.mark.parametrize("name", SCALED)
def test_the_pixel_hash_ignores_the_scaling(name: str) -> None:
    assert SCALED[name].pixel_hash == RECIPE.pixel_hash


def test_the_hash_survives_json_and_versions() -> None:
    assert Recipe.model_validate_json(RECIPE.model_dump_json()).hash == RECIPE.hash
    # Written down: caches and checkpoints made before are known by it.
    assert Recipe().hash == "12f9d78dfd6363a4"
    assert Recipe().pixel_hash == "edbaeb456095cb14"


@pytest.mark.parametrize("recipe", [RECIPE, *CHANGED.values(), *SCALED.values()])
def test_a_recipe_prints_as_one_line_with_its_hash(recipe: Recipe) -> None:
    text = str(recipe)
    assert "\n" not in text
    assert recipe.hash in text
    assert all(str(step) in text for step in recipe.steps)


@settings(max_examples=40, deadline=None)
@given(
    pixels=hnp.arrays(np.uint8, hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=40)),
    method=st.sampled_from(["global", "clahe", "none"]),
    height=st.integers(16, 48),
    width=st.integers(16, 48),
)
def test_the_memory_layout_of_a_slice_changes_no_bit(
    pixels: npt.NDArray[np.uint8], method: Any, height: int, width: int
) -> None:
    recipe = Recipe(steps=(Equalise(method=method), Resize(height_px=height, width_px=width)))
    before = pixels.copy()
    first = recipe.apply(show(pixels))
    mirrored_view = np.ascontiguousarray(pixels[::-1, ::-1])[::-1, ::-1]
    read_only = pixels.copy()
    read_only.flags.writeable = False
    assert first.shape == (height, width)
    assert first.dtype == np.uint8
    assert first.flags.c_contiguous
    for again in (pixels, mirrored_view, np.asfortranarray(pixels), read_only):
        assert recipe.apply(show(again)).tobytes() == first.tobytes()
    assert np.array_equal(pixels, before)


@pytest.mark.parametrize(
    ("steps", "problem"),
    [
        ((), "last step must be a resize"),
        ((NONE,), "last step must be a resize"),
        ((RESIZE, NONE), "last step must be a resize"),
        ((NONE, Window(), RESIZE), "a window must come before the steps that work on 0..255"),
    ],
)
def test_steps_in_an_impossible_order_are_refused(steps: tuple[Any, ...], problem: str) -> None:
    with pytest.raises(ValidationError, match=problem):
        Recipe(steps=steps)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Window(width_hu=0),
        lambda: Window(center_hu=float("nan")),
        lambda: Window(width_hu=float("inf")),
        lambda: Resize(height_px=15),
        lambda: Scale(mean=(0.0,), std=(1.0, 1.0)),
        lambda: Scale(mean=(), std=()),
        lambda: Scale(std=(1.0, 0.0, 1.0)),
        lambda: Equalise(method="local"),  # type: ignore[arg-type]
        lambda: Equalise(radius=3),  # type: ignore[call-arg]
    ],
)
def test_a_step_that_makes_no_sense_is_refused(make: Any) -> None:
    with pytest.raises(ValidationError):
        make()


@pytest.mark.parametrize("size_px", [16, 41, 90])
def test_channels_resized_together_are_as_one_by_one(size_px: int):
    around = tuple(
        np.random.default_rng(number).integers(-1024, 2000, (71, 64)).astype(np.int16) for number in range(3)
    )
    item = Slice(pixels=around[1], domain="hu", slice_id="s", around=around)
    steps = (Window(), Resize(height_px=size_px, width_px=size_px + 3))
    together = Recipe(steps=(Neighbours(count=3), *steps)).apply(item)
    alone = [Recipe(steps=steps).apply(Slice(pixels=pixels, domain="hu", slice_id="s")) for pixels in around]
    np.testing.assert_array_equal(together, np.stack(alone))


def test_two_windows_of_a_slice_come_out_as_each_alone() -> None:
    # Halved, OpenCV rounds a pair of channels otherwise than one.
    pixels = np.random.default_rng(0).integers(-1024, 2000, (64, 64)).astype(np.int16)
    item = Slice(pixels=pixels, domain="hu", slice_id="s")
    both = (Window(), Window(center_hu=50, width_hu=400))
    small = Resize(height_px=32, width_px=32)
    scale = Scale(mean=(0.0, 0.0), std=(1.0, 1.0))
    together = Recipe(steps=(Windows(windows=both), small), scale=scale).apply(item)
    alone = [Recipe(steps=(window, small)).apply(item) for window in both]
    np.testing.assert_array_equal(together, np.stack(alone))
