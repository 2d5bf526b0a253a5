"""`compile = "auto"`: measured with a clock that is told what each step takes, by a stand-in for the compiler."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cspine.experiment import TrainingSettings
from cspine.models.classifier import FractureClassifier, build_classifier
from cspine.models.header import HeadKind, ModelSpec
from cspine.preprocess import Scale
from cspine.training import speed as compiling
from cspine.training.speed import CompileChoice, Probe, choose_compiling, measure_compiling
from cspine.training.step import Network

SPEC = ModelSpec(name="small", backbone="test_resnet", head=HeadKind.SOFTMAX)
CPU = torch.device("cpu")
SETTINGS = TrainingSettings(compile="auto", batch_size=2)
MANY = 10**9


@pytest.fixture(autouse=True)
def _no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.compiler, "reset", lambda: None)  # would import all of it


@pytest.fixture(scope="module")
def model() -> FractureClassifier:
    return build_classifier(SPEC, Scale(), seed=3)


class Machine:
    """Each call of the network takes so many seconds: compiled, or as it is."""

    def __init__(self, model: FractureClassifier, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s, self.plain_s, self.compiled_s = 0.0, 1.0, 1.0
        self.probe = Probe(model, SETTINGS, (16, 16), CPU, lambda: self.now_s)
        self.probe.network.register_forward_hook(lambda *_: self.spend(self.plain_s))
        monkeypatch.setattr(compiling, "compile_module", self.compile)
        monkeypatch.setattr(compiling, "STEPS_A_ROUND", 1)

    def spend(self, seconds: float) -> None:
        self.now_s += seconds

    def compile(self, module: nn.Module) -> Network:
        def run(inputs: Tensor) -> Tensor:
            self.spend(self.compiled_s - self.plain_s)
            return module(inputs)

        return run

    def choose(self, slices: int = MANY) -> CompileChoice:
        return measure_compiling(self.probe, SETTINGS, "fp32", slices)


@pytest.mark.parametrize(("compiled_s", "wanted"), [(0.5, True), (0.95, False), (2.0, False)])
def test_compiled_has_to_be_clearly_faster(
    model: FractureClassifier, monkeypatch: pytest.MonkeyPatch, compiled_s: float, wanted: bool
) -> None:
    machine = Machine(model, monkeypatch)
    machine.compiled_s = compiled_s
    choice = machine.choose()
    assert choice.compiled == wanted
    assert choice.slices_per_s == pytest.approx({"compiled": 2 / compiled_s, "plain": 2.0})


def test_a_short_training_is_not_compiled(model: FractureClassifier, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(model, monkeypatch)
    monkeypatch.setattr(compiling, "compile_module", lambda _: pytest.fail("it compiled"))
    choice = machine.choose(slices=1198)  # at 2 slices a second
    assert choice == CompileChoice(
        compiled=False, why="the training takes 599 s at most without, less than 600 s"
    )


def test_a_compiler_that_fails_leaves_the_network_as_it_is(
    model: FractureClassifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = Machine(model, monkeypatch)

    def refuse(_: nn.Module) -> Network:
        raise OSError("no C++ compiler")

    monkeypatch.setattr(compiling, "compile_module", refuse)
    assert machine.choose() == CompileChoice(compiled=False, why="compiling failed (OSError)")


@pytest.mark.parametrize(
    ("options", "compiled", "why"),
    [
        ({"compile": "on"}, True, "as the experiment says"),
        ({}, False, "as the experiment says"),
        ({"compile": "auto"}, False, "it is tried on GPUs only"),
        (
            {"compile": "on", "backbone": "frozen"},
            False,
            "the backbone is frozen, and its head costs nothing",
        ),
    ],
)
def test_nothing_is_measured_where_that_is_known(
    model: FractureClassifier, options: dict[str, Any], compiled: bool, why: str
) -> None:
    choice = choose_compiling(model, TrainingSettings(**options), "fp32", (16, 16), CPU, MANY)
    assert choice == CompileChoice(compiled=compiled, why=why)
