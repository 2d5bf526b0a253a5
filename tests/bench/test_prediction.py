"""Prediction speed: every way is measured, ratios are taken within a repeat, and the table says them."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import numpy as np
import pytest

from cspine.bench import prediction
from cspine.bench.prediction_results import (
    ONNX_RUNTIME,
    OPENVINO,
    OPENVINO_INT8,
    PLAIN_TORCH,
    TORCH,
    EngineSpeed,
    PredictionBench,
    PredictionSpeed,
    write_prediction_table,
)
from cspine.bench.results import Rates
from cspine.inference.predictor import Predictor
from cspine.models.checkpoint import write_checkpoint
from cspine.models.classifier import build_classifier
from cspine.models.header import CheckpointHeader, resolve_spec
from cspine.preprocess import Recipe, Resize
from tests.commands import run_here


def make_speed(**rates: tuple[float, ...]) -> PredictionSpeed:
    names = {"plain": PLAIN_TORCH, "torch": TORCH, "onnx": ONNX_RUNTIME, "openvino": OPENVINO}
    return PredictionSpeed(
        model="m",
        ways={
            names[way]: EngineSpeed(
                about="a", rates=Rates(slices_per_s=values), latency_ms=(1.0, 2.0, 3.0), start_up_s=(0.5,)
            )
            for way, values in rates.items()
        },
    )


def test_a_ratio_is_taken_within_its_repeat_and_stands_in_the_table() -> None:
    speed = make_speed(plain=(5.0, 60.0), torch=(10.0, 100.0), onnx=(20.0, 100.0), openvino=(40.0, 300.0))
    assert speed.ratios(OPENVINO, TORCH) == (4.0, 3.0)
    assert speed.ratios(OPENVINO, ONNX_RUNTIME) == (2.0, 3.0)
    bench = PredictionBench(
        command="c",
        machine="x",
        versions={"torch": "1"},
        size_px=(8, 8),
        batch_size=16,
        batches=2,
        models=(speed,),
    )
    table = write_prediction_table(bench)
    ratios = "6.5 (5 to 8) | 3.5 (3 to 4) | 2.5 (2 to 3)"
    assert f"| m | OpenVINO fp32 | 170 (40 to 300) | {ratios} | 2.0, 2.9 | 0.5 (0.5 to 0.5) |" in table


@pytest.mark.slow
def test_the_command_measures_every_way_of_a_small_model(tmp_path: Path) -> None:
    output = tmp_path / "p.json"
    counts = ["--batches", "2", "--batch-size", "4", "--repeats", "2", "--singles", "3", "--starts", "1"]
    done = run_here("bench", "predict", "test_resnet", "--size-px", "32", *counts, "-o", output)
    assert done.returncode == 0, done.stderr
    (model,) = json.loads(output.read_text())["models"]
    assert {PLAIN_TORCH, TORCH, ONNX_RUNTIME, OPENVINO, OPENVINO_INT8} <= set(model["ways"])
    for way in model["ways"].values():
        assert len(way["rates"]["slices_per_s"]) == 2
        assert len(way["latency_ms"]) == 3
        assert min(*way["rates"]["slices_per_s"], *way["latency_ms"], *way["start_up_s"]) > 0
    assert [name for name, way in model["ways"].items() if not way["start_up_s"]] == [PLAIN_TORCH]
    assert "| test_resnet | OpenVINO int8 |" in done.stdout


def test_torch_as_it_comes_holds_no_memory_and_answers_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = Recipe(steps=(Resize(height_px=32, width_px=32),))
    spec = resolve_spec("test_resnet")
    header = CheckpointHeader(spec=spec, recipe=recipe, manifest_hash="none", weights="none")
    path = tmp_path / "model.safetensors"
    write_checkpoint(path, build_classifier(spec, recipe.scale, seed=0), header)
    held: list[str] = []
    monkeypatch.setattr(
        "cspine.inference.torch_engine.hold_memory", lambda: contextlib.nullcontext(held.append("held"))
    )
    pixels = np.random.default_rng(0).integers(0, 256, (3, 32, 32), np.uint8)
    as_it_comes = prediction._load(prediction._Way(PLAIN_TORCH, path, "torch"))
    as_it_comes.batch_size = 2
    found = as_it_comes.predict_pixels(pixels)
    assert held == []
    predictor = Predictor.load(path, device="cpu")
    np.testing.assert_allclose(predictor.predict_pixels(pixels), found, rtol=1e-6)
    assert held == []  # fewer than a batch
    predictor.batch_size = 2  # smaller than what suits the engine, and more than one
    np.testing.assert_array_equal(predictor.predict_pixels(pixels), found)
    assert held == ["held"]
    predictor.runtime.batch_size = 2
    np.testing.assert_array_equal(predictor.predict_pixels(pixels), found)
    assert held == ["held", "held"]
