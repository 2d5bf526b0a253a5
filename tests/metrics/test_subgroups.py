"""Subgroups: counted by hand on a small table."""

from __future__ import annotations

import polars as pl
import pytest

from cspine.core.predictions import make_predictions
from cspine.metrics.evaluation import evaluate_subgroups
from cspine.metrics.intervals import IntervalOptions

KINDS = ["dens", "dens", "dens", "burst", None, None, None, ""]
LEVELS = ["C2", "C2", "C2", "C5", "C2", "C5", "C5", None]
LABELS = [1, 1, 1, 1, 0, 0, 0, 0]
LOGITS = [2.0, -1.0, 3.0, -2.0, 1.0, -1.0, -3.0, 5.0]


def make_table(model: str, logits: list[float]) -> pl.DataFrame:
    ids = [f"s{number}" for number in range(8)]
    slices = pl.DataFrame(
        {
            "slice_id": ids,
            "label": LABELS,
            "split": ["test"] * 8,
            "patient_id": [f"p{number // 2}" for number in range(8)],
            **{
                name: pl.Series([None] * 8, dtype=pl.String)
                for name in ("study_uid", "series_uid", "source_id")
            },
        }
    )
    origin = {"checkpoint_hash": "c", "recipe_hash": "r", "manifest_hash": "m"}
    return make_predictions(slices, ids, logits, model=model, **origin)


@pytest.fixture
def properties() -> pl.DataFrame:
    """In another order than the predictions."""
    ids = [f"s{number}" for number in range(8)]
    return pl.DataFrame({"slice_id": ids, "fracture_type": KINDS, "vertebra_level": LEVELS}).reverse()


def test_subgroups_are_those_counted_by_hand(properties: pl.DataFrame) -> None:
    found = {
        (part.column, part.value): part
        for part in evaluate_subgroups(
            [make_table("a", LOGITS)], properties, options=IntervalOptions(draws=100)
        )
    }
    assert list(found) == [
        ("fracture_type", "burst"),
        ("fracture_type", "dens"),
        ("vertebra_level", "C2"),
        ("vertebra_level", "C5"),
    ]
    counts = {key: (part.slices, part.positives) for key, part in found.items()}
    assert counts == {
        ("fracture_type", "burst"): (1, 1),
        ("fracture_type", "dens"): (3, 3),
        ("vertebra_level", "C2"): (4, 3),
        ("vertebra_level", "C5"): (3, 1),
    }
    assert found["fracture_type", "dens"].recall.value == pytest.approx(2 / 3)
    assert found["fracture_type", "burst"].recall.value == 0
    assert found["fracture_type", "dens"].specificity.value is None
    assert found["vertebra_level", "C2"].specificity.value == 0
    assert found["vertebra_level", "C5"].specificity.value == 1
    assert found["vertebra_level", "C2"].recall.unit == "patient"
    assert found["vertebra_level", "C2"].recall.n == 3


def test_models_keep_their_order_within_each_subgroup(properties: pl.DataFrame) -> None:
    tables = [make_table("zeta", LOGITS), make_table("alpha", [-z for z in LOGITS])]
    found = evaluate_subgroups(tables, properties, ["fracture_type"], options=IntervalOptions(draws=100))
    assert [(part.value, part.model) for part in found] == [
        ("burst", "zeta"),
        ("burst", "alpha"),
        ("dens", "zeta"),
        ("dens", "alpha"),
    ]


def test_columns_that_are_missing_or_empty_give_nothing(properties: pl.DataFrame) -> None:
    empty = properties.select("slice_id", vertebra_level=pl.lit(None, dtype=pl.String))
    assert evaluate_subgroups([make_table("a", LOGITS)], empty, options=IntervalOptions(draws=100)) == ()
