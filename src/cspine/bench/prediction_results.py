"""What a measurement of prediction speed leaves, as JSON and as a Markdown table; loads no torch."""

from __future__ import annotations

import numpy as np
from pydantic import BaseModel, ConfigDict

from cspine.bench.results import Rates, RunHead, divide_pairs, format_spread
from cspine.report.markdown import render_rows

PLAIN_TORCH, TORCH, ONNX_RUNTIME = "torch fp32 as it comes", "torch fp32", "ONNX Runtime fp32"
OPENVINO, OPENVINO_BF16, OPENVINO_INT8 = "OpenVINO fp32", "OpenVINO bf16", "OpenVINO int8"


class EngineSpeed(BaseModel):
    """One way to run one model.

    Attributes:
        about: What the engine says of itself.
        rates: Slices a second in batches.
        latency_ms: Of one slice alone, each time.
        start_up_s: From the start of the program to the first answer, in fresh processes; empty where nothing but
            another way's would be measured.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    about: str
    rates: Rates
    latency_ms: tuple[float, ...]
    start_up_s: tuple[float, ...]


class PredictionSpeed(BaseModel):
    """One model; `ways` in the order measured."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    ways: dict[str, EngineSpeed]

    def ratios(self, way: str, below: str) -> tuple[float, ...]:
        """The rate of one way over that of another, one value a repeat."""
        return divide_pairs(self.ways[way].rates.slices_per_s, self.ways[below].rates.slices_per_s)


class PredictionBench(RunHead):
    """All of `cspine bench predict`: what was run, where, and what it gave."""

    size_px: tuple[int, int]
    batch_size: int
    batches: int
    models: tuple[PredictionSpeed, ...]


def write_prediction_table(bench: PredictionBench) -> str:
    """The measurement as Markdown: what was run, then a row a model and way."""
    repeats = len(bench.models[0].ways[TORCH].rates.slices_per_s)
    how = (
        f"{bench.size_px[0]}x{bench.size_px[1]} px, batches of {bench.batch_size}, {bench.batches} batches a repeat, "
        f"{repeats} repeats in turns in one process; medians, with the least and the greatest in brackets. Weights are "
        "random, and int8 is calibrated on noise: that does not change its speed, and of answers nothing is said here. "
        f"{TORCH} is as cspine runs it; {PLAIN_TORCH} is the same network without `machine.hold_memory`."
    )
    rows = [_row(model, way) for model in bench.models for way in model.ways]
    return "\n\n".join([bench.write(how), render_rows(_HEAD, rows)]) + "\n"


_HEAD = (
    "model",
    "way",
    "slices/s",
    f"over {PLAIN_TORCH}",
    f"over {TORCH}",
    f"over {ONNX_RUNTIME}",
    "one slice, ms: p50, p95",
    "start to first answer, s",
)


def _row(model: PredictionSpeed, way: str) -> list[str]:
    found = model.ways[way]
    ratios = [
        format_spread(model.ratios(way, below)) if below in model.ways and below != way else ""
        for below in (PLAIN_TORCH, TORCH, ONNX_RUNTIME)
    ]
    low, high = np.quantile(found.latency_ms, (0.5, 0.95))
    return [
        model.model,
        way,
        format_spread(found.rates.slices_per_s),
        *ratios,
        f"{low:.1f}, {high:.1f}",
        format_spread(found.start_up_s) if found.start_up_s else "",
    ]
