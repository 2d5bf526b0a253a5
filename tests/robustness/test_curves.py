"""Robustness curves come from predictions alone."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from cspine.core.errors import InputError, PredictionsError
from cspine.core.predictions import make_predictions
from cspine.evaluating import evaluate
from cspine.metrics.intervals import IntervalOptions
from cspine.robustness.curves import CLEAN, summarise_robustness


def make_table(model: str, shift: float, n: int = 60) -> pl.DataFrame:
    nothing = pl.lit(None, dtype=pl.String)
    slices = pl.DataFrame(
        {"slice_id": [f"s{i:03d}" for i in range(n)], "label": [i % 2 for i in range(n)]},
        schema_overrides={"label": pl.Int8},
    ).with_columns(
        split=pl.lit("val"), patient_id=nothing, study_uid=nothing, series_uid=nothing, source_id=nothing
    )
    logits = np.random.default_rng(0).normal(size=n) + shift * (slices["label"].to_numpy() * 2 - 1)
    origin = {"checkpoint_hash": "c", "recipe_hash": "r", "manifest_hash": "d"}
    return make_predictions(slices, slices["slice_id"].to_list(), logits, model=model, **origin)


def test_models_keep_their_order_and_curves_begin_clean() -> None:
    tables = [("rotation", 1, make_table("b", 0.5)), ("noise", 5, make_table("b", 0.2))]
    tables += [
        (CLEAN, 0, make_table("b", 1.5)),
        ("noise", 1, make_table("b", 1.0)),
        ("blur", 2, make_table("a", 1.0)),
    ]
    points = summarise_robustness(tables, options=IntervalOptions(draws=100))
    assert [(p.model, p.corruption, p.severity) for p in points] == [
        ("b", "noise", 0), ("b", "noise", 1), ("b", "noise", 5), ("b", "rotation", 0), ("b", "rotation", 1),
        ("a", "blur", 2),
    ]  # fmt: skip
    full = evaluate(make_table("b", 1.5), draws=100)
    assert points[0].accuracy == points[3].accuracy == full.metrics["accuracy"]
    assert points[0].auroc == full.metrics["auroc"]


def test_clean_alone_is_no_curve() -> None:
    assert summarise_robustness([(CLEAN, 0, make_table("a", 1.0))], options=IntervalOptions(draws=100)) == ()


def test_points_that_cannot_be_compared_are_refused() -> None:
    clean = (CLEAN, 0, make_table("a", 1.0))
    with pytest.raises(PredictionsError, match="different slices"):
        summarise_robustness(
            [clean, ("noise", 1, make_table("a", 1.0, n=40))], options=IntervalOptions(draws=100)
        )
    with pytest.raises(PredictionsError, match="given twice"):
        summarise_robustness([clean, clean], options=IntervalOptions(draws=100))
    with pytest.raises(PredictionsError, match="given twice"):
        summarise_robustness([("noise", 1, make_table("a", 1.0))] * 2, options=IntervalOptions(draws=100))
    for corruption, severity in (("fog", 1), ("noise", 0), (CLEAN, 1), ("noise", 6)):
        with pytest.raises(InputError, match="no such point"):
            summarise_robustness(
                [(corruption, severity, make_table("a", 1.0))], options=IntervalOptions(draws=100)
            )
