"""What a measurement of training speed leaves, as JSON and as a Markdown table; loads no torch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pydantic import BaseModel, ConfigDict

from cspine.bench.results import Rates, RunHead, divide_pairs, format_spread
from cspine.core.estimates import Estimate
from cspine.report.markdown import render_rows
from cspine.report.text import format_estimate

PIPELINE, CEILING, PLAIN = "cspine", "ceiling", "plain"


class TrainingSpeed(BaseModel):
    """One model: (a) the `ceiling`, (b) `cspine`, (c) the `plain` way where it was measured; in turns.

    Attributes:
        precision: Of (a) and (b), and `why`; (c) is fp32.
        rates: By way.
        accuracy: On the selection split after the same number of epochs, of (b) and (c), where that was asked for.
        epochs: That number.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    precision: str
    why: str
    rates: dict[str, Rates]
    accuracy: dict[str, Estimate] = {}
    epochs: int = 0

    def ratios(self, below: str) -> tuple[float, ...]:
        """The rate of cspine over that of another way, one value a repeat."""
        return divide_pairs(self.rates[PIPELINE].slices_per_s, self.rates[below].slices_per_s)


class TrainingBench(RunHead):
    """All of `cspine bench train`: what was run, where, and what it gave."""

    size_px: tuple[int, int]
    batch_size: dict[str, int]
    batches: int
    models: tuple[TrainingSpeed, ...]


def write_training_table(bench: TrainingBench) -> str:
    """The measurement as Markdown: what was run, then one row a model."""
    repeats = len(bench.models[0].rates[PIPELINE].slices_per_s)
    how = (
        f"{bench.size_px[0]}x{bench.size_px[1]} px, {bench.batches} batches a repeat, {repeats} "
        f"{'repeat' if repeats == 1 else 'repeats'} in turns; "
        "medians, with the least and the greatest in brackets."
    )
    ways = [way for way in _LETTERS if way in bench.models[0].rates]
    rows = [_row(model, bench.batch_size[model.model], ways) for model in bench.models]
    parts = [bench.write(how), render_rows(_head(ways), rows)]
    return "\n\n".join([*parts, *_describe_accuracy(bench.models)]) + "\n"


_LETTERS = {CEILING: "a", PIPELINE: "b", PLAIN: "c"}


def _head(ways: Sequence[str]) -> list[str]:
    rates = [f"({_LETTERS[way]}) {way}, slices/s" for way in ways]
    return ["model", "precision, batch", *rates, *(f"b/{_LETTERS[way]}" for way in ways if way != PIPELINE)]


def _row(model: TrainingSpeed, batch_size: int, ways: Sequence[str]) -> list[str]:
    return [
        model.model,
        f"{model.precision}, {batch_size}",
        *(format_spread(model.rates[way].slices_per_s) for way in ways),
        *(format_spread(model.ratios(way)) for way in ways if way != PIPELINE),
    ]


def _describe_accuracy(models: Iterable[TrainingSpeed]) -> list[str]:
    return [
        f"{model.model}, accuracy on the selection split after {model.epochs} epochs: "
        + ", ".join(f"{way} {format_estimate(value)}" for way, value in model.accuracy.items())
        + "."
        for model in models
        if model.accuracy
    ]
