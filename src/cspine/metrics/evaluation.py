"""From one model's predictions to its metrics, intervals and curves: where all these numbers are made."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import polars as pl

from cspine.core.errors import InputError, PredictionsError
from cspine.core.estimates import Confusion, Estimate, EvaluationResult, SubgroupResult
from cspine.core.predictions import check_predictions, compute_sigmoid
from cspine.metrics.intervals import DEFAULT_OPTIONS, IntervalOptions, choose_unit, estimate_intervals
from cspine.metrics.scores import (
    METRICS,
    Cases,
    Integers,
    arrange_cases,
    compute_precision_recall,
    compute_roc,
    compute_totals,
)

POSITIVE_CLASS = "fracture"


def evaluate_table(
    table: pl.DataFrame, threshold: float = 0.5, options: IntervalOptions = DEFAULT_OPTIONS
) -> EvaluationResult:
    """Evaluate one model's predictions.

    Rows are sorted by `slice_id` first, so their order moves no number. Several splits in one table are
    pooled and all named. A set of one class gives what is defined; the rest is None with its reason.

    Args:
        table: Predictions, all labelled.
        threshold: A probability >= threshold is called fracture; 0..1.
        options: How intervals are made.

    Raises:
        PredictionsError: the table breaks its schema or rules, or has rows without a label.
        InputError: a threshold outside its range, or a unit that some slices lack.
    """
    table = sort_labelled(table)
    cases = arrange_table(table, threshold, options.unit)
    y, prob = table["y_true"].to_numpy(), table["prob"].to_numpy()
    return EvaluationResult(
        model=table["model"][0],
        split=name_splits(table),
        positive_class=POSITIVE_CLASS,
        threshold=threshold,
        slices=table.height,
        positives=int(y.sum(dtype=np.int64)),
        unit=cases.unit,
        units=cases.units,
        confusion=_count_confusion(cases),
        metrics=estimate_intervals(cases, options),
        roc=compute_roc(y, prob),
        precision_recall=compute_precision_recall(y, prob),
    )


def estimate_metrics(
    table: pl.DataFrame,
    names: Sequence[str] = tuple(METRICS),
    threshold: float = 0.5,
    options: IntervalOptions = DEFAULT_OPTIONS,
) -> dict[str, Estimate]:
    """Some metrics of one model's predictions; arguments and errors as of `evaluate_table`."""
    return estimate_intervals(arrange_table(sort_labelled(table), threshold, options.unit), options, names)


def sort_labelled(table: pl.DataFrame) -> pl.DataFrame:
    """Check predictions, refuse rows without a label, sort by `slice_id`: sums then depend on no order."""
    check_predictions(table)
    if unlabelled := table["y_true"].null_count():
        raise PredictionsError(
            f"{unlabelled} of {table.height} slices have no label: nothing can be said of them",
            fix="label them, or leave them out by a manifest without them",
        )
    return table.sort("slice_id")


def check_both_classes(table: pl.DataFrame, what: str) -> None:
    """Raise `PredictionsError` where labelled predictions are of one class only, and so `what` cannot be had."""
    if table["y_true"].n_unique() < 2:
        raise PredictionsError(
            f"{what} needs fractures and normal slices, and these are of one class only",
            where=f"split {name_splits(table)}",
            fix="take a split with both",
        )


def arrange_table(table: pl.DataFrame, threshold: float = 0.5, unit: str = "auto") -> Cases:
    """Sorted, labelled predictions as `Cases`."""
    if not 0 <= threshold <= 1:
        raise InputError(f"a threshold is a probability, not {threshold}", fix="give a number from 0 to 1")
    units, name = index_units(table, unit)
    prob, logit = table["prob"].to_numpy(), table["logit"].to_numpy()
    # A calibration moves prob and leaves logit as the network gave it; log loss is that of what is reported: prob.
    calibrated = not np.allclose(prob, compute_sigmoid(logit), rtol=1e-6, atol=1e-12)
    return arrange_cases(
        table["y_true"].to_numpy(),
        prob,
        threshold,
        units=units,
        logit=None if calibrated else logit,
        unit=name,
    )


def index_units(table: pl.DataFrame, unit: str = "auto") -> tuple[Integers, str]:
    """The unit of each row as (n,) numbers 0.. without gaps, and the name of one unit; errors as of `choose_unit`."""
    column, name = choose_unit(table, unit)
    return table[column].rank("dense").to_numpy().astype(np.int64) - 1, name


def _count_confusion(cases: Cases) -> Confusion:
    totals = compute_totals(cases, np.ones((1, cases.units)), ranking=False)
    return Confusion(tp=int(totals.tp[0]), fp=int(totals.fp[0]), fn=int(totals.fn[0]), tn=int(totals.tn[0]))


def name_splits(table: pl.DataFrame) -> str:
    """The split, several joined by "+"; "none" for slices without one."""
    return "+".join(sorted(split or "none" for split in table["split"].unique()))


# What is missed: recall and specificity by a property of the slices, such as the kind of fracture.


SUBGROUP_COLUMNS = ("fracture_type", "vertebra_level")
"""Columns of a manifest that a comparison is broken down by, where they are filled."""


def evaluate_subgroups(
    tables: Iterable[pl.DataFrame],
    properties: pl.DataFrame,
    columns: Iterable[str] = SUBGROUP_COLUMNS,
    threshold: float = 0.5,
    options: IntervalOptions = DEFAULT_OPTIONS,
) -> tuple[SubgroupResult, ...]:
    """Recall and specificity of each model in each subgroup, with intervals.

    Slices without a value in a column are in none of its subgroups: a normal slice has no fracture type. An empty
    text is no value.

    Args:
        tables: Predictions, one table a model.
        properties: `slice_id` and the columns; joined to the predictions by `slice_id`.
        columns: Which columns; those that are not there, or nowhere filled, give nothing.
        threshold, options: See `evaluate_table`.

    Returns:
        Sorted by column in the order given, value, and model in the order given.

    Raises:
        PredictionsError, InputError: see `evaluate_table`.
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
                metrics = estimate_metrics(part, ("recall", "specificity"), threshold, options)
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
