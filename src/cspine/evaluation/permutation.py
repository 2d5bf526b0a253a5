"""Clustered permutation test: were two models exchangeable, their scores could be swapped in any unit.

Under the hypothesis that within each unit (the patient, say) it does not matter which model gave which score, swapping
the scores of all slices of a unit changes nothing but chance. So the difference of a metric is taken again under
swaps of whole units; p is the share of swaps with a difference at least as large (sign-flip test; Good 2005,
"Permutation, Parametric and Bootstrap Tests of Hypotheses", chapter 3). Few units that differ are enumerated, and p is
then exact; else swaps are drawn and p = (1 + hits) / (1 + draws) (Phipson and Smyth 2010, Stat Appl Genet Mol Biol 9).

For AUROC, scores of two models must be on one scale to be swapped: each model's are replaced by their ranks among
all slices (Venkatraman and Begg 1996, Biometrika 83:835; Bandos, Rockette and Gur 2005, Stat Med 24:2873), so that a
monotone transform of a model's scores moves nothing. The difference is then linear in the signs of the units.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import numpy.typing as npt
from scipy import stats

from cspine.data.types import plural
from cspine.errors import InputError
from cspine.evaluation.estimate import HypothesisTest
from cspine.evaluation.metrics import METRICS, Cases, Floats, Integers, arrange_cases, compute_totals

ENUMERATED_UNITS = 13
"""Up to this many units that differ, all swaps are taken."""

PERMUTABLE = tuple(name for name in METRICS if name not in ("auprc", "log_loss"))
"""Metrics that the test is made for."""

_CHUNK_VALUES = 2**20
_SLACK = 1e-9  # differences that are equal but for rounding count as equal

Statistic = Callable[[Floats], Floats]


def permute_units(
    metric: str,
    y_true: npt.ArrayLike,
    first: npt.ArrayLike,
    second: npt.ArrayLike,
    units: npt.ArrayLike,
    *,
    unit: str,
    thresholds: tuple[float, float] = (0.5, 0.5),
    draws: int = 9999,
    seed: int = 0,
) -> HypothesisTest:
    """Test that two models are exchangeable within units, by the difference of one metric.

    Args:
        metric: One of `PERMUTABLE`.
        y_true: (n,) 0 or 1.
        first, second: (n,) probabilities of the two models.
        units: (n,) unit of each slice, 0.. without gaps.
        unit: Name of one unit.
        thresholds: Of the first and the second model.
        draws: Swaps that are drawn where there are too many to take them all.
        seed: Of these.

    Returns:
        `statistic` is first - second. p is None where the metric is undefined for a model. Swaps under which the
        metric is undefined count as hits, which makes p larger.

    Raises:
        InputError: a metric without this test.
    """
    if metric not in PERMUTABLE:
        raise InputError(f"no permutation test for {metric}", fix=f"choose from {', '.join(PERMUTABLE)}")
    y, unit_of = np.asarray(y_true), np.asarray(units, dtype=np.int64)
    a, b = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    count = int(unit_of.max()) + 1
    if METRICS[metric].ranking:
        effects = _find_area_effects(y, a, b, unit_of, count)
        statistic: Statistic = lambda signs: signs @ effects  # noqa: E731
        differs = np.abs(effects) > _SLACK / count
        undefined = bool(y.min() == y.max())
    else:
        cases = [arrange_cases(y, p, cut, units=unit_of) for p, cut in zip((a, b), thresholds, strict=True)]
        statistic = _make_count_statistic(metric, cases[0], cases[1])
        differs = np.any(np.abs(cases[0].sums - cases[1].sums) > _SLACK, axis=1)
        undefined = bool(np.isnan(statistic(np.ones((1, count)))[0]))
    name = f"permutation of whole {plural(unit)}"
    if undefined:
        return HypothesisTest(name=name, p=None, reason=METRICS[metric].undefined)
    observed = float(statistic(np.ones((1, count)))[0])
    hits, taken, exact = _count_hits(statistic, observed, differs, draws, seed)
    p = hits / taken if exact else (1 + hits) / (1 + taken)
    name += f", all {taken} swaps" if exact else f", {taken} swaps"
    return HypothesisTest(name=name, statistic=observed, p=p)


def _count_hits(
    statistic: Statistic, observed: float, differs: npt.NDArray[np.bool_], draws: int, seed: int
) -> tuple[int, int, bool]:
    """(swaps at least as extreme, swaps taken, whether these are all there are)."""
    exact = int(differs.sum()) <= ENUMERATED_UNITS
    hits = taken = 0
    for signs in _list_signs(differs) if exact else _draw_signs(differs, draws, seed):
        values = statistic(signs)
        hits += int(np.count_nonzero(np.isnan(values) | (np.abs(values) >= abs(observed) - _SLACK)))
        taken += len(signs)
    return hits, taken, exact


def _list_signs(differs: npt.NDArray[np.bool_]) -> Iterator[Floats]:
    """All swaps of the units that differ; swapping another changes nothing."""
    places = np.flatnonzero(differs)
    signs = np.ones((2**places.size, differs.size))
    numbers = np.arange(2**places.size)[:, np.newaxis]
    signs[:, places] = 1 - 2 * ((numbers >> np.arange(places.size)) & 1)
    yield signs


def _draw_signs(differs: npt.NDArray[np.bool_], draws: int, seed: int) -> Iterator[Floats]:
    """`draws` random swaps in chunks. One stream, row by row, so that the chunks' size moves nothing."""
    rng = np.random.default_rng(seed)
    step = max(1, _CHUNK_VALUES // differs.size)
    for start in range(0, draws, step):
        rows = min(step, draws - start)
        yield np.where(rng.integers(0, 2, (rows, differs.size)) == 1, -1.0, 1.0)


def _make_count_statistic(metric: str, first: Cases, second: Cases) -> Statistic:
    """(swaps, units) signs -> (swaps,) differences of a metric that is a function of sums over units."""
    both = replace(first, sums=np.vstack([first.sums, second.sums]))

    def compute(signs: Floats) -> Floats:
        kept, swapped = (1 + signs) / 2, (1 - signs) / 2
        values = [
            METRICS[metric].compute(compute_totals(both, np.hstack(weights), ranking=False))
            for weights in ((kept, swapped), (swapped, kept))
        ]
        return np.asarray(values[0] - values[1])

    return compute


def _find_area_effects(
    y: npt.NDArray[np.int64], first: Floats, second: Floats, units: Integers, count: int
) -> Floats:
    """(units,): what each unit's sign carries of the difference of AUROCs.

    With signs e (1: as it is, -1: swapped), psi the comparison of a fracture's and a normal's rank, and a, b the
    models: the difference is the mean over pairs (i, j) of
    (e_i + e_j) / 2 * (psi(a_i, a_j) - psi(b_i, b_j)) + (e_i - e_j) / 2 * (psi(a_i, b_j) - psi(b_i, a_j)).
    """
    a, b = stats.rankdata(first), stats.rankdata(second)
    fracture, normal = y == 1, y == 0
    pairs = int(fracture.sum()) * int(normal.sum())
    if pairs == 0:
        return np.zeros(count)
    (fa, fb), (na, nb) = (a[fracture], b[fracture]), (a[normal], b[normal])
    of_fractures = _count_wins(fa, na) - _count_wins(fb, nb) + _count_wins(fa, nb) - _count_wins(fb, na)
    # Of a normal's view, a fracture's win is its loss: the sign turns.
    of_normals = -_count_wins(na, fa) + _count_wins(nb, fb) + _count_wins(nb, fa) - _count_wins(na, fb)
    effects = np.zeros(y.size)
    effects[fracture], effects[normal] = of_fractures / 2, of_normals / 2
    return np.bincount(units, weights=effects, minlength=count) / pairs


def _count_wins(scores: Floats, others: Floats) -> Floats:
    """For each score, how many of the others it exceeds; a tie counts one half."""
    ordered = np.sort(others)
    below = np.searchsorted(ordered, scores, side="left")
    return np.asarray((below + np.searchsorted(ordered, scores, side="right")) / 2)
