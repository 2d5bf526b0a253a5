"""Corruptions are pure, seeded and graded; robustness curves come from predictions alone."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt
import polars as pl
import pytest

from cspine.errors import InputError, PredictionsError
from cspine.evaluation.evaluate import evaluate
from cspine.evaluation.robustness import (
    CLEAN,
    CORRUPTIONS,
    SEVERITIES,
    apply_corruption,
    summarise_robustness,
)
from cspine.predictions import make_predictions


def make_pixels(size: int = 96) -> npt.NDArray[np.uint8]:
    """A bright ring with a spine-like blob in the dark, off centre, so that rotation shows."""
    pixels = np.zeros((size, size), np.uint8)
    cv2.circle(pixels, (size // 2, size // 2), size // 3, 120, -1)
    cv2.circle(pixels, (size // 2, 2 * size // 3), size // 8, 220, -1)
    return pixels


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_a_corruption_is_pure_and_seeded_by_slice(kind: str) -> None:
    pixels = make_pixels()
    before = pixels.copy()
    first = apply_corruption(pixels, kind, 3, "a", 0)
    apply_corruption(pixels, kind, 3, "b", 0)
    assert np.array_equal(first, apply_corruption(pixels, kind, 3, "a", 0))
    assert np.array_equal(pixels, before)
    assert first.shape == pixels.shape
    assert first.dtype == np.uint8
    assert not np.array_equal(first, pixels)


def test_random_parts_differ_by_slice_severity_and_seed() -> None:
    flat = np.full((64, 64), 128, np.uint8)
    base = apply_corruption(flat, "noise", 3, "a", 0).astype(float) - 128
    for severity, key, seed in ((3, "b", 0), (3, "a", 1), (4, "a", 0)):
        other = apply_corruption(flat, "noise", severity, key, seed).astype(float) - 128
        assert abs(np.corrcoef(base.ravel(), other.ravel())[0, 1]) < 0.2
    turned = {apply_corruption(make_pixels(), "rotation", 2, key, 0).tobytes() for key in "abcdefghij"}
    assert len(turned) == 2  # to the left and to the right


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_severity_0_is_the_slice_and_each_next_one_is_further_from_it(kind: str) -> None:
    pixels = make_pixels(224)
    clean = apply_corruption(pixels, kind, 0, "a")
    assert np.array_equal(clean, pixels)
    assert clean is not pixels
    distance = [
        np.abs(apply_corruption(pixels, kind, severity, "a").astype(int) - pixels).mean()
        for severity in (0, *SEVERITIES)
    ]
    assert np.all(np.diff(distance) > 0)


@pytest.mark.parametrize("size", [112, 224, 512])
def test_noise_has_its_sigma_and_a_grain_that_survives_resizing(size: int) -> None:
    flat = np.full((size, size), 128, np.uint8)
    noisy = apply_corruption(flat, "noise", 3, "a")
    assert noisy.std() == pytest.approx(20, rel=0.03)
    small = cv2.resize(noisy, (112, 112), interpolation=cv2.INTER_AREA)
    assert small.std() > 11  # white noise would keep 20 * 112 / 512 = 4.4 of a large slice


def test_blur_scales_with_the_slice() -> None:
    small = make_pixels(128)
    large = cv2.resize(small, (512, 512), interpolation=cv2.INTER_CUBIC)
    blurred = cv2.resize(apply_corruption(large, "blur", 5, "a"), (128, 128), interpolation=cv2.INTER_AREA)
    assert np.abs(blurred.astype(int) - apply_corruption(small, "blur", 5, "a")).mean() < 1.5


def test_rotation_turns_by_its_angle_and_fills_with_black() -> None:
    pixels = np.full((101, 101), 200, np.uint8)
    pixels[10, 50] = 255
    turned = apply_corruption(pixels, "rotation", 5, "a")
    assert turned[0, 0] == 0
    row, column = np.unravel_index(np.argmax(turned), turned.shape)
    assert np.degrees(np.arctan2(abs(column - 50), 50 - row)) == pytest.approx(30, abs=2)


def test_contrast_keeps_the_mean() -> None:
    pixels = make_pixels()
    weak = apply_corruption(pixels, "contrast", 5, "a")
    assert weak.mean() == pytest.approx(pixels.mean(), abs=0.5)
    assert weak.std() == pytest.approx(0.2 * pixels.std(), rel=0.02)


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_the_smallest_slice_survives(kind: str) -> None:
    assert apply_corruption(np.array([[7]], np.uint8), kind, 5, "a").shape == (1, 1)


@pytest.mark.parametrize(
    ("pixels", "kind", "severity"),
    [
        (np.zeros((4, 4), np.uint8), "fog", 1),
        (np.zeros((4, 4), np.uint8), "noise", 6),
        (np.zeros((4, 4), np.int16), "noise", 1),
        (np.zeros((4, 4, 3), np.uint8), "noise", 1),
        (np.zeros((0, 4), np.uint8), "noise", 1),
    ],
)
def test_what_cannot_be_corrupted_is_refused(pixels: np.ndarray, kind: str, severity: int) -> None:
    with pytest.raises(InputError):
        apply_corruption(pixels, kind, severity, "a")


def make_table(model: str, shift: float, n: int = 60) -> pl.DataFrame:
    nothing = pl.lit(None, dtype=pl.String)
    slices = pl.DataFrame(
        {"slice_id": [f"s{i:03d}" for i in range(n)], "label": [i % 2 for i in range(n)]},
        schema_overrides={"label": pl.Int8},
    ).with_columns(
        split=pl.lit("val"), patient_id=nothing, study_uid=nothing, series_uid=nothing, source_id=nothing
    )
    logits = np.random.default_rng(0).normal(size=n) + shift * (slices["label"].to_numpy() * 2 - 1)
    origin = {"checkpoint_hash": "c", "recipe_hash": "r", "manifest_hash": "d"}
    return make_predictions(slices, slices["slice_id"].to_list(), logits, model=model, **origin)


def test_points_are_sorted_and_every_curve_begins_clean() -> None:
    tables = [("rotation", 1, make_table("b", 0.5)), ("noise", 5, make_table("b", 0.2))]
    tables += [
        (CLEAN, 0, make_table("b", 1.5)),
        ("noise", 1, make_table("b", 1.0)),
        ("blur", 2, make_table("a", 1.0)),
    ]
    points = summarise_robustness(tables, draws=100)
    assert [(p.model, p.corruption, p.severity) for p in points] == [
        ("a", "blur", 2), ("b", "noise", 0), ("b", "noise", 1), ("b", "noise", 5), ("b", "rotation", 0),
        ("b", "rotation", 1),
    ]  # fmt: skip
    full = evaluate(make_table("b", 1.5), draws=100)
    assert points[1].accuracy == points[4].accuracy == full.metrics["accuracy"]
    assert points[1].auroc == full.metrics["auroc"]


def test_clean_alone_is_no_curve() -> None:
    assert summarise_robustness([(CLEAN, 0, make_table("a", 1.0))], draws=100) == ()


def test_points_that_cannot_be_compared_are_refused() -> None:
    clean = (CLEAN, 0, make_table("a", 1.0))
    with pytest.raises(PredictionsError, match="different slices"):
        summarise_robustness([clean, ("noise", 1, make_table("a", 1.0, n=40))], draws=100)
    with pytest.raises(PredictionsError, match="given twice"):
        summarise_robustness([clean, clean], draws=100)
    with pytest.raises(PredictionsError, match="given twice"):
        summarise_robustness([("noise", 1, make_table("a", 1.0))] * 2, draws=100)
    for corruption, severity in (("fog", 1), ("noise", 0), (CLEAN, 1), ("noise", 6)):
        with pytest.raises(InputError, match="no such point"):
            summarise_robustness([(corruption, severity, make_table("a", 1.0))], draws=100)
