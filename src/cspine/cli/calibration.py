"""`cspine evaluate --calibrate-on`: thresholds and calibrations from other predictions, in the terminal."""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cspine.core.errors import PredictionsError
from cspine.metrics.calibration import name_rule
from cspine.metrics.clinical import ProbabilityUse, assess_use
from cspine.metrics.intervals import IntervalOptions
from cspine.report.calibration import UNCALIBRATED, describe_fit, format_threshold
from cspine.report.text import format_estimate, format_value


def assess_tables(
    tables: Sequence[pl.DataFrame],
    selections: Sequence[pl.DataFrame],
    threshold: float,
    options: IntervalOptions,
) -> list[ProbabilityUse]:
    """Assess each table with the selection predictions of its own checkpoint.

    Args:
        tables: What is evaluated.
        selections: One for each checkpoint.
        threshold, options: See `assess_use`.

    Raises:
        PredictionsError: a table without, or a selection too many; else as `assess_use`.
    """
    by_origin = {_find_origin(selection): selection for selection in selections}
    if len(by_origin) < len(selections) or set(by_origin) - set(map(_find_origin, tables)):
        raise PredictionsError(
            "the predictions to calibrate on are not one table for each checkpoint that is evaluated",
            where="--calibrate-on",
            fix="name one for each, by the same checkpoint, and no others",
        )
    found = []
    for table in tables:
        selection = by_origin.get(_find_origin(table))
        if selection is None:
            raise PredictionsError(
                "none of the predictions to calibrate on is by this model's checkpoint",
                where=f"model {table['model'][0]}",
                fix="predict the validation split with the same checkpoint, and name it with --calibrate-on",
            )
        found.append(assess_use(table, selection, threshold, options))
    return found


def _find_origin(table: pl.DataFrame) -> tuple[str, str]:
    return str(table["model"][0]), str(table["checkpoint_hash"][0])


def show_uses(uses: Sequence[ProbabilityUse]) -> None:
    """Operating points and ECE of each model; everything else is in the JSON."""
    console = Console()
    for use in uses:
        title = f"{use.model}: chosen and fitted on {use.fitted_on}, shown on {use.split}"
        points = Table(title=escape(title), title_justify="left", box=box.SIMPLE)
        points.add_column("threshold by")
        for name in ("at", "recall", "specificity"):
            points.add_column(name, justify="right")
        for found in use.points:
            cells = (format_estimate(found.metrics[name]) for name in ("recall", "specificity"))
            threshold = format_threshold(found.point.threshold)
            points.add_row(name_rule(found.point.rule, found.point.target), threshold, *map(escape, cells))
        console.print(points)
        for state in use.states:
            name = describe_fit(state.fit) if state.fit else UNCALIBRATED
            chance = f"by chance {format_value(state.reliability.ece_by_chance)}"
            console.print(
                f"ECE {name}: {format_estimate(state.reliability.ece)} ({chance})",
                markup=False,
                highlight=False,
            )
        for note in use.notes:
            console.print(f"note: {note}", markup=False, highlight=False)
