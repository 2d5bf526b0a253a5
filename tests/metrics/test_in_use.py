"""Probabilities in use: fitted on one split and shown on another, or not fitted at all."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cspine.core.errors import InputError, PredictionsError
from cspine.metrics.calibration import apply_calibration, choose_operating_point, fit_calibration
from cspine.metrics.clinical import ProbabilityUse, assess_use, move_threshold
from cspine.metrics.intervals import IntervalOptions
from cspine.metrics.scores import compute_metrics
from tests.metrics.builders import make_clustered_table, make_table

# Twice the logits that the scores were drawn with: probabilities that are too sure.
VAL = make_clustered_table(1, 30, shift=0.9, split="val")
TEST = make_clustered_table(2, 30, shift=0.9, split="test")
FAST = IntervalOptions(60)


@pytest.fixture(scope="module")
def used() -> ProbabilityUse:
    return assess_use(TEST, VAL, options=FAST)


def test_points_are_chosen_on_selection_shown_on_reported(used: ProbabilityUse) -> None:
    assert [(found.point.rule, found.point.target) for found in used.points] == [
        ("youden", None),
        ("sensitivity", 0.95),
        ("fpr", 0.05),
    ]
    for found in used.points:
        alone = choose_operating_point(VAL, found.point.rule, found.point.target, options=FAST)
        assert found.point == alone
        wanted = compute_metrics(TEST["y_true"].to_numpy(), TEST["prob"].to_numpy(), alone.threshold)
        for name, estimate in found.metrics.items():
            assert estimate.value == pytest.approx(wanted[name].value)
            assert (estimate.unit, estimate.n) == ("patient", 30)
    assert (used.fitted_on, used.split, used.notes) == ("val", "test", ())
    assert used.predictive.threshold == used.points[0].point.threshold


def test_both_fits_are_shown_and_the_one_asked_for_is_used(used: ProbabilityUse) -> None:
    assert [state.fit and state.fit.kind for state in used.states] == [None, "temperature", "platt"]
    assert used.used == "platt"
    assert used.find_state("platt").fit == fit_calibration(VAL, "platt")
    plain = used.find_state(None).reliability.brier.brier.value
    assert plain == pytest.approx(float(np.mean((TEST["prob"] - TEST["y_true"]).to_numpy() ** 2)))
    assert assess_use(TEST, VAL, calibration="temperature", options=FAST).used == "temperature"
    assert ProbabilityUse.model_validate_json(used.model_dump_json()) == used


def test_without_a_selection_split_nothing_is_fitted() -> None:
    found = assess_use(TEST, threshold=0.3, options=FAST)
    assert (found.points, found.used, found.fitted_on, len(found.states)) == ((), None, None, 1)
    assert found.predictive.threshold == 0.3


def test_slices_that_are_reported_are_never_fitted_on() -> None:
    with pytest.raises(PredictionsError, match="what would be reported"):
        assess_use(TEST, TEST, options=FAST)
    with pytest.raises(PredictionsError, match="another checkpoint"):
        assess_use(TEST, make_clustered_table(1, split="val", checkpoint="other"), options=FAST)


@given(st.integers(0, 200), st.sampled_from(["temperature", "platt"]))
@settings(max_examples=25, deadline=None)
def test_a_moved_threshold_calls_the_same_slices(seed: int, kind: str) -> None:
    val, test = (make_clustered_table(seed + n, 8, 5, split=name) for n, name in ((0, "val"), (900, "test")))
    fit = fit_calibration(val, kind)  # type: ignore[arg-type]
    threshold = choose_operating_point(val, options=IntervalOptions(draws=40)).threshold
    before = (test["prob"] >= threshold).to_list()
    after = (apply_calibration(test, fit)["prob"] >= move_threshold(threshold, fit)).to_list()
    assert before == after


def test_thresholds_at_the_ends_stay_there() -> None:
    fit = fit_calibration(VAL)
    assert [move_threshold(end, fit) for end in (0.0, 1.0)] == [0.0, 1.0]


def test_what_cannot_be_had_is_a_note_and_no_failure() -> None:
    """Constant logits: no fit. Probabilities of 1 of normal slices: no threshold has a low false positive rate."""
    flat = make_table([0, 1, 0, 1], [50.0] * 4, [0, 0, 1, 1], split="val")
    reported = make_table([0, 1, 0, 1], [50.0, 50, 50, 50], [0, 0, 1, 1])
    found = assess_use(reported, flat, options=FAST)
    assert [point.point.rule for point in found.points] == ["youden", "sensitivity"]
    assert any("false positive rate of at most 0.05" in note for note in found.notes)
    assert any(note.startswith("No calibration: all logits are the same") for note in found.notes)
    assert (found.used, [point.calibrated_threshold for point in found.points]) == (None, [None, None])


def test_separable_selection_is_said() -> None:
    clear = make_table([0, 0, 1, 1], [-3.0, -1.0, 1.0, 2.0], [0, 1, 2, 3], split="val")
    found = assess_use(make_clustered_table(2), clear, options=FAST)
    assert any("separate the classes" in note for note in found.notes)


def test_bad_tables_and_options_are_refused() -> None:
    with pytest.raises(PredictionsError, match="of one class only"):
        assess_use(TEST, make_table([1, 1], [0.0, 1.0], [0, 1], split="val"), options=FAST)
    with pytest.raises(InputError, match="a target is a rate"):
        assess_use(TEST, VAL, rules=[("fpr", 5.0)], options=FAST)
    with pytest.raises(InputError, match="draws"):
        assess_use(TEST, VAL, options=IntervalOptions(draws=3))
    with pytest.raises(InputError, match="no such unit"):
        assess_use(TEST, VAL, options=IntervalOptions(unit="hospital"))
