"""Robustness: a page of its own with all curves, errors and pictures, and what the report shows of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from markupsafe import Markup

from cspine.corruptions.registry import CORRUPTIONS, SEVERITIES
from cspine.reporting.page import Numbering, make_environment
from cspine.reporting.results import ComparisonResults, CorruptionErrors
from cspine.reporting.robustness_figures import METRICS_SHOWN
from cspine.reporting.svg import Drawing
from cspine.reporting.tables import Cell, Row, Table, list_severities, tabulate_robustness
from cspine.reporting.text import label_corruption

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
        svg={name: Markup(drawing.svg) for name, drawing in drawings.items()},
        titles={name: drawing.title for name, drawing in drawings.items()},
        figures=[(name, label, list_panels(drawings, name)) for name, label, _ in METRICS_SHOWN],
        pictures=list_pictures(results),
        number=Numbering(),
    )
