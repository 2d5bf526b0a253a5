"""Metrics under other weights of the units: bootstrap draws, and each unit left out in turn."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from cspine.evaluation.metrics import Cases, Floats, Metric, compute_totals
from cspine.machine import count_cpus

JACKKNIFE_GROUPS = 1000
"""More units than this are left out by groups: the acceleration is the same in expectation, the cost bounded."""

_CHUNK_VALUES = 2**18  # a few arrays of 2 MB: small enough for a core's cache, large enough to hide Python
_THREADS_FROM = 2**24  # values drawn in all; below, threads cost more than they save


def draw_metrics(cases: Cases, metrics: Mapping[str, Metric], *, draws: int, seed: int) -> dict[str, Floats]:
    """Draw the units again with replacement, with all their slices, and take the metrics each time.

    Two models on the same cases, with the same units and seed, get the same draws: the difference of their values
    is that of a paired bootstrap.

    Args:
        cases: At least one unit.
        metrics: What to take.
        draws: How often. The first draws of a longer run are those of a shorter one.
        seed: Not negative. The same seed gives the same bits in any chunks and on any number of threads.

    Returns:
        (draws,) values of each metric, NaN where undefined.
    """
    return _compute_rows(cases, metrics, draws, lambda rows: draw_weights(cases.units, seed, rows))


def leave_out_units(cases: Cases, metrics: Mapping[str, Metric]) -> dict[str, Floats]:
    """The metrics without each unit in turn: the cluster jackknife.

    Returns:
        (groups,) values of each metric, NaN where undefined; a group is a unit, or several of more than
        `JACKKNIFE_GROUPS`.
    """
    groups = min(cases.units, JACKKNIFE_GROUPS)
    group = np.arange(cases.units) % groups
    return _compute_rows(
        cases, metrics, groups, lambda rows: (group != np.asarray(rows)[:, np.newaxis]).astype(np.float64)
    )


def _compute_rows(
    cases: Cases, metrics: Mapping[str, Metric], count: int, weigh: Callable[[range], Floats]
) -> dict[str, Floats]:
    """Metrics under `count` rows of unit weights; in chunks that fit the cache, on all cores."""
    size = max(cases.slices, cases.units)
    step = max(1, _CHUNK_VALUES // size)
    chunks = [range(start, min(start + step, count)) for start in range(0, count, step)]
    ranking = any(metric.ranking for metric in metrics.values())

    def run(chunk: range) -> list[Floats]:
        totals = compute_totals(cases, weigh(chunk), ranking=ranking)
        return [metric.compute(totals) for metric in metrics.values()]

    if size * count < _THREADS_FROM:
        parts = [run(chunk) for chunk in chunks]
    else:
        with ThreadPoolExecutor(count_cpus()) as pool:
            parts = list(pool.map(run, chunks))
    return {name: np.concatenate([part[i] for part in parts]) for i, name in enumerate(metrics)}


def draw_weights(units: int, seed: int, chunk: range) -> Floats:
    """(len(chunk), units): how often each unit is drawn. Each draw has a stream of its own."""
    weights = np.empty((len(chunk), units))
    for row, draw in enumerate(chunk):
        rng = np.random.default_rng((seed, draw))
        weights[row] = np.bincount(rng.integers(0, units, units, dtype=np.int32), minlength=units)
    return weights
