"""What a published table says: its printed values, its totals, and how both are read.

A printed value is text. Its decimals are part of what it says (97.5 and 97.50 are different statements), so it is
never turned into a float: it becomes the exact interval of true values that would have been printed like this.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cspine.core.errors import InputError

Rounding = Literal["any", "half-up", "half-even", "truncate"]
Scale = Literal["auto", "percent", "fraction"]
Averaging = Literal["any", "binary", "macro", "weighted", "micro"]
PositiveClass = Literal["any", "fracture", "normal"]
MacroF1 = Literal["any", "mean-of-f1", "f1-of-means"]

CLAIMED = (
    "accuracy",
    "precision",
    "recall",
    "f1",
    "specificity",
    "fpr",
    "npv",
    "balanced_accuracy",
    "mcc",
)
"""The metrics that follow from a confusion matrix, in the order in which they are reported (docs/glossary.md)."""

MOST_CASES = 10_000_000
_LONGEST_NUMBER = 18
_MOST_SAID = 4
_NUMBER = re.compile(r"([+-]?)([0-9]+(?:\.[0-9]*)?|\.[0-9]+)\s*(%?)")
_RANGE = re.compile(r"([0-9]{1,15})(?:\s*\.\.\s*([0-9]{1,15}))?")

_NOT_HERE = {
    "sensitivity": "it is called recall here",
    "tpr": "it is called recall here",
    "ppv": "it is called precision here",
    "tnr": "it is called specificity here",
    "f1_score": "it is called f1 here",
    "auc": "an area under a curve does not follow from one confusion matrix",
    "auroc": "an area under a curve does not follow from one confusion matrix",
    "auprc": "an area under a curve does not follow from one confusion matrix",
    "folds": "a mean over folds is not the metric of one confusion matrix and cannot be checked here",
    "runs": "a mean over runs is not the metric of one confusion matrix and cannot be checked here",
}


@dataclass(frozen=True, slots=True)
class Interval:
    """Numbers from `low` to `high`; whether the ends belong to it is said for each."""

    low: Fraction
    high: Fraction
    low_included: bool
    high_included: bool


@dataclass(frozen=True, slots=True)
class Printed:
    """One value of a table.

    Attributes:
        metric: One of `CLAIMED`.
        text: As it is printed.
        percent: Whether it is in percent.
        decimals: How many digits stand behind the point.
        interval: The true values that would be printed like this, as fractions (0.975, not 97.5).
    """

    metric: str
    text: str
    percent: bool
    decimals: int
    interval: Interval


@dataclass(frozen=True, slots=True)
class Sizes:
    """How many cases the table is about, each from..to, both included. Either class has at least one case."""

    positives: tuple[int, int]
    negatives: tuple[int, int]
    total: tuple[int, int]

    def swap(self) -> Sizes:
        """The same with the classes named the other way round."""
        return Sizes(self.negatives, self.positives, self.total)


class Policy(BaseModel):
    """How a table is to be read; None leaves it to the table's own setting, and then to the widest.

    Attributes:
        rounding: How values were rounded: half away from zero, half to the even digit, cut off, or any of these.
        scale: Whether values are in percent; "auto": with a % sign or above 1 they are.
        averaging: Over the two classes, for precision, recall and F1.
        positive_class: Whose precision, recall, F1, specificity, FPR and NPV are meant.
        macro_f1: The mean of the two F1 scores, or the F1 of mean precision and mean recall.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", coerce_numbers_to_str=True)

    rounding: Rounding | None = None
    scale: Scale | None = None
    averaging: Averaging | None = None
    positive_class: PositiveClass | None = None
    macro_f1: MacroF1 | None = None


class _Totals(Policy):
    positives: str | None = None
    negatives: str | None = None
    total: str | None = None


class _Line(_Totals):
    name: str = ""
    accuracy: str | None = None
    precision: str | None = None
    recall: str | None = None
    f1: str | None = None
    specificity: str | None = None
    fpr: str | None = None
    npv: str | None = None
    balanced_accuracy: str | None = None
    mcc: str | None = None


class _File(_Totals):
    title: str = ""
    source: str = ""
    rows: list[_Line] = Field(min_length=1)


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a table, ready to be checked."""

    name: str
    sizes: Sizes
    values: tuple[Printed, ...]
    rounding: Rounding
    averaging: Averaging
    positive_class: PositiveClass
    macro_f1: MacroF1


@dataclass(frozen=True, slots=True)
class Table:
    """A published table. `title` and `source` are what its author of the file says of it."""

    title: str
    source: str
    rows: tuple[Row, ...]


def read_table(path: Path, overrides: Policy | None = None) -> Table:
    """Read a table from a TOML file (docs/claims.md); numbers keep the decimals that they are written with.

    Args:
        path: The file.
        overrides: Settings that take the place of those in the file.

    Raises:
        InputError: the file is missing, is not TOML, has an unknown key, or a row that `make_row` refuses.
    """
    path = Path(path)
    try:
        # Not a float: 97.50 would lose its last digit, which says how it was rounded.
        content: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"), parse_float=str)
    except OSError as error:
        reason = (error.strerror or "unreadable").lower()
        raise InputError(
            f"the table cannot be read: {reason}", where=str(path), fix="name a TOML file of claims"
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(
            f"the table is not TOML: {error}", where=str(path), fix="see docs/claims.md"
        ) from None
    try:
        file = _File.model_validate(content)
    except ValidationError as error:
        raise InputError(_describe(error), where=str(path), fix="see docs/claims.md") from None
    rows = []
    for number, line in enumerate(file.rows, start=1):
        name = line.name or f"row {number}"
        rows.append(_make_row(name, (file, line), overrides or Policy(), f"{path}, {name}"))
    return Table(file.title, file.source, tuple(rows))


def make_row(
    values: Mapping[str, str],
    *,
    positives: str | None = None,
    negatives: str | None = None,
    total: str | None = None,
    policy: Policy | None = None,
    name: str = "the values given",
) -> Row:
    """A row from text.

    Args:
        values: Metric name (of `CLAIMED`) -> the value as printed: "97.50", "97.50%", "0.49".
        positives, negatives, total: A count ("200") or a range ("180..220"). Two of the three, or `total` alone.
        policy: How to read it.
        name: What the row is called.

    Raises:
        InputError: no value, a metric that is not of `CLAIMED`, a value that is no number or outside its range, or
            totals that are missing, empty or contradict each other.
    """
    line = _Line(positives=positives, negatives=negatives, total=total)
    if unknown := [metric for metric in values if metric not in CLAIMED]:
        raise InputError(_explain_unknown(unknown[0]), where=name)
    return _make_row(name, (line.model_copy(update=dict(values)),), policy or Policy(), name)


def make_policy(**settings: str | None) -> Policy:
    """A policy from text, such as options of a command.

    Raises:
        InputError: a setting is not one of the words that it may be.
    """
    try:
        return Policy.model_validate(settings)
    except ValidationError as error:
        raise InputError(
            _describe(error, "an option cannot be used: "), fix="see cspine claims --help"
        ) from None


def _make_row(name: str, levels: tuple[_Totals, ...], overrides: Policy, where: str) -> Row:
    """Settings come from the overrides, else from the innermost level that has them."""

    def find(key: str, otherwise: str | None = None) -> Any:
        found = [getattr(level, key) for level in (*levels, overrides) if hasattr(level, key)]
        return next((value for value in reversed(found) if value is not None), otherwise)

    sizes = make_sizes(find("positives"), find("negatives"), find("total"), where)
    rounding, scale = find("rounding", "any"), find("scale", "auto")
    texts = {metric: getattr(levels[-1], metric) for metric in CLAIMED}
    values = tuple(
        read_printed(metric, text, rounding, scale, where)
        for metric, text in texts.items()
        if text is not None
    )
    if not values:
        raise InputError(
            "there is no value to check", where=where, fix=f"give one or more of {', '.join(CLAIMED)}"
        )
    choices = (find(key, "any") for key in ("averaging", "positive_class", "macro_f1"))
    return Row(name, sizes, values, rounding, *choices)


def make_sizes(positives: str | None, negatives: str | None, total: str | None, where: str) -> Sizes:
    """The ranges of both classes and their sum, each made as narrow as the other two allow.

    Raises:
        InputError: fewer than two of the three are given and not `total`; one is no count or range; none fits.
    """
    if total is None and (positives is None or negatives is None):
        raise InputError(
            "the totals are missing: how many cases the table is about",
            where=where,
            fix="give positives and negatives, or total; a range such as 180..220 will do",
        )
    p = _read_range(positives, "positives", where)
    n = _read_range(negatives, "negatives", where)
    t = _read_range(total, "total", where)
    t = max(t[0], p[0] + n[0]), min(t[1], p[1] + n[1])
    p = max(p[0], t[0] - n[1]), min(p[1], t[1] - n[0])
    n = max(n[0], t[0] - p[1]), min(n[1], t[1] - p[0])
    t = max(t[0], p[0] + n[0]), min(t[1], p[1] + n[1])
    if any(low > high for low, high in (p, n, t)):
        raise InputError(
            "the totals contradict each other",
            where=where,
            fix="positives and negatives must add up to total",
        )
    return Sizes(p, n, t)


def _read_range(text: str | None, key: str, where: str) -> tuple[int, int]:
    least, most = (2, 2 * MOST_CASES) if key == "total" else (1, MOST_CASES)
    if text is None:
        return least, most
    found = _RANGE.fullmatch(text.strip())
    if not found:
        raise InputError(
            f"{key} {text!r} is no count", where=where, fix="write a count such as 200, or a range: 180..220"
        )
    low, high = int(found[1]), int(found[2] or found[1])
    if low > high:
        raise InputError(f"{key} {text!r} ends before it starts", where=where, fix=f"write {high}..{low}")
    if low < least or high > most:
        raise InputError(
            f"{key} {text!r} is not from {least} to {most:,}",
            where=where,
            fix="a table about one class alone has no confusion matrix to look for"
            if low < least
            else "name a smaller set",
        )
    return low, high


def read_printed(metric: str, text: str, rounding: Rounding, scale: Scale, where: str) -> Printed:
    """Read one value as printed.

    Raises:
        InputError: it is no plain decimal number, or outside the metric's range.
    """
    found = _NUMBER.fullmatch(text.strip())
    if not found or len(text.strip()) > _LONGEST_NUMBER:
        raise InputError(
            f"{metric} {text!r} is no number as tables print them",
            where=where,
            fix="write digits with a decimal point, such as 97.50, 97.50% or 0.49",
        )
    sign, digits, mark = found.groups()
    size = Fraction(digits + "0" if digits.endswith(".") else digits)
    percent = bool(mark) or scale == "percent" or (scale == "auto" and size > 1)
    if sign == "-" and size and metric != "mcc":
        raise InputError(f"{metric} {text} is negative", where=where, fix="only mcc can be below 0")
    if percent and not mark and scale == "auto" and size < 2:
        raise InputError(
            f"{metric} {text} is beyond 1, and too small to be taken for a percentage",
            where=where,
            fix=f"write {text.strip()}% if it is one",
        )
    if size > (100 if percent else 1):
        raise InputError(
            f"{metric} {text} is beyond {'100%' if percent else '1'}",
            where=where,
            fix="see whether it is printed like this"
            if percent
            else f"write {text.strip()}%, or take scale = percent, if it is one",
        )
    decimals = len(digits.partition(".")[2])
    interval = find_interval(-size if sign == "-" else size, decimals, rounding, 100 if percent else 1)
    return Printed(metric, text.strip(), percent, decimals, interval)


def find_interval(value: Fraction, decimals: int, rounding: Rounding, divisor: int = 1) -> Interval:
    """The true values, divided by `divisor`, that are printed as `value` with so many decimals.

    half-up and truncate go by the size of a number, whatever its sign, as Python's `decimal` does; "any" is the union
    of the three.
    """
    unit = Fraction(1, 10**decimals)
    size, half = abs(value), unit / 2
    even = (size / unit) % 2 == 0
    low, high, low_included, high_included = {
        "half-up": (size - half, size + half, True, False),
        "half-even": (size - half, size + half, even, even),
        "truncate": (size, size + unit, True, False),
        "any": (size - half, size + unit, True, False),
    }[rounding]
    if value == 0:  # what is printed as 0 comes from both sides
        low, low_included = -high, high_included
    if value < 0:
        low, high, low_included, high_included = -high, -low, high_included, low_included
    return Interval(low / divisor, high / divisor, low_included, high_included)


def _describe(error: ValidationError, start: str = "the table does not validate: ") -> str:
    lines = []
    for item in error.errors():
        place = ".".join(str(part + 1 if isinstance(part, int) else part) for part in item["loc"])
        if item["type"] == "extra_forbidden":
            lines.append(f"{place}: {_explain_unknown(str(item['loc'][-1]))}")
        else:
            lines.append(f"{place}: {item['msg'][:1].lower()}{item['msg'][1:]}")
    more = f"; and {len(lines) - _MOST_SAID} more" if len(lines) > _MOST_SAID else ""
    return start + "; ".join(lines[:_MOST_SAID]) + more


def _explain_unknown(key: str) -> str:
    if hint := _NOT_HERE.get(key):
        return f"unknown key {key!r}: {hint}"
    known = {*_Line.model_fields, *_File.model_fields} - {key}
    near = get_close_matches(key, sorted(known), n=1)
    return f"unknown key {key!r}" + (f"; is {near[0]} meant?" if near else "")
