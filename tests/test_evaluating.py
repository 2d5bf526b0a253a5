"""`cspine.evaluate` on arrays, lists, series and tables: the same numbers, and clear refusals."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, f1_score, log_loss, roc_auc_score

import cspine
from cspine.core.errors import CspineError, InputError
from cspine.core.predictions import make_predictions, write_predictions

RNG = np.random.default_rng(0)
GROUPS = np.repeat(np.arange(30), 4)
Y_TRUE = np.repeat(RNG.random(30) < 0.5, 4).astype(int)
SCORES = 1 / (1 + np.exp(-(2 * Y_TRUE - 1 + RNG.normal(0, 1.2, 120))))
WEAK = 1 / (1 + np.exp(-(0.4 * (2 * Y_TRUE - 1) + RNG.normal(0, 1.2, 120))))


def test_metrics_are_those_of_scikit_learn() -> None:
    found = cspine.evaluate(Y_TRUE, SCORES, draws=40)
    assert found["auroc"].value == pytest.approx(roc_auc_score(Y_TRUE, SCORES))
    assert found["auprc"].value == pytest.approx(average_precision_score(Y_TRUE, SCORES))
    assert found["f1"].value == pytest.approx(f1_score(Y_TRUE, SCORES >= 0.5))
    assert found["log_loss"].value == pytest.approx(log_loss(Y_TRUE, SCORES))
    assert found.unit == "slice"
    assert found["auroc"].low < found["auroc"].value < found["auroc"].high


def test_groups_widen_the_unit_to_patients() -> None:
    found = cspine.evaluate(Y_TRUE, SCORES, GROUPS, draws=40)
    assert (found.unit, found.units) == ("patient", 30)


@pytest.mark.parametrize("form", [list, np.asarray, pl.Series, pd.Series])
def test_every_form_of_input_gives_the_same(form: object) -> None:
    wanted = cspine.evaluate(Y_TRUE, SCORES, GROUPS, draws=40)
    assert cspine.evaluate(form(Y_TRUE), form(SCORES), form(GROUPS), draws=40) == wanted  # type: ignore[operator]


def test_words_and_booleans_are_labels() -> None:
    wanted = cspine.evaluate(Y_TRUE, SCORES, draws=40)
    assert cspine.evaluate(np.where(Y_TRUE, "fracture", "normal"), SCORES, draws=40) == wanted
    assert cspine.evaluate(Y_TRUE.astype(bool), SCORES, draws=40) == wanted


def test_logits_give_what_their_probabilities_give() -> None:
    logits = np.log(SCORES / (1 - SCORES))
    found = cspine.evaluate(Y_TRUE, logits, scores="logit", draws=40)
    wanted = cspine.evaluate(Y_TRUE, SCORES, draws=40)
    for name, estimate in wanted.metrics.items():
        assert found[name].value == pytest.approx(estimate.value)


def test_a_table_and_its_path_give_what_its_arrays_give(tmp_path: Path) -> None:
    ids = [f"{number:03d}" for number in range(120)]
    columns = {"slice_id": ids, "patient_id": GROUPS.astype(str), "label": Y_TRUE, "split": "test"}
    unknown = (pl.lit(None, pl.String).alias(name) for name in ("study_uid", "series_uid", "source_id"))
    manifest = pl.DataFrame(columns).with_columns(unknown)
    origin = {"model": "model", "checkpoint_hash": "c", "recipe_hash": "r", "manifest_hash": "m"}
    table = make_predictions(manifest, ids, np.log(SCORES / (1 - SCORES)), **origin)
    write_predictions(table, tmp_path / "p.parquet")
    wanted = cspine.evaluate(Y_TRUE, SCORES, GROUPS, draws=40)["auroc"]
    for source in (table, tmp_path / "p.parquet", str(tmp_path / "p.parquet")):
        found = cspine.evaluate(source, draws=40)["auroc"]
        assert (found.value, found.low, found.high) == pytest.approx((wanted.value, wanted.low, wanted.high))
    assert cspine.evaluate(table, groups="slice_id", draws=40).unit == "slice"


def test_two_models_are_compared_with_holms_correction() -> None:
    found = cspine.evaluate(Y_TRUE, {"good": SCORES, "weak": WEAK}, GROUPS, draws=100)
    differences = found.to_differences()
    auroc = differences.filter(pl.col("metric") == "auroc").row(0, named=True)
    assert auroc["value"] == pytest.approx(found["good"]["auroc"].value - found["weak"]["auroc"].value)
    assert auroc["p"] <= auroc["p_holm"]
    assert list(found) == ["good", "weak"]
    assert repr(found) == "Comparison(good, weak: 120 cases, 30 patients)"


def test_results_are_shown_as_frame_words_and_page() -> None:
    found = cspine.evaluate(Y_TRUE, {"good": SCORES, "weak": WEAK}, GROUPS, draws=40)
    frame = found["good"].to_frame()
    assert frame["metric"].to_list() == list(found["good"].metrics)
    assert frame.filter(metric="auroc")["value"].item() == found["good"]["auroc"].value
    assert found.to_frame().height == 2 * frame.height
    assert repr(found["good"]).startswith("Evaluation(good: 120 cases, 30 patients, AUROC 0.")
    assert found["good"]._repr_html_().count("<img") == 2
    assert "p_holm" in found._repr_html_()


def test_calibration_is_fitted_on_one_set_and_shown_on_another() -> None:
    shown, chosen = (Y_TRUE, WEAK, GROUPS), (Y_TRUE, SCORES, GROUPS)
    found = cspine.assess_calibration(shown, chosen, draws=40)
    assert (found.split, found.fitted_on, found.used) == ("reported", "selection", "platt")
    assert [one.fit.kind if one.fit else None for one in found.states] == [None, "temperature", "platt"]
    assert set(found.to_frame()["rule"]) == {"youden", "sensitivity", "fpr"}
    assert repr(found).startswith("ProbabilityUse(model on reported: 3 thresholds, ECE raw 0.")
    assert found.predictive.points[0].ppv.unit == "patient"
    assert cspine.assess_calibration((Y_TRUE, WEAK), draws=40).points == ()
    with pytest.raises(CspineError, match="reported"):
        cspine.assess_calibration(shown, shown, draws=40)
    with pytest.raises(InputError, match="4 parts"):
        cspine.assess_calibration((1, 2, 3, 4))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (([0, 1], [0.1, 1.2]), "scores run from 0.1 to 1.2"),
        (([0, 1], [-0.1, 0.2]), "scores run from"),
        (([0, 1], [0.1, float("nan")]), "not a finite number"),
        (([0, 1], ["a", "b"]), "not a number"),
        (([0, 1], [0.1]), "1 scores and 2 labels"),
        (([0, 2], [0.1, 0.2]), "2 is neither of the two classes"),
        (([0, None], [0.1, 0.2]), "None is neither"),
        (([0, 1], [[0.1, 0.9], [0.2, 0.8]]), "the column of the fracture class"),
        (([0, 1], [0.1, 0.2], ["p"]), "1 groups and 2 labels"),
        (([0, 1], [0.1, 0.2], ["p", None]), "1 cases have no group"),
        (([0, 1], [0.1, 0.2], [1.0, float("nan")]), "1 cases have no group"),
        (([], []), "there are no values"),
        (([0, 1],), "there are no scores"),
        (([0, 1], [0.1, 0.2], None, 1.5), "a threshold is a probability"),
    ],
)
def test_what_cannot_be_evaluated_is_refused(arguments: tuple[object, ...], words: str) -> None:
    with pytest.raises(InputError) as caught:
        cspine.evaluate(*arguments)  # type: ignore[call-overload]
    assert words in str(caught.value)


@given(st.lists(st.tuples(st.booleans(), st.floats(0, 1)), min_size=4, max_size=30))
def test_any_probabilities_from_0_to_1_are_taken(cases: list[tuple[bool, float]]) -> None:
    y_true, scores = zip(*cases, strict=True)
    found = cspine.evaluate(y_true, scores, draws=40)
    assert found.confusion.tp + found.confusion.fn == sum(y_true)
