"""Model cards: the nine sections, filled from the results and nothing else."""

from __future__ import annotations

import re
from html import unescape

import pytest

from cspine.report.cards import make_card, render_card_markdown, render_card_page
from cspine.report.checklists import list_card_folders, render_documents
from cspine.report.results import CheckpointFacts, ComparisonResults
from tests.report.builders import make_results

SECTIONS = [
    "Model details",
    "Intended use",
    "Factors",
    "Metrics",
    "Evaluation data",
    "Training data",
    "Quantitative analyses",
    "Ethical considerations",
    "Caveats and recommendations",
]
FACTS = CheckpointFacts(
    height_px=224,
    width_px=192,
    labels={"0": "normal", "1": "fracture"},
    threshold=0.5,
    slope=1.0,
    intercept=0.0,
    training={"optimizer": "adam", "learning_rate": 0.001, "class_weights": "balanced", "seed": 20},
    manifest_hash="m",
    versions={"torch": "2"},
)


@pytest.fixture(scope="module")
def results() -> ComparisonResults:
    return make_results()


def read_facts(results: ComparisonResults, place: int) -> dict[str, str]:
    """Term -> what the run says, of one model's card."""
    card = make_card(results, results.models[place])
    return {
        f"{section.title}: {fact.term}": fact.answer.text or ""
        for section in card.sections
        for fact in section.facts
    }


def read_text(html: str) -> str:
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", html[html.index("<body>") :])).split())


def test_a_card_has_the_nine_sections_of_mitchell_in_order(results: ComparisonResults) -> None:
    card = make_card(results, results.models[0])
    assert [section.title for section in card.sections] == SECTIONS
    assert re.findall(r"^## (.*)$", render_card_markdown(card), re.MULTILINE) == SECTIONS


def test_what_the_checkpoint_says_is_on_the_card(results: ComparisonResults) -> None:
    model = results.models[1].model_copy(update={"checkpoint": FACTS})
    facts = read_facts(results.model_copy(update={"models": (model,)}), 0)
    assert "224×192 px" in facts["Model details: Type"]
    assert "adam, learning rate 0.001" in facts["Model details: Training"]
    assert facts["Training data: Class imbalance"] == "The loss weighs each class by its inverse frequency."
    assert "calibration" not in facts["Model details: Output"]


def test_neighbours_and_windows_as_channels_are_said(results: ComparisonResults) -> None:
    wide = FACTS.model_copy(update={"slices": 3, "channels": 3})
    model = results.models[1].model_copy(update={"checkpoint": wide})
    facts = read_facts(results.model_copy(update={"models": (model,)}), 0)
    assert (
        "a slice and its neighbours, 3 in all, of 224×192 px, as 3 channels" in facts["Model details: Type"]
    )


def test_a_stored_calibration_is_said(results: ComparisonResults) -> None:
    calibrated = FACTS.model_copy(update={"slope": 0.7})
    model = results.models[1].model_copy(update={"checkpoint": calibrated})
    facts = read_facts(results.model_copy(update={"models": (model,)}), 0)
    assert "its sigmoid, after the stored calibration, is" in facts["Model details: Output"]


def test_without_the_checkpoint_nothing_is_made_up(results: ComparisonResults) -> None:
    facts = read_facts(results, 1)
    assert facts["Training data: Class imbalance"] == ""
    assert facts["Training data: Augmentation"] == ""
    assert "px" not in facts["Model details: Type"]


def test_the_analyses_are_those_of_this_model_with_intervals(results: ComparisonResults) -> None:
    model = results.models[1]
    text = read_text(render_card_page(make_card(results, model)))
    for estimate in model.evaluation.metrics.values():
        if estimate.value is not None and estimate.low is not None and estimate.high is not None:
            assert f"{estimate.value:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]" in text
    other = results.models[2].evaluation.metrics["accuracy"]
    assert f"{other.value:.3f} [{other.low:.3f}" not in text
    assert "dens (31 slices)" in text


def test_caveats_are_of_the_comparison_and_this_model(results: ComparisonResults) -> None:
    perfect, beaten = (
        read_text(render_card_page(make_card(results, results.models[place]))) for place in (0, 1)
    )
    assert "does not show that ResNet50 learned fractures" in beaten
    assert "learned fractures" not in perfect
    for text in (perfect, beaten):
        assert "Verdict: not evidence." in text
        assert "Early stopping watched val." in text
        assert "ConvNeXt-Tiny learned" not in text


def test_a_card_claims_no_clinical_performance(results: ComparisonResults) -> None:
    for text in render_documents(results).values():
        assert "Research software" in text or "published checklists" in text
    card = render_card_markdown(make_card(results, results.models[0]))
    assert "Nothing here shows clinical performance." in card.split("## ", 1)[0]
    assert "*for the author: performance by age, sex and origin: the run knows none of these*" in card


def test_a_hostile_name_leads_no_card_astray_and_stays_text(results: ComparisonResults) -> None:
    evil = '../../x"><script>alert(1)</script>'
    evaluation = results.models[0].evaluation.model_copy(update={"model": evil})
    model = results.models[0].model_copy(update={"name": evil, "evaluation": evaluation})
    hostile = results.model_copy(update={"models": (model,), "title": evil})
    (folder,) = list_card_folders(hostile)
    long = results.models[0].model_copy(update={"name": "W" * 300})
    assert len(list_card_folders(results.model_copy(update={"models": (long,)}))[0]) < 60
    assert re.fullmatch(r"models/[a-z0-9-]+", folder)
    for name, text in render_documents(hostile).items():
        assert "<script" not in text, name


def test_a_card_lies_beside_the_checkpoint_of_its_model(results: ComparisonResults) -> None:
    assert list_card_folders(results) == ("models/MobileNetV2", "models/ResNet50", "models/ConvNeXt-Tiny")
