"""Tables of probabilities in use and of the effective size, and the words that stand around them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes

from cspine.core.estimates import Estimate
from cspine.metrics.calibration import CalibrationFit, name_rule
from cspine.metrics.clinical import (
    LITERATURE_PREVALENCE,
    CalibrationState,
    PointInUse,
    PrevalencePoint,
    ProbabilityUse,
)
from cspine.metrics.effective_size import EffectiveSize
from cspine.metrics.scores import METRICS
from cspine.report.figures import Drawing, Entry, Look, add_axes, finish_figure, open_figure
from cspine.report.page import Cell, Row, Table
from cspine.report.results import ComparisonResults
from cspine.report.text import (
    UNDEFINED,
    count_noun,
    format_count,
    format_estimate,
    format_value,
    shorten_text,
)

SHOWN_PREVALENCES = (0.01, 0.04, 0.09, 0.2, 0.5)
SHOWN_THRESHOLDS = (0.05, 0.1, 0.2, 0.3, 0.5)
UNCALIBRATED = "as the network gives it"
_EDGE = 1e-3  # a threshold nearer to 0 or 1 than this is written with its power of ten


@dataclass(frozen=True, slots=True)
class UseView:
    """What the report's section holds; `points` is None where nothing was fitted.

    `split`, `unit` and `prevalence` are those of the slices shown here, which need not be all that a report is of.
    """

    uses: tuple[ProbabilityUse, ...]
    split: str
    unit: str
    prevalence: float
    words: str
    notes: tuple[tuple[str, str], ...]
    points: Table | None
    calibration: Table
    predictive: Table
    net_benefit: Table
    predictive_words: str
    decision_words: str


def view_use(results: ComparisonResults) -> UseView | None:
    """Everything to show of the models' probabilities; None where a comparison has nothing of it."""
    uses = list_uses(results)
    if not uses:
        return None
    return UseView(
        uses=uses,
        split=uses[0].split,
        unit=uses[0].states[0].log_loss.unit,
        prevalence=uses[0].decision.prevalence,
        words=explain_fit(uses),
        notes=tuple((use.model, note) for use in uses for note in use.notes),
        points=tabulate_points(uses) if any(use.points for use in uses) else None,
        calibration=tabulate_calibration(uses),
        predictive=tabulate_predictive(uses),
        net_benefit=tabulate_net_benefit(uses),
        predictive_words=explain_predictive(uses),
        decision_words=explain_decision(uses),
    )


def list_uses(results: ComparisonResults) -> tuple[ProbabilityUse, ...]:
    """The uses of models that the results have."""
    names = {model.name for model in results.models}
    return tuple(use for use in results.in_use if use.model in names)


def explain_fit(uses: Sequence[ProbabilityUse]) -> str:
    """Which split thresholds and calibrations come from, or why there are none."""
    fitted = next((use.fitted_on for use in uses if use.fitted_on), None)
    if fitted:
        return (
            f"Thresholds were chosen and calibrations fitted on {fitted}; all are shown on {uses[0].split}, "
            f"which they never saw. The epoch that was kept was chosen on {fitted} too, so a rate that is met there "
            "may be missed by a little here."
        )
    return (
        f"The models were selected on {uses[0].split}, which is what is reported here. A threshold or a "
        "calibration fitted on it would be fitted on the answers, so there are no operating points and no calibration: "
        "probabilities are as the networks give them, and calls are made at the threshold of the comparison. A "
        'selection split of its own (splits.selection = "carve" in the experiment) brings both.'
    )


def explain_predictive(uses: Sequence[ProbabilityUse]) -> str:
    """The threshold that predictive values are at."""
    points = [use.points[0].point for use in uses if use.points]
    if points:
        return f"at each model's threshold by {name_rule(points[0].rule, points[0].target)}"
    return f"at the threshold of the comparison, {format_value(uses[0].predictive.threshold)}"


def explain_decision(uses: Sequence[ProbabilityUse]) -> str:
    """Which probabilities net benefit is of."""
    kinds = list(dict.fromkeys(use.used for use in uses))
    if kinds == [None]:
        return (
            "Probabilities as the networks give them, not calibrated: a threshold may not mean what it says."
        )
    if None not in kinds:
        return f"Probabilities after {name_kind(str(kinds[0]))} on {uses[0].fitted_on}."
    return "Probabilities calibrated where a fit could be had; see the notes above."


def name_kind(kind: str) -> str:
    """A calibration's name within a sentence."""
    return "Platt's calibration" if kind == "platt" else "temperature scaling"


def tabulate_points(uses: Sequence[ProbabilityUse]) -> Table:
    """Rules as groups, models as rows: the threshold, before and after calibration, and what it gives."""
    labels = ("Sensitivity", "Specificity", "PPV", "NPV")
    table = Table(("Threshold", "Threshold, calibrated", *labels))
    found = [(use.model, point) for use in uses for point in use.points]
    for rule in dict.fromkeys((point.point.rule, point.point.target) for _, point in found):
        rows = [
            Row(model, _fill_point(table, point))
            for model, point in found
            if (point.point.rule, point.point.target) == rule
        ]
        name = name_rule(*rule).removeprefix("a ")
        table.groups.append((name[0].upper() + name[1:], rows))
    return table


def _fill_point(table: Table, found: PointInUse) -> tuple[Cell, ...]:
    moved = found.calibrated_threshold
    return (
        Cell(format_threshold(found.point.threshold)),
        Cell(UNDEFINED if moved is None else format_threshold(moved)),
        *(table.fill(found.metrics[name]) for name in ("recall", "specificity", "precision", "npv")),
    )


def format_threshold(value: float) -> str:
    """Three digits; near 0 and 1, where they would hide where it lies, with a power of ten."""
    if 0 < value < _EDGE:
        return f"{value:.1e}"
    if 1 - _EDGE < value < 1:
        return f"1 − {1 - value:.1e}"
    return format_value(value)


def tabulate_calibration(uses: Sequence[ProbabilityUse]) -> Table:
    """Models as groups; probabilities as the network gives them and after each fit as rows."""
    table = Table(
        (
            "ECE",
            "ECE by chance",
            "Log loss",
            "Brier score",
            "Reliability",
            "Resolution",
            "Uncertainty",
            "Within bins",
        )
    )
    for use in uses:
        rows = [Row(_name_state(state), _fill_state(table, state)) for state in use.states]
        table.groups.append((use.model, rows))
    return table


def _fill_state(table: Table, state: CalibrationState) -> tuple[Cell, ...]:
    found, brier = state.reliability, state.reliability.brier
    return (
        table.fill(found.ece),
        Cell(format_value(found.ece_by_chance)),
        table.fill(state.log_loss),
        table.fill(brier.brier),
        table.fill(brier.reliability),
        table.fill(brier.resolution),
        table.fill(brier.uncertainty),
        table.fill(brier.within),
    )


def _name_state(state: CalibrationState) -> str:
    return UNCALIBRATED if state.fit is None else describe_fit(state.fit)


def describe_fit(fit: CalibrationFit) -> str:
    """A fit with its parameters; z is the logit."""
    if fit.kind == "temperature":
        return f"temperature, T = {1 / fit.slope:.2f}"
    sign = "−" if fit.intercept < 0 else "+"
    return f"Platt, {fit.slope:.2f} z {sign} {abs(fit.intercept):.2f}"


def tabulate_predictive(uses: Sequence[ProbabilityUse]) -> Table:
    """PPV and NPV as groups, models as rows, a few prevalences as columns."""
    low, high = LITERATURE_PREVALENCE
    marks = {value: " *" if low <= value <= high else "" for value in SHOWN_PREVALENCES}
    table = Table(tuple(f"{value:.0%}{mark}" for value, mark in marks.items()))
    for title, name in (("PPV", "ppv"), ("NPV", "npv")):
        rows = []
        for use in uses:
            at = {point.prevalence: point for point in use.predictive.points}
            shown = (at.get(value) for value in SHOWN_PREVALENCES)
            cells = tuple(table.fill(getattr(point, name) if point else None) for point in shown)
            rows.append(Row(use.model, cells))
        table.groups.append((title, rows))
    return table


def tabulate_net_benefit(uses: Sequence[ProbabilityUse]) -> Table:
    """Models, then "treat all", as rows; a few threshold probabilities as columns."""
    table = Table(tuple(f"{value:.0%}" for value in SHOWN_THRESHOLDS))
    rows, all_called = [], []
    for use in uses:
        at = {point.threshold: point for point in use.decision.shown}
        shown = [at.get(value) for value in SHOWN_THRESHOLDS]
        rows.append(
            Row(use.model, tuple(table.fill(point.net_benefit if point else None) for point in shown))
        )
        all_called = [Cell(format_value(point.treat_all if point else None)) for point in shown]
    rows.append(Row("treat all", tuple(all_called)))
    table.groups.append((f"Net benefit at a prevalence of {format_value(uses[0].decision.prevalence)}", rows))
    return table


def tabulate_sizes(sizes: Sequence[EffectiveSize]) -> Table:
    """Metrics as groups, models as rows: the interval by slice and by unit, design effect and effective n."""
    unit = sizes[0].unit
    table = Table(("by slice", f"by {unit}", "Design effect", "Effective n"))
    for metric in dict.fromkeys(one.metric for size in sizes for one in size.metrics):
        rows = []
        for size in sizes:
            found = next(one for one in size.metrics if one.metric == metric)
            cells = (
                table.fill(found.naive),
                table.fill(found.clustered),
                Cell(format_value(found.design_effect, 2)),
                Cell(UNDEFINED if found.effective_n is None else format_count(round(found.effective_n))),
            )
            rows.append(Row(size.model, cells))
        label = METRICS[metric].label if metric in METRICS else metric
        table.groups.append((label, rows))
    return table


def explain_sizes(sizes: Sequence[EffectiveSize]) -> str:
    """How much the slices know, in a sentence."""
    first = sizes[0]
    slices = f"{format_count(first.files)} slices"
    if first.unit == "slice":
        return (
            f"What resembles what is not known of these {slices}, so both intervals take each as independent: where "
            "several are of one patient, both are too narrow."
        )
    believe = f"believe the interval by {first.unit}, which is that of all other tables"
    known = [one.effective_n for size in sizes for one in size.metrics if one.effective_n is not None]
    come = f"The {slices} come from {count_noun(first.units, first.unit)}"
    if not known:
        return f"{come}; how many independent ones they are worth cannot be estimated here: {believe}."
    low, high = (format_count(round(end)) for end in (min(known), max(known)))
    worth = low if low == high else f"{low} to {high}"
    return f"{come} and are worth about {worth} independent ones, by model and metric: {believe}."


def list_use_tables(results: ComparisonResults) -> list[tuple[str, str, Table]]:
    """Heading, words and table of everything here, for the Markdown file."""
    found = []
    if results.sizes:
        found.append(
            ("Intervals by slice and by unit", explain_sizes(results.sizes), tabulate_sizes(results.sizes))
        )
    view = view_use(results)
    if view is None:
        return found
    notes = "".join(f" {model}: {note}" for model, note in view.notes)
    if view.points:
        found.append(("Operating points", view.words, view.points))
    else:
        notes = f" {view.words}{notes}"
    parts = "Brier score = reliability − resolution + uncertainty + within bins. z: the logit."
    found.append(("Calibration", parts + notes, view.calibration))
    words = f"PPV and NPV {view.predictive_words}. *: as the literature reports of patients."
    found.append(("Predictive values by prevalence", words, view.predictive))
    found.append(("Net benefit by threshold probability", view.decision_words, view.net_benefit))
    return found


# Figures of probabilities in use: reliability, predictive values over prevalence, decision curves.


_MUTED = "#595959"
_FAINT = "#b3b3b3"
_BAND = "#f0e442"  # the palette's yellow: too faint for a line, right for an area behind lines
_DASHED = (0, (2, 2))
_ALPHA = 0.13
_NAMES = {"temperature": "temperature", "platt": "Platt"}


def draw_in_use(uses: Sequence[ProbabilityUse], entries: Sequence[Entry]) -> dict[str, Drawing]:
    """Every figure by name: `predictive-ppv`, `predictive-npv`, `net-benefit`, and `<slug>-reliability` of each model.

    Args:
        uses: May be empty: then there are no figures.
        entries: The models among them give looks and slugs.
    """
    if not uses:
        return {}
    by_name = {entry.name: entry for entry in reversed(entries)}
    looks = {use.model: by_name[use.model].look for use in uses}
    drawings = [
        draw_predictive(uses, looks, "ppv"),
        draw_predictive(uses, looks, "npv"),
        draw_net_benefit(uses, looks),
        *(draw_reliability(use, by_name[use.model]) for use in uses),
    ]
    return {drawing.name: drawing for drawing in drawings}


def draw_reliability(use: ProbabilityUse, entry: Entry) -> Drawing:
    """Share of fractures over mean probability: hollow as the network gives it, filled after the calibration in use."""
    states = [(use.find_state(None), UNCALIBRATED, Look(_MUTED, "o", "--"))]
    if use.used:
        states.append((use.find_state(use.used), _NAMES[use.used], entry.look))
    with open_figure(3.3, 3.85) as figure:
        axes = add_axes(figure, 0.55, 1.1, 2.6, 2.6)
        axes.plot([0, 1], [0, 1], color=_FAINT, linewidth=0.8, linestyle=_DASHED, zorder=1)
        for state, name, look in states:
            _plot_bins(axes, state, name, look, hollow=state.fit is None)
        ticks = (0, 0.2, 0.4, 0.6, 0.8, 1)
        axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), xticks=ticks, yticks=ticks,
                 xlabel="Mean probability of the bin", ylabel="Share of fractures")  # fmt: skip
        _add_legend(axes, "ECE [interval]", -0.19)
        sentences = [
            f"{name}: ECE {format_estimate(state.reliability.ece)}; "
            + ", ".join(
                f"{format_value(one.mean_prob)} {format_estimate(one.observed)}"
                for one in state.reliability.bins
            )
            + "."
            for state, name, _ in states
        ]
        return finish_figure(
            figure, f"{entry.slug}-reliability", f"Reliability diagram, {entry.name}", " ".join(sentences)
        )


def _plot_bins(axes: Axes, state: CalibrationState, name: str, look: Look, *, hollow: bool) -> None:
    bins = state.reliability.bins
    x = [one.mean_prob for one in bins]
    value, low, high = _spread([one.observed for one in bins])
    label = f"{name}: {format_estimate(state.reliability.ece)}"
    axes.vlines(x, low, high, color=look.colour, linewidth=0.8, alpha=0.55)
    axes.plot(x, value, color=look.colour, marker=look.marker, linestyle=look.line, linewidth=1.0, label=label,
              markerfacecolor="white" if hollow else look.colour)  # fmt: skip


def draw_predictive(uses: Sequence[ProbabilityUse], looks: Mapping[str, Look], name: str) -> Drawing:
    """PPV or NPV (`name`: "ppv" or "npv") over prevalence, with bands; the literature's prevalences marked."""
    metric = name.upper()
    with open_figure(4.4, _find_height(uses)) as figure:
        axes = _add_plot(figure, len(uses))
        low_end, high_end = (100 * end for end in uses[0].predictive.band)
        axes.axvspan(low_end, high_end, color=_BAND, alpha=0.3, linewidth=0, zorder=0)
        lowest, sentences = 1.0, []
        for use in reversed(uses):
            points = use.predictive.points
            estimates = [_pick(point, name) for point in points]
            x, spread = [100 * point.prevalence for point in points], _spread(estimates)
            _plot_band(axes, x, spread, looks[use.model], use.model)
            lowest = min(lowest, *(end for end in spread[1] if not math.isnan(end)), 1.0)
            sentences += [
                f"{use.model} at {point.prevalence:.0%}: {format_estimate(_pick(point, name))}."
                for point in points[3::5]
            ]
        bottom = 0.0 if name == "ppv" else min(0.9, max(0.0, math.floor(lowest * 10) / 10))
        axes.set(xlim=(0, 50.5), ylim=(bottom - 0.02 * (1 - bottom), 1 + 0.02 * (1 - bottom)))
        axes.set(xticks=(1, 10, 20, 30, 40, 50), xlabel="Prevalence (%)", ylabel=metric)
        axes.text(
            (low_end + high_end) / 2, bottom, "4–9%", ha="center", va="bottom", fontsize=7, color=_MUTED
        )
        _reverse_legend(axes)
        title = f"{metric} over prevalence"
        return finish_figure(figure, f"predictive-{name}", title, " ".join(sentences))


def _pick(point: PrevalencePoint, name: str) -> Estimate:
    return point.ppv if name == "ppv" else point.npv


def draw_net_benefit(uses: Sequence[ProbabilityUse], looks: Mapping[str, Look]) -> Drawing:
    """Decision curves with bands, between "treat all" and "treat none"; cut below, where nobody would be."""
    first = uses[0].decision
    with open_figure(4.4, _find_height(uses, extra=2)) as figure:
        axes = _add_plot(figure, len(uses) + 2)
        percents = [100 * value for value in first.thresholds]
        axes.plot([0, 50], [0, 0], color=_MUTED, linewidth=0.9, linestyle=":", label="treat none")
        axes.plot(percents, first.treat_all, color=_MUTED, linewidth=0.9, linestyle="--", label="treat all")
        sentences = []
        for use in reversed(uses):
            curve, look = use.decision, looks[use.model]
            _, low, high = _spread([point.net_benefit for point in curve.shown])
            x = [100 * point.threshold for point in curve.shown]
            axes.fill_between(x, low, high, color=look.colour, alpha=_ALPHA, linewidth=0)
            axes.plot(percents, curve.net_benefit, color=look.colour, linestyle=look.line,
                      label=shorten_text(use.model))  # fmt: skip
            sentences += [
                f"{use.model} at {point.threshold:.0%}: {format_estimate(point.net_benefit)}."
                for point in curve.shown[1::2]
            ]
        top = max(use.decision.prevalence for use in uses)
        axes.set(xlim=(0, 50.5), ylim=(-0.2 * top, 1.06 * top))
        axes.set(xlabel="Threshold probability (%)", ylabel="Net benefit a slice")
        _reverse_legend(axes)
        return finish_figure(figure, "net-benefit", "Decision curves", " ".join(sentences))


def _find_height(uses: Sequence[ProbabilityUse], extra: int = 0) -> float:
    return 3.35 + 0.175 * (len(uses) + extra)


def _add_plot(figure: object, lines: int) -> Axes:
    return add_axes(figure, 0.6, 0.55 + 0.175 * lines, 3.65, 2.65)  # type: ignore[arg-type]


def _plot_band(
    axes: Axes, x: Sequence[float], spread: tuple[list[float], ...], look: Look, model: str
) -> None:
    value, low, high = spread
    axes.fill_between(x, low, high, color=look.colour, alpha=_ALPHA, linewidth=0)
    axes.plot(x, value, color=look.colour, linestyle=look.line, label=shorten_text(model))


def _spread(estimates: Sequence[Estimate]) -> tuple[list[float], list[float], list[float]]:
    """Values, low ends and high ends; NaN, which leaves a gap, where there is none."""
    ends = [(one.value, one.low, one.high) for one in estimates]
    value, low, high = (
        [math.nan if end is None else end for end in part] for part in zip(*ends, strict=True)
    )
    return value, low, high


def _add_legend(axes: Axes, title: str, below: float) -> None:
    legend = axes.legend(
        loc="upper left", bbox_to_anchor=(0, below), labelspacing=0.45, title=title, alignment="left"
    )
    legend.get_title().set_fontsize(7.5)


def _reverse_legend(axes: Axes) -> None:
    """Models were drawn last to first, so that the first lies on top; the legend has them in order."""
    handles, labels = axes.get_legend_handles_labels()
    axes.legend(handles[::-1], labels[::-1], loc="upper left", bbox_to_anchor=(0, -0.165), labelspacing=0.45)
