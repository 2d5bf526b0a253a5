"""What all pages share: templates that escape every value, and the filters they use."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jinja2
from markupsafe import Markup, escape

from cspine.data.types import plural
from cspine.reporting.tables import format_date, format_duration
from cspine.reporting.text import drop_controls, format_count, format_value


def make_environment() -> jinja2.Environment:
    """Templates of this package; an unknown name is an error and every value is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("cspine.reporting", "templates"),
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
