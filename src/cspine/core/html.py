"""What results show of themselves in a notebook: tables and figures as HTML that stands alone."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from html import escape

_CELL = "padding: 2px 10px; text-align: left"


def show_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table; None is an en dash, numbers have four digits."""
    lines = [_show_row("th", columns), *(_show_row("td", row) for row in rows)]
    return f'<table style="border-collapse: collapse">{"".join(lines)}</table>'


def _show_row(tag: str, cells: Iterable[object]) -> str:
    shown = "".join(f'<{tag} style="{_CELL}">{escape(_show(cell))}</{tag}>' for cell in cells)
    return f"<tr>{shown}</tr>"


def _show(cell: object) -> str:
    if cell is None:
        return "\u2013"
    return f"{cell:.4g}" if isinstance(cell, float) else str(cell)


def show_svg(svg: str, words: str) -> str:
    """A figure as an image, which no page around it can change; `words` describe it."""
    data = base64.b64encode(svg.encode()).decode()
    return f'<img alt="{escape(words)}" src="data:image/svg+xml;base64,{data}">'
