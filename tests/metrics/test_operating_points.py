"""Operating points: chosen as the rule says, and never quietly on what is reported."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_curve

from cspine.core.errors import InputError, PredictionsError
from cspine.core.predictions import hash_rows
from cspine.metrics.calibration import OperatingResult, apply_operating_point, choose_operating_point
from cspine.metrics.intervals import IntervalOptions
from tests.metrics.builders import make_clustered_table, make_table

VAL = make_clustered_table(1, split="val")
TEST = make_clustered_table(2, split="test")


@given(st.integers(0, 500), st.floats(0, 1))
@settings(max_examples=30, deadline=None)
def test_each_rule_does_what_it_says_against_scikit_learn(seed: int, target: float) -> None:
    table = make_clustered_table(seed, 8, 5, mixed=True)
    y, prob = table["y_true"].to_numpy(), table["prob"].to_numpy()
    fpr, sensitivity, _ = roc_curve(y, prob, drop_intermediate=False)

    def rates(threshold: float) -> tuple[float, float]:
        called = prob >= threshold
        return called[y == 0].mean(), called[y == 1].mean()

    options = IntervalOptions(40)
    at = rates(choose_operating_point(table, options=options).threshold)
    assert at[1] - at[0] == pytest.approx((sensitivity - fpr).max())
    at = rates(choose_operating_point(table, "sensitivity", target, options=options).threshold)
    assert at[1] >= target - 1e-12
    assert at[0] == pytest.approx(fpr[sensitivity >= target - 1e-12].min())
    at = rates(choose_operating_point(table, "fpr", target, options=options).threshold)
    assert at[0] <= target + 1e-12
    assert at[1] == pytest.approx(sensitivity[fpr <= target + 1e-12].max())


def test_the_threshold_is_half_way_to_the_next_probability() -> None:
    table = make_table([0, 0, 1, 1], np.log([0.1 / 0.9, 0.2 / 0.8, 0.6 / 0.4, 0.9 / 0.1]))
    assert choose_operating_point(table, options=IntervalOptions(draws=40)).threshold == pytest.approx(0.4)
    assert choose_operating_point(
        table, "sensitivity", 0.5, options=IntervalOptions(draws=40)
    ).threshold == pytest.approx(0.75)


def test_neighbouring_floats_keep_the_threshold_in_place() -> None:
    above = np.nextafter(0.5, 1)
    table = make_table([0, 1], [0.0, 1.0]).with_columns(prob=np.array([0.5, above]))
    assert choose_operating_point(table, options=IntervalOptions(draws=40)).threshold == above


def test_a_point_and_its_result_say_where_they_come_from() -> None:
    point = choose_operating_point(VAL, "sensitivity", 0.9)
    assert (point.split, point.slices, point.rows_hash) == (
        "val",
        160,
        hash_rows(VAL.sample(fraction=1, seed=1)),
    )
    found = apply_operating_point(point, TEST)
    assert not found.selection_leak
    assert (found.evaluation.split, found.evaluation.threshold) == ("test", point.threshold)
    assert found.evaluation.metrics["recall"].low is not None
    assert found.words == f"threshold {point.threshold:.4g} by a sensitivity of at least 0.9, chosen on val"
    assert OperatingResult.model_validate_json(found.model_dump_json()) == found


@pytest.mark.parametrize("renamed", [False, True])
def test_choosing_on_the_reported_split_is_refused(renamed: bool) -> None:
    """Renaming the split does not hide it: the rows are the same."""
    point = choose_operating_point(TEST)
    reported = TEST
    if renamed:
        point = point.model_copy(update={"split": "val"})
    with pytest.raises(PredictionsError, match="which is what would be reported"):
        apply_operating_point(point, reported)
    found = apply_operating_point(point, reported, allow_leak=True)
    assert found.selection_leak
    assert "a selection leak" in found.words


def test_a_point_of_another_checkpoint_is_refused() -> None:
    point = choose_operating_point(VAL)
    with pytest.raises(PredictionsError, match="the operating point is for another checkpoint"):
        apply_operating_point(point, make_clustered_table(2, checkpoint="other"))


def test_rules_that_make_no_sense_are_refused() -> None:
    for rule, target, what in (
        ("best", None, "no such rule"),
        ("youden", 0.5, "has no target"),
        ("fpr", None, "has no target"),
        ("sensitivity", 1.5, "a target is a rate"),
    ):
        with pytest.raises(InputError, match=what):
            choose_operating_point(VAL, rule, target)
    with pytest.raises(PredictionsError, match="one class only"):
        choose_operating_point(make_table([1, 1], [0.0, 1.0]))
    sure = make_table([0, 1], [0.0, 1.0]).with_columns(prob=np.array([1.0, 1.0]))
    with pytest.raises(InputError, match="no threshold has a false positive rate of"):
        choose_operating_point(sure, "fpr", 0.2)


def test_calling_nothing_reaches_a_false_positive_rate_of_zero() -> None:
    table = make_table([0, 1], [1.0, 0.0])
    point = choose_operating_point(table, "fpr", 0.0, options=IntervalOptions(draws=40))
    assert (point.sensitivity.value, point.specificity.value) == (0.0, 1.0)
