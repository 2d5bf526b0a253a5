"""Accuracy and AUROC over the severity of corruptions: small multiples, and each panel alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from cspine.reporting.figures import Entry, find_lowest, make_slugs
from cspine.reporting.results import Estimate, RobustnessPoint
from cspine.reporting.svg import Drawing, Look, add_axes, choose_look, finish_figure, open_figure
from cspine.reporting.text import format_estimate, label_corruption, shorten_text

_COLUMNS = 4
Pick = Callable[[RobustnessPoint], Estimate]


def pick_accuracy(point: RobustnessPoint) -> Estimate:
    """The accuracy of a point."""
    return point.accuracy


def pick_auroc(point: RobustnessPoint) -> Estimate:
    """The AUROC of a point."""
    return point.auroc


METRICS_SHOWN: tuple[tuple[str, str, Pick], ...] = (
    ("robustness", "Accuracy", pick_accuracy),
    ("robustness_auroc", "AUROC", pick_auroc),
)
"""Name of the figure, and "<name>-<corruption>" of its panels; what is on its vertical axis; how to get it."""


def draw_robustness(points: Sequence[RobustnessPoint], entries: Sequence[Entry]) -> dict[str, Drawing]:
    """Accuracy and AUROC against severity: all as one figure, then each corruption as a panel; {} for none."""
    if not points:
        return {}
    corruptions = list(dict.fromkeys(point.corruption for point in points))
    looks = {entry.name: entry.look for entry in reversed(entries)}
    for extra in dict.fromkeys(point.model for point in points):
        looks.setdefault(extra, choose_look(len(looks)))
    drawings = []
    for figure in METRICS_SHOWN:
        lowest = min((find_lowest(figure[2](point)) for point in points), default=0.0)
        limits = (max(0.0, lowest - 0.05), 1.02)
        drawings.append(_draw_grid(figure, corruptions, points, looks, limits))
        for corruption, slug in zip(corruptions, make_slugs(corruptions), strict=True):
            chosen = [point for point in points if point.corruption == corruption]
            drawings.append(_draw_panel(figure, corruption, slug, chosen, looks, limits))
    return {drawing.name: drawing for drawing in drawings}


def _draw_grid(
    shown: tuple[str, str, Pick],
    corruptions: Sequence[str],
    points: Sequence[RobustnessPoint],
    looks: Mapping[str, Look],
    limits: tuple[float, float],
) -> Drawing:
    name, label, pick = shown
    columns = min(_COLUMNS, len(corruptions))
    rows = -(-len(corruptions) // columns)
    models = list(dict.fromkeys(point.model for point in points))
    foot = 0.55 + 0.19 * -(-len(models) // 3)
    width, height = max(0.6 + columns * 1.95, 4.4), rows * 2.15 + foot - 0.25
    with open_figure(width, height) as figure:
        for place, corruption in enumerate(corruptions):
            row, column = divmod(place, columns)
            bottom = foot + (rows - 1 - row) * 2.15
            axes = add_axes(figure, 0.55 + column * 1.95, bottom, 1.75, 1.55)
            chosen = [point for point in points if point.corruption == corruption]
            _plot_severities(axes, chosen, pick, looks, limits)
            axes.set_title(shorten_text(label_corruption(corruption), 24), fontsize=8, loc="left")
            axes.set_xlabel("Severity")
            axes.tick_params(labelleft=column == 0)
            if column == 0:
                axes.set_ylabel(label)
            if place == 0:
                handles = axes.get_legend_handles_labels()[0]
        figure.legend(handles=handles, loc="lower left", bbox_to_anchor=(0.55 / width, 0.01), ncols=3)
        return finish_figure(figure, name, f"{label} under corruption", _describe_severities(points, pick))


def _draw_panel(
    shown: tuple[str, str, Pick],
    corruption: str,
    slug: str,
    points: Sequence[RobustnessPoint],
    looks: Mapping[str, Look],
    limits: tuple[float, float],
) -> Drawing:
    name, label, pick = shown
    models = list(dict.fromkeys(point.model for point in points))
    foot = 0.55 + 0.17 * len(models)
    with open_figure(2.75, 1.9 + foot) as figure:
        axes = add_axes(figure, 0.55, foot, 2.1, 1.8)
        _plot_severities(axes, points, pick, looks, limits)
        axes.set(xlabel="Severity", ylabel=label)
        axes.legend(loc="upper left", bbox_to_anchor=(0, -0.26), labelspacing=0.35)
        title = f"{label_corruption(corruption)}: {label if label.isupper() else label.lower()} by severity"
        return finish_figure(figure, f"{name}-{slug}", title, _describe_severities(points, pick))


def _plot_severities(
    axes: Axes,
    points: Sequence[RobustnessPoint],
    pick: Pick,
    looks: Mapping[str, Look],
    limits: tuple[float, float],
) -> None:
    """One line and band a model; an undefined value breaks the line, a missing interval the band."""
    for model in dict.fromkeys(point.model for point in points):
        rows = sorted((point for point in points if point.model == model), key=lambda point: point.severity)
        x = [point.severity for point in rows]
        value, low, high = (
            [float("nan") if end is None else end for end in ends]
            for ends in zip(*((e.value, e.low, e.high) for e in map(pick, rows)), strict=True)
        )
        look = looks[model]
        axes.fill_between(x, low, high, color=look.colour, alpha=0.13, linewidth=0)
        axes.plot(
            x, value, color=look.colour, marker=look.marker, linestyle=look.line, label=shorten_text(model)
        )
    axes.set_ylim(*limits)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def _describe_severities(points: Sequence[RobustnessPoint], pick: Pick) -> str:
    return " ".join(
        f"{point.model}, {point.corruption}, severity {point.severity}: {format_estimate(pick(point))}."
        for point in points
    )
