"""Diagrams of the preprocessing way and the networks (paper figures 1 to 4), drawn from the real objects."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from cspine.files import atomic_file
from cspine.models.layers import LayerRow
from cspine.preprocess import Recipe

_BOX_HEIGHT, _PITCH, _BOX_WIDTH = 0.62, 1.0, 5.4
_PIXELS, _BACKBONE, _HEAD = "#e8eef7", "#f4f4f4", "#fdf0dd"
_EDGE = "#5b6b82"


def draw_recipe(recipe: Recipe, path: Path) -> Path:
    """Draw a recipe's steps from the file to the network; SVG or PNG by the suffix of `path`."""
    height, width = recipe.size_px
    boxes = [("CT slice", "grey, one channel")]
    boxes += [(step.kind, str(step)) for step in recipe.steps]
    boxes += [("cached", f"{height} x {width}, uint8"), ("augment", "training only: rotation, flips, scale")]
    boxes += [
        ("scale", str(recipe.scale)),
        ("network", f"{recipe.scale.channels} x {height} x {width}, float32"),
    ]
    return _draw([(*box, _PIXELS) for box in boxes], "Preprocessing", path)


def draw_network(layers: Sequence[LayerRow], title: str, path: Path) -> Path:
    """Draw a network's layers from pixels to the logit of `fracture`; SVG or PNG by the suffix of `path`."""
    head = {"linear", "dense", "output"}
    boxes = [("slice", "pixels 0..255", _PIXELS)]
    for layer in layers:
        shape = " x ".join(str(size) for size in layer.output_shape)
        learned = f", {layer.parameters:,} parameters" if layer.parameters else ""
        colour = _HEAD if layer.name in head else _PIXELS if layer.name == "scale" else _BACKBONE
        boxes.append((f"{layer.name}: {layer.kind}", f"{shape}{learned}", colour))
    last = "softmax over normal, fracture" if layers[-1].name == "linear" else "sigmoid"
    return _draw([*boxes, ("P(fracture)", last, _HEAD)], title, path)


def _draw(boxes: Sequence[tuple[str, str, str]], title: str, path: Path) -> Path:
    with mpl.rc_context(
        {"svg.fonttype": "none", "svg.hashsalt": f"cspine-{title}", "font.family": "sans-serif"}
    ):
        figure = Figure(figsize=(5.2, 0.52 * len(boxes) + 0.6))
        axes = figure.add_axes((0.02, 0.01, 0.96, 0.98))
        axes.set_axis_off()
        axes.set_xlim(-_BOX_WIDTH / 2 - 0.1, _BOX_WIDTH / 2 + 0.1)
        axes.set_ylim(-len(boxes) * _PITCH + 0.2, 1.2)
        axes.text(0, 0.75, title, ha="center", fontsize=12, weight="bold")
        for place, (name, detail, colour) in enumerate(boxes):
            middle = -place * _PITCH
            corner = (-_BOX_WIDTH / 2, middle - _BOX_HEIGHT / 2)
            style = "round,pad=0.02,rounding_size=0.12"
            box = FancyBboxPatch(
                corner, _BOX_WIDTH, _BOX_HEIGHT, boxstyle=style, facecolor=colour, edgecolor=_EDGE
            )
            axes.add_patch(box)
            axes.text(0, middle + 0.13, name, ha="center", va="center", fontsize=9)
            axes.text(0, middle - 0.16, detail, ha="center", va="center", fontsize=7, color="#444444")
            if place:
                start = (0, middle + _PITCH - _BOX_HEIGHT / 2 - 0.02)
                arrow = {"arrowstyle": "-|>", "color": _EDGE, "shrinkA": 0, "shrinkB": 0}
                axes.annotate("", (0, middle + _BOX_HEIGHT / 2 + 0.02), start, arrowprops=arrow)
        kind = path.suffix.removeprefix(".")
        with atomic_file(path) as temporary:
            # Without a date, the same network gives the same bytes.
            figure.savefig(
                temporary, format=kind, dpi=150, metadata={"Date": None} if kind == "svg" else None
            )
    return Path(path)
