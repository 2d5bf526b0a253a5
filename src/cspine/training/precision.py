"""`precision = "auto"`: a few training steps in each precision, measured, and the faster one is taken.

Which is faster depends on the network, the size of its input and the processor (docs/benchmarks.md), so it is measured
and not looked up. A checkpoint and a run's state hold what was chosen and why; a run that goes on never measures again.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

import torch
from pydantic import BaseModel, ConfigDict

from cspine.experiment import TrainingSettings
from cspine.machine import hold_memory
from cspine.models.classifier import FractureClassifier
from cspine.models.header import Precision
from cspine.training.probe import MARGIN, Clock, Probe

ROUNDS = 4
"""Timed steps in each precision, in turns; the fastest counts, as other work on the machine only ever adds time."""

HOPELESS = 2.0
"""A precision that is this much slower in a round is not measured again."""

FEW_SLICES = 2
"""The first round, which also prepares kernels, is this small: where bf16 is slow, it is very slow."""


class PrecisionChoice(BaseModel):
    """The precision of a training, and why; `slices_per_s` is what the probe measured, empty where none ran."""

    model_config = ConfigDict(frozen=True)

    precision: Precision
    why: str
    slices_per_s: dict[Precision, float] = {}


def choose_precision(
    model: FractureClassifier,
    settings: TrainingSettings,
    size_px: tuple[int, int],
    device: torch.device,
    *,
    clock: Clock = time.perf_counter,
) -> PrecisionChoice:
    """The precision that the settings name or, for "auto", the faster one for this model, batch, size and device.

    Args:
        model: Is copied: neither its weights nor its running statistics change, nor does the random state.
        settings: Of the training: precision, batch size and optimizer.
        size_px: (height, width) of a slice.
        device: Where the training will run.
        clock: Seconds, from any start.
    """
    if settings.backbone == "frozen":
        return PrecisionChoice(precision="fp32", why="the backbone is frozen, and its head costs nothing")
    if settings.precision != "auto":
        return PrecisionChoice(precision=settings.precision, why="as the experiment says")
    if not has_bf16(device):
        return PrecisionChoice(precision="fp32", why="this processor would have to emulate bf16")
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        speeds = measure_precisions(model, settings, size_px, device, clock)
    return explain_choice(speeds, settings.batch_size, size_px)


def has_bf16(device: torch.device) -> bool:
    """Whether CPU (by oneDNN) or GPU has bf16 of its own; else PyTorch emulates it, many times slower."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return device.type != "cpu" or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


@hold_memory()
def measure_precisions(
    model: FractureClassifier,
    settings: TrainingSettings,
    size_px: tuple[int, int],
    device: torch.device,
    clock: Clock,
) -> dict[Precision, float]:
    """Slices a second of forward, backward and step in each precision."""
    probe = Probe(model, settings, size_px, device, clock)
    few = min(FEW_SLICES, settings.batch_size)
    both: tuple[Precision, ...] = ("fp32", "bf16")
    for precision in both:
        probe.step(precision, few)
    best = {precision: probe.step(precision, few) for precision in both}
    for number in range(ROUNDS):
        if max(best.values()) >= HOPELESS * min(best.values()):
            break
        speeds = {precision: probe.step(precision, settings.batch_size) for precision in both}
        best = speeds if number == 0 else {name: max(best[name], speed) for name, speed in speeds.items()}
    return best


def explain_choice(
    speeds: Mapping[Precision, float], batch_size: int, size_px: tuple[int, int]
) -> PrecisionChoice:
    """bf16, which has three digits, where it is `MARGIN` times as fast, else fp32; with the speeds in words."""
    wins = speeds["bf16"] >= MARGIN * speeds["fp32"]
    why = (
        f"measured bf16 {speeds['bf16']:.3g} and fp32 {speeds['fp32']:.3g} slices/s, batch {batch_size} at most, "
        f"{size_px[0]}x{size_px[1]} px; bf16 has to be {MARGIN:g} times as fast"
    )
    return PrecisionChoice(precision="bf16" if wins else "fp32", why=why, slices_per_s=dict(speeds))
