"""Where models look, as tables and pictures: a section of the report, and the page of `cspine explain`."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version

from markupsafe import Markup

from cspine.core.types import plural
from cspine.explain.drawing import draw_legend, encode_png
from cspine.explain.pointing import RULE, PointingResult
from cspine.report.page import Numbering, Row, Table, make_environment
from cspine.report.results import ModelExplanation
from cspine.report.text import count_noun


@dataclass(frozen=True)
class ExplanationView:
    """What the template of the section shows.

    Attributes:
        models: In the order of the report.
        pointing: None where no fracture's place is known.
        sanity: None where nothing was checked.
        basis: What the pointing scores rest on, in sentences.
        rule: Of the sanity check.
        legend_png: The colours from none to most, base64.
    """

    models: tuple[ModelExplanation, ...]
    pointing: Table | None
    sanity: Table | None
    basis: tuple[str, ...]
    rule: str
    legend_png: str


def view_explanations(explanations: Sequence[ModelExplanation]) -> ExplanationView | None:
    """The view; None where nothing was explained."""
    if not explanations:
        return None
    return ExplanationView(
        models=tuple(explanations),
        pointing=tabulate_pointing(explanations),
        sanity=tabulate_sanity(explanations),
        basis=tuple(_describe_basis(explanations)),
        rule=RULE,
        legend_png=encode_png(draw_legend()),
    )


def tabulate_pointing(explanations: Sequence[ModelExplanation]) -> Table | None:
    """A group of rows a model: all slices, then those that it calls fracture."""
    table = Table(("Map", "Chance", "Middle of the body", "Map less middle"))
    for one in explanations:
        for result, words in ((one.pointing, "all"), (one.pointing_called, "called fracture")):
            if result is not None:
                table.groups.append((f"{one.model}: {words}, {_count(result)}", _list_rows(table, result)))
    return table if table.groups else None


def _count(result: PointingResult) -> str:
    units = f" of {result.units:,} {plural(result.unit) if result.units != 1 else result.unit}"
    return count_noun(result.slices, "slice") + ("" if result.unit == "slice" else units)


def _list_rows(table: Table, result: PointingResult) -> list[Row]:
    return [
        Row(
            measure.label,
            tuple(
                table.fill(estimate)
                for estimate in (measure.found, measure.chance, measure.centre, measure.beyond_centre)
            ),
        )
        for measure in result.measures
    ]


def tabulate_sanity(explanations: Sequence[ModelExplanation]) -> Table | None:
    """A group of rows a model, its outcome in the title."""
    table = Table(("Rank correlation", "SSIM"))
    for one in explanations:
        if one.sanity is not None:
            rows = [
                Row(f"random: {step.part}", (table.fill(step.rank_correlation), table.fill(step.ssim)))
                for step in one.sanity.steps
            ]
            title = f"{one.model}: {one.sanity.words}, {count_noun(one.sanity.slices, 'slice')}"
            table.groups.append((title, rows))
    return table if table.groups else None


def _describe_basis(explanations: Sequence[ModelExplanation]) -> list[str]:
    sentences = []
    for one in explanations:
        cell = "" if one.cell_mm is None else f", {one.cell_mm:.0f} mm each"
        sentences.append(f"{one.model}: {one.words}{cell}.")
        if one.why_none:
            sentences.append(f"{one.model}: no pointing scores, as {one.why_none}.")
        elif one.pointing is not None and one.pointing.empty:
            sentences.append(
                f"{one.model}: {count_noun(one.pointing.empty, 'map')} without any evidence, which score 0."
            )
    first = next((one.pointing for one in explanations if one.pointing is not None), None)
    if first is not None:
        known = [
            f"{count:,} {words}"
            for count, words in ((first.masks, "with a mask"), (first.boxes, "with boxes"))
            if count
        ]
        about = "; boxes also hold what is about a fracture" if first.boxes else ""
        sentences.append(f"Fractures {' and '.join(known)}{about}.")
        used = [estimate for measure in first.measures for estimate in (measure.found, measure.beyond_centre)]
        usual = statistics.mode(estimate.method for estimate in used)
        sentences.append(f"Intervals: {used[0].level:.0%}, over {plural(first.unit)}, mostly {usual}.")
    return sentences


def render_explanation_page(explanation: ModelExplanation, command: str, pictures: Sequence[str]) -> str:
    """The page of one model's maps, without any reference to the outside but the pictures beside it.

    Args:
        explanation: What was found.
        command: What was typed.
        pictures: Names of picture files beside the page.
    """
    environment = make_environment()
    return environment.get_template("explain_page.html.j2").render(
        explained=view_explanations([explanation]),
        one=explanation,
        command=command,
        pictures=list(pictures),
        version=version("cspine"),
        css=Markup(environment.get_template("report.css").render()),
        number=Numbering(),
    )
