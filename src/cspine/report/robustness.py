"""Accuracy and AUROC over the severity of corruptions: small multiples, and each panel alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from cspine.core.estimates import CorruptionErrors, Estimate, RobustnessPoint
from cspine.report.figures import (
    Drawing,
    Entry,
    Look,
    add_axes,
    choose_look,
    find_lowest,
    finish_figure,
    make_slugs,
    open_figure,
)
from cspine.report.page import Cell, Numbering, Row, Table, make_environment
from cspine.report.results import ComparisonResults
from cspine.report.tables import list_severities, tabulate_robustness
from cspine.report.text import format_estimate, label_corruption, shorten_text
from cspine.robustness.corruptions import CORRUPTIONS, SEVERITIES

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


# Robustness: a page of its own with all curves, errors and pictures, and what the report shows of it.


ROBUSTNESS_FILE = "robustness.html"
_MADE_IN = {
    "projections": "Made in the projections of the slice",
    "volume": "Made of neighbouring slices",
    "image": "Made in the slice",
}


@dataclass(frozen=True, slots=True)
class RobustnessView:
    """What the section and the page show; `errors` is None where no two models can be set against each other."""

    tables: tuple[tuple[str, Table], ...]
    means: Table | None
    errors: Table | None
    reference: str
    severities: list[str]
    missing: tuple[tuple[str, str], ...]
    assumed: str


def view_robustness(results: ComparisonResults) -> RobustnessView:
    """Tables and words of a comparison's robustness."""
    details = results.robustness_details
    errors = details.errors if details else None
    assumed = ""
    if details:
        assumed = (
            f"8-bit slices are taken to show the window {details.center_hu:g}/{details.width_hu:g} HU (center/width), "
            f"and their longer side to be {details.field_of_view_mm:g} mm where no spacing is known."
        )
    return RobustnessView(
        tables=tuple(
            (label, tabulate_robustness(results.robustness, pick)) for _, label, pick in METRICS_SHOWN
        ),
        means=tabulate_means(errors) if errors else None,
        errors=tabulate_errors(errors) if errors else None,
        reference=errors.reference if errors else "",
        severities=list_severities(results.robustness),
        missing=tuple((label_corruption(kind), why) for kind, why in details.not_applicable.items())
        if details
        else (),
        assumed=assumed,
    )


def tabulate_means(errors: CorruptionErrors) -> Table:
    """One row a model: mean corruption error and relative mean corruption error."""
    table = Table(("mCE", "Relative mCE"))
    rows = [
        Row(row.model, (table.fill(row.error), table.fill(row.relative)))
        for row in errors.rows
        if row.corruption == "mean"
    ]
    table.groups.append((f"Against {errors.reference}", rows))
    for name, left_out in (("mCE", errors.left_out), ("relative mCE", errors.relative_left_out)):
        for reason in dict.fromkeys(left_out.values()):
            kinds = ", ".join(label_corruption(kind) for kind, why in left_out.items() if why == reason)
            table.footnotes[f"Not in the {name} of any model, as {reason}: {kinds}."] = "\u2020"
    return table


def tabulate_errors(errors: CorruptionErrors) -> Table:
    """Models as columns; corruptions as rows, for CE and for relative CE."""
    models = tuple(dict.fromkeys(row.model for row in errors.rows))
    table = Table(models)
    places = {(row.model, row.corruption): row for row in errors.rows}
    kinds = [kind for kind in dict.fromkeys(row.corruption for row in errors.rows) if kind != "mean"]
    for title, relative in (("Corruption error", False), ("Relative corruption error", True)):
        rows = []
        for kind in kinds:
            found = (places[model, kind] for model in models)
            cells: tuple[Cell, ...] = tuple(
                table.fill(one.relative if relative else one.error) for one in found
            )
            rows.append(Row(label_corruption(kind), cells))
        table.groups.append((title, rows))
    return table


def list_panels(drawings: Mapping[str, Drawing], figure: str) -> list[str]:
    """The names of the panels of a robustness figure."""
    return [name for name in drawings if name.startswith(f"{figure}-")]


@dataclass(frozen=True, slots=True)
class Picture:
    """One corruption in pictures: its strip, and under each tile how strong it is."""

    label: str
    strip: str
    words: str
    captions: tuple[str, ...]


def list_pictures(results: ComparisonResults) -> dict[str, list[Picture]]:
    """Where a corruption is made -> its pictures, in the order of the registry."""
    details = results.robustness_details
    found: dict[str, list[Picture]] = {}
    for strip in details.strips if details else ():
        if strip.corruption not in CORRUPTIONS:
            continue
        one = CORRUPTIONS[strip.corruption]
        captions = (
            "clean",
            *(f"{level}: {value:g}" for level, value in zip(SEVERITIES, one.values, strict=True)),
        )
        found.setdefault(_MADE_IN[one.where], []).append(
            Picture(one.label, strip.jpeg, f"{one.parameter}, {one.unit}", captions)
        )
    return found


def render_robustness_page(results: ComparisonResults, drawings: Mapping[str, Drawing]) -> str:
    """The page as one HTML text without any reference to the outside but the report beside it."""
    environment = make_environment()
    return environment.get_template("robustness_page.html.j2").render(
        results=results,
        details=results.robustness_details,
        view=view_robustness(results),
        css=Markup(environment.get_template("report.css").render()),
        svg={name: drawing.embed() for name, drawing in drawings.items()},
        titles={name: drawing.title for name, drawing in drawings.items()},
        figures=[(name, label, list_panels(drawings, name)) for name, label, _ in METRICS_SHOWN],
        pictures=list_pictures(results),
        number=Numbering(),
    )
