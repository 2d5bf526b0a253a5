"""Figures as SVG text: a style of their own, no date."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from xml.dom import minidom

from markupsafe import Markup
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import blended_transform_factory

from cspine.core.estimates import Curve, Estimate, EvaluationResult
from cspine.core.html import show_svg
from cspine.metrics.scores import METRICS
from cspine.report.results import ComparisonResults, Epoch, ModelResult
from cspine.report.text import (
    UNDEFINED,
    count_noun,
    drop_controls,
    format_count,
    format_estimate,
    format_interval,
    format_value,
    shorten_text,
)

# Okabe and Ito's palette ("Color Universal Design", 2008), darkest first; yellow is too faint on paper.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_GREYS = ("#6b6b6b", "#8f8f8f", "#4a4a4a", "#a8a8a8")
GREY_MARKERS = ("x", "+", "1", "2")
_GREY_LINES = (":", (0, (3, 1, 1, 1)), (0, (1, 2)), (0, (4, 2)))
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_LINES = ("-", "--", "-.", (0, (5, 1, 1, 1, 1, 1)), (0, (7, 2)))

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
        name: File name without ending; unique in a report.
        title: What it shows, in a few words.
        description: What it says, with its numbers, for a reader who cannot see it.
        svg: The whole SVG element; a file as it stands.
    """

    name: str
    title: str
    description: str
    svg: str

    def embed(self) -> Markup:
        """The figure as an image that no page around it can change, its description in place of sight."""
        return Markup(show_svg(self.svg, f"{self.title}. {self.description}"))


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
    """Turn a figure into SVG text without a date; title and description are for readers who cannot see it."""
    title, description = drop_controls(title), drop_controls(description)
    buffer = io.StringIO()
    with style.context({"svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    # Text was measured with matplotlib's own font, which is on every machine; readers see their own.
    document = minidom.parseString(buffer.getvalue().replace("'DejaVu Sans', sans-serif", _FONTS).encode())
    root = document.documentElement
    assert root is not None
    for element in document.getElementsByTagName("metadata"):
        root.removeChild(element)
    root.setAttribute("role", "img")
    root.setAttribute("aria-labelledby", "title desc")
    for tag, text in (("desc", description), ("title", title)):
        element = document.createElement(tag)
        element.setAttribute("id", tag)
        element.appendChild(document.createTextNode(text))
        root.insertBefore(element, root.firstChild)
    return Drawing(name, title, description, root.toxml())


# Every figure of the report, as SVG text that is the same, byte for byte, for the same results.
#
# Figures are laid out in inches by hand: labels never move the axes, so figures line up on a page. Text stays
# text (searchable, small), measured with matplotlib's own font, which is wider than what browsers put in its
# place. Nothing here touches matplotlib's global state for longer than one figure.


_FAINT = "#d9d9d9"
_MUTED = "#595959"

FOREST_METRICS = ("accuracy", "recall", "specificity", "precision", "f1", "mcc", "auroc", "auprc")
"""Metrics on one scale where more is better, as the forest plot shows them."""

NEGATIVE_CLASS = "normal"
"""The class that is not the positive one."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One model or baseline as figures need it; `slug` is its part of file names."""

    name: str
    slug: str
    look: Look
    evaluation: EvaluationResult


def list_entries(results: ComparisonResults) -> tuple[Entry, ...]:
    """Models, then baselines, in their order, each with its look: models in colour, baselines grey."""
    rows = [(model.name, model.evaluation) for model in results.models]
    rows += [(baseline.name, baseline.evaluation) for baseline in results.baselines]
    # Names from "robustness" on are those of the robustness figures.
    slugs = make_slugs(f"model {n}" if n.lower().startswith("robustness") else n for n, _ in rows)
    entries = []
    for place, ((name, evaluation), slug) in enumerate(zip(rows, slugs, strict=True)):
        grey = place - len(results.models)
        look = choose_look(place) if grey < 0 else choose_grey_look(grey)
        entries.append(Entry(name, slug, look, evaluation))
    return tuple(entries)


def draw_all(results: ComparisonResults) -> dict[str, Drawing]:
    """Every figure of the report, by name.

    Of all models: `roc`, `precision-recall` and `metrics`. Of each: `<slug>-accuracy`, `-loss`, `-confusion`,
    `-roc` and `-precision-recall`.
    """
    entries = list_entries(results)
    drawings = [
        draw_rocs(entries, "roc"),
        draw_precision_recalls(entries, "precision-recall"),
        draw_forest(entries, "metrics"),
    ]
    for model, entry in zip(results.models, entries, strict=False):
        drawings += [
            draw_accuracy(model, entry, results.selection_split),
            draw_loss(model, entry, results.selection_split),
            draw_confusion(entry),
            draw_roc(entry),
            draw_precision_recall(entry),
        ]
    return {drawing.name: drawing for drawing in drawings}


def draw_accuracy(model: ModelResult, entry: Entry, selection_split: str) -> Drawing:
    """Accuracy on the training and the selection split by epoch; the epoch that was kept is marked."""
    best = _find_best(model)
    description = f"{count_noun(len(model.history), 'epoch')}; best epoch {model.best_epoch}" + (
        f", {selection_split} accuracy {format_value(best.val_accuracy)}." if best else "."
    )
    with open_figure(4.6, 2.75) as figure:
        axes = add_axes(figure, 0.6, 0.5, 3.85, 1.95)
        _plot_history(axes, model, entry, selection_split, lambda row: (row.train_accuracy, row.val_accuracy))
        low = min((min(row.train_accuracy, row.val_accuracy) for row in model.history), default=0.0)
        axes.set_ylim(max(0.0, low - 0.05), 1.01)
        axes.set_ylabel("Accuracy")
        return finish_figure(
            figure, f"{entry.slug}-accuracy", f"Accuracy by epoch, {model.name}", description
        )


def draw_loss(model: ModelResult, entry: Entry, selection_split: str) -> Drawing:
    """Mean binary cross-entropy on the training and the selection split by epoch."""
    best = _find_best(model)
    description = f"{count_noun(len(model.history), 'epoch')}; best epoch {model.best_epoch}" + (
        f", {selection_split} loss {format_value(best.val_loss)}." if best else "."
    )
    with open_figure(4.6, 2.75) as figure:
        axes = add_axes(figure, 0.6, 0.5, 3.85, 1.95)
        _plot_history(axes, model, entry, selection_split, lambda row: (row.train_loss, row.val_loss))
        high = max((max(row.train_loss, row.val_loss or 0.0) for row in model.history), default=0.0)
        axes.set_ylim(0, 1.08 * high or 1.0)
        axes.set_ylabel("Loss (cross-entropy)")
        return finish_figure(figure, f"{entry.slug}-loss", f"Loss by epoch, {model.name}", description)


def draw_confusion(entry: Entry) -> Drawing:
    """Counts and row percentages; rows are the truth, columns what the model called."""
    result = entry.evaluation
    counts = result.confusion
    rows = ((counts.tp, counts.fn), (counts.fp, counts.tn))
    classes = (result.positive_class, NEGATIVE_CLASS)
    description = (
        f"Positive class {result.positive_class}, threshold {result.threshold:g}: "
        f"{counts.tp} true positives, {counts.fn} false negatives, "
        f"{counts.fp} false positives, {counts.tn} true negatives."
    )
    with open_figure(3.3, 3.3) as figure:
        axes = add_axes(figure, 0.75, 0.55, 2.4, 2.4)
        for place, row in enumerate(rows):
            _fill_confusion_row(axes, place, row)
        axes.set(xlim=(0, 2), ylim=(2, 0), xticks=(0.5, 1.5), yticks=(0.5, 1.5))
        axes.set_xticklabels(classes)
        axes.set_yticklabels(classes, rotation=90, va="center")
        axes.set_xlabel("Called")
        axes.set_ylabel("Truth")
        axes.grid(False)
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0)
        axes.set_title(f"positive class: {result.positive_class}", fontsize=7.5, color=_MUTED, loc="left")
        return finish_figure(
            figure, f"{entry.slug}-confusion", f"Confusion matrix, {entry.name}", description
        )


def draw_roc(entry: Entry) -> Drawing:
    """Receiver operating characteristic of one model."""
    return _draw_alone(entry, "roc", "auroc", "ROC curve", _plot_rocs)


def draw_precision_recall(entry: Entry) -> Drawing:
    """Precision against recall of one model."""
    return _draw_alone(entry, "precision-recall", "auprc", "Precision-recall curve", _plot_precision_recalls)


def draw_rocs(entries: Sequence[Entry], name: str) -> Drawing:
    """All ROC curves in one; a marker shows the threshold that the table uses."""
    return _draw_together(entries, name, "auroc", "ROC curves of all models", _plot_rocs)


def draw_precision_recalls(entries: Sequence[Entry], name: str) -> Drawing:
    """All precision-recall curves in one; a marker shows the threshold that the table uses."""
    title = "Precision-recall curves of all models"
    return _draw_together(entries, name, "auprc", title, _plot_precision_recalls)


def draw_forest(entries: Sequence[Entry], name: str) -> Drawing:
    """Value and interval of each main metric for each model and baseline."""
    metrics = [key for key in FOREST_METRICS if any(key in entry.evaluation.metrics for entry in entries)]
    rows = len(metrics) * (len(entries) + 1)
    plot_height = max(0.5, rows * 0.175)
    with open_figure(4.5, plot_height + 0.5) as figure:
        axes = add_axes(figure, 1.5, 0.42, 1.5, plot_height)
        beside = blended_transform_factory(figure.transFigure, axes.transData)
        place = 0
        for key in metrics:
            axes.text(0.01, place, METRICS[key].label, transform=beside, va="center", weight="bold")
            rule = [place - 0.6] * 2
            axes.plot([0.01, 0.99], rule, transform=beside, color=_FAINT, linewidth=0.5, clip_on=False)
            for offset, entry in enumerate(entries, start=1):
                estimate = entry.evaluation.metrics.get(key)
                axes.text(0.035, place + offset, shorten_text(entry.name, 22), transform=beside, va="center")
                axes.text(
                    0.99, place + offset, format_estimate(estimate), transform=beside, va="center", ha="right"
                )
                _plot_estimate(axes, place + offset, entry.look, estimate)
            place += len(entries) + 1
        axes.set_ylim(rows - 0.4, -0.7)
        axes.set_xlim(*_find_range(entry.evaluation.metrics.get(key) for key in metrics for entry in entries))
        axes.set_yticks([])
        axes.grid(axis="y", visible=False)
        axes.spines["left"].set_visible(False)
        axes.set_xlabel("Value with its interval")
        return finish_figure(figure, name, "Metrics with their intervals", _describe(entries, metrics))


def make_slugs(names: Iterable[str]) -> list[str]:
    """File name parts: letters, digits and hyphens only, no two alike."""
    slugs: list[str] = []
    for name in names:
        stem = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:40] or "model"
        slug, copy = stem, 2
        while slug in slugs:
            slug, copy = f"{stem}-{copy}", copy + 1
        slugs.append(slug)
    return slugs


def _describe(entries: Sequence[Entry], metrics: Sequence[str]) -> str:
    """All values of `metrics` as sentences, with the reason of each that is undefined."""
    sentences = []
    for key in metrics:
        for entry in entries:
            estimate = entry.evaluation.metrics.get(key)
            reason = f" ({estimate.reason})" if estimate and estimate.reason else ""
            sentences.append(f"{METRICS[key].label} of {entry.name}: {format_estimate(estimate)}{reason}.")
    return " ".join(sentences)


def _find_best(model: ModelResult) -> Epoch | None:
    return next((row for row in model.history if row.epoch == model.best_epoch), None)


def _plot_history(
    axes: Axes,
    model: ModelResult,
    entry: Entry,
    selection_split: str,
    pick: Callable[[Epoch], tuple[float, float | None]],
) -> None:
    """Training (hollow, dashed) and selection (solid) by epoch; `pick` gives the two numbers of a row."""
    epochs = [row.epoch for row in model.history]
    pairs = [pick(row) for row in model.history]
    colour, marker = entry.look.colour, entry.look.marker
    size = 3.5 if len(epochs) <= 30 else 0
    axes.plot(epochs, [pair[0] for pair in pairs], color=_MUTED, linestyle="--", linewidth=1.0,
              marker=marker, markersize=size, markerfacecolor="white", label="training")  # fmt: skip
    selection = [math.nan if pair[1] is None else pair[1] for pair in pairs]  # NaN leaves a gap
    axes.plot(epochs, selection, color=colour, marker=marker, markersize=size,
              label=shorten_text(f"selection ({selection_split})"))  # fmt: skip
    axes.axvline(model.best_epoch, color=colour, linewidth=0.8, linestyle=":", zorder=1,
                 label=f"best epoch {model.best_epoch}")  # fmt: skip
    first, last = min([*epochs, model.best_epoch]), max([*epochs, model.best_epoch])
    axes.set_xlim(first - 0.5, last + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.set_xlabel("Epoch")
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1.03), ncols=3, columnspacing=1.4)


def _fill_confusion_row(axes: Axes, place: int, row: tuple[int, int]) -> None:
    total = sum(row)
    for column, count in enumerate(row):
        share = count / total if total else 0.0
        # From white to half of the palette's blue: dark text stands out on all of it.
        shade = tuple(1 - share * 0.5 * (1 - part) for part in (0.0, 0.447, 0.698))
        axes.add_patch(Rectangle((column, place), 1, 1, facecolor=shade, edgecolor="white", linewidth=1.5))
        axes.text(column + 0.5, place + 0.46, format_count(count), ha="center", va="center", fontsize=13)
        percent = f"{share:.1%}" if total else UNDEFINED
        axes.text(column + 0.5, place + 0.68, percent, ha="center", va="center", fontsize=8)


Plot = Callable[[Axes, Sequence[Entry]], None]


def _draw_alone(entry: Entry, kind: str, metric: str, title: str, plot: Plot) -> Drawing:
    estimate = entry.evaluation.metrics.get(metric)
    with open_figure(3.3, 3.3) as figure:
        axes = add_axes(figure, 0.55, 0.55, 2.6, 2.6)
        plot(axes, [entry])
        lines = [f"{METRICS[metric].label} {format_value(estimate.value if estimate else None)}"]
        if estimate is not None:
            lines += filter(None, (format_interval(estimate), shorten_text(estimate.reason or "", 40)))
        right = kind == "roc"
        axes.text(0.96 if right else 0.04, 0.05, "\n".join(lines), transform=axes.transAxes, linespacing=1.4,
                  ha="right" if right else "left", va="bottom",
                  bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 1.5})  # fmt: skip
        return finish_figure(
            figure, f"{entry.slug}-{kind}", f"{title}, {entry.name}", _describe([entry], [metric])
        )


def _draw_together(entries: Sequence[Entry], name: str, metric: str, title: str, plot: Plot) -> Drawing:
    foot = 0.55 + 0.175 * (len(entries) + 1)
    with open_figure(4.4, 3.75 + foot) as figure:
        axes = add_axes(figure, 0.6, foot, 3.6, 3.6)
        plot(axes, entries)
        for entry in entries:
            label = f"{shorten_text(entry.name)}  {format_estimate(entry.evaluation.metrics.get(metric))}"
            axes.plot([], [], color=entry.look.colour, linestyle=entry.look.line, marker=entry.look.marker,
                      label=label)  # fmt: skip
        if not entries:
            return finish_figure(figure, name, title, "Nothing was compared.")
        legend = axes.legend(loc="upper left", bbox_to_anchor=(0, -0.135), labelspacing=0.45,
                             title=f"{METRICS[metric].label} [interval]", alignment="left")  # fmt: skip
        legend.get_title().set_fontsize(7.5)
        return finish_figure(figure, name, title, _describe(entries, [metric]))


def _plot_rocs(axes: Axes, entries: Sequence[Entry]) -> None:
    axes.plot([0, 1], [0, 1], color="#b3b3b3", linewidth=0.8, linestyle=(0, (2, 2)), zorder=1)
    for entry in reversed(entries):
        counts = entry.evaluation.confusion
        _plot_curve(axes, entry, entry.evaluation.roc, "default")
        _plot_point(axes, entry, (counts.fp, counts.fp + counts.tn), (counts.tp, counts.tp + counts.fn))
    _frame_unit_square(axes, "False positive rate (1 \u2212 specificity)", "Sensitivity")


def _plot_precision_recalls(axes: Axes, entries: Sequence[Entry]) -> None:
    evaluations = [entry.evaluation for entry in entries if entry.evaluation.slices]
    for prevalence in sorted({result.positives / result.slices for result in evaluations}):
        axes.axhline(prevalence, color="#b3b3b3", linewidth=0.8, linestyle=(0, (2, 2)), zorder=1)
        # Below the line: curves of models that know anything lie above it.
        axes.text(1.0, prevalence - 0.012, f"prevalence {format_value(prevalence)}", ha="right", va="top",
                  fontsize=7, color=_MUTED)  # fmt: skip
    for entry in reversed(entries):
        counts, curve = entry.evaluation.confusion, entry.evaluation.precision_recall
        # Average precision takes, between two recalls, the precision at the higher one: so does the line.
        rising = len(curve.x) < 2 or curve.x[0] <= curve.x[-1]
        _plot_curve(axes, entry, curve, "steps-pre" if rising else "steps-post")
        _plot_point(axes, entry, (counts.tp, counts.tp + counts.fn), (counts.tp, counts.tp + counts.fp))
    _frame_unit_square(axes, "Recall (sensitivity)", "Precision")


def _plot_curve(axes: Axes, entry: Entry, curve: Curve, drawstyle: Any) -> None:
    if curve.x:
        axes.plot(curve.x, curve.y, color=entry.look.colour, linestyle=entry.look.line, drawstyle=drawstyle,
                  solid_joinstyle="miter", clip_on=False)  # fmt: skip


def _plot_point(axes: Axes, entry: Entry, x: tuple[int, int], y: tuple[int, int]) -> None:
    """The operating point, given as two (numerator, denominator); nothing where either is undefined."""
    if x[1] and y[1]:
        look = entry.look
        # A white edge parts the marker from its curve; a cross consists of edges only.
        edge = look.colour if look.marker in GREY_MARKERS else "white"
        axes.plot(x[0] / x[1], y[0] / y[1], color=look.colour, marker=look.marker, markersize=6.5,
                  markeredgecolor=edge, markeredgewidth=0.8, clip_on=False, zorder=5)  # fmt: skip


def _frame_unit_square(axes: Axes, x_label: str, y_label: str) -> None:
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), xlabel=x_label, ylabel=y_label)
    ticks = (0, 0.2, 0.4, 0.6, 0.8, 1)
    axes.set(xticks=ticks, yticks=ticks)


def _plot_estimate(axes: Axes, place: int, look: Look, estimate: Estimate | None) -> None:
    """Marker and interval on one row; in place of an undefined value the reason."""
    if estimate is None or estimate.value is None:
        reason = "not computed" if estimate is None else estimate.reason or ""
        axes.text(
            0.02,
            place,
            shorten_text(reason, 32),
            transform=axes.get_yaxis_transform(),
            va="center",
            fontsize=6.5,
        )
        return
    low = estimate.value if estimate.low is None else estimate.low
    high = estimate.value if estimate.high is None else estimate.high
    axes.plot(
        [low, high], [place, place], color=look.colour, linewidth=1.3, solid_capstyle="butt", clip_on=False
    )
    axes.plot(estimate.value, place, color=look.colour, marker=look.marker, markersize=4.5, clip_on=False)


def find_lowest(estimate: Estimate | None) -> float:
    """The least number of an estimate; 1 where it has none, which never decides an axis."""
    known = [] if estimate is None else [x for x in (estimate.value, estimate.low) if x is not None]
    return min(known, default=1.0)


def _find_range(estimates: Iterable[Estimate | None]) -> tuple[float, float]:
    """Limits on a tenth that hold all; never narrower than 0.2, which would exaggerate differences."""
    lowest = min((find_lowest(estimate) for estimate in estimates), default=0.0)
    return min(0.8, int(lowest * 10 - (lowest < 0)) / 10) - 0.01, 1.01
