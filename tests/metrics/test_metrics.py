"""The metrics against hand-made cases and scikit-learn, weights and ties included."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from cspine.metrics.scores import (
    CURVE_POINTS,
    METRICS,
    arrange_cases,
    compute_metrics,
    compute_precision_recall,
    compute_roc,
    compute_totals,
)

NAMES = (
    "accuracy", "precision", "recall", "specificity", "f1", "fpr", "npv", "mcc", "balanced_accuracy",
    "auroc", "auprc", "brier", "log_loss",
)  # fmt: skip
EXACT = {"rel": 1e-12, "abs": 1e-12}


def compute_reference(
    y: npt.NDArray[np.int64], p: npt.NDArray[np.float64], threshold: float, w: npt.NDArray[np.float64]
) -> dict[str, float]:
    called = (p >= threshold).astype(int)
    two = {"sample_weight": w, "zero_division": np.nan}
    return {
        "accuracy": sk.accuracy_score(y, called, sample_weight=w),
        "precision": sk.precision_score(y, called, **two),
        "recall": sk.recall_score(y, called, **two),
        "specificity": sk.recall_score(y, called, pos_label=0, **two),
        "f1": sk.f1_score(y, called, **two),
        "fpr": 1 - sk.recall_score(y, called, pos_label=0, **two),
        "npv": sk.precision_score(y, called, pos_label=0, **two),
        "mcc": sk.matthews_corrcoef(y, called, sample_weight=w),
        "balanced_accuracy": sk.balanced_accuracy_score(y, called, sample_weight=w),
        "auroc": sk.roc_auc_score(y, p, sample_weight=w),
        "auprc": sk.average_precision_score(y, p, sample_weight=w),
        "brier": sk.brier_score_loss(y, p, sample_weight=w),
        "log_loss": sk.log_loss(y, p, sample_weight=w),
    }


@st.composite
def scored_slices(draw: st.DrawFn) -> tuple[npt.NDArray[np.int64], ...]:
    n = draw(st.integers(4, 40))
    y = np.array(draw(st.lists(st.integers(0, 1), min_size=n, max_size=n)))
    y[:2] = 0, 1
    steps = draw(st.sampled_from([3, 10, 1000]))  # few steps make many ties
    p = np.array(draw(st.lists(st.integers(1, steps - 1), min_size=n, max_size=n))) / steps
    w = np.array(draw(st.lists(st.sampled_from([0.0, 0.25, 1.0, 3.0]), min_size=n, max_size=n)))
    w[:2] = 1.0
    return y, p, w


@given(scored_slices(), st.sampled_from([0.2, 0.5, 2 / 3]))
@settings(max_examples=150, deadline=None)
def test_every_metric_equals_scikit_learn(
    slices: tuple[npt.NDArray[np.int64], ...], threshold: float
) -> None:
    y, p, w = slices
    found = compute_metrics(y, p, threshold, w)
    for name, reference in compute_reference(y, p, threshold, w).items():
        if found[name].value is None:
            # scikit-learn has 0 where MCC is 0/0, NaN elsewhere (by zero_division).
            assert np.isnan(reference) or (name == "mcc" and reference == 0), name
        else:
            assert found[name].value == pytest.approx(reference, **EXACT), name


@given(scored_slices())
@settings(max_examples=50, deadline=None)
def test_batched_draws_equal_repeated_rows(slices: tuple[npt.NDArray[np.int64], ...]) -> None:
    y, p, _ = slices
    units = np.arange(len(y)) // 3
    rng = np.random.default_rng(len(y))
    drawn = rng.multinomial(units[-1] + 1, np.full(units[-1] + 1, 1 / (units[-1] + 1)), size=4)
    totals = compute_totals(arrange_cases(y, p, 0.5, units=units), drawn.astype(float))
    for i, counts in enumerate(drawn):
        rows = np.repeat(np.arange(len(y)), counts[units])
        repeated = compute_metrics(y[rows], p[rows], 0.5)
        for name, metric in METRICS.items():
            value = metric.compute(totals)[i]
            expected = repeated[name].value
            assert np.isnan(value) if expected is None else value == pytest.approx(expected, **EXACT), name


def test_a_case_computed_by_hand() -> None:
    y = [1, 1, 1, 0, 0, 0, 0, 0]
    p = [0.9, 0.5, 0.2, 0.8, 0.5, 0.4, 0.1, 0.1]
    found = {name: value for name, (value, _) in compute_metrics(y, p, 0.5).items()}
    # At 0.5: tp 2 (0.5 counts: prob >= threshold), fp 2, fn 1, tn 3.
    assert found["accuracy"] == pytest.approx(5 / 8)
    assert found["precision"] == pytest.approx(2 / 4)
    assert found["recall"] == pytest.approx(2 / 3)
    assert found["specificity"] == pytest.approx(3 / 5)
    assert found["f1"] == pytest.approx(4 / 7)
    assert found["fpr"] == pytest.approx(2 / 5)
    assert found["npv"] == pytest.approx(3 / 4)
    assert found["mcc"] == pytest.approx((2 * 3 - 2 * 1) / np.sqrt(4 * 3 * 5 * 4))
    assert found["balanced_accuracy"] == pytest.approx((2 / 3 + 3 / 5) / 2)
    # Pairs of 15: 0.9 beats 5; 0.5 beats 3 and ties 1; 0.2 beats 2.
    assert found["auroc"] == pytest.approx((5 + 3.5 + 2) / 15)
    # Precision where recall rises: 1/1 at 0.9, 2/4 at 0.5, 3/6 at 0.2.
    assert found["auprc"] == pytest.approx((1 + 2 / 4 + 3 / 6) / 3)


def test_the_registry_is_complete() -> None:
    assert tuple(METRICS) == NAMES
    equations = {name: metric.equation for name, metric in METRICS.items() if metric.equation}
    assert equations == {"accuracy": 6, "precision": 7, "recall": 8, "f1": 9, "fpr": 10}
    assert [name for name, metric in METRICS.items() if not metric.higher_is_better] == [
        "fpr",
        "brier",
        "log_loss",
    ]
    assert METRICS["mcc"].low == -1
    assert METRICS["log_loss"].high is None


@pytest.mark.parametrize(
    ("y", "p", "undefined"),
    [
        ([1, 0, 0], [0.1, 0.2, 0.3], {"precision": "no slice was called fracture", "mcc": "called one"}),
        ([1, 1, 0], [0.9, 0.8, 0.7], {"npv": "no slice was called normal", "mcc": "called one"}),
        (
            [0, 0, 0],
            [0.1, 0.2, 0.3],
            {
                "precision": "no slice was called fracture",
                "recall": "no slice is a fracture",
                "f1": "no slice is a fracture and none was called one",
                "mcc": "one class",
                "balanced_accuracy": "one class only",
                "auroc": "one class only",
                "auprc": "one class only",
            },
        ),
        (
            [1, 1],
            [0.9, 0.8],
            {
                "specificity": "no slice is normal",
                "fpr": "no slice is normal",
                "npv": "no slice was called normal",
                "mcc": "one class",
                "balanced_accuracy": "one class only",
                "auroc": "one class only",
                "auprc": "one class only",
            },
        ),
        ([], [], dict.fromkeys(NAMES, "")),
    ],
)
def test_undefined_is_none_with_a_reason(y: list[int], p: list[float], undefined: dict[str, str]) -> None:
    found = compute_metrics(y, p, 0.5)
    assert {name for name, (value, _) in found.items() if value is None} == set(undefined)
    for name, (value, reason) in found.items():
        assert (value is None) == (reason is not None), name
        assert undefined.get(name, "") in (reason or ""), name


def test_log_loss_is_exact_from_logits_and_clipped_without() -> None:
    logits = np.array([800.0, -800.0])
    prob = np.array([1.0, 0.0])
    assert compute_metrics([0, 1], prob, 0.5, logit=logits)["log_loss"].value == pytest.approx(800.0)
    assert compute_metrics([0, 1], prob, 0.5)["log_loss"].value == pytest.approx(-np.log(1e-15))


def test_mcc_of_a_million_perfect_decisions_is_one() -> None:
    y = np.arange(1_000_003) % 3 == 0
    found = compute_metrics(y.astype(int), y.astype(float), 0.5)
    assert found["mcc"].value == pytest.approx(1.0, abs=1e-15)
    assert found["auroc"].value == found["auprc"].value == found["balanced_accuracy"].value == 1.0


@pytest.mark.parametrize(
    ("y", "p", "units", "what"),
    [
        ([0, 1], [0.5], None, "y_true and prob"),
        ([0, 2], [0.5, 0.5], None, "0 and 1 only"),
        ([0, 1], [0.5, np.nan], None, r"0\.\.1"),
        ([0, 1], [0.5, 1.5], None, r"0\.\.1"),
        ([0, 1], [0.5, 0.5], [0], "units"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(
    y: list[int], p: list[float], units: list[int] | None, what: str
) -> None:
    with pytest.raises(ValueError, match=what):
        arrange_cases(y, p, 0.5, units=units)


@given(scored_slices())
@settings(max_examples=60, deadline=None)
def test_small_curves_hold_the_corners_of_scikit_learns(slices: tuple[npt.NDArray[np.int64], ...]) -> None:
    y, p, _ = slices
    roc = compute_roc(y, p)
    fpr, tpr, _ = sk.roc_curve(y, p, drop_intermediate=False)
    assert np.interp(fpr, roc.x, roc.y)[np.diff(fpr, append=2) > 0] == pytest.approx(
        tpr[np.diff(fpr, append=2) > 0], abs=1e-12
    )
    assert np.trapezoid(roc.y, roc.x) == pytest.approx(sk.roc_auc_score(y, p), abs=1e-12)
    assert (roc.x[0], roc.y[0], roc.thresholds[0]) == (0.0, 0.0, None)
    assert (roc.x[-1], roc.y[-1]) == (1.0, 1.0)
    curve = compute_precision_recall(y, p)
    precision, recall, _ = sk.precision_recall_curve(y, p)
    known = {(round(r, 12), round(q, 12)) for r, q in zip(recall[:-1], precision[:-1], strict=True)}
    assert {(round(r, 12), round(q, 12)) for r, q in zip(curve.x[1:], curve.y[1:], strict=True)} <= known
    assert curve.x[0] == 0.0
    assert curve.x[-1] == 1.0


def test_each_point_of_a_curve_is_what_its_threshold_gives() -> None:
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 300)
    p = np.round(rng.random(300), 2)
    roc, curve = compute_roc(y, p), compute_precision_recall(y, p)
    for x, sensitivity, threshold in list(zip(roc.x, roc.y, roc.thresholds, strict=True))[1:]:
        found = compute_metrics(y, p, threshold or 0.0)
        assert (x, sensitivity) == pytest.approx((found["fpr"].value, found["recall"].value))
    for x, precision, threshold in list(zip(curve.x, curve.y, curve.thresholds, strict=True))[1:]:
        found = compute_metrics(y, p, threshold or 0.0)
        assert (x, precision) == pytest.approx((found["recall"].value, found["precision"].value))


def test_curves_of_many_slices_are_thin_and_keep_their_shape() -> None:
    rng = np.random.default_rng(0)
    y = (rng.random(200_000) < 0.3).astype(int)
    p = 1 / (1 + np.exp(-(rng.normal(size=y.size) + y)))
    roc, curve = compute_roc(y, p), compute_precision_recall(y, p)
    assert len(roc.x) <= CURVE_POINTS + 2
    assert len(curve.x) <= CURVE_POINTS + 2
    assert np.trapezoid(roc.y, roc.x) == pytest.approx(sk.roc_auc_score(y, p), abs=2e-3)
    assert np.trapezoid(curve.y, curve.x) == pytest.approx(sk.average_precision_score(y, p), abs=5e-3)


@pytest.mark.parametrize("y", [[0, 0], [1, 1], []])
def test_curves_of_one_class_have_no_points(y: list[int]) -> None:
    p = [0.5] * len(y)
    assert compute_roc(y, p).x == compute_precision_recall(y, p).x == ()
