"""Where the models look: what the section, the tables and the page say."""

from __future__ import annotations

import re

from cspine.report.explanations import (
    render_explanation_page,
    tabulate_pointing,
    tabulate_sanity,
    view_explanations,
)
from cspine.report.markdown import render_markdown
from cspine.report.text import format_estimate
from tests.report.builders import make_explanations, make_results


def read_text(html: str) -> str:
    return " ".join(re.sub(r"<[^>]+>", " ", html).split())


def test_every_score_stands_beside_chance_and_the_centre() -> None:
    (one,) = make_explanations(("Small",))
    table = tabulate_pointing([one])
    assert table is not None
    ((title, rows),) = table.groups
    assert title == "Small: all, 24 slices of 8 patients"
    assert one.pointing is not None
    for row, measure in zip(rows, one.pointing.measures, strict=True):
        wanted = (measure.found, measure.chance, measure.centre, measure.beyond_centre)
        assert [f"{cell.value} {cell.interval}" for cell in row.cells] == [
            format_estimate(estimate) for estimate in wanted
        ]


def test_the_page_says_whether_and_why_the_check_is_passed() -> None:
    (one,) = make_explanations(("Small",))
    text = read_text(render_explanation_page(one, "cspine explain set/", ["slices/01.png"]))
    assert "Small: passes, 24 slices" in text
    assert "passes where the whole interval of the mean rank correlation" in text
    assert "1 map without any evidence" in text
    assert "20 with a mask and 4 with boxes" in text
    assert "Not for clinical use." in text
    assert "slices/01.png" in text


def test_without_known_places_the_reason_is_given() -> None:
    (one,) = make_explanations(("Small",))
    bare = one.model_copy(
        update={"pointing": None, "why_none": "no slice with a fracture has a mask or boxes"}
    )
    view = view_explanations([bare])
    assert view is not None
    assert view.pointing is None
    assert any("no slice with a fracture has a mask or boxes" in sentence for sentence in view.basis)
    assert tabulate_sanity([bare]) is not None
    assert view_explanations([]) is None


def test_tables_of_a_comparison_are_in_its_markdown() -> None:
    results = make_results()
    assert "## Where the models look" in render_markdown(results)
    assert "## Where the models look" not in render_markdown(results.model_copy(update={"explanations": ()}))
