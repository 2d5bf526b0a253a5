"""`precision = "auto"`: measured with a clock that is told what each step takes."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from cspine.experiment import TrainingSettings
from cspine.models.classifier import FractureClassifier, build_classifier
from cspine.models.header import HeadKind, ModelSpec
from cspine.preprocess import Scale
from cspine.training import speed as precision_module
from cspine.training.speed import PrecisionChoice, choose_precision, has_bf16

SPEC = ModelSpec(name="small", backbone="test_resnet", head=HeadKind.SOFTMAX)
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _processor_with_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision_module, "has_bf16", lambda _: True)


@pytest.fixture(scope="module")
def model() -> FractureClassifier:
    return build_classifier(SPEC, Scale(), seed=3)


def make_clock(fp32_s: Iterator[float], bf16_s: Iterator[float]) -> tuple[Callable[[], float], list[float]]:
    """A clock for steps in turns, fp32 first; it is read at the start and at the end of each. Also: what it gave."""
    given: list[float] = []
    now = 100.0
    turn = -1

    def read() -> float:
        nonlocal now, turn
        turn += 1
        if turn % 2:
            took = next(fp32_s if turn % 4 == 1 else bf16_s)
            given.append(took)
            now += took
        return now

    return read, given


def choose(
    model: FractureClassifier, fp32_s: list[float], bf16_s: list[float]
) -> tuple[PrecisionChoice, int]:
    clock, given = make_clock(iter(fp32_s), iter(bf16_s))
    settings = TrainingSettings(precision="auto", batch_size=8)
    return choose_precision(model, settings, (32, 32), CPU, clock=clock), len(given)


def test_the_faster_precision_is_taken_by_its_fastest_step_and_says_what_was_measured(
    model: FractureClassifier,
) -> None:
    # Two steps of two slices each do not count; of four of the whole batch, the fastest does.
    choice, steps = choose(model, [9, 1, 2.0, 2.5, 9.0, 2.0], [9, 1, 1.5, 1.25, 1.3, 8.0])
    assert choice.precision == "bf16"
    assert choice.slices_per_s == {"fp32": 4.0, "bf16": 6.4}
    assert choice.why == (
        "measured bf16 6.4 and fp32 4 slices/s, batch 8 at most, 32x32 px; bf16 has to be 1.1 times as fast"
    )
    assert steps == 12


@pytest.mark.parametrize(("bf16_s", "wanted"), [(0.95, "fp32"), (0.9, "bf16"), (1.2, "fp32")])
def test_bf16_has_to_be_clearly_faster(model: FractureClassifier, bf16_s: float, wanted: str) -> None:
    choice, _ = choose(model, [1.0] * 6, [bf16_s] * 6)
    assert choice.precision == wanted


def test_a_precision_that_is_hopeless_with_few_slices_is_not_measured_again(
    model: FractureClassifier,
) -> None:
    choice, steps = choose(model, [1.0, 1.0], [60.0, 30.0])
    assert (choice.precision, steps) == ("fp32", 4)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_precision_that_is_named_is_taken_unmeasured(model: FractureClassifier, precision: Any) -> None:
    def refuse() -> float:
        pytest.fail("it measured")

    choice = choose_precision(model, TrainingSettings(precision=precision), (32, 32), CPU, clock=refuse)
    assert choice == PrecisionChoice(precision=precision, why="as the experiment says")


def test_measuring_changes_neither_weights_nor_running_statistics_nor_the_random_state(
    model: FractureClassifier,
) -> None:
    before = copy.deepcopy(model.state_dict())
    torch.manual_seed(1)
    wanted = torch.rand(3)
    torch.manual_seed(1)
    choice = choose_precision(model, TrainingSettings(precision="auto", batch_size=4), (32, 32), CPU)
    assert torch.equal(torch.rand(3), wanted)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(math.isfinite(speed) and speed > 0 for speed in choice.slices_per_s.values())


def test_a_processor_that_emulates_bf16_is_not_asked_to(
    model: FractureClassifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision_module, "has_bf16", lambda _: False)
    choice, steps = choose(model, [], [])
    assert (choice.precision, steps) == ("fp32", 0)
    assert "emulate" in choice.why


@pytest.mark.parametrize("own", [True, False])
def test_a_gpu_is_asked_for_bf16_that_it_does_not_emulate(own: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation: including_emulation or own
    )
    assert has_bf16(torch.device("cuda")) == own
