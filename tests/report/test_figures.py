"""Figures: every one that is promised, well-formed, the same twice, and honest about what is undefined."""

from __future__ import annotations

import base64
import re
from xml.etree import ElementTree

import matplotlib
import pytest

from cspine.core.estimates import Curve
from cspine.report import figures
from cspine.report import figures as svg
from cspine.report import text as texts
from cspine.report.results import ComparisonResults
from cspine.report.robustness import draw_robustness
from tests.report.builders import CORRUPTIONS, UNDEFINED, make_results

KINDS = ("accuracy", "loss", "confusion", "roc", "precision-recall")
SLUGS = ("mobilenetv2", "resnet50", "convnext-tiny")
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def results() -> ComparisonResults:
    return make_results()


@pytest.fixture(scope="module")
def drawings(results: ComparisonResults) -> dict[str, svg.Drawing]:
    return figures.draw_all(results) | draw_robustness(results.robustness, figures.list_entries(results))


def read_text(svg: str) -> str:
    """All words that a figure shows (not its title and description)."""
    return "\n".join("".join(text.itertext()) for text in ElementTree.fromstring(svg).iter(f"{SVG}text"))


def replace_evaluation(results: ComparisonResults, **changes: object) -> figures.Entry:
    """The first model's entry with parts of its evaluation replaced."""
    entry = figures.list_entries(results)[0]
    evaluation = entry.evaluation.model_copy(update=changes)
    return figures.Entry(entry.name, entry.slug, entry.look, evaluation)


def test_all_figures_are_there(drawings: dict[str, svg.Drawing]) -> None:
    expected = {f"{slug}-{kind}" for slug in SLUGS for kind in KINDS}
    expected |= {"roc", "precision-recall", "metrics"}
    for name in ("robustness", "robustness_auroc"):
        expected |= {name, *(f"{name}-{corruption}" for corruption in CORRUPTIONS)}
    assert set(drawings) == expected


def test_figures_are_the_same_bytes_twice(
    results: ComparisonResults, drawings: dict[str, svg.Drawing]
) -> None:
    robustness = draw_robustness(results.robustness, figures.list_entries(results))
    assert figures.draw_all(results) | robustness == drawings


def test_figures_do_not_depend_on_the_users_style(
    results: ComparisonResults, drawings: dict[str, svg.Drawing]
) -> None:
    with matplotlib.rc_context({"font.size": 30, "axes.grid": False, "lines.linewidth": 9}):
        assert figures.draw_confusion(figures.list_entries(results)[0]) == drawings["mobilenetv2-confusion"]
        assert matplotlib.rcParams["font.size"] == 30


def test_drawing_leaves_no_style_behind(results: ComparisonResults) -> None:
    before = dict(matplotlib.rcParams)
    figures.draw_roc(figures.list_entries(results)[0])
    assert dict(matplotlib.rcParams) == before


def test_each_figure_is_an_accessible_svg_by_itself(
    drawings: dict[str, svg.Drawing],
) -> None:
    for drawing in drawings.values():
        root = ElementTree.fromstring(drawing.svg)
        assert root.tag == f"{SVG}svg"
        assert root.get("role") == "img"
        title, desc = root[0], root[1]
        assert (title.tag, desc.tag) == (f"{SVG}title", f"{SVG}desc")
        assert root.get("aria-labelledby") == f"{title.get('id')} {desc.get('id')}"
        assert title.text == drawing.title
        assert desc.text == drawing.description
        assert "<metadata" not in drawing.svg
        assert not re.search(r"(href|src)=\"(?!#)", drawing.svg)
        assert not re.search(r"url\((?!#)|@import", drawing.svg)


def test_ids_are_unique_and_every_reference_is_answered(
    drawings: dict[str, svg.Drawing],
) -> None:
    for drawing in drawings.values():
        ids = re.findall(r'\bid="([^"]+)"', drawing.svg)
        assert len(ids) == len(set(ids))
        references = re.findall(r'(?:href="#|url\(#)([^")]+)', drawing.svg)
        assert references
        assert set(references) <= set(ids)


def test_text_of_figures_is_in_the_fonts_of_readers(drawings: dict[str, svg.Drawing]) -> None:
    for drawing in drawings.values():
        assert "DejaVu" not in drawing.svg
        assert "Helvetica" in drawing.svg


def test_an_embedded_figure_is_an_image_with_its_description(drawings: dict[str, svg.Drawing]) -> None:
    drawing = drawings["roc"]
    image = ElementTree.fromstring(str(drawing.embed()) + "</img>")
    assert image.get("alt") == f"{drawing.title}. {drawing.description}"
    data = (image.get("src") or "").removeprefix("data:image/svg+xml;base64,")
    assert base64.b64decode(data).decode() == drawing.svg


def test_every_look_of_a_model_is_its_own(results: ComparisonResults) -> None:
    entries = figures.list_entries(results)
    assert len({entry.look.colour for entry in entries}) == len(entries)
    assert len({entry.look.marker for entry in entries}) == len(entries)


def test_combined_roc_names_each_model_with_its_auroc(
    results: ComparisonResults, drawings: dict[str, svg.Drawing]
) -> None:
    shown = " ".join(read_text(drawings["roc"].svg).split())
    for entry in figures.list_entries(results):
        assert f"{entry.name} {texts.format_estimate(entry.evaluation.metrics['auroc'])}" in shown


def test_confusion_shows_counts_percentages_and_classes(
    results: ComparisonResults, drawings: dict[str, svg.Drawing]
) -> None:
    counts = results.models[2].evaluation.confusion
    text = read_text(drawings["convnext-tiny-confusion"].svg)
    for part in (str(counts.tp), str(counts.fn), f"{counts.tp / (counts.tp + counts.fn):.1%}"):
        assert part in text.split("\n")
    assert "positive class: fracture" in text


def test_confusion_without_normal_slices_has_no_percentage(results: ComparisonResults) -> None:
    counts = results.models[0].evaluation.confusion.model_copy(update={"fp": 0, "tn": 0})
    lines = read_text(figures.draw_confusion(replace_evaluation(results, confusion=counts)).svg).split("\n")
    assert lines.count("0") == 3
    assert lines.count(texts.UNDEFINED) == 2


def test_undefined_metrics_show_a_dash_and_the_reason(drawings: dict[str, svg.Drawing]) -> None:
    lines = read_text(drawings["metrics"].svg).split("\n")
    assert lines.count(texts.UNDEFINED) == 2
    assert UNDEFINED in lines
    assert f"Precision (PPV) of ResNet50: {texts.UNDEFINED} ({UNDEFINED})." in drawings["metrics"].description


def test_curves_of_one_class_are_empty_and_say_so(results: ComparisonResults) -> None:
    nothing = Curve(x=(), y=(), thresholds=())
    metrics = dict(results.models[0].evaluation.metrics)
    reason = "the slices are of one class only"
    gap = {"value": None, "low": None, "high": None, "reason": reason}
    metrics["auroc"] = metrics["auroc"].model_copy(update=gap)
    entry = replace_evaluation(results, roc=nothing, precision_recall=nothing, metrics=metrics)
    text = read_text(figures.draw_roc(entry).svg)
    assert f"AUROC {texts.UNDEFINED}" in text
    assert reason in text
    figures.draw_precision_recall(entry)


def test_a_single_epoch_and_an_empty_history_can_be_drawn(results: ComparisonResults) -> None:
    entry = figures.list_entries(results)[2]
    for history in (results.models[2].history, ()):
        model = results.models[2].model_copy(update={"history": history})
        for draw in (figures.draw_accuracy, figures.draw_loss):
            assert "best epoch 1" in read_text(draw(model, entry, "val").svg)


def test_an_epoch_without_a_finite_loss_leaves_a_gap(results: ComparisonResults) -> None:
    entry = figures.list_entries(results)[0]
    history = results.models[0].history
    gap = tuple(row.model_copy(update={"val_loss": None}) if row.epoch == 2 else row for row in history)
    model = results.models[0].model_copy(update={"history": gap})
    drawn, whole = (figures.draw_loss(item, entry, "val") for item in (model, results.models[0]))
    assert model.best_epoch != 2
    assert len(drawn.svg) != len(whole.svg)
    assert "nan" not in drawn.svg.lower()


def test_robustness_breaks_off_where_accuracy_is_undefined(drawings: dict[str, svg.Drawing]) -> None:
    assert (
        f"ConvNeXt-Tiny, rotation, severity 3: {texts.UNDEFINED}."
        in drawings["robustness-rotation"].description
    )


def test_no_robustness_no_figure(results: ComparisonResults) -> None:
    assert draw_robustness((), figures.list_entries(results)) == {}


def test_a_model_in_the_robustness_points_only_gets_a_look(results: ComparisonResults) -> None:
    points = [point.model_copy(update={"model": "Other"}) for point in results.robustness[:6]]
    panel = draw_robustness(points, figures.list_entries(results))["robustness-noise"]
    assert "Other" in read_text(panel.svg)


def test_no_comparison_at_all_can_be_drawn(results: ComparisonResults) -> None:
    empty = results.model_copy(update={"models": (), "baselines": (), "robustness": (), "samples": ()})
    assert set(figures.draw_all(empty)) == {"roc", "precision-recall", "metrics"}


def test_names_alike_or_strange_give_files_of_their_own(results: ComparisonResults) -> None:
    names = ("A/B", "a b", "../..", "Robustness", "$x^2$ <b>\x00")
    models = tuple(results.models[2].model_copy(update={"name": name}) for name in names)
    drawings = figures.draw_all(results.model_copy(update={"models": models}))
    slugs = [entry.slug for entry in figures.list_entries(results.model_copy(update={"models": models}))]
    assert slugs[:5] == ["a-b", "a-b-2", "model", "model-robustness", "x-2-b"]
    for drawing in drawings.values():
        ElementTree.fromstring(drawing.svg)
        assert re.fullmatch(r"[a-z0-9-]+", drawing.name)
    assert "$x^2$ <b>\ufffd" in read_text(drawings["roc"].svg)


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "\u2013"), (0.97549, "0.975"), (-0.25, "\u22120.250"), (1.0, "1.000")],
)
def test_format_value(value: float | None, text: str) -> None:
    assert texts.format_value(value) == text


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0"), (4200, "4200"), (12345, "12\u202f345"), (-1234567, "\u22121\u202f234\u202f567")],
)
def test_format_count(number: int, text: str) -> None:
    assert texts.format_count(number) == text
