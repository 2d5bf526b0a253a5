"""What a measurement of speed leaves: rates with their spread, ratios, the machine, the versions and the command."""

from __future__ import annotations

import platform
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict

from cspine.evaluation.estimate import Estimate
from cspine.machine import count_cpus
from cspine.reporting.markdown import render_rows
from cspine.reporting.text import format_estimate

PIPELINE, CEILING, PLAIN = "cspine", "ceiling", "plain"


class Rates(BaseModel):
    """Slices a second of one way of training, one value a repeat, in the order measured."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    slices_per_s: tuple[float, ...]

    @property
    def median(self) -> float:
        """Slices a second."""
        return float(np.median(self.slices_per_s))


class TrainingSpeed(BaseModel):
    """One model: (a) the `ceiling`, (b) `cspine`, (c) the `plain` way, measured in turns.

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
        """The rate of cspine over that of another way, one value a repeat, so that a slow minute strikes both."""
        pairs = zip(self.rates[PIPELINE].slices_per_s, self.rates[below].slices_per_s, strict=True)
        return tuple(ours / other for ours, other in pairs)


class TrainingBench(BaseModel):
    """All of `cspine bench train`: what was run, where, and what it gave."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    command: str
    machine: str
    versions: dict[str, str]
    size_px: tuple[int, int]
    batch_size: dict[str, int]
    batches: int
    models: tuple[TrainingSpeed, ...]


def describe_processor() -> str:
    """Processor, CPUs that may be used, and whether it has bf16 of its own; no name of the machine."""
    text = _read("/proc/cpuinfo")
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    name = found.group(1).strip() if found else platform.processor() or platform.machine()
    kinds = [kind for kind in ("amx_bf16", "avx512_bf16", "avx512f", "avx2") if kind in text]
    return f"{name}, {count_cpus()} CPUs" + (f", {kinds[0]}" if kinds else "")


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError:
        return ""


def format_spread(values: Sequence[float], digits: int = 3) -> str:
    """The median, and the least and the greatest in brackets."""
    low, middle, high = (f"{value:.{digits}g}" for value in np.quantile(values, (0, 0.5, 1)))
    return f"{middle} ({low} to {high})"


def write_training_table(bench: TrainingBench) -> str:
    """The measurement as Markdown: what was run, then one row a model."""
    repeats = len(bench.models[0].rates[PIPELINE].slices_per_s)
    where = f"{bench.machine}; {', '.join(f'{name} {version}' for name, version in bench.versions.items())}."
    how = (
        f"{bench.size_px[0]}x{bench.size_px[1]} px, {bench.batches} batches a repeat, {repeats} repeats in turns; "
        "medians, with the least and the greatest in brackets."
    )
    rows = [_row(model, bench.batch_size[model.model]) for model in bench.models]
    parts = [f"`{bench.command}`", f"{where} {how}", render_rows(_HEAD, rows)]
    return "\n\n".join([*parts, *_describe_accuracy(bench.models)]) + "\n"


_HEAD = (
    "model",
    "precision, batch",
    "(a) ceiling, slices/s",
    "(b) cspine, slices/s",
    "(c) plain, slices/s",
    "b/a",
    "b/c",
)


def _row(model: TrainingSpeed, batch_size: int) -> list[str]:
    return [
        model.model,
        f"{model.precision}, {batch_size}",
        *(format_spread(model.rates[way].slices_per_s) for way in (CEILING, PIPELINE, PLAIN)),
        *(format_spread(model.ratios(way)) for way in (CEILING, PLAIN)),
    ]


def _describe_accuracy(models: Iterable[TrainingSpeed]) -> list[str]:
    return [
        f"{model.model}, accuracy on the selection split after {model.epochs} epochs: "
        + ", ".join(f"{way} {format_estimate(value)}" for way, value in model.accuracy.items())
        + "."
        for model in models
        if model.accuracy
    ]
