"""Confusion matrices and their metrics written down again, plainly and one at a time, to hold `claims` against."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from decimal import ROUND_DOWN, ROUND_HALF_EVEN, ROUND_HALF_UP, Decimal
from fractions import Fraction
from typing import NamedTuple

from cspine.claims.check import Reading, ReadingVerdict
from cspine.claims.table import Row, Sizes

MODES = {"half-up": ROUND_HALF_UP, "half-even": ROUND_HALF_EVEN, "truncate": ROUND_DOWN}


class Matrix(NamedTuple):
    tp: int
    fp: int
    fn: int
    tn: int


def ratio(above: int | Fraction, below: int | Fraction) -> Fraction:
    return Fraction(above) / Fraction(below) if below else Fraction(0)


def name_classes(m: Matrix, reading: Reading) -> tuple[Matrix, Matrix]:
    """The matrix as the positive class of the reading sees it, and as the other does."""
    turned = Matrix(m.tn, m.fn, m.fp, m.tp)
    return (turned, m) if reading.positive_class == "normal" else (m, turned)


PLAIN: Mapping[str, Callable[[Matrix], Fraction]] = {
    "precision": lambda m: ratio(m.tp, m.tp + m.fp),
    "recall": lambda m: ratio(m.tp, m.tp + m.fn),
    "f1": lambda m: ratio(2 * m.tp, 2 * m.tp + m.fp + m.fn),
}


def take(metric: str, m: Matrix, reading: Reading) -> Fraction | float:
    """A metric written down again, plainly, for one matrix. MCC is a float, all else exact."""
    one, other = name_classes(m, reading)
    match metric:
        case "accuracy":
            return ratio(m.tp + m.tn, sum(m))
        case "balanced_accuracy":
            return (PLAIN["recall"](one) + PLAIN["recall"](other)) / 2
        case "specificity":
            return PLAIN["recall"](other)
        case "fpr":
            return ratio(one.fp, one.fp + one.tn)
        case "npv":
            return PLAIN["precision"](other)
        case "mcc":
            below = (m.tp + m.fp) * (m.tp + m.fn) * (m.tn + m.fp) * (m.tn + m.fn)
            return (m.tp * m.tn - m.fp * m.fn) / math.sqrt(below) if below else 0.0
    of_one, of_other = PLAIN[metric](one), PLAIN[metric](other)
    match reading.averaging:
        case "binary":
            return of_one
        case "micro":
            return ratio(m.tp + m.tn, sum(m))
        case "weighted":
            sizes = one.tp + one.fn, other.tp + other.fn
            return (sizes[0] * of_one + sizes[1] * of_other) / sum(sizes)
    if metric == "f1" and reading.macro_f1 == "f1-of-means":
        p, r = ((PLAIN[name](one) + PLAIN[name](other)) / 2 for name in ("precision", "recall"))
        return ratio(2 * p * r, p + r)
    return (of_one + of_other) / 2


def list_all(sizes: Sizes) -> Iterator[Matrix]:
    for p, n in itertools.product(range(1, sizes.positives[1] + 1), range(1, sizes.negatives[1] + 1)):
        inside = sizes.positives[0] <= p and sizes.negatives[0] <= n
        if inside and sizes.total[0] <= p + n <= sizes.total[1]:
            yield from (Matrix(tp, n - tn, p - tp, tn) for tp in range(p + 1) for tn in range(n + 1))


def fits(row: Row, m: Matrix, reading: Reading) -> bool:
    for value in row.values:
        true, inside = take(value.metric, m, reading), value.interval
        if isinstance(true, float):  # decided exactly, in squares
            above = m.tp * m.tn - m.fp * m.fn
            below = max((m.tp + m.fp) * (m.tp + m.fn) * (m.tn + m.fp) * (m.tn + m.fn), 1)
            true = Fraction(above * abs(above), below)
            low, high = inside.low * abs(inside.low), inside.high * abs(inside.high)
        else:
            low, high = inside.low, inside.high
        if true < low or true > high or (true == low and not inside.low_included):
            return False
        if true == high and not inside.high_included:
            return False
    return True


def as_matrices(verdict: ReadingVerdict) -> set[Matrix]:
    return {Matrix(m.tp, m.fp, m.fn, m.tn) for m in verdict.matrices}


def write(value: float | Fraction, decimals: int, percent: bool, mode: str) -> str:
    """Print a true value as a table would."""
    exact = (
        Decimal(value) if isinstance(value, float) else Decimal(value.numerator) / Decimal(value.denominator)
    )
    shown = (exact * (100 if percent else 1)).quantize(Decimal(1).scaleb(-decimals), rounding=MODES[mode])
    return f"{shown:f}" + ("%" if percent else "")


def move(text: str, steps: int, decimals: int, lowest: int = 0) -> str:
    """A printed value with its last digit moved, within what can be printed."""
    unit = Decimal(1).scaleb(-decimals)
    moved = min(max(Decimal(text) + steps * unit, Decimal(lowest)), Decimal(1))
    return f"{moved.quantize(unit):f}"
