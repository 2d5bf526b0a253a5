"""The metric of the RSNA 2022 Cervical Spine Fracture Detection challenge, with an interval.

For a study i and target j (C1 .. C7, patient_overall) with label y and predicted probability p:

    loss_ij = -(y ln p + (1 - y) ln(1 - p))
    w_ij    = 1 for a whole vertebra, 2 for a broken one; 7 and 14 for patient_overall
    loss_i  = sum_j w_ij loss_ij / sum_j w_ij         (weights normalised within the study)
    metric  = mean over the studies of loss_i

So answering one half everywhere scores ln 2 = 0.693, whatever the labels. Weights as the challenge's evaluation page
gives them; that they are normalised within each study is from its hosts' clarification (forum, discussion 341854).
Scores and labels are joined by study and target, never by order.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

from cspine.core.errors import InputError
from cspine.core.estimates import Estimate, FrozenModel
from cspine.data.tables import OVERALL, TARGETS, cast_numbers, number_rows, read_text_table, refuse_cells
from cspine.metrics.intervals import DEFAULT_OPTIONS, IntervalOptions, estimate_intervals
from cspine.metrics.scores import LOG_LOSS_CLIP, METRICS, Cases, Floats

NEGATIVE_WEIGHT = tuple(7.0 if name == OVERALL else 1.0 for name in TARGETS)
POSITIVE_WEIGHT = tuple(14.0 if name == OVERALL else 2.0 for name in TARGETS)
"""Weights of the challenge, in the order of `TARGETS`."""

_METRIC = replace(METRICS["log_loss"], label="RSNA 2022 loss", undefined="there are no studies")


class RsnaScore(FrozenModel):
    """A submission's score.

    Attributes:
        loss: The challenge's metric; lower is better.
        by_target: Plain log loss of each target, not weighted: where the loss comes from.
        studies: How many were scored.
    """

    loss: Estimate
    by_target: dict[str, Estimate]
    studies: int


def compute_rsna_losses(y_true: npt.ArrayLike, prob: npt.ArrayLike) -> Floats:
    """The weighted loss of each study; the challenge's metric is their mean.

    Args:
        y_true: (n, 8) 0 or 1, columns as `TARGETS`.
        prob: (n, 8) probabilities, 0..1; clipped by `LOG_LOSS_CLIP`, so that a sure mistake costs much, not all.

    Raises:
        ValueError: other shapes, other labels, or a probability outside 0..1.
    """
    y, losses = _compute_log_losses(y_true, prob)
    weights = np.where(y == 1, POSITIVE_WEIGHT, NEGATIVE_WEIGHT)
    return np.asarray((losses * weights).sum(axis=1) / weights.sum(axis=1))


def score_rsna(
    labels: pl.DataFrame, scores: pl.DataFrame, options: IntervalOptions = DEFAULT_OPTIONS
) -> RsnaScore:
    """The challenge's metric of a submission, its interval over patients.

    Args:
        labels: As `read_study_labels` gives them. Where every study has a `patient_id`, patients are drawn again,
            with all their studies; otherwise studies.
        scores: As `read_submission` gives them; rows in any order, exactly one for each study and target.
        options: How intervals are made.

    Raises:
        InputError: a study or target is missing or unknown.
    """
    joined = _join(labels, scores)
    y = joined.select(TARGETS).to_numpy()
    prob = joined.select(f"{name}_prob" for name in TARGETS).to_numpy()
    known = joined["patient_id"].null_count() == 0
    unit, column = ("patient", "patient_id") if known else ("study", "study_uid")
    codes = np.unique(joined[column].to_numpy(), return_inverse=True)[1]
    _, losses = _compute_log_losses(y, prob)
    columns = {"loss": compute_rsna_losses(y, prob)}
    columns |= {name: losses[:, index] for index, name in enumerate(TARGETS)}
    found = {
        name: estimate_intervals(_sum_losses(values, codes, unit), options, metrics={"log_loss": _METRIC})[
            "log_loss"
        ]
        for name, values in columns.items()
    }
    return RsnaScore(loss=found.pop("loss"), by_target=found, studies=joined.height)


def read_submission(path: Path) -> pl.DataFrame:
    """Read a submission: a table with the columns `row_id` ("<StudyInstanceUID>_<target>") and `fractured`.

    Returns:
        `study_uid`, `target` and `prob` (0..1), a row each.

    Raises:
        InputError: it lacks a column, names an unknown target, has a row twice, or a value outside 0..1.
    """
    path = Path(path)
    table = number_rows(read_text_table(path, ("row_id", "fractured"), what="submission", row="target"), path)
    ends = "|".join(TARGETS)
    table = table.with_columns(
        target=pl.col("row_id").str.extract(rf"_({ends})$"),
        study_uid=pl.col("row_id").str.extract(rf"^(.+)_(?:{ends})$"),
    )
    unknown = pl.col("study_uid").is_null()
    refuse_cells(
        table, unknown, "row_id", f"an id that is not a study, _ and one of {', '.join(TARGETS)}", path
    )
    refuse_cells(table, pl.col("row_id").is_duplicated(), "row_id", "an id that is there twice", path)
    table = cast_numbers(table, "fractured", pl.Float64, path)
    outside = ~pl.col("fractured").is_between(0, 1).fill_null(False)
    refuse_cells(table, outside, "fractured", "no probability of 0 to 1", path)
    return table.select("study_uid", "target", prob="fractured")


def _compute_log_losses(y_true: npt.ArrayLike, prob: npt.ArrayLike) -> tuple[Floats, Floats]:
    """Labels and log losses, both (n, 8)."""
    y, p = np.asarray(y_true, dtype=np.float64), np.asarray(prob, dtype=np.float64)
    if y.ndim != 2 or y.shape[1] != len(TARGETS) or y.shape != p.shape:
        raise ValueError(f"y_true and prob must be (n, {len(TARGETS)}), not {y.shape} and {p.shape}")
    if not np.isin(y, (0, 1)).all():
        raise ValueError("y_true must hold 0 and 1 only")
    if not ((p >= 0) & (p <= 1)).all():
        raise ValueError("prob must lie in 0..1")
    likelihood = np.where(y == 1, p, 1.0 - p)
    return y, -np.log(np.clip(likelihood, LOG_LOSS_CLIP, 1.0 - LOG_LOSS_CLIP))


def _join(labels: pl.DataFrame, scores: pl.DataFrame) -> pl.DataFrame:
    """One row a study: labels, and each target's probability as `<target>_prob`."""
    wide = scores.pivot("target", index="study_uid", values="prob")
    absent = [name for name in TARGETS if name not in wide.columns]
    if absent:
        raise InputError(
            f"the submission has no row of {', '.join(absent)}", fix="score every target of every study"
        )
    wide = wide.rename({name: f"{name}_prob" for name in TARGETS})
    joined = labels.join(wide, on="study_uid", how="inner")
    gaps = joined.select(pl.any_horizontal(pl.selectors.ends_with("_prob").is_null()).sum()).item()
    missing, unknown = labels.height - joined.height, wide.height - joined.height
    for count, problem in (
        (missing, "of the labels have no score"),
        (unknown, "of the submission have no label"),
        (gaps, "of the submission lack a target"),
    ):
        if count:
            raise InputError(
                f"{count:,} {'study' if count == 1 else 'studies'} {problem}",
                fix="score exactly the studies that the table of labels has",
            )
    return joined.sort("study_uid")


def _sum_losses(values: Floats, codes: npt.NDArray[np.int64], unit: str) -> Cases:
    """Losses summed by unit, as cases; every study counts once in the denominator."""
    units = int(codes.max()) + 1
    sums = np.zeros((units, 6))
    sums[:, 3] = np.bincount(codes, minlength=units)
    sums[:, 5] = np.bincount(codes, weights=values, minlength=units)
    none = np.zeros(0, dtype=np.int64)
    return Cases(sums, none, none, none, none, none, tied=False, unit=unit)
