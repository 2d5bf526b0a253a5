"""Probabilities in use and the effective size on the page, in figures and in Markdown."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

import pytest

from cspine.core.estimates import Estimate
from cspine.metrics.clinical import ProbabilityUse, assess_use
from cspine.metrics.effective_size import compute_effective_size
from cspine.metrics.intervals import IntervalOptions
from cspine.report.calibration import (
    SHOWN_PREVALENCES,
    SHOWN_THRESHOLDS,
    describe_fit,
    draw_in_use,
    explain_decision,
    explain_predictive,
    explain_sizes,
    format_threshold,
)
from cspine.report.figures import draw_all, list_entries
from cspine.report.markdown import render_markdown
from cspine.report.report import read_results, render_report, write_report
from cspine.report.results import ComparisonResults
from cspine.report.text import format_estimate, format_interval, format_value
from tests.metrics.builders import make_clustered_table, make_table
from tests.report.builders import make_results, make_uses
from tests.report.test_report import Page


@pytest.fixture(scope="module")
def unfitted() -> ComparisonResults:
    return make_results().model_copy(update={"robustness": (), "samples": (), "subgroups": ()})


@pytest.fixture(scope="module")
def fitted(unfitted: ComparisonResults) -> ComparisonResults:
    uses, sizes = make_uses(tuple(model.name for model in unfitted.models), fitted=True)
    return unfitted.model_copy(update={"in_use": uses, "sizes": sizes, "selection_split": "tune"})


@pytest.fixture(scope="module")
def folder(fitted: ComparisonResults, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(fitted, tmp_path_factory.mktemp("fitted")).parent


@pytest.fixture(scope="module")
def page(folder: Path) -> Page:
    return Page((folder / "report.html").read_text(encoding="utf-8"))


def list_shown(use: ProbabilityUse) -> Iterator[Estimate]:
    """Every estimate that a table of the section has to show."""
    for found in use.points:
        yield from found.metrics.values()
    for state in use.states:
        brier = state.reliability.brier
        yield from (state.reliability.ece, state.log_loss, brier.brier, brier.reliability, brier.resolution)
        yield from (brier.uncertainty, brier.within)
    for point in use.predictive.points:
        if point.prevalence in SHOWN_PREVALENCES:
            yield from (point.ppv, point.npv)
    for shown in use.decision.shown:
        if shown.threshold in SHOWN_THRESHOLDS:
            yield shown.net_benefit


def test_every_estimate_is_on_the_page_and_in_the_markdown(
    fitted: ComparisonResults, page: Page, folder: Path
) -> None:
    text = (folder / "tables.md").read_text(encoding="utf-8")
    sized = [one for size in fitted.sizes for two in size.metrics for one in (two.naive, two.clustered)]
    for estimate in (*sized, *(one for use in fitted.in_use for one in list_shown(use))):
        assert f"{format_value(estimate.value)} {format_interval(estimate)}".strip() in page.text
        assert format_estimate(estimate) in text
    for use in fitted.in_use:
        for found in use.points:
            assert found.calibrated_threshold is not None
            assert format_threshold(found.point.threshold) in page.text
            assert format_threshold(found.calibrated_threshold) in page.text


def test_the_page_says_which_split_each_thing_comes_from(page: Page) -> None:
    assert "chosen and calibrations fitted on tune; all are shown on val, which they never saw" in page.text
    assert "at each model's threshold by Youden's index" in page.text
    assert "Probabilities after Platt's calibration on tune." in page.text


def test_without_a_split_to_fit_on_the_page_says_why(unfitted: ComparisonResults) -> None:
    drawings = draw_in_use(unfitted.in_use, list_entries(unfitted))
    assert set(drawings) == {
        "predictive-ppv",
        "predictive-npv",
        "net-benefit",
        *(f"{entry.slug}-reliability" for entry in list_entries(unfitted)[:3]),
    }
    text = render_markdown(unfitted)
    assert "The models were selected on val, which is what is reported here." in text
    assert "Operating points" not in text
    assert "at the threshold of the comparison, 0.500" in text
    assert "not calibrated: a threshold may not mean what it says" in text


def test_ids_are_unique_and_references_answered(page: Page) -> None:
    page.check_references()


def test_figures_name_models_ece_and_prevalences(fitted: ComparisonResults, folder: Path) -> None:
    figures = {path.stem: path.read_text(encoding="utf-8") for path in (folder / "figures").glob("*.svg")}
    for use, entry in zip(fitted.in_use, list_entries(fitted), strict=False):
        drawn = figures[f"{entry.slug}-reliability"]
        for state in (use.find_state(None), use.find_state("platt")):
            assert format_estimate(state.reliability.ece) in drawn
        for name in ("predictive-ppv", "predictive-npv", "net-benefit"):
            assert entry.name in figures[name]
    assert "4–9%" in figures["predictive-ppv"]
    assert "treat all" in figures["net-benefit"]


def test_figures_of_a_perfect_model_and_of_one_unit_can_be_drawn(unfitted: ComparisonResults) -> None:
    """All values 1, and no intervals at all: neither leaves an axis without a length."""
    name = unfitted.models[0].name
    perfect = make_table([0, 0, 1, 1] * 3, [-9.0, -8, 8, 9] * 3, [n // 2 for n in range(12)], model=name)
    alone = make_table([0, 1, 0, 1], [-1.0, 1, 2, 3], [0] * 4, model=name)
    for table in (perfect, alone):
        use = assess_use(table, options=IntervalOptions(draws=60))
        assert len(draw_in_use([use], list_entries(unfitted))) == 4


def test_a_set_of_results_without_these_fields_is_read_and_shown(
    unfitted: ComparisonResults, folder: Path, tmp_path: Path
) -> None:
    content = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    del content["in_use"], content["sizes"]
    (tmp_path / "results.json").write_text(json.dumps(content), encoding="utf-8")
    old = read_results(tmp_path)
    assert (old.in_use, old.sizes) == ((), ())
    html = write_report(old, tmp_path).read_text(encoding="utf-8")
    assert "Probabilities in use" not in html
    assert "Effective n" not in html


def test_notes_name_their_model(unfitted: ComparisonResults) -> None:
    use = unfitted.in_use[0].model_copy(update={"notes": ("No calibration: none.",)})
    results = unfitted.model_copy(update={"in_use": (use, *unfitted.in_use[1:])})
    drawings = draw_in_use(results.in_use, list_entries(results))
    html = render_report(results, draw_all(results) | drawings)
    assert f"<li>{use.model}: No calibration: none.</li>" in html
    assert f"{use.model}: No calibration: none." in render_markdown(results)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0.000"), (1.0, "1.000"), (0.4214, "0.421"), (2.4e-7, "2.4e-07"), (1 - 2.5e-5, "1 − 2.5e-05")],
)
def test_thresholds_near_an_end_show_how_near(value: float, text: str) -> None:
    assert format_threshold(value) == text


def test_a_fit_is_described_by_its_parameters() -> None:
    states = assess_use(
        make_clustered_table(2), make_clustered_table(1, split="val"), options=IntervalOptions(draws=60)
    ).states
    fits = [state.fit for state in states if state.fit]
    assert describe_fit(fits[0].model_copy(update={"slope": 0.5})) == "temperature, T = 2.00"
    assert (
        describe_fit(fits[1].model_copy(update={"slope": 1.5, "intercept": -0.25})) == "Platt, 1.50 z − 0.25"
    )


def test_the_sentence_on_sizes_says_what_slices_are_worth() -> None:
    clustered = compute_effective_size(
        make_clustered_table(1, 20, 8), ("accuracy", "auroc"), options=IntervalOptions(draws=60)
    )
    known = [one.effective_n for one in clustered.metrics if one.effective_n is not None]
    low, high = (round(end) for end in (min(known), max(known)))
    assert f"come from 20 patients and are worth about {low} to {high}" in explain_sizes([clustered])
    perfect = make_table([0, 0, 1, 1] * 3, [-9.0, -8, 8, 9] * 3, [n // 2 for n in range(12)])
    assert "cannot be estimated" in explain_sizes(
        [compute_effective_size(perfect, ("auroc",), options=IntervalOptions(draws=60))]
    )
    loose = compute_effective_size(
        make_table([0, 1, 1], [0.0, 1.0, -1.0]), ("accuracy",), options=IntervalOptions(draws=60)
    )
    assert "What resembles what is not known" in explain_sizes([loose])


def test_models_with_and_without_a_fit_are_told_apart(fitted: ComparisonResults) -> None:
    mixed = (fitted.in_use[0], fitted.in_use[1].model_copy(update={"used": None}))
    assert "where a fit could be had" in explain_decision(mixed)
    assert math.isclose(fitted.in_use[0].predictive.threshold, fitted.in_use[0].points[0].point.threshold)
    assert explain_predictive(fitted.in_use).startswith("at each model's threshold")
