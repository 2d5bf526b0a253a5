"""Precision and compiling follow from settings, device and network."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest
import torch

from cspine.experiment import TrainingSettings
from cspine.models.header import ZOO
from cspine.training import execution
from cspine.training.execution import (
    COMPILED_SLICES,
    CompileChoice,
    PrecisionChoice,
    choose_compiling,
    choose_execution,
    choose_precision,
    has_bf16,
)

CPU, GPU = torch.device("cpu"), torch.device("cuda")
AUTO = TrainingSettings(precision="auto", compile="auto")


@pytest.fixture(autouse=True)
def _processor_with_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(execution, "has_bf16", lambda _: True)


@pytest.mark.parametrize(
    ("model", "wanted"), [("mobilenetv2", "fp32"), ("resnet50", "bf16"), ("convnext_tiny", "bf16")]
)
def test_auto_precision_follows_from_the_network(model: str, wanted: str) -> None:
    chosen = choose_precision(AUTO, ZOO[model].backbone, CPU)
    assert chosen.precision == wanted
    assert chosen == choose_execution(AUTO, ZOO[model].backbone, CPU, 100).precision


def test_unknown_networks_train_in_fp32_on_cpus_only() -> None:
    assert choose_precision(AUTO, "vit_tiny", CPU).precision == "fp32"
    assert choose_precision(AUTO, "vit_tiny", GPU).precision == "bf16"


@pytest.mark.parametrize("device", [CPU, GPU])
def test_a_processor_that_emulates_bf16_trains_in_fp32(
    device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(execution, "has_bf16", lambda _: False)
    chosen = choose_precision(AUTO, "resnet50", device)
    assert chosen.precision == "fp32"
    assert "emulate" in chosen.why


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_named_precision_is_taken(precision: Any) -> None:
    chosen = choose_precision(TrainingSettings(precision=precision), "resnet50", CPU)
    assert chosen == PrecisionChoice(precision=precision, why="as the experiment says")


@pytest.mark.parametrize("own", [True, False])
def test_a_gpu_is_asked_for_bf16_that_it_does_not_emulate(own: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation: including_emulation or own
    )
    assert has_bf16(GPU) == own


@pytest.mark.parametrize(
    ("options", "compiled", "why"),
    [
        ({"compile": "on"}, True, "as the experiment says"),
        ({}, False, "as the experiment says"),
        ({"compile": "auto"}, False, "compiling pays on GPUs only"),
        (
            {"compile": "on", "backbone": "frozen"},
            False,
            "the backbone is frozen, and its head costs nothing",
        ),
    ],
)
def test_compiling_on_a_cpu_is_as_the_settings_say(options: dict[str, Any], compiled: bool, why: str) -> None:
    choice = choose_compiling(TrainingSettings(**options), CPU, 10**9)
    assert choice == CompileChoice(compiled=compiled, why=why)


@pytest.mark.parametrize(
    ("slices", "triton", "wanted"),
    [(COMPILED_SLICES, True, True), (COMPILED_SLICES - 1, True, False), (COMPILED_SLICES, False, False)],
)
def test_long_trainings_are_compiled_on_a_gpu(
    slices: int, triton: bool, wanted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: object() if triton else None)
    assert choose_compiling(AUTO, GPU, slices).compiled == wanted
