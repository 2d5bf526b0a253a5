"""Temperature and Platt: against scikit-learn and statsmodels, and on data that separate the classes."""

from __future__ import annotations

import numpy as np
import pytest
import statsmodels.api as sm
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss, roc_auc_score

from cspine.core.errors import PredictionsError
from cspine.core.predictions import compute_sigmoid
from cspine.metrics.calibration import SLOPE_LIMITS, CalibrationFit, apply_calibration, fit_calibration
from tests.metrics.builders import make_clustered_table, make_logits, make_table

Y, Z, UNIT = make_logits(1, 30, 6, mixed=True)
VAL = make_table(Y, 3 * Z + 1, UNIT, split="val")
LOGIT = VAL["logit"].to_numpy()


def test_platt_is_that_of_statsmodels_and_scikit_learn() -> None:
    found = fit_calibration(VAL, "platt")
    positives = Y.sum()
    target = np.where(Y == 1, (positives + 1) / (positives + 2), 1 / (Y.size - positives + 2))
    glm = sm.GLM(target, sm.add_constant(LOGIT), family=sm.families.Binomial()).fit(tol=1e-12)
    assert (found.intercept, found.slope) == pytest.approx(tuple(glm.params), abs=1e-6)
    twice, labels = np.tile(LOGIT, 2)[:, None], np.repeat([1, 0], Y.size)
    weights = np.concatenate([target, 1 - target])
    sklearn = LogisticRegression(C=np.inf, tol=1e-10, solver="newton-cholesky").fit(twice, labels, weights)
    assert (found.slope, found.intercept) == pytest.approx(
        (sklearn.coef_[0, 0], sklearn.intercept_[0]), abs=1e-6
    )


def test_temperature_is_that_of_statsmodels_and_of_a_search() -> None:
    found = fit_calibration(VAL, "temperature")
    glm = sm.GLM(Y, LOGIT, family=sm.families.Binomial()).fit(tol=1e-12)
    assert found.slope == pytest.approx(glm.params[0], abs=1e-6)
    assert found.intercept == 0
    searched = optimize.minimize_scalar(lambda s: log_loss(Y, compute_sigmoid(s * LOGIT)), (0.1, 1.0)).x
    assert found.slope == pytest.approx(searched, abs=1e-5)


@pytest.mark.parametrize("kind", ["temperature", "platt"])
def test_a_fit_never_raises_the_loss_and_names_its_source(kind: str) -> None:
    found = fit_calibration(VAL, kind)
    assert found.log_loss_before == pytest.approx(log_loss(Y, compute_sigmoid(LOGIT)))
    calibrated = apply_calibration(VAL, found, allow_leak=True)
    assert found.log_loss_after == pytest.approx(log_loss(Y, calibrated["prob"].to_numpy()))
    assert found.log_loss_after < found.log_loss_before
    assert (found.split, found.slices, found.positives, found.separable) == ("val", 180, int(Y.sum()), False)
    assert found.notes == ()
    assert CalibrationFit.model_validate_json(found.model_dump_json()) == found


@given(st.integers(0, 300), st.sampled_from(["temperature", "platt"]))
@settings(max_examples=25, deadline=None)
def test_logits_stay_and_no_ranking_changes(seed: int, kind: str) -> None:
    fit = fit_calibration(make_clustered_table(seed, split="val"), kind)
    test = make_clustered_table(seed + 1, split="test")
    calibrated = apply_calibration(test, fit)
    assert calibrated["logit"].equals(test["logit"])
    assert calibrated.drop("prob").equals(test.drop("prob"))
    y = test["y_true"].to_numpy()
    assert roc_auc_score(y, calibrated["prob"]) == pytest.approx(roc_auc_score(y, test["prob"]))


def test_separable_logits_stop_at_a_limit_or_the_prior() -> None:
    table = make_table([0, 0, 0, 1, 1, 1], [-3.0, -2.0, -1.0, 1.0, 2.0, 3.0], split="val")
    temperature = fit_calibration(table, "temperature")
    assert temperature.separable
    assert temperature.slope == SLOPE_LIMITS[1]
    assert temperature.notes == ("the slope is at its upper limit: the data set none",)
    platt = fit_calibration(table, "platt")
    assert 0.5 < platt.slope < 5
    assert platt.intercept == pytest.approx(0, abs=1e-9)
    assert "the prior on the labels" in platt.notes[0]


@pytest.mark.parametrize("kind", ["temperature", "platt"])
def test_a_model_that_ranks_wrongly_gets_the_flattest_slope(kind: str) -> None:
    y, z, _ = make_logits(3, 40, 2, shift=-1.0, mixed=True)
    found = fit_calibration(make_table(y, z), kind)
    assert found.slope == SLOPE_LIMITS[0]
    assert "do not rise with the chance of a fracture" in found.notes[0]
    if kind == "platt":  # the intercept alone then gives the share of fractures
        assert compute_sigmoid(0.01 * z + found.intercept).mean() == pytest.approx(y.mean(), abs=0.02)


def test_what_cannot_calibrate_is_refused() -> None:
    with pytest.raises(PredictionsError, match=r"a calibration needs .* of one class only"):
        fit_calibration(make_table([1, 1], [0.0, 1.0]))
    with pytest.raises(PredictionsError, match="all logits are the same"):
        fit_calibration(make_table([0, 1], [2.0, 2.0]))
    fit = fit_calibration(VAL)
    with pytest.raises(PredictionsError, match="the calibration was fitted on val"):
        apply_calibration(VAL, fit)
    with pytest.raises(PredictionsError, match="the calibration is for another checkpoint"):
        apply_calibration(make_clustered_table(1, checkpoint="x"), fit)
