"""What pages are made of: cells, rows and tables of estimates, templates, numbers of tables and figures."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jinja2
from markupsafe import Markup, escape

from cspine.core.estimates import Estimate
from cspine.core.types import plural
from cspine.report.text import drop_controls, format_count, format_interval, format_value


@dataclass(frozen=True, slots=True)
class Cell:
    """One estimate in a table; `mark` is that of the footnote that explains a gap."""

    value: str
    interval: str = ""
    mark: str = ""


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a table; `equation` and `lower_is_better` belong to metrics."""

    label: str
    cells: tuple[Cell, ...]
    equation: int | None = None
    lower_is_better: bool = False


@dataclass(slots=True)
class Table:
    """Rows in named groups, and the footnotes that their cells refer to; `prose` are columns that hold words."""

    columns: tuple[str, ...]
    groups: list[tuple[str, list[Row]]] = field(default_factory=list)
    footnotes: dict[str, str] = field(default_factory=dict)
    prose: tuple[str, ...] = ()

    def fill(self, estimate: Estimate | None) -> Cell:
        """A cell; equal reasons share one footnote."""
        if estimate is None:
            return Cell(format_value(None), mark=self._mark("not computed"))
        mark = self._mark(estimate.reason) if estimate.reason else ""
        return Cell(format_value(estimate.value), format_interval(estimate), mark)

    def _mark(self, reason: str) -> str:
        place = len(self.footnotes)
        return self.footnotes.setdefault(reason, "abcdefghijklmnopqrstuvwxyz"[place % 26] * (place // 26 + 1))


def format_duration(seconds: float) -> str:
    """`2 h 3 min`, `4 min 5 s` or `6.7 s`."""
    if round(seconds, 1) < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def format_date(text: str) -> str:
    """An ISO time as a date for people, with its zone; anything else as it is."""
    try:
        moment = datetime.datetime.fromisoformat(text)
    except ValueError:
        return text
    return f"{moment.day} {moment:%B %Y, %H:%M} {moment.tzname() or ''}".strip()


def make_environment() -> jinja2.Environment:
    """Templates of this package; an unknown name is an error and every value is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("cspine.report", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_finalize,
    )
    filters: dict[str, Callable[..., Any]] = {
        "value": format_value,
        "count": format_count,
        "plural": plural,
        "duration": format_duration,
        "durations": lambda seconds: {key: format_duration(value) for key, value in seconds.items()},
        "date": format_date,
        "breakable": _allow_breaks,
    }
    environment.filters.update(filters)
    return environment


def _allow_breaks(name: str) -> Markup:
    """A name that may go on in a second line after an underscore, which browsers take for a part of a word."""
    return Markup(escape(drop_controls(name)).replace("_", Markup("_<wbr>")))


def _finalize(value: Any) -> Any:
    """What every expression in a template passes through before it is escaped."""
    return drop_controls(value) if isinstance(value, str) and not isinstance(value, Markup) else value


class Numbering:
    """Numbers tables and figures in the order in which the template asks."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}

    def __call__(self, kind: str) -> str:
        """The next of a kind, such as "Table 3"."""
        self._counts[kind] = self._counts.get(kind, 0) + 1
        return f"{kind} {self._counts[kind]}"
