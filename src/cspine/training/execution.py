"""How a network is run while it trains: in fp32 or bf16, compiled or as it is.

What is left open ("auto") follows from device, processor and network by a table, so the same machine always chooses the
same. A run's state keeps the choice: a run that is resumed elsewhere does not choose anew.
"""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Iterator

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from cspine.core.errors import TrainingError
from cspine.experiment import TrainingSettings
from cspine.models.header import Precision
from cspine.training.step import Network

CPU_PRECISIONS: dict[str, Precision] = {"resnet": "bf16", "convnext": "bf16"}
"""By the start of a backbone's name, for CPUs with bf16; any other trains in fp32 there (docs/log.md).

Dense convolutions and matrix products gain from bf16; light networks such as MobileNet wait for memory either way."""

COMPILED_SLICES = 500_000
"""Slices in all epochs from which on "auto" compiles on a GPU: compiling takes minutes."""


class PrecisionChoice(BaseModel):
    """The precision of a training, and why."""

    model_config = ConfigDict(frozen=True)

    precision: Precision
    why: str


class CompileChoice(BaseModel):
    """Whether a training runs the compiled network, and why."""

    model_config = ConfigDict(frozen=True)

    compiled: bool
    why: str


class Execution(BaseModel):
    """What is chosen for the machine at the start of a training."""

    model_config = ConfigDict(frozen=True)

    precision: PrecisionChoice
    compiling: CompileChoice


def choose_execution(
    settings: TrainingSettings, backbone: str, device: torch.device, slices: int
) -> Execution:
    """Choose precision and compiling where the settings leave them open.

    Args:
        settings: Of the training.
        backbone: timm architecture name.
        device: Where the training will run.
        slices: That it will be shown in all its epochs, at most.
    """
    return Execution(
        precision=choose_precision(settings, backbone, device),
        compiling=choose_compiling(settings, device, slices),
    )


def choose_precision(settings: TrainingSettings, backbone: str, device: torch.device) -> PrecisionChoice:
    """Choose fp32 or bf16; see `choose_execution`."""
    if settings.backbone == "frozen":
        return PrecisionChoice(precision="fp32", why="the backbone is frozen, and its head costs nothing")
    if settings.precision != "auto":
        return PrecisionChoice(precision=settings.precision, why="as the experiment says")
    if not has_bf16(device):
        return PrecisionChoice(precision="fp32", why="this processor would have to emulate bf16")
    if device.type != "cpu":
        return PrecisionChoice(precision="bf16", why="this GPU computes in bf16")
    for start, precision in CPU_PRECISIONS.items():
        if backbone.startswith(start):
            return PrecisionChoice(precision=precision, why=f"the faster one for {start}* on CPUs with bf16")
    return PrecisionChoice(precision="fp32", why=f"bf16 is not known to be faster for {backbone} on CPUs")


def has_bf16(device: torch.device) -> bool:
    """Whether CPU (by oneDNN) or GPU has bf16 of its own; else PyTorch emulates it, many times slower."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return device.type != "cpu" or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def choose_compiling(settings: TrainingSettings, device: torch.device, slices: int) -> CompileChoice:
    """Choose whether to compile; see `choose_execution`."""
    if settings.backbone == "frozen":
        return CompileChoice(compiled=False, why="the backbone is frozen, and its head costs nothing")
    if settings.compile != "auto":
        return CompileChoice(compiled=settings.compile == "on", why="as the experiment says")
    if device.type != "cuda":
        return CompileChoice(compiled=False, why="compiling pays on GPUs only")
    if importlib.util.find_spec("triton") is None:
        return CompileChoice(compiled=False, why="PyTorch's compiler needs triton, which is not installed")
    long = slices >= COMPILED_SLICES
    why = f"the training is shown {slices:,} slices; compiling pays from {COMPILED_SLICES:,} on"
    return CompileChoice(compiled=long, why=why)


@contextlib.contextmanager
def open_compiled(module: nn.Module) -> Iterator[Network]:
    """The module compiled, for batches of one shape; what was compiled and its memory are given up at the end.

    Weights, state and checkpoints know nothing of it: it is another way to run the same module.

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
    """Compile by inductor; with CUDA graphs where the weights lie on a GPU."""
    on_gpu = next(module.parameters()).device.type == "cuda"
    compiled: Network = torch.compile(module, dynamic=False, mode="reduce-overhead" if on_gpu else None)
    return compiled
