"""What is missed: recall and specificity by a property of the slices, such as the kind of fracture."""

from __future__ import annotations

from collections.abc import Iterable

import polars as pl

from cspine.evaluation.evaluate import estimate_metrics
from cspine.evaluation.results import SubgroupResult

SUBGROUP_COLUMNS = ("fracture_type", "vertebra_level")
"""Columns of a manifest that a comparison is broken down by, where they are filled."""


def evaluate_subgroups(
    tables: Iterable[pl.DataFrame],
    properties: pl.DataFrame,
    columns: Iterable[str] = SUBGROUP_COLUMNS,
    *,
    threshold: float = 0.5,
    draws: int = 1000,
    seed: int = 0,
    level: float = 0.95,
    by: str = "auto",
) -> tuple[SubgroupResult, ...]:
    """Recall and specificity of each model in each subgroup, with intervals.

    Slices without a value in a column are in none of its subgroups: a normal slice has no fracture type. An empty
    text is no value.

    Args:
        tables: Predictions, one table a model.
        properties: `slice_id` and the columns; joined to the predictions by `slice_id`.
        columns: Which columns; those that are not there, or nowhere filled, give nothing.
        threshold, draws, seed, level, by: See `evaluate`.

    Returns:
        Sorted by column in the order given, value, and model in the order given.

    Raises:
        PredictionsError, InputError: see `evaluate`.
    """
    tables = list(tables)
    found = []
    for column in (name for name in columns if name in properties.columns):
        known = properties.select("slice_id", value=pl.col(column).replace("", None)).drop_nulls()
        for value in known["value"].unique().sort():
            members = known.filter(pl.col("value") == value).select("slice_id")
            for table in tables:
                part = table.join(members, on="slice_id", how="semi")
                if part.is_empty():
                    continue
                metrics = estimate_metrics(
                    part,
                    ("recall", "specificity"),
                    threshold=threshold,
                    draws=draws,
                    seed=seed,
                    level=level,
                    by=by,
                )
                found.append(
                    SubgroupResult(
                        model=str(part["model"][0]),
                        column=column,
                        value=str(value),
                        slices=part.height,
                        positives=int(part["y_true"].sum()),
                        **metrics,
                    )
                )
    return tuple(found)
