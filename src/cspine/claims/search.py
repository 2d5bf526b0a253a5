"""Which confusion matrices fit printed values: an exact search without a loop over all matrices.

For fixed totals and fixed hits in one class, every metric here rises with the hits in the other class. (For MCC: with
q calls for the class, its derivative in q has the sign of q(2 tp - p) - tp(p + n), which is not positive for q up to
tp + n.) So the matrices that fit a printed value are, in each such row, one run, and bisection finds its ends. Rows are
bisected side by side in numpy.

Whether a metric reaches a bound is decided in floating point only where it is far from it, by `_NEAR`, thousands of
times more than the rounding error of the few operations; else in integers. So the answer is exact. Counts are kept as
whole numbers in float64, which holds them exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from cspine.claims.table import Interval, Sizes
from cspine.core.errors import InputError

Floats = npt.NDArray[np.float64]
Numbers = npt.NDArray[Any]
"""float64, or object (Python's integers, which do not overflow)."""
Flags = npt.NDArray[np.bool_]

MOST_ROWS = 1_000_000
"""A row is one choice of positives, negatives and hits in the class whose hits are tried one by one."""
_CHUNK = 1 << 14  # rows at a time: what one step touches stays in the cache of a core
_NEAR = 1e-9


class Side(NamedTuple):
    """One class: how many cases of it were found, how many cases were called it, how many there are."""

    hit: Numbers
    called: Numbers
    size: Numbers


Ratio = Callable[[Side, Side], tuple[Numbers, Numbers]]
"""The class whose metric it is, the other class -> numerator and denominator, which is never 0."""


def accuracy(one: Side, other: Side) -> tuple[Numbers, Numbers]:
    """Paper eq. 6."""
    return one.hit + other.hit, one.size + other.size


def precision(one: Side, other: Side) -> tuple[Numbers, Numbers]:
    """Paper eq. 7. Where nothing was called the class it is 0, as scikit-learn prints it."""
    return one.hit, np.maximum(one.called, 1)


def recall(one: Side, other: Side) -> tuple[Numbers, Numbers]:
    """Paper eq. 8."""
    return one.hit, one.size


def f1(one: Side, other: Side) -> tuple[Numbers, Numbers]:
    """Paper eq. 9, in counts."""
    return 2 * one.hit, one.called + one.size


def balanced_accuracy(one: Side, other: Side) -> tuple[Numbers, Numbers]:
    """Mean of both recalls."""
    return one.hit * other.size + other.hit * one.size, 2 * one.size * other.size


def signed_mcc_squared(one: Side, other: Side) -> tuple[Numbers, Numbers]:
    """MCC * |MCC|, which has no root in it. Where one class was never called it is 0, as scikit-learn prints it."""
    above = one.hit * other.hit - (one.called - one.hit) * (other.called - other.hit)
    return above * abs(above), np.maximum(one.size * one.called * other.size * other.called, 1)


def of_other(ratio: Ratio) -> Ratio:
    """The metric of the other class."""
    return lambda one, other: ratio(other, one)


def mean_of_both(ratio: Ratio) -> Ratio:
    """Macro averaging: the mean over both classes."""

    def average(one: Side, other: Side) -> tuple[Numbers, Numbers]:
        (a, b), (c, d) = ratio(one, other), ratio(other, one)
        return a * d + c * b, 2 * b * d

    return average


def weighted_by_size(ratio: Ratio) -> Ratio:
    """Weighted averaging: the mean over all cases of the metric of their class."""

    def average(one: Side, other: Side) -> tuple[Numbers, Numbers]:
        (a, b), (c, d) = ratio(one, other), ratio(other, one)
        return one.size * a * d + other.size * c * b, (one.size + other.size) * b * d

    return average


def f1_of_means(one: Side, other: Side) -> tuple[Numbers, Numbers]:
    """The harmonic mean (paper eq. 9) of macro precision and macro recall; 0 where both are."""
    (a, b), (c, d) = mean_of_both(precision)(one, other), mean_of_both(recall)(one, other)
    return 2 * a * c, np.maximum(a * d + c * b, 1)


@dataclass(frozen=True, slots=True)
class Formula:
    """A metric as a function of the matrix that rises with the hits of either class.

    Attributes:
        ratio: Its value as numerator and denominator.
        positive: Whether the class it is of is the one counted by `Sizes.positives`.
        falling: The metric is 1 minus the ratio.
        squared: The ratio is the metric times its size.
        over: What the ratio is a share of ("all", "fracture" or "normal"), where the totals give its denominator.
    """

    ratio: Ratio
    positive: bool = True
    falling: bool = False
    squared: bool = False
    over: str | None = None

    def split(self, cells: Cells) -> tuple[Numbers, Numbers]:
        """Numerator and denominator, in the kind of numbers that the cells are in."""
        tp, tn, p, n = cells
        called = tp + (n - tn)
        one, other = Side(tp, called, p), Side(tn, p + n - called, n)
        return self.ratio(one, other) if self.positive else self.ratio(other, one)

    def compute(self, cells: Cells) -> Floats:
        """The metric itself, to show it."""
        above, below = self.split(cells)
        value: Floats = above / below
        if self.squared:
            value = np.sign(value) * np.sqrt(np.abs(value))
        return 1 - value if self.falling else value


class Cells(NamedTuple):
    """Confusion matrices, by what is known of them; each field (k,)."""

    tp: Numbers
    tn: Numbers
    p: Numbers
    n: Numbers

    def as_integers(self, which: npt.NDArray[np.intp]) -> Cells:
        """Some of them, in Python's integers."""
        return Cells(*(part[which].astype(np.int64).astype(object) for part in self))


class Bound(NamedTuple):
    """A ratio passes it when it is above `value`, or equal to it and `at` is set."""

    value: Fraction
    at: bool


@dataclass(frozen=True, slots=True)
class Constraint:
    """A printed value: the ratio of `formula` passes `start` and does not pass `end`."""

    formula: Formula
    start: Bound
    end: Bound


def make_constraint(formula: Formula, printed: Interval) -> Constraint:
    """What a printed value asks of the ratio of its formula."""
    low, high = printed.low, printed.high
    low_included, high_included = printed.low_included, printed.high_included
    if formula.falling:
        low, high, low_included, high_included = 1 - high, 1 - low, high_included, low_included
    if formula.squared:
        low, high = low * abs(low), high * abs(high)
    return Constraint(formula, Bound(low, low_included), Bound(high, not high_included))


class Runs(NamedTuple):
    """Rows of matrices: in each, totals and hits of the outer class, and inner hits from `low` to below `high`."""

    p: Floats
    n: Floats
    outer: Floats
    low: Floats
    high: Floats

    def keep(self, which: npt.NDArray[Any]) -> Runs:
        """Some of the rows."""
        return Runs(*(part[which] for part in self))


@dataclass(frozen=True, slots=True)
class Search:
    """All matrices of some sizes, laid out in rows. `make_search` makes one.

    Attributes:
        p, n: (pairs,) every choice of positives and negatives.
        outer_positive: Whether the hits that are tried one by one are those of the positive class.
    """

    p: Floats
    n: Floats
    outer_positive: bool

    def place(self, runs: Runs, inner: Floats) -> Cells:
        """The matrix of each row that has these inner hits."""
        tp, tn = (runs.outer, inner) if self.outer_positive else (inner, runs.outer)
        return Cells(tp, tn, runs.p, runs.n)

    def find(self, constraints: Sequence[Constraint]) -> Iterator[Runs]:
        """Every matrix that fits all constraints, in runs, in order of totals and then of outer hits."""
        pairs, stop = self._narrow(constraints)
        ends = np.cumsum(stop - pairs.outer)
        rows = int(ends[-1]) if ends.size else 0
        for start in range(0, rows, _CHUNK):
            row = np.arange(start, min(start + _CHUNK, rows))
            pair = np.searchsorted(ends, row, side="right")
            runs = pairs.keep(pair)._replace(outer=stop[pair] - (ends[pair] - row))
            for constraint in constraints:
                low, high = self.cut(runs, constraint)
                runs = runs._replace(low=low, high=high).keep(low < high)
            if runs.p.size:
                yield runs

    def _narrow(self, constraints: Sequence[Constraint]) -> tuple[Runs, Floats]:
        """For each pair the hits that either class may have, from the best and the worst that the other could add.

        Returns:
            Runs whose `outer` is the fewest hits of the outer class, and where these hits stop.
        """
        p, n = self.p, self.n
        sizes = (p, n) if self.outer_positive else (n, p)
        # The class of index `side` goes through its hits, while the other has its most or its fewest.
        first = [np.zeros_like(p), np.zeros_like(p)]
        stop = [sizes[0] + 1, sizes[1] + 1]
        for side, constraint in ((side, constraint) for side in (0, 1) for constraint in constraints):
            turned = Search(p, n, self.outer_positive == bool(side))
            most, fewest = (Runs(p, n, hits, p, p) for hits in (stop[1 - side] - 1, first[1 - side]))
            formula, (low, high) = constraint.formula, (first[side], stop[side])
            first[side] = bisect(formula, constraint.start, low, high, partial(turned.place, most))
            stop[side] = bisect(formula, constraint.end, first[side], high, partial(turned.place, fewest))
        some = (first[0] < stop[0]) & (first[1] < stop[1])
        return Runs(p, n, first[0], first[1], stop[1]).keep(some), stop[0][some]

    def cut(self, runs: Runs, constraint: Constraint) -> tuple[Floats, Floats]:
        """Where in each run the matrices begin and end that fit one more constraint."""
        place = partial(self.place, runs)
        low = bisect(constraint.formula, constraint.start, runs.low, runs.high, place)
        return low, bisect(constraint.formula, constraint.end, low, runs.high, place)


def make_search(sizes: Sizes) -> Search:
    """Lay out all matrices of these sizes.

    Raises:
        InputError: more than `MOST_ROWS` rows.
    """
    fewer = sizes if sizes.positives[1] <= sizes.negatives[1] else sizes.swap()
    first, last = fewer.positives
    rows = float(last - first)
    if rows < MOST_ROWS:
        outer = np.arange(first, last + 1.0)
        least = np.maximum(fewer.negatives[0], fewer.total[0] - outer)
        choices = np.minimum(fewer.negatives[1], fewer.total[1] - outer) - least + 1
        rows = float((choices * (outer + 1)).sum())
    if rows > MOST_ROWS:
        raise InputError(
            f"the totals leave too many tables to try: over {MOST_ROWS:,} rows of them",
            where=f"{name_range(sizes.positives)} positives, {name_range(sizes.negatives)} negatives",
            fix="narrow the totals, such as positives = 180..220 and negatives = 200",
        )
    times = choices.astype(np.int64)
    one = np.repeat(outer, times)
    two = np.arange(one.size) - np.repeat(np.cumsum(choices) - choices - least, times)
    return Search(one, two, True) if fewer is sizes else Search(two, one, False)


def name_range(ends: tuple[int, int]) -> str:
    """A count, or a range of them, as it is written."""
    return f"{ends[0]:,}" if ends[0] == ends[1] else f"{ends[0]:,}..{ends[1]:,}"


def bisect(
    formula: Formula, bound: Bound, low: Floats, high: Floats, place: Callable[[Floats], Cells]
) -> Floats:
    """The first of low..high-1 at which the ratio passes the bound, for each row; `high` where none does.

    Args:
        formula: Its ratio rises along low..high-1.
        bound: What is to be passed.
        low, high: (k,).
        place: A number of hits for each row -> matrices.
    """
    while (unsure := low < high).any():
        middle = np.floor((low + high) / 2)  # outside its row where that is done; not used there
        passed = passes(formula, bound, place(middle))
        high = np.where(unsure & passed, middle, high)
        low = np.where(unsure & ~passed, middle + 1, low)
    return low


def passes(formula: Formula, bound: Bound, cells: Cells) -> Flags:
    """Whether the ratio passes the bound, for each matrix; exact (see the head of this file)."""
    above, below = formula.split(cells)
    # Rows that `bisect` is done with are asked about hits that they cannot have; their answers are not used.
    with np.errstate(divide="ignore", invalid="ignore"):
        difference = above / below - float(bound.value)
    passed: Flags = difference > 0
    near = np.flatnonzero(np.abs(difference) <= _NEAR)
    if near.size:
        above, below = formula.split(cells.as_integers(near))
        left, right = above * bound.value.denominator, below * bound.value.numerator
        passed[near] = (left >= right) if bound.at else (left > right)
    return passed
