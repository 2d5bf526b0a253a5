"""`compile = "auto"`: on a GPU, whether PyTorch's compiler with CUDA graphs pays for this training, measured.

A step of a small network is hundreds of short kernels, and a GPU waits for the host to start each. Compiled they are
fewer, and a CUDA graph starts all of them at once. Compiling takes minutes, so short trainings do without.

The compiled network is another way to run the same module: weights, state and checkpoints know nothing of it. It is
used for training batches of the full size only. The last, smaller batch of an epoch and the validation run the module
as it is, so that no other shape is ever compiled.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from cspine.errors import TrainingError
from cspine.experiment import TrainingSettings
from cspine.models.classifier import FractureClassifier
from cspine.models.header import Precision
from cspine.training.probe import MARGIN, Clock, Probe
from cspine.training.step import Network

LONG_S = 600.0
"""A training that takes less than that without is not compiled."""

WARM_UP_STEPS = 4
"""The first compiles, the next two record graphs."""

ROUNDS, STEPS_A_ROUND = 3, 10


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
            pairs = [(time_steps(compiled), time_steps()) for _ in range(ROUNDS)]
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
