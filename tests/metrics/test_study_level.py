"""Fitting the rule for studies on planted truth, and predictions of studies as a table like any other."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from cspine.core.aggregation import UNFITTED
from cspine.core.errors import PredictionsError
from cspine.core.predictions import SCHEMA, check_predictions
from cspine.evaluating import evaluate
from cspine.metrics.intervals import IntervalOptions
from cspine.metrics.study_level import (
    StudySlices,
    assess_studies,
    fit_aggregation,
    gather_studies,
    predict_studies,
)


def make_studies(
    count: int, *, shift: float, width: int, seed: int = 0, slices: int = 40
) -> list[StudySlices]:
    """Half of them broken: `width` of their slices have logits that lie `shift` higher."""
    rng = np.random.default_rng(seed)
    studies = []
    for index in range(count):
        logits = rng.normal(-3.0, 1.0, slices)
        label = index % 2
        if label:
            start = rng.integers(0, slices - width)
            logits[start : start + width] += shift
        studies.append(StudySlices(f"s{index:03d}", f"p{index:03d}", label, logits))
    return studies


def make_table(studies: list[StudySlices]) -> pl.DataFrame:
    rows = [
        {
            "slice_id": f"{study.key}-{place}",
            "patient_id": study.group,
            "study_uid": study.key,
            "series_uid": f"{study.key}.1",
            "source_id": None,
            "split": "val",
            "y_true": study.label if place == 0 else 0,
            "logit": float(logit),
            "prob": float(1 / (1 + np.exp(-logit))),
            "model": "m",
            "checkpoint_hash": "c",
            "recipe_hash": "r",
            "manifest_hash": "d",
        }
        for study in studies
        for place, logit in enumerate(study.logits)
    ]
    return pl.DataFrame(rows, schema=SCHEMA)


def test_a_broad_faint_signal_is_not_left_to_the_highest_slice() -> None:
    fit = fit_aggregation(
        make_studies(120, shift=1.2, width=25), fitted_on="val", options=IntervalOptions(draws=60)
    )
    losses = {rule.rule: rule.log_loss.value for rule in fit.rules}
    assert fit.rules[0].rule != "max"
    assert losses["max"] - losses[fit.rules[0].rule] > 0.1  # type: ignore[operator]


def test_the_chosen_rule_is_calibrated_on_new_studies() -> None:
    fit = fit_aggregation(
        make_studies(80, shift=4.0, width=4), fitted_on="val", options=IntervalOptions(draws=60)
    )
    new = make_studies(400, shift=4.0, width=4, seed=9)
    probs = np.array([fit.aggregation.find_probability(study.logits) for study in new])
    labels = np.array([study.label for study in new])
    assert abs(probs.mean() - labels.mean()) < 0.03
    called = probs >= fit.aggregation.threshold
    assert (called == labels).mean() > 0.95
    assert fit.aggregation.studies == 80
    assert fit.aggregation.positives == 40
    assert "fitted on 80 studies (40 with a fracture; val)" in str(fit.aggregation)


def test_without_a_signal_no_study_is_called_surely() -> None:
    fit = fit_aggregation(
        make_studies(60, shift=0.0, width=4), fitted_on="val", options=IntervalOptions(draws=60)
    )
    probs = [
        fit.aggregation.find_probability(study.logits)
        for study in make_studies(60, shift=0.0, width=4, seed=5)
    ]
    assert min(probs) > 0.2
    assert max(probs) < 0.8


def test_few_studies_are_refused_with_their_numbers() -> None:
    with pytest.raises(PredictionsError, match="there are 3 and 3"):
        fit_aggregation(make_studies(6, shift=4.0, width=4), fitted_on="val")


def test_folds_keep_patients_whole() -> None:
    # Every patient has a broken and a whole study: a rule that had seen one of the two would know nothing more.
    studies = [
        StudySlices(study.key, f"p{index // 2}", study.label, study.logits)
        for index, study in enumerate(make_studies(20, shift=4.0, width=4))
    ]
    fit = fit_aggregation(studies, fitted_on="val", options=IntervalOptions(draws=60))
    assert fit.rules[0].auroc.unit == "patient"
    assert fit.rules[0].auroc.n == 10


def test_studies_are_evaluated_like_slices() -> None:
    studies = make_studies(20, shift=5.0, width=4)
    table = make_table(studies)
    answered = predict_studies(table.sample(fraction=1, shuffle=True, seed=1), UNFITTED)
    check_predictions(answered)
    assert answered.height == 20
    wanted = {f"{study.key}.1": study.logits.max() for study in studies}
    assert dict(zip(answered["slice_id"], answered["logit"], strict=True)) == wanted
    assert evaluate(answered, draws=60).metrics["auroc"].value == 1.0


def test_a_study_of_unknown_label_is_left_out() -> None:
    table = make_table(make_studies(4, shift=4.0, width=4)).with_columns(
        y_true=pl.when(pl.col("slice_id") == "s000-5").then(None).otherwise(pl.col("y_true"))
    )
    assert [study.key for study in gather_studies(table)] == ["s001.1", "s002.1", "s003.1"]
    assert gather_studies(table, {"s000.1": 1})[0].label == 1
    with pytest.raises(PredictionsError, match="names the series"):
        gather_studies(table.with_columns(series_uid=pl.lit(None, pl.String)))


def test_a_rule_is_assessed_on_studies_it_never_saw() -> None:
    selected = make_table(make_studies(30, shift=5.0, width=4))
    reported = make_table(make_studies(24, shift=5.0, width=4, seed=7)).with_columns(split=pl.lit("test"))
    found = assess_studies(selected, reported, options=IntervalOptions(draws=60))
    assert found is not None
    assert found.fit.aggregation.studies == 30
    assert found.evaluation.slices == 24
    assert found.evaluation.split == "test"
    assert found.evaluation.threshold == found.fit.aggregation.threshold
    assert found.evaluation.metrics["auroc"].value == pytest.approx(1.0)


def test_too_few_studies_are_not_assessed() -> None:
    table = make_table(make_studies(30, shift=5.0, width=4))
    assert assess_studies(table.with_columns(series_uid=pl.lit(None, pl.String)), table) is None
    thin = table.group_by("series_uid", maintain_order=True).head(2).select(table.columns)
    assert assess_studies(thin, thin) is None
    few = make_table(make_studies(6, shift=5.0, width=4))
    assert assess_studies(few, table) is None
    whole = table.filter(pl.col("series_uid").is_in([f"s{index:03d}.1" for index in range(0, 30, 2)]))
    assert assess_studies(table, whole) is None
