"""What a comparison says of its models beside what sees no anatomy."""

from __future__ import annotations

import numpy as np
import polars as pl

from cspine.comparison.auditing import judge_models, note_unit
from cspine.core.estimates import BaselineResult, choose_strongest
from cspine.evaluating import evaluate
from cspine.metrics.intervals import IntervalOptions
from cspine.metrics.paired import ModelComparison, compare_models
from tests.metrics.builders import make_table

LABELS = np.arange(200) % 2


def predict(name: str, separation: float, seed: int) -> pl.DataFrame:
    """Predictions of 50 patients whose two classes lie `separation` apart."""
    logits = np.random.default_rng(seed).normal(size=200) + separation * (LABELS - 0.5)
    return make_table(LABELS, logits, np.arange(200) // 4, model=name)


def compare(*tables: pl.DataFrame) -> ModelComparison:
    return compare_models(tables, swaps=499, options=IntervalOptions(draws=200))


def test_a_model_that_beats_the_baseline_is_not_judged() -> None:
    pairs = compare(predict("network", 4.0, 1), predict("neighbour", 0.0, 2))
    assert judge_models(pairs, "neighbour") == ()


def test_a_model_that_is_only_as_good_has_shown_nothing() -> None:
    pairs = compare(predict("network", 2.0, 1), predict("other", 4.0, 3), predict("neighbour", 2.0, 2))
    (found,) = judge_models(pairs, "neighbour")
    assert found.severity == "invalidates"
    assert found.text.startswith("This split does not show that network learned fractures")
    assert found.evidence["baseline"] == "neighbour"


def test_a_model_that_is_worse_has_shown_nothing_either() -> None:
    (found,) = judge_models(compare(predict("network", 0.0, 1), predict("neighbour", 4.0, 2)), "neighbour")
    assert "neighbour is better" in found.text


def test_two_perfect_scores_show_no_difference() -> None:
    (found,) = judge_models(compare(predict("network", 40.0, 1), predict("neighbour", 40.0, 2)), "neighbour")
    assert "no difference shown" in found.text


def test_without_a_baseline_nothing_is_judged() -> None:
    assert judge_models(None, None) == ()
    assert judge_models(compare(predict("a", 1.0, 1), predict("b", 1.0, 2)), None) == ()


def test_the_strongest_baseline_is_the_bar() -> None:
    baselines = [
        BaselineResult(
            name=name, description="", evaluation=evaluate(predict(name, separation, 5), draws=100)
        )
        for name, separation in (("weak", 0.2), ("strong", 2.0), ("middling", 1.0))
    ]
    assert choose_strongest(baselines) is baselines[1]
    assert choose_strongest([]) is None


def test_without_patients_a_note_names_the_unit() -> None:
    table = predict("network", 4.0, 1)
    assert note_unit({"network": table}, "auto") == ()
    bare = table.with_columns(patient_id=pl.lit(None, pl.String))
    (note,) = note_unit({"network": bare}, "auto")
    assert note.severity == "warning"
    assert note.text.startswith("Intervals are over")
    assert "patients are unknown" in note.text
