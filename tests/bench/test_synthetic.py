"""Training speed on random pixels: both ways are measured, and without a GPU the script says so and ends well."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest
import torch

from cspine.bench.synthetic import measure_synthetic
from cspine.bench.training_results import CEILING, PIPELINE, write_training_table
from cspine.experiment import Experiment
from cspine.training import speed as compiling

SCRIPT = Path(__file__).parents[2] / "benchmarks/train_gpu.py"
EXPERIMENT = Experiment.model_validate(
    {
        "name": "t",
        "title": "T",
        "preprocess": {"image_size_px": 32},
        "models": {"small": {"backbone": "test_resnet", "weights": "none"}},
    }
)


@pytest.mark.parametrize("on", [False, True])
def test_both_ways_are_measured_in_turns_and_tabulated(on: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    monkeypatch.setattr(
        compiling, "compile_module", lambda module: lambda one: seen.append(len(one)) or module(one)
    )
    monkeypatch.setattr(torch.compiler, "reset", lambda: None)  # would import all of it
    repeats = 1 if on else 2
    measured = measure_synthetic(
        EXPERIMENT, batch_size=4, batches=2, repeats=repeats, compiling="on" if on else "off", command="c"
    )
    (speed,) = measured.models
    assert [len(speed.rates[way].slices_per_s) for way in (PIPELINE, CEILING)] == [repeats, repeats]
    # Two epochs of two batches; four steps before the clock starts, and two.
    assert seen == ([4] * (4 + 6) if on else [])
    table = write_training_table(measured)
    assert "| (a) ceiling, slices/s | (b) cspine, slices/s | b/a |" in table
    assert f"| small | fp32{' compiled' if on else ''}, 4 |" in table


def test_without_a_gpu_the_script_says_so_and_measures_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", [str(SCRIPT)])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    assert capsys.readouterr().out == "no CUDA GPU here: nothing was measured\n"
