"""Is a published table possible? For each row: the confusion matrices that fit it, or why there is none.

A table rarely says over which classes it averages, so each row is taken in every reading that it leaves open, and is
possible where one of them is. Where a reading fits no matrix, the smallest sets of values that already exclude each
other are the proof; beside them stands what would have been reachable.

This is about one set of cases, scored once. A mean over folds or runs is not the metric of one matrix, and nothing here
says anything about it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from fractions import Fraction
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from cspine.claims import search as formulas
from cspine.claims.search import (
    Cells,
    Constraint,
    Formula,
    Ratio,
    Runs,
    Search,
    make_constraint,
    make_search,
)
from cspine.claims.table import Policy, Printed, Row, Sizes, Table, make_row, read_table
from cspine.core.errors import InputError
from cspine.core.estimates import Confusion, FrozenModel
from cspine.core.html import show_table

if TYPE_CHECKING:
    import polars as pl

AVERAGED: Mapping[str, Ratio] = {
    "precision": formulas.precision,
    "recall": formulas.recall,
    "f1": formulas.f1,
}
ONE_SIDED: Mapping[str, Formula] = {
    "specificity": Formula(formulas.of_other(formulas.recall), over="normal"),
    "fpr": Formula(formulas.of_other(formulas.recall), falling=True, over="normal"),
    "npv": Formula(formulas.of_other(formulas.precision)),
}
SYMMETRIC: Mapping[str, Formula] = {
    "accuracy": Formula(formulas.accuracy, over="all"),
    "balanced_accuracy": Formula(formulas.balanced_accuracy),
    "mcc": Formula(formulas.signed_mcc_squared, squared=True),
}


class Reading(FrozenModel):
    """One way to understand a row; None where it makes no difference to the values that the row has.

    Attributes:
        averaging: "binary", "macro", "weighted" or "micro", of precision, recall and F1.
        positive_class: "fracture" or "normal".
        macro_f1: "mean-of-f1" or "f1-of-means".
    """

    averaging: str | None = None
    positive_class: str | None = None
    macro_f1: str | None = None

    @property
    def label(self) -> str:
        """As tables show it."""
        parts = [self.averaging or "", (self.macro_f1 or "").replace("-", " ").replace("f1", "F1")]
        parts.append(f"{self.positive_class} positive" if self.positive_class else "")
        return ", ".join(part for part in parts if part) or "every reading"


class Reached(FrozenModel):
    """A value that some matrix has, and one matrix that has it."""

    value: float
    matrix: Confusion


class Refutation(FrozenModel):
    """Values of which no matrix has all.

    Attributes:
        metrics: A smallest such set. One metric: its value is impossible by itself.
        varied: The last of them; what follows is what it can be while the others hold.
        lowest, highest: Its extremes.
        below, above: The nearest to the printed value from either side; None where there is none. Which of several
            matrices is nearest is decided in floating point; that none fits is exact.
        text: The same in words.
    """

    metrics: tuple[str, ...]
    varied: str
    lowest: Reached
    highest: Reached
    below: Reached | None
    above: Reached | None
    text: str


class ReadingVerdict(FrozenModel):
    """Whether a row is possible in one reading.

    Attributes:
        count: How many matrices fit.
        matrices: The first of them. `tp` counts fractures called fractures, whichever class is read as positive.
        refutations: Where none fits: all smallest sets of values that exclude each other.
    """

    reading: Reading
    possible: bool
    count: int
    matrices: tuple[Confusion, ...]
    refutations: tuple[Refutation, ...]


class ReadValue(FrozenModel):
    """A printed value and the exact interval of true values behind it, as fractions (0.975), all digits written out."""

    metric: str
    printed: str
    percent: bool
    low: str
    low_included: bool
    high: str
    high_included: bool


class RowVerdict(FrozenModel):
    """Whether a row is possible: in any reading.

    Attributes:
        positives, negatives, total: Ranges, both ends included.
    """

    name: str
    possible: bool
    positives: tuple[int, int]
    negatives: tuple[int, int]
    total: tuple[int, int]
    rounding: str
    values: tuple[ReadValue, ...]
    readings: tuple[ReadingVerdict, ...]


class TableVerdict(FrozenModel):
    """Whether a table is possible: every row of it. `cspine claims --json` prints this."""

    title: str
    source: str
    possible: bool
    rows: tuple[RowVerdict, ...]

    def __repr__(self) -> str:
        impossible = sum(not row.possible for row in self.rows)
        return f"TableVerdict({len(self.rows)} rows, {impossible} impossible)"

    def to_frame(self) -> pl.DataFrame:
        """Return one row a reading of a row: row, reading, possible, matrices, why_not."""
        import polars as pl  # here, for the command needs no tables

        cells = [
            (row.name, one.reading.label, one.possible, one.count, " ".join(r.text for r in one.refutations))
            for row in self.rows
            for one in row.readings
        ]
        schema = {
            "row": pl.String,
            "reading": pl.String,
            "possible": pl.Boolean,
            "matrices": pl.Int64,
            "why_not": pl.String,
        }
        return pl.DataFrame(cells, schema=schema, orient="row")

    def _repr_html_(self) -> str:
        frame = self.to_frame()
        return show_table(frame.columns, frame.iter_rows())


def check_claims(
    table: str | Path | Mapping[str, object] | Sequence[Mapping[str, object]] | pl.DataFrame,
    *,
    positives: int | str | None = None,
    negatives: int | str | None = None,
    total: int | str | None = None,
    policy: Policy | None = None,
    limit: int = 1000,
) -> TableVerdict:
    """Say whether a published table is possible.

    Args:
        table: The path of a TOML file (docs/claims.md); or rows: a mapping, several, or a data frame, with metrics as
            printed and, where they differ by row, `name`, `positives`, `negatives` and `total`. Give numbers as text
            where they end in a zero: 97.50 is rounded otherwise than 97.5.
        positives, negatives, total: Cases, for all rows: 200, or "180..220".
        policy: How to read the table: rounding, scale, averaging, positive class.
        limit: How many matrices a reading lists; all are counted.

    Raises:
        InputError: the table cannot be read, a value is none, or the totals contradict each other.
    """
    if isinstance(table, str | Path):
        return check_table(read_table(Path(table), policy), limit)
    shared = {"positives": positives, "negatives": negatives, "total": total}
    lines: Any = table if isinstance(table, Mapping | Sequence) else table.to_dicts()
    rows = []
    for number, line in enumerate([lines] if isinstance(lines, Mapping) else lines, start=1):
        told = {key: str(value) for key, value in {**shared, **line}.items() if value is not None}
        name = told.pop("name", f"row {number}")
        totals = {key: told.pop(key, None) for key in shared}
        rows.append(make_row(told, **totals, policy=policy, name=name))
    if not rows:
        raise InputError("the table has no row", where="table", fix="give one row or more")
    return check_table(Table("", "", tuple(rows)), limit)


def check_table(table: Table, limit: int = 1000) -> TableVerdict:
    """Check every row; see `check_row`."""
    rows = tuple(check_row(row, limit) for row in table.rows)
    return TableVerdict(
        title=table.title, source=table.source, possible=all(row.possible for row in rows), rows=rows
    )


def check_row(row: Row, limit: int = 1000) -> RowVerdict:
    """Find the matrices that fit a row in each reading, or what excludes them.

    Args:
        row: From `claims_input.read_table` or `make_row`.
        limit: How many matrices a reading lists; all are counted.

    Raises:
        InputError: the totals leave too many tables to try.
    """
    search = make_search(row.sizes)
    readings = tuple(_check_reading(search, row, reading, limit) for reading in list_readings(row))
    values = tuple(
        ReadValue(
            metric=value.metric,
            printed=value.text,
            percent=value.percent,
            low=_write_decimal(value.interval.low),
            low_included=value.interval.low_included,
            high=_write_decimal(value.interval.high),
            high_included=value.interval.high_included,
        )
        for value in row.values
    )
    return RowVerdict(
        name=row.name,
        possible=any(reading.possible for reading in readings),
        positives=row.sizes.positives,
        negatives=row.sizes.negatives,
        total=row.sizes.total,
        rounding=row.rounding,
        values=values,
        readings=readings,
    )


def list_readings(row: Row) -> list[Reading]:
    """Every reading that the row leaves open, without those that differ in nothing it has a value of."""
    given = {value.metric for value in row.values}
    averaged, one_sided = bool(given & AVERAGED.keys()), bool(given & ONE_SIDED.keys())
    averagings: list[str | None] = [None]
    if averaged:
        averagings = ["binary", "macro", "weighted", "micro"] if row.averaging == "any" else [row.averaging]
    found = []
    for averaging in averagings:
        sides: list[str | None] = [None]
        if averaging == "binary" or one_sided:
            sides = ["fracture", "normal"] if row.positive_class == "any" else [row.positive_class]
        kinds: list[str | None] = [None]
        if averaging == "macro" and "f1" in given:
            kinds = ["mean-of-f1", "f1-of-means"] if row.macro_f1 == "any" else [row.macro_f1]
        found += [
            Reading(averaging=averaging, positive_class=side, macro_f1=kind)
            for kind in kinds
            for side in sides
        ]
    return found


def find_formula(metric: str, reading: Reading) -> Formula:
    """What a metric's name means in a reading."""
    if metric in SYMMETRIC:
        return SYMMETRIC[metric]
    positive = reading.positive_class != "normal"
    if metric in ONE_SIDED:
        one_sided = ONE_SIDED[metric]
        over = one_sided.over if positive or one_sided.over is None else "fracture"
        return Formula(one_sided.ratio, positive, one_sided.falling, over=over)
    ratio = AVERAGED[metric]
    match reading.averaging:
        case "binary":
            over = ("fracture" if positive else "normal") if metric == "recall" else None
            return Formula(ratio, positive, over=over)
        case "micro":  # every case is called one class, so that all three are the accuracy
            return SYMMETRIC["accuracy"]
        case "weighted":
            return Formula(formulas.weighted_by_size(ratio))
    if metric == "f1" and reading.macro_f1 == "f1-of-means":
        return Formula(formulas.f1_of_means)
    return Formula(formulas.mean_of_both(ratio))


def _check_reading(search: Search, row: Row, reading: Reading, limit: int) -> ReadingVerdict:
    constraints = {
        value.metric: make_constraint(find_formula(value.metric, reading), value.interval)
        for value in row.values
    }
    count = 0
    listed: list[Confusion] = []
    for runs in search.find(list(constraints.values())):
        count += int((runs.high - runs.low).sum())
        listed += _list_matrices(search, runs, limit - len(listed))
    refutations = () if count else tuple(_refute(search, row, reading, constraints))
    return ReadingVerdict(
        reading=reading,
        possible=count > 0,
        count=count,
        matrices=tuple(listed),
        refutations=refutations,
    )


def _list_matrices(search: Search, runs: Runs, limit: int) -> list[Confusion]:
    found: list[Confusion] = []
    for p, n, outer, low, high in zip(*(part[:limit].astype(int).tolist() for part in runs), strict=True):
        for inner in range(low, min(high, low + limit - len(found))):
            tp, tn = (outer, inner) if search.outer_positive else (inner, outer)
            found.append(Confusion(tp=tp, fp=n - tn, fn=p - tp, tn=tn))
    return found


def _refute(
    search: Search, row: Row, reading: Reading, constraints: Mapping[str, Constraint]
) -> Iterator[Refutation]:
    """All smallest sets of values that exclude each other: first each by itself, then pairs, and so on."""
    printed = {value.metric: value for value in row.values}
    for size in range(1, len(constraints) + 1):
        colliding = [
            metrics
            for metrics in combinations(constraints, size)
            if next(search.find([constraints[metric] for metric in metrics]), None) is None
        ]
        for metrics in colliding:
            *fixed, varied = metrics
            reach = _find_reach(search, [constraints[metric] for metric in fixed], constraints[varied])
            text = _say(row.sizes, reading, [printed[metric] for metric in metrics], reach)
            yield Refutation(metrics=metrics, varied=varied, **reach._asdict(), text=text)
        if colliding:
            return


class _Reach(NamedTuple):
    lowest: Reached
    highest: Reached
    below: Reached | None
    above: Reached | None


def _find_reach(search: Search, fixed: Sequence[Constraint], varied: Constraint) -> _Reach:
    """What the varied value can be while the fixed ones hold; never within its own printed interval."""
    formula = varied.formula
    lowest, highest, below, above = (_Best(formula, highest) for highest in (False, True, True, False))
    for runs in search.find(fixed):
        start, end = search.cut(runs, varied)
        for best, inner, some in (
            (lowest, runs.low, runs.low < runs.high),
            (highest, runs.high - 1, runs.low < runs.high),
            (below, start - 1, start > runs.low),
            (above, end, end < runs.high),
        ):
            best.look_at(search.place(runs.keep(some), inner[some]))
    if formula.falling:
        lowest, highest, below, above = highest, lowest, above, below
    return _Reach(lowest.need(), highest.need(), below.reached, above.reached)


class _Best:
    """The matrix with the highest (or lowest) ratio of all that it has looked at."""

    def __init__(self, formula: Formula, highest: bool) -> None:
        self._formula = formula
        self._sign = 1 if highest else -1
        self._score = -np.inf
        self.reached: Reached | None = None

    def need(self) -> Reached:
        """The best one, where there must have been one to look at."""
        assert self.reached, "the fixed values exclude each other: the set was not a smallest one"
        return self.reached

    def look_at(self, cells: Cells) -> None:
        """Keep the best of these and what was seen before."""
        if not cells.p.size:
            return
        above, below = self._formula.split(cells)
        scores: npt.NDArray[np.float64] = self._sign * above / below
        at = int(scores.argmax())
        if scores[at] > self._score:
            self._score = scores[at]
            one = Cells(*(part[at : at + 1] for part in cells))
            tp, tn, p, n = (int(part[0]) for part in one)
            matrix = Confusion(tp=tp, fp=n - tn, fn=p - tp, tn=tn)
            self.reached = Reached(value=float(self._formula.compute(one)[0]), matrix=matrix)


def _say(sizes: Sizes, reading: Reading, values: Sequence[Printed], reach: _Reach) -> str:
    """A refutation in words."""
    *fixed, varied = values
    name = name_metric(varied.metric)
    over = find_formula(varied.metric, reading).over
    near = [found for found in (reach.below, reach.above) if found]
    if fixed:
        given = f"with {_join([f'{name_metric(value.metric)} {value.text}' for value in fixed])}, "
    elif over:
        share = _name_share(sizes, over)
        nearest = _join([_write_share(varied, found, over) for found in near])
        return (
            f"{name} {varied.text} is not {share}: the nearest {'are' if len(near) > 1 else 'is'} {nearest}"
        )
    else:
        given = ""
    ends = [_write(varied, found.value) for found in (reach.lowest, reach.highest)]
    if len(near) == 2:
        nearest = " and ".join(_write(varied, found.value) for found in near)
        can = f"the nearest {name} values are {nearest}"
    elif ends[0] == ends[1]:
        can = f"{name} is {ends[0]}"
    else:
        can = f"{name} lies in [{ends[0]}, {ends[1]}]"
    return f"{given}{can}; the table says {varied.text}"


def name_metric(metric: str) -> str:
    """A metric's name within a sentence."""
    short = {"f1": "F1", "fpr": "FPR", "npv": "NPV", "mcc": "MCC"}
    return short.get(metric, metric.replace("_", " "))


def _name_share(sizes: Sizes, over: str) -> str:
    low, high = {"all": sizes.total, "fracture": sizes.positives, "normal": sizes.negatives}[over]
    return f"k/{low}" if low == high else f"k/n for any n of {low} to {high}"


def _write_share(value: Printed, found: Reached, over: str) -> str:
    m = found.matrix
    size = {"all": m.tp + m.fp + m.fn + m.tn, "fracture": m.tp + m.fn, "normal": m.fp + m.tn}[over]
    return f"{round(found.value * size)}/{size} = {_write(value, found.value)}"


def _write(value: Printed, number: float) -> str:
    """A number in the way in which `value` is printed, with two more decimals."""
    shown = number * 100 if value.percent else number
    return f"{shown:.{value.decimals + 2}f}{'%' if value.percent else ''}"


def _write_decimal(number: Fraction) -> str:
    """The end of a printed interval, all digits: its denominator is 2 times a power of 10 at most."""
    return format(Decimal(number.numerator) / Decimal(number.denominator), "f")


def _join(parts: Sequence[str]) -> str:
    return ", ".join(parts[:-1]) + " and " + parts[-1] if len(parts) > 1 else parts[0]
