"""Training steps that are timed and change nothing: what choices are measured with."""

from __future__ import annotations

import contextlib
import copy
import time
from collections.abc import Callable, Iterator, Mapping

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from cspine.core.errors import TrainingError
from cspine.core.machine import hold_memory
from cspine.experiment import TrainingSettings
from cspine.models.classifier import FractureClassifier
from cspine.models.header import Precision
from cspine.training.step import Network, Stepper, make_optimizer

MARGIN = 1.1
"""What costs something, such as digits, has to be this many times as fast."""

Clock = Callable[[], float]


class Probe:
    """Steps of a copy of a model, on random pixels that lie on the device.

    Args:
        model: Is copied.
        settings: Of the training: batch size and optimizer.
        size_px: (height, width) of a slice.
        device: Where the training will run.
        clock: Seconds, from any start.
    """

    def __init__(
        self,
        model: FractureClassifier,
        settings: TrainingSettings,
        size_px: tuple[int, int],
        device: torch.device,
        clock: Clock,
    ) -> None:
        self.network: nn.Module = (
            copy.deepcopy(model).to(device).to(memory_format=torch.channels_last).train()
        )
        optimizer = make_optimizer(self.network, settings)
        precisions: tuple[Precision, ...] = ("fp32", "bf16")
        self._steppers = {
            precision: Stepper(self.network, optimizer, settings, precision, device)
            for precision in precisions
        }
        self._pixels = 255 * torch.rand((settings.batch_size, 1, *size_px), device=device)
        self._labels = (torch.arange(settings.batch_size, device=device) % 2).float()
        self._clock = clock

    def step(
        self, precision: Precision, count: int, *, network: Network | None = None, steps: int = 1
    ) -> float:
        """Slices a second of `steps` steps with `count` slices; `network` may be another way to run the same one."""
        started = self._clock()
        for _ in range(steps):
            _, loss = self._steppers[precision].take(
                network or self.network, self._pixels[:count], self._labels[:count]
            )
        loss.item()  # waits for a GPU
        return steps * count / max(self._clock() - started, 1e-9)


# `precision = "auto"`: a few training steps in each precision, measured, and the faster one is taken.
#
# Which is faster depends on the network, the size of its input and the processor (docs/benchmarks.md), so it is
# measured
# and not looked up. A checkpoint and a run's state hold what was chosen and why; a run that goes on never measures
# again.


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


# `compile = "auto"`: on a GPU, whether PyTorch's compiler with CUDA graphs pays for this training, measured.
#
# A step of a small network is hundreds of short kernels, and a GPU waits for the host to start each. Compiled they
# are
# fewer, and a CUDA graph starts all of them at once. Compiling takes minutes, so short trainings do without.
#
# The compiled network is another way to run the same module: weights, state and checkpoints know nothing of it. It is
# used for training batches of the full size only. The last, smaller batch of an epoch and the validation run the
# module
# as it is, so that no other shape is ever compiled.


LONG_S = 600.0
"""A training that takes less than that without is not compiled."""

WARM_UP_STEPS = 4
"""The first compiles, the next two record graphs."""

COMPILING_ROUNDS, STEPS_A_ROUND = 3, 10


class CompileChoice(BaseModel):
    """Whether a training runs the compiled network, and why; `slices_per_s` is empty where nothing was measured."""

    model_config = ConfigDict(frozen=True)

    compiled: bool
    why: str
    slices_per_s: dict[str, float] = {}


def choose_compiling(
    model: FractureClassifier,
    settings: TrainingSettings,
    precision: Precision,
    size_px: tuple[int, int],
    device: torch.device,
    slices: int,
    *,
    clock: Clock = time.perf_counter,
) -> CompileChoice:
    """What the settings say or, for "auto" on a GPU, whether it is clearly faster and the training is long.

    Args:
        model: Is copied: neither its weights nor its running statistics change, nor does the random state.
        settings: Of the training.
        precision: That it will run in.
        size_px: (height, width) of a slice.
        device: Where it will run.
        slices: That it will be shown in all its epochs, at most.
        clock: Seconds, from any start.
    """
    if settings.backbone == "frozen":
        return CompileChoice(compiled=False, why="the backbone is frozen, and its head costs nothing")
    if settings.compile != "auto":
        return CompileChoice(compiled=settings.compile == "on", why="as the experiment says")
    if device.type != "cuda":
        return CompileChoice(compiled=False, why="it is tried on GPUs only")
    with torch.random.fork_rng(devices=[device]):
        return measure_compiling(Probe(model, settings, size_px, device, clock), settings, precision, slices)


def measure_compiling(
    probe: Probe, settings: TrainingSettings, precision: Precision, slices: int
) -> CompileChoice:
    """Time steps of the module and, where the training would be long, of the compiled one beside it, in turns."""

    def time_steps(network: Network | None = None, steps: int = STEPS_A_ROUND) -> float:
        return probe.step(precision, settings.batch_size, network=network, steps=steps)

    time_steps(steps=WARM_UP_STEPS)
    plain = time_steps()
    if slices / plain < LONG_S:
        return CompileChoice(
            compiled=False,
            why=f"the training takes {slices / plain:.0f} s at most without, less than {LONG_S:.0f} s",
        )
    try:
        with open_compiled(probe.network) as compiled:
            time_steps(compiled, WARM_UP_STEPS)
            pairs = [(time_steps(compiled), time_steps()) for _ in range(COMPILING_ROUNDS)]
    except (
        Exception
    ) as error:  # the compiler's errors are of many kinds, and none of them stops a training without it
        return CompileChoice(compiled=False, why=f"compiling failed ({type(error).__name__})")
    fast, plain = max(pair[0] for pair in pairs), max(pair[1] for pair in pairs)
    why = (
        f"measured compiled {fast:.3g} and as it is {plain:.3g} slices/s, batch {settings.batch_size}; compiled has to "
        f"be {MARGIN:g} times as fast"
    )
    return CompileChoice(
        compiled=fast >= MARGIN * plain, why=why, slices_per_s={"compiled": fast, "plain": plain}
    )


@contextlib.contextmanager
def open_compiled(module: nn.Module) -> Iterator[Network]:
    """The module compiled, for batches of one shape; what was compiled and its memory are given up at the end.

    Raises:
        TrainingError: there is no compiler, or it does not take this network.
    """
    network = compile_module(module)
    done = False

    def run(inputs: Tensor) -> Tensor:
        nonlocal done
        if inputs.device.type == "cuda":  # the graph's outputs of the step before may be written over
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        if done:
            return network(inputs)
        try:
            outputs = network(inputs)
        except Exception as error:
            raise TrainingError(
                f"the network cannot be compiled here ({type(error).__name__})",
                where='training.compile = "on"',
                fix='set training.compile to "off"',
            ) from error
        done = True
        return outputs

    try:
        yield run
    finally:
        torch.compiler.reset()


def compile_module(module: nn.Module) -> Network:
    """By inductor; with CUDA graphs where the weights lie on a GPU."""
    on_gpu = next(module.parameters()).device.type == "cuda"
    compiled: Network = torch.compile(module, dynamic=False, mode="reduce-overhead" if on_gpu else None)
    return compiled
