"""How the audit scores anything against the labels: with the metrics and intervals of `cspine.evaluation`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl

from cspine.data.types import GROUP_NAMES
from cspine.evaluation.estimate import Estimate
from cspine.evaluation.intervals import bootstrap, find_unit_column
from cspine.evaluation.metrics import arrange_cases
from cspine.predictions import compute_sigmoid

AUDIT_DRAWS = 1000

UNIT_NAMES = {**GROUP_NAMES, "family": "distinct slice"}


def choose_unit_column(table: pl.DataFrame) -> str:
    """The column of what is independent, as for predictions, with the families that pixels show as copies."""
    return find_unit_column(table, copies="family")


def estimate_scores(
    values: pl.DataFrame,
    names: Sequence[str],
    *,
    unit_name: str = "unit",
    draws: int = AUDIT_DRAWS,
    seed: int = 0,
) -> dict[str, Estimate]:
    """Metrics of scores against labels, with intervals over units.

    Args:
        values: `value` (any scale; 0 is the threshold of calls), `label` (0 or 1) and `unit`, no nulls.
        names: Keys of `cspine.evaluation.metrics.METRICS`.
        unit_name: What one unit is called.
        draws, seed: See `cspine.evaluation.intervals.bootstrap`.
    """
    # Ranks instead of values: the metrics want probabilities, and nothing but the order and the sign counts here.
    value = values["value"].to_numpy()
    ranks = values["value"].rank("dense").to_numpy().astype(np.float64)
    below = len(np.unique(value[value < 0]))
    logits = 20 * (ranks - below - 0.5) / max(float(ranks.max()), 1.0)
    cases = arrange_cases(
        values["label"].to_numpy(),
        compute_sigmoid(logits),
        0.5,
        units=values["unit"].rank("dense").to_numpy().astype(np.int64) - 1,
        logit=None,
    )
    return bootstrap(cases, unit=unit_name, draws=draws, seed=seed, names=names)
