"""From slices to a study: every rule by hand, and what all of them keep."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cspine.core.aggregation import QUANTILES, UNFITTED, Aggregation, find_key_slices

RULES = (
    UNFITTED,
    Aggregation(kind="top_k_mean", k=3, slope=0.5, intercept=-1),
    Aggregation(kind="noisy_or", gain=0.7, offset=-2, reference_slices=40),
    Aggregation(kind="order_statistics", weights=(0.5, 0.3, 0.2, 0.0, 0.0, 0.1)),
)
LOGITS = st.lists(st.floats(-30, 30), min_size=1, max_size=60)


def test_each_rule_by_hand() -> None:
    logits = [0.0, 2.0, -1.0]
    assert UNFITTED.score(logits) == 2.0
    assert Aggregation(kind="top_k_mean", k=2).score(logits) == 1.0
    assert Aggregation(kind="top_k_mean", k=9).score(logits) == pytest.approx(1 / 3)
    p = [1 / (1 + math.exp(-value)) for value in logits]
    whole = (1 - p[0]) * (1 - p[1]) * (1 - p[2])
    noisy = Aggregation(kind="noisy_or", reference_slices=3)
    assert noisy.find_probability(logits) == pytest.approx(1 - whole)
    first = Aggregation(kind="order_statistics", weights=(1.0, 0, 0, 0, 0, 0.5))
    assert first.score(logits) == pytest.approx(2.0 + 0.5 * 0.0)
    assert Aggregation(slope=2, intercept=-3).find_logit(logits) == 1.0


def test_more_doubtful_slices_make_no_sure_fracture() -> None:
    noisy = Aggregation(kind="noisy_or", offset=-3, reference_slices=70)
    thick, thin = np.full(70, -1.0), np.full(300, -1.0)
    assert noisy.score(thin) == pytest.approx(noisy.score(thick))


def test_noisy_or_keeps_its_digits_at_both_ends() -> None:
    noisy = Aggregation(kind="noisy_or", reference_slices=1)
    assert noisy.score([-40.0]) == pytest.approx(-40.0)
    assert noisy.score([900.0]) == pytest.approx(900.0)


@given(LOGITS, st.randoms())
def test_no_rule_depends_on_the_order_of_slices(logits: list[float], random: object) -> None:
    shuffled = list(logits)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    for rule in RULES:
        assert rule.score(logits) == rule.score(shuffled)


@given(LOGITS, st.integers(0, 59), st.floats(0, 10))
def test_no_rule_falls_where_a_slice_rises(logits: list[float], place: int, more: float) -> None:
    higher = list(logits)
    higher[place % len(logits)] += more
    for rule in RULES:
        assert rule.score(higher) >= rule.score(logits) - 1e-9


@given(LOGITS)
def test_a_level_alone_never_makes_more_than_the_whole_study(logits: list[float]) -> None:
    levels = tuple(("C1", "C2", None)[index % 3] for index in range(len(logits)))
    for rule in RULES:
        probs = rule.find_level_probabilities(logits, levels)
        assert set(probs) == {level for level in levels if level}
        assert all(prob <= rule.find_probability(logits) + 1e-9 for prob in probs.values())


def test_the_level_that_shows_it_is_the_likeliest() -> None:
    levels = ("C1",) * 10 + ("C2",) * 10
    logits = [-4.0] * 20
    logits[12] = 3.0
    for rule in RULES:
        probs = rule.find_level_probabilities(logits, levels)
        assert probs["C2"] > probs["C1"]


def test_key_slices_are_near_the_highest_strongest_first() -> None:
    assert find_key_slices([0.0, 3.0, 1.5, 2.9, -5.0]) == (1, 3, 2)
    assert find_key_slices(np.zeros(30)) == tuple(range(10))
    assert find_key_slices([]) == ()


def test_what_makes_no_rule_is_refused() -> None:
    for wrong in (
        {"kind": "order_statistics", "weights": (1.0,)},
        {"kind": "order_statistics", "weights": (-1.0, *(0.0,) * (len(QUANTILES) - 1))},
        {"kind": "max", "weights": (1.0,)},
        {"slope": 0.0},
        {"kind": "average"},
    ):
        with pytest.raises(ValueError):  # noqa: PT011
            Aggregation.model_validate(wrong)
    with pytest.raises(ValueError, match="without slices"):
        UNFITTED.score([])


def test_it_survives_being_stored() -> None:
    for rule in RULES:
        assert Aggregation.model_validate_json(rule.model_dump_json()) == rule
