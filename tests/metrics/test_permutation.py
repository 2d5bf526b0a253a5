"""The clustered permutation test: against swapping by hand, scipy, and by its errors under no difference."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import f1_score, roc_auc_score

from cspine.core.errors import InputError
from cspine.core.predictions import compute_sigmoid
from cspine.metrics.paired import PERMUTABLE, Swaps, permute_units
from tests.metrics.builders import Floats, make_logits


def make_pair(seed: int, units: int, size: int, gain: float = 0.0) -> tuple[Floats, Floats, Floats, Floats]:
    """(labels, first, second, unit): two models with the same cases' difficulty and noise of their own."""
    y, z, unit = make_logits(seed, units, size, mixed=True)
    rng = np.random.default_rng(1000 + seed)
    first = z + rng.normal(size=z.size) * 0.7 + gain * (2 * y - 1)
    return y, compute_sigmoid(np.round(first, 1)), compute_sigmoid(z + rng.normal(size=z.size) * 0.7), unit


@pytest.mark.parametrize("metric", ["auroc", "f1"])
def test_p_is_that_of_swapping_by_hand(metric: str) -> None:
    y, a, b, unit = make_pair(1, 6, 4)

    def difference(first: Floats, second: Floats) -> float:
        if metric == "auroc":
            return roc_auc_score(y, first) - roc_auc_score(y, second)
        return f1_score(y, first >= 0.5) - f1_score(y, second >= 0.5)

    ranked = (stats.rankdata(a), stats.rankdata(b)) if metric == "auroc" else (a, b)
    values = []
    for swapped in product([False, True], repeat=6):
        swap = np.array(swapped)[unit]
        values.append(difference(np.where(swap, ranked[1], ranked[0]), np.where(swap, ranked[0], ranked[1])))
    found = permute_units(metric, y, a, b, unit, unit="patient")
    assert found.statistic == pytest.approx(values[0], abs=1e-12)
    assert found.p == pytest.approx(np.mean(np.abs(values) >= abs(values[0]) - 1e-9))
    assert found.name.startswith("permutation of whole patients, all ")


def test_for_accuracy_it_is_the_sign_flip_test_of_scipy() -> None:
    y, a, b, unit = make_pair(2, 9, 5)
    right = [np.bincount(unit, weights=(p >= 0.5) == y) for p in (a, b)]
    reference = stats.permutation_test(
        right, lambda x, z: np.mean(x - z), permutation_type="samples", n_resamples=10_000
    )
    assert permute_units("accuracy", y, a, b, unit, unit="patient").p == pytest.approx(reference.pvalue)


def test_drawn_swaps_come_near_to_all_swaps(monkeypatch: pytest.MonkeyPatch) -> None:
    y, a, b, unit = make_pair(3, 12, 3, gain=0.3)
    exact = permute_units("auroc", y, a, b, unit, unit="patient")
    monkeypatch.setattr("cspine.metrics.paired.ENUMERATED_UNITS", 0)
    drawn = permute_units("auroc", y, a, b, unit, unit="patient", swaps=Swaps(4000, 1))
    assert drawn.name == "permutation of whole patients, 4000 swaps"
    assert drawn.p == pytest.approx(exact.p, abs=0.03)
    monkeypatch.setattr("cspine.metrics.paired._CHUNK_VALUES", 100)
    assert permute_units("auroc", y, a, b, unit, unit="patient", swaps=Swaps(4000, 1)) == drawn


@given(st.integers(0, 1000), st.sampled_from(PERMUTABLE))
@settings(max_examples=40, deadline=None)
def test_swapping_the_models_flips_the_sign_and_keeps_p(seed: int, metric: str) -> None:
    y, a, b, unit = make_pair(seed, 7, 3)
    one = permute_units(metric, y, a, b, unit, unit="patient")
    other = permute_units(metric, y, b, a, unit, unit="patient")
    assert one.p == other.p
    assert one.p is None or one.statistic == pytest.approx(-other.statistic, abs=1e-12)


def test_a_monotone_transform_of_one_model_moves_no_auroc() -> None:
    y, a, b, unit = make_pair(4, 10, 4)
    assert permute_units("auroc", y, a**3, b, unit, unit="patient") == permute_units(
        "auroc", y, a, b, unit, unit="patient"
    )


def test_what_cannot_be_tested_says_why() -> None:
    found = permute_units("auroc", [1, 1], [0.2, 0.8], [0.3, 0.4], [0, 1], unit="slice")
    assert (found.p, found.reason) == (None, "the slices are of one class only")
    found = permute_units("precision", [0, 1], [0.2, 0.8], [0.3, 0.4], [0, 1], unit="slice")
    assert (found.p, found.reason) == (None, "no slice was called fracture")
    with pytest.raises(InputError, match="no permutation test for auprc"):
        permute_units("auprc", [0, 1], [0.2, 0.8], [0.3, 0.4], [0, 1], unit="slice")


@pytest.mark.parametrize("metric", ["auroc", "accuracy"])
def test_only_swaps_of_whole_units_keep_the_level(
    metric: str,
) -> None:
    """Two models that fail on different patients, equally good: 10 units of 12 slices that share most of it."""
    sets, units, size = 200, 10, 12
    by_unit = by_slice = 0
    for seed in range(sets):
        rng = np.random.default_rng(seed)
        unit = np.repeat(np.arange(units), size)
        y = np.tile([0, 1], units * size // 2)
        score = [
            (2 * y - 1) * (0.6 + 1.2 * rng.normal(size=units)[unit]) + rng.normal(size=y.size)
            for _ in range(2)
        ]
        a, b = compute_sigmoid(score[0]), compute_sigmoid(score[1])
        by_unit += permute_units(metric, y, a, b, unit, unit="patient").p <= 0.05
        by_slice += (
            permute_units(metric, y, a, b, np.arange(y.size), unit="slice", swaps=Swaps(199)).p <= 0.05
        )
    assert by_unit / sets <= 0.09  # 0.05 and 2.6 standard errors of 200 sets
    assert by_slice / sets >= 0.3
