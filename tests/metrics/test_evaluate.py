"""From predictions to results: no order matters, and what joining by order would have given."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cspine.core.errors import InputError, PredictionsError
from cspine.core.estimates import Estimate
from cspine.core.predictions import make_predictions
from cspine.evaluating import evaluate
from cspine.metrics.evaluation import estimate_metrics
from cspine.metrics.intervals import IntervalOptions
from cspine.metrics.scores import METRICS, compute_metrics

ORIGIN = {"model": "m", "checkpoint_hash": "c", "recipe_hash": "r", "manifest_hash": "d"}


def make_slices(labels: list[int | None], patients: list[str | None] | None = None) -> pl.DataFrame:
    n = len(labels)
    nothing = pl.lit(None, dtype=pl.String)
    return pl.DataFrame(
        {
            "slice_id": [f"s{i:04d}" for i in range(n)],
            "label": labels,
            "patient_id": patients or [f"p{i // 4}" for i in range(n)],
        },
        schema={"slice_id": pl.String, "label": pl.Int8, "patient_id": pl.String},
    ).with_columns(split=pl.lit("test"), study_uid=nothing, series_uid=nothing, source_id=nothing)


def make_table(labels: list[int | None], seed: int = 0) -> pl.DataFrame:
    slices = make_slices(labels)
    return make_predictions(slices, slices["slice_id"].to_list(), make_logits(labels, seed), **ORIGIN)


def make_logits(labels: list[int | None], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=len(labels)) + [float(label or 0) for label in labels]


LABELS: list[int | None] = [0, 1, 1, 0, 0, 0, 1, 0] * 5


@given(st.permutations(range(40)), st.permutations(range(40)))
@settings(max_examples=25, deadline=None)
def test_no_order_of_loader_manifest_or_table_moves_a_bit(loader: list[int], rows: list[int]) -> None:
    slices = make_slices(LABELS)
    ids, logits = slices["slice_id"].to_list(), make_logits(LABELS)
    straight = evaluate(make_predictions(slices, ids, logits, **ORIGIN), draws=50)
    table = make_predictions(slices[rows], [ids[i] for i in loader], logits[loader], **ORIGIN)
    assert evaluate(table[rows], draws=50) == straight


def test_joining_by_order_makes_the_papers_table() -> None:
    """Table 1 has accuracy 97.50 beside precision and recall of 0.49 and 0.47, on 200 fractures and 200
    normals.

    A model right in 390 of 400 has all of them near 0.975. Scores that come from a shuffling loader, paired
    with labels in folder order, have precision, recall *and* accuracy near 0.5. So the row arises when the
    accuracy is counted batch by batch, with the right labels, and the rest from labels joined by order.
    """
    labels: list[int | None] = [1] * 200 + [0] * 200
    slices = make_slices(labels)
    ids = np.array(slices["slice_id"].to_list())
    logits = np.where(np.array(labels) == 1, 2.0, -2.0)
    logits[[0, 1, 2, 3, 4, 200, 201, 202, 203, 204]] *= -1
    shuffled = np.random.default_rng(0).permutation(400)

    joined = evaluate(make_predictions(slices, ids[shuffled].tolist(), logits[shuffled], **ORIGIN), draws=100)
    for name in ("accuracy", "precision", "recall", "f1"):
        assert joined.metrics[name].value == pytest.approx(0.975), name

    by_order = compute_metrics(labels, 1 / (1 + np.exp(-logits[shuffled])), 0.5)
    for name in ("accuracy", "precision", "recall", "f1"):
        assert by_order[name].value == pytest.approx(0.5, abs=0.06), name

    # What one row of the paper's table would then hold; no single confusion matrix gives it.
    row = (joined.metrics["accuracy"].value, by_order["precision"].value, by_order["recall"].value)
    assert row == pytest.approx((0.975, 0.49, 0.47), abs=0.06)


def test_the_result_says_what_it_is_of() -> None:
    found = evaluate(make_table(LABELS), threshold=0.6, draws=100)
    assert (found.model, found.split, found.positive_class) == ("m", "test", "fracture")
    assert (found.threshold, found.slices, found.positives) == (0.6, 40, 15)
    assert (found.unit, found.units) == ("patient", 10)
    assert tuple(found.metrics) == tuple(METRICS)
    counts = found.confusion
    assert counts.tp + counts.fn == 15
    assert counts.tp + counts.fp + counts.fn + counts.tn == 40
    assert found.metrics["recall"].value == counts.tp / 15
    for estimate in found.metrics.values():
        assert estimate.low is None or estimate.low <= estimate.value <= estimate.high
        assert (estimate.unit, estimate.n, estimate.level) == ("patient", 10, 0.95)
    assert type(found).model_validate_json(found.model_dump_json()) == found


def test_one_class_gives_what_is_defined() -> None:
    found = evaluate(make_table([0] * 12), draws=100)
    assert found.metrics["specificity"].value is not None
    assert found.metrics["recall"].value is None
    assert found.metrics["recall"].reason == "no slice is a fracture"
    assert found.metrics["auroc"].reason == "the slices are of one class only"
    assert found.roc.x == found.precision_recall.x == ()


def test_slices_without_a_label_are_refused() -> None:
    with pytest.raises(PredictionsError, match="1 of 3 slices have no label"):
        evaluate(make_table([0, 1, None]))


def test_splits_are_named() -> None:
    table = make_table(LABELS)
    mixed = table.with_columns(
        split=pl.when(pl.col("y_true") == 1).then(pl.lit("val")).otherwise(pl.lit(None, dtype=pl.String))
    )
    assert evaluate(mixed, draws=50).split == "none+val"


def test_log_loss_is_of_the_probability_that_is_reported() -> None:
    table = make_table(LABELS)
    plain = estimate_metrics(table, ("log_loss",), options=IntervalOptions(draws=50))["log_loss"].value
    y, z = table["y_true"].to_numpy(), table["logit"].to_numpy()
    assert plain == pytest.approx(np.mean(np.logaddexp(0, np.where(y == 1, -z, z))), rel=1e-12)
    halves = table.with_columns(prob=pl.lit(0.5))
    assert estimate_metrics(halves, ("log_loss",), options=IntervalOptions(draws=50))[
        "log_loss"
    ].value == pytest.approx(np.log(2))


@pytest.mark.parametrize("threshold", [-0.1, 1.1, float("nan")])
def test_a_threshold_is_a_probability(threshold: float) -> None:
    with pytest.raises(InputError, match="a threshold is a probability"):
        evaluate(make_table(LABELS), threshold=threshold)


def test_an_estimate_explains_what_it_lacks() -> None:
    known = {"method": "m", "unit": "slice", "n": 3}
    assert Estimate(value=0.5, low=0.4, high=0.6, **known).as_dict()["level"] == 0.95
    with pytest.raises(ValueError, match="has a reason exactly when"):
        Estimate(value=None, low=None, high=None, **known)
    with pytest.raises(ValueError, match="has a reason exactly when"):
        Estimate(value=0.5, low=0.4, high=0.6, reason="why", **known)
    with pytest.raises(ValueError, match="finite"):
        Estimate(value=float("nan"), low=0.4, high=0.6, **known)
