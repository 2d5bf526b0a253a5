"""Likeness of maps, and what the sanity check makes of it."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from cspine.explain.pointing import (
    LIMIT,
    Likeness,
    compare_maps,
    compute_rank_correlation,
    compute_ssim,
    judge_sanity,
)


def make_maps(seed: int, count: int = 4) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, 24, 24)).astype(np.float32)


def test_rank_correlation_is_spearmans_and_none_for_a_flat_map() -> None:
    one, other = make_maps(0)[0], make_maps(1)[0]
    assert compute_rank_correlation(one, other) == pytest.approx(
        stats.spearmanr(one.ravel(), other.ravel()).statistic
    )
    assert compute_rank_correlation(one, np.exp(one)) == pytest.approx(1.0)
    assert np.isnan(compute_rank_correlation(one, np.zeros_like(one)))


def test_ssim_of_flat_pictures_is_that_of_their_brightness() -> None:
    flat = np.full((20, 20), 0.5)
    assert compute_ssim(flat, flat) == pytest.approx(1.0)
    # Eq. 13 without variance: (2 a b + C1) / (a^2 + b^2 + C1).
    assert compute_ssim(flat, np.zeros((20, 20))) == pytest.approx(1e-4 / (0.25 + 1e-4))
    noise = np.random.default_rng(0).uniform(size=(20, 20))
    assert compute_ssim(noise, 1 - noise) < 0


def test_the_check_passes_where_random_weights_change_the_map() -> None:
    maps, units = make_maps(0, 12), np.repeat(np.arange(6), 2)
    same, other = compare_maps(maps, maps), compare_maps(maps, make_maps(5, 12))
    passed = judge_sanity([("head", [same]), ("all weights", [other, other])], units, "patient")
    assert passed.passes
    assert (passed.words, passed.networks, passed.slices) == ("passes", 2, 12)
    assert [step.part for step in passed.steps] == ["head", "all weights"]
    assert passed.steps[0].rank_correlation.value == pytest.approx(1.0)
    assert passed.steps[1].rank_correlation.high is not None
    assert passed.steps[1].rank_correlation.high < LIMIT
    failed = judge_sanity([("all weights", [same])], units, "patient")
    assert failed.passes is False
    assert failed.words == "does not pass"


def test_pairs_without_a_correlation_are_counted_and_left_out() -> None:
    likeness = Likeness(np.array([0.2, np.nan, 0.1, 0.3]), np.zeros(4))
    result = judge_sanity([("all weights", [likeness])], np.arange(4), "patient")
    assert result.steps[0].undefined == 1
    assert result.steps[0].rank_correlation.value == pytest.approx(0.2)
    blank = Likeness(np.full(3, np.nan), np.zeros(3))
    nothing = judge_sanity([("all weights", [blank])], np.arange(3), "patient")
    assert nothing.passes is None
    assert nothing.words == "cannot be said"
