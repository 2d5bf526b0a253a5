"""SVG that can stand in one page with others: a style of its own, ids of its own, no date."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from xml.dom import minidom

from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cspine.reporting.text import drop_controls

# Okabe and Ito's palette ("Color Universal Design", 2008), darkest first; yellow is too faint on paper.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_GREYS = ("#6b6b6b", "#8f8f8f", "#4a4a4a", "#a8a8a8")
GREY_MARKERS = ("x", "+", "1", "2")
_GREY_LINES = (":", (0, (3, 1, 1, 1)), (0, (1, 2)), (0, (4, 2)))
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_LINES = ("-", "--", "-.", (0, (5, 1, 1, 1, 1, 1)), (0, (7, 2)))

# `#id` as a whole value (xlink:href), or within url(); a colour is neither.
_REFERENCE = re.compile(r"(?:^|url\()#([A-Za-z_][\w.-]*)(?:$|\))")

_FONTS = "'Helvetica Neue', Helvetica, Arial, 'Liberation Sans', sans-serif"
_STYLE: Mapping[str, Any] = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 8,
    "text.parse_math": False,
    "axes.linewidth": 0.6,
    "axes.edgecolor": "#404040",
    "axes.labelsize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.facecolor": "none",
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "#ececec",
    "grid.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 3,
    "ytick.major.size": 3,
    "lines.linewidth": 1.4,
    "lines.markersize": 4,
    "legend.frameon": False,
    "legend.fontsize": 7.5,
    "legend.handlelength": 2.4,
    "legend.borderaxespad": 0.0,
}


@dataclass(frozen=True, slots=True)
class Drawing:
    """One finished figure.

    Attributes:
        name: File name without ending; unique in a report, and the prefix of every id in `svg`.
        title: What it shows, in a few words.
        description: What it says, with its numbers, for a reader who cannot see it.
        svg: The whole SVG element; a file as it stands, and safe to put into HTML beside others.
    """

    name: str
    title: str
    description: str
    svg: str


@dataclass(frozen=True, slots=True)
class Look:
    """How one model is drawn, the same in every figure."""

    colour: str
    marker: str
    line: Any


def choose_look(place: int) -> Look:
    """The look of the model at a place in the list."""
    return Look(_COLOURS[place % len(_COLOURS)], _MARKERS[place % len(_MARKERS)], _LINES[place % len(_LINES)])


def choose_grey_look(place: int) -> Look:
    """The look of the baseline at a place in the list."""
    kinds = len(_GREYS)
    return Look(_GREYS[place % kinds], GREY_MARKERS[place % kinds], _GREY_LINES[place % kinds])


@contextmanager
def open_figure(width_in: float, height_in: float) -> Iterator[Figure]:
    """A blank figure, under this module's style and no one else's; finish it inside the block."""
    with style.context(["default", dict(_STYLE)]):
        yield Figure((width_in, height_in))


def add_axes(figure: Figure, left_in: float, bottom_in: float, width_in: float, height_in: float) -> Axes:
    """Axes at a place in inches from the lower left."""
    width, height = figure.get_size_inches()
    return figure.add_axes((left_in / width, bottom_in / height, width_in / width, height_in / height))


def finish_figure(figure: Figure, name: str, title: str, description: str) -> Drawing:
    """Turn a figure into SVG text: ids that start with `name`, no date, title and description for readers."""
    title, description = drop_controls(title), drop_controls(description)
    buffer = io.StringIO()
    with style.context({"svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    document = minidom.parseString(buffer.getvalue().encode())
    root = document.documentElement
    assert root is not None
    for tag in ("metadata", "style"):
        for element in list(document.getElementsByTagName(tag)):
            element.parentNode.removeChild(element)  # type: ignore[union-attr]
    _rename_ids(document, name)
    _inherit_text_style(document)
    # As attributes of this element, not as matplotlib's <style>, which would reach the whole page.
    root.setAttribute("style", "stroke-linejoin: round; stroke-linecap: butt")
    root.setAttribute("font-family", _FONTS)
    root.setAttribute("role", "img")
    root.setAttribute("aria-labelledby", f"{name}--title {name}--desc")
    for tag, text in (("desc", description), ("title", title)):
        element = document.createElement(tag)
        element.setAttribute("id", f"{name}--{tag}")
        element.appendChild(document.createTextNode(text))
        root.insertBefore(element, root.firstChild)
    return Drawing(name, title, description, root.toxml())


def _rename_ids(document: minidom.Document, prefix: str) -> None:
    """Give ids that something refers to a prefix of their own, and drop the rest.

    Matplotlib numbers each figure's parts from 1, so figures on one page would share ids.
    """
    elements = document.getElementsByTagName("*")
    values = (value for element in elements for _, value in element.attributes.items())
    used = {found.group(1) for value in values if (found := _REFERENCE.search(value))}
    for element in elements:
        for key, value in list(element.attributes.items()):
            if key == "id" and value in used:
                element.setAttribute(key, f"{prefix}--{value}")
            elif key == "id":
                element.removeAttribute(key)
            elif found := _REFERENCE.search(value):
                element.setAttribute(key, value.replace(f"#{found.group(1)}", f"#{prefix}--{found.group(1)}"))


def _inherit_text_style(document: minidom.Document) -> None:
    """Drop from each text what the root says once: the font list, and turns by nothing."""
    for element in document.getElementsByTagName("text"):
        element.setAttribute("style", re.sub(r"font-family: [^;]*(; |$)", "", element.getAttribute("style")))
        if element.getAttribute("transform").startswith("rotate(-0 "):
            element.removeAttribute("transform")
