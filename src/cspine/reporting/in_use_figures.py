"""Figures of probabilities in use: reliability, predictive values over prevalence, decision curves."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes

from cspine.evaluation.clinical import PrevalencePoint
from cspine.evaluation.estimate import Estimate
from cspine.evaluation.in_use import CalibrationState, ProbabilityUse
from cspine.reporting.figures import Entry
from cspine.reporting.in_use import UNCALIBRATED
from cspine.reporting.svg import Drawing, Look, add_axes, finish_figure, open_figure
from cspine.reporting.text import format_estimate, format_value, shorten_text

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
