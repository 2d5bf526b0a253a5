"""Every corruption is pure, seeded, graded, and leaves a slice of the kind that it got."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from cspine.core.errors import InputError
from cspine.core.types import Slice
from cspine.robustness.corruptions import CORRUPTIONS, SEVERITIES, THICKNESS, apply_corruption
from cspine.robustness.scanner import PixelMeaning

KINDS = [kind for kind in CORRUPTIONS if kind != THICKNESS]


def make_slice(size: int = 64, slice_id: str = "a") -> Slice:
    """A neck in the 400/1800 window: tissue, a bone off the middle, air around."""
    hu = np.full((size, size), -1000, np.int16)
    cv2.circle(hu, (size // 2, size // 2), int(0.45 * size), 40, -1)
    cv2.circle(hu, (size // 2 + size // 10, 2 * size // 3), size // 7, 900, -1)
    cv2.circle(hu, (size // 3, size // 3), size // 12, 700, -1)
    return Slice(PixelMeaning().show_grey(hu.astype(np.float32)), "display8", slice_id)


@pytest.mark.parametrize("kind", KINDS)
def test_a_seed_gives_the_same_bytes_of_a_corruption(kind: str) -> None:
    item = make_slice()
    before = item.pixels.copy()
    first = apply_corruption(item, kind, 4, 0)
    apply_corruption(make_slice(slice_id="b"), kind, 4, 0)
    assert first.pixels.tobytes() == apply_corruption(item, kind, 4, 0).pixels.tobytes()
    assert np.array_equal(item.pixels, before)
    assert (first.pixels.shape, first.domain, first.slice_id) == (item.pixels.shape, "display8", "a")
    assert not np.array_equal(first.pixels, before)


@pytest.mark.parametrize("kind", KINDS)
def test_each_severity_is_further_from_the_slice(kind: str) -> None:
    item = make_slice(96)
    assert np.array_equal(apply_corruption(item, kind, 0).pixels, item.pixels)
    meaning = PixelMeaning(field_of_view_mm=90)  # fine pixels, so that every resolution is a coarser one
    distance = [
        np.abs(apply_corruption(item, kind, severity, 3, meaning).pixels.astype(int) - item.pixels).mean()
        for severity in (0, *SEVERITIES)
    ]
    assert np.all(np.diff(distance) > 0), distance


@pytest.mark.parametrize("kind", ["noise", "metal", "ring", "motion", "window", "rotation", "crop"])
def test_the_random_part_differs_by_slice_and_seed(kind: str) -> None:
    found = {
        apply_corruption(make_slice(slice_id=key), kind, 5, seed).pixels.tobytes()
        for key in "abcde"
        for seed in (0, 1)
    }
    assert len(found) == (2 if kind in ("window", "rotation") else 10)


@pytest.mark.parametrize("kind", KINDS)
def test_hu_and_8_bits_become_the_same(kind: str) -> None:
    # Where black is not clipped, both ways of storing a slice say the same to a grey level or two.
    meaning = PixelMeaning(0, 2200, 120)
    shown = PixelMeaning().read_grey(np.asarray(make_slice().pixels, np.uint8))
    hu = Slice(np.rint(shown).astype(np.int16), "hu", "a", spacing_mm=(120 / 64, 120 / 64))
    grey = Slice(meaning.show_grey(hu.pixels.astype(np.float32)), "display8", "a")
    by_hu = apply_corruption(hu, kind, 2, 0, meaning)
    assert by_hu.pixels.dtype == np.int16
    by_grey = apply_corruption(grey, kind, 2, 0, meaning)
    difference = np.abs(meaning.show_grey(by_hu.pixels.astype(np.float32)).astype(int) - by_grey.pixels)
    inside = (
        slice(16, 48),
        slice(16, 48),
    )  # beyond the edge of a turned slice one is black and the other air
    assert np.median(difference[inside]) <= 1
    assert np.quantile(difference[inside], 0.95) <= 3


@pytest.mark.parametrize("kind", KINDS)
def test_the_smallest_and_odd_slices_survive(kind: str) -> None:
    for shape in ((1, 1), (2, 9), (33, 20)):
        item = Slice(np.full(shape, 70, np.uint8), "display8", "a")
        assert apply_corruption(item, kind, 5).pixels.shape == shape


@pytest.mark.parametrize(("kind", "severity"), [("fog", 1), ("noise", 6), ("noise", -1), (THICKNESS, 1)])
def test_what_does_not_exist_is_refused(kind: str, severity: int) -> None:
    with pytest.raises(InputError):
        apply_corruption(make_slice(), kind, severity)
