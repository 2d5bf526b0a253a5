"""An exported file answers as its checkpoint does, carries all that it said, or is not there."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from cspine.core.errors import CheckpointError, ExportError, InputError
from cspine.core.predictions import read_predictions
from cspine.data.layouts import import_dataset
from cspine.data.manifest import Manifest
from cspine.inference.engines import import_openvino, read_openvino, read_record
from cspine.inference.export import ExportPlan, export_checkpoint, quantise
from cspine.inference.gate import Bounds
from cspine.inference.predictor import Predictor
from cspine.models.checkpoint import Checkpoint, load_checkpoint, write_checkpoint
from cspine.models.classifier import build_classifier
from cspine.models.header import Calibration, CheckpointHeader, ModelSpec, hash_checkpoint
from cspine.models.ood import fit_ood
from cspine.phantom.dataset import write_phantom
from cspine.phantom.patient import PhantomSettings
from cspine.preprocess import Equalise, Recipe, Resize, Scale, Window
from tests.commands import run_here

SIDE = 32


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """No export, no load and no prediction of these tests may reach out."""

    def refuse(*_: Any) -> None:
        raise AssertionError("something tried to connect")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def make_checkpoint(path: Path, backbone: str = "test_resnet", **header: Any) -> Path:
    spec = ModelSpec(name="small", backbone=backbone, head=header.pop("head", "softmax"))
    recipe = header.pop("recipe", Recipe(steps=(Equalise(), Resize(height_px=SIDE, width_px=SIDE))))
    model = build_classifier(spec, recipe.scale, seed=1).eval()
    header = {"calibration": Calibration(slope=2.0, intercept=0.3), "threshold": 0.4, **header}
    write_checkpoint(
        path, model, CheckpointHeader(spec=spec, recipe=recipe, manifest_hash="m", weights="none", **header)
    )
    return path


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("export") / "c.safetensors")


@pytest.fixture(scope="module")
def onnx_file(source: Path) -> Path:
    output = source.with_suffix(".onnx")
    export_checkpoint(load_checkpoint(source), ExportPlan("onnx"), output)
    return output


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    folder = tmp_path_factory.mktemp("phantom") / "p"
    settings = PhantomSettings(
        patients=16, slices_per_patient=4, size_px=SIDE, field_of_view_mm=64.0, fracture_fraction=0.8, seed=3
    )
    write_phantom(folder, settings, workers=1)
    return import_dataset(folder)[0]


def draw(count: int = 21, channels: int = 1) -> np.ndarray:
    shape = (count, SIDE, SIDE) if channels == 1 else (count, channels, SIDE, SIDE)
    return np.random.default_rng(8).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize(
    ("backbone", "head"),
    [("test_efficientnet", "softmax"), ("test_convnext", "dense_sigmoid")],
)
@pytest.mark.parametrize("to", ["onnx", "openvino"])
def test_every_format_gives_the_logits_of_torch_in_any_batch(
    backbone: str, head: str, to: Any, tmp_path: Path
) -> None:
    path = make_checkpoint(tmp_path / "c.safetensors", backbone, head=head)
    record = export_checkpoint(load_checkpoint(path), ExportPlan(to), tmp_path / f"c.{to}")
    assert all(not result["failures"] for result in record.gate)
    wanted, features = Predictor.load(path, device="cpu").predict_features(draw())
    found = Predictor.load(tmp_path / f"c.{to}")
    for size in (1, 5, 64):
        found.batch_size = size
        logits, others = found.predict_features(draw())
        assert logits == pytest.approx(wanted, abs=1e-4)
        np.testing.assert_allclose(others, features, atol=1e-4)
    assert found.predict_pixels(draw(0)).shape == (0,)


def test_onnx_runtime_itself_runs_the_file_on_plain_pixels(source: Path, onnx_file: Path) -> None:
    onnx.checker.check_model(onnx.load(onnx_file))
    session = onnxruntime.InferenceSession(onnx_file, providers=["CPUExecutionProvider"])
    logits = session.run(["logit"], {"pixels": draw(3)})[0]
    assert logits == pytest.approx(Predictor.load(source, device="cpu").predict_pixels(draw(3)), abs=1e-4)


def test_one_file_carries_what_the_checkpoint_said(source: Path, onnx_file: Path) -> None:
    checkpoint = load_checkpoint(source)
    record = read_record(onnx_file)
    assert record.header == checkpoint.header
    assert record.source_hash == checkpoint.hash
    predictor = Predictor.load(onnx_file)
    assert predictor.header == checkpoint.header
    assert predictor.recipe == checkpoint.header.recipe
    assert predictor.checkpoint_hash == hash_checkpoint(onnx_file) != checkpoint.hash
    logits = np.array([0.0, 1.0])
    np.testing.assert_allclose(
        predictor.find_probabilities(logits), 1 / (1 + np.exp(-np.array([0.3, 2.3]))), rtol=1e-12
    )


def test_slices_of_several_channels_and_their_scale_are_inside(tmp_path: Path) -> None:
    recipe = Recipe(
        steps=(Window(), Resize(height_px=SIDE, width_px=SIDE)),
        scale=Scale(divisor=255.0, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.1)),
    )
    path = make_checkpoint(tmp_path / "c.safetensors", recipe=recipe)
    export_checkpoint(load_checkpoint(path), ExportPlan("onnx"), tmp_path / "c.onnx")
    wanted = Predictor.load(path, device="cpu").predict_pixels(draw())
    assert Predictor.load(tmp_path / "c.onnx").predict_pixels(draw()) == pytest.approx(wanted, abs=1e-4)


def test_the_distance_from_the_training_travels_along(source: Path, tmp_path: Path) -> None:
    loaded = load_checkpoint(source)
    _, features = Predictor(loaded, device="cpu").predict_features(draw(60))
    known = Checkpoint(loaded.model, loaded.header, loaded.hash, fit_ood(features))
    record = export_checkpoint(known, ExportPlan("onnx"), tmp_path / "c.onnx")
    assert float(str(record.gate[0]["distance"])) < 1e-3
    predictor = Predictor.load(tmp_path / "c.onnx")
    distances = predictor.measure_distances(predictor.predict_features(draw(60))[1])
    assert known.ood is not None
    np.testing.assert_allclose(distances, known.ood.measure(features), rtol=1e-3)


@pytest.mark.parametrize("to", ["onnx", "openvino"])
def test_an_export_of_another_scale_fails_and_leaves_nothing(
    to: Any, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cspine.inference import export as write

    def spoil(make: Any) -> Any:
        def spoiled(model: Any, recipe: Recipe) -> Any:
            other = build_classifier(model.spec, Scale(divisor=200.0), seed=1).eval()
            return make(other, recipe)

        return spoiled

    monkeypatch.setattr(write, "make_onnx", spoil(write.make_onnx))
    with pytest.raises(ExportError, match=r"logits differ by up to \d.*more than 0.001") as caught:
        export_checkpoint(load_checkpoint(source), ExportPlan(to), tmp_path / f"c.{to}")
    assert caught.value.exit_code == 1
    assert os.listdir(tmp_path) == []


def test_a_failed_export_does_not_take_the_place_of_an_older_one(source: Path, tmp_path: Path) -> None:
    output = tmp_path / "c.onnx"
    output.write_bytes(b"older")
    with pytest.raises(ExportError):
        export_checkpoint(
            load_checkpoint(source), ExportPlan("onnx", bounds=Bounds(logit=0.0, changed=0.0)), output
        )
    assert output.read_bytes() == b"older"
    assert os.listdir(tmp_path) == ["c.onnx"]


def test_the_command_names_the_file_and_prints_the_gate(source: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(source.read_bytes())
    done = run_here("export", path, "--to", "onnx", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["output"] == str(tmp_path / "model.onnx")
    assert found["source_hash"] == hash_checkpoint(source)
    assert found["hash"] == hash_checkpoint(tmp_path / "model.onnx")
    assert [result["changed"] for result in found["gate"]] == [0, 0]
    assert all(result["slices"] == 12 and result["random"] == 16 for result in found["gate"])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--to", "onnx", "--precision", "int8"], "fp32 only"),
        (["--to", "openvino", "--precision", "int8"], "--calibrate-on"),
        (["--to", "openvino", "--precision", "bf16"], "--check-on"),
        (["--to", "coreml"], "onnx, openvino"),
        (["--to", "onnx", "--precision", "fp8"], "fp32, bf16, int8"),
        (["--to", "onnx", "-o", "model.bin"], "ends in .onnx"),
    ],
)
def test_what_cannot_be_exported_is_refused_with_one_message(
    arguments: list[str], words: str, source: Path, tmp_path: Path
) -> None:
    done = run_here("export", source, *arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert os.listdir(tmp_path) == []


def test_slices_of_one_class_are_no_ground_for_a_gate(
    source: Path, manifest: Manifest, tmp_path: Path
) -> None:
    table = manifest.table.filter((manifest.table["label"] == 0) | (manifest.table["split"] == "train"))
    plan = ExportPlan("openvino", "int8", calibrate_on=manifest.with_table(table))
    with pytest.raises(InputError, match="one class"):
        export_checkpoint(load_checkpoint(source), plan, tmp_path / "c.openvino")


@pytest.mark.slow
def test_int8_is_calibrated_on_training_slices_and_held_to_auroc(
    source: Path, manifest: Manifest, tmp_path: Path
) -> None:
    output = tmp_path / "c.openvino"
    loose = Bounds(auroc=1.0, auroc_low=-1.0, changed=1.0)
    plan = ExportPlan("openvino", "int8", calibrate_on=manifest, bounds=loose)
    record = export_checkpoint(load_checkpoint(source), plan, output)
    assert record.calibrated_on == "36 slices of split train, seed 0"
    (result,) = record.gate
    checked = manifest.select("val")
    assert result["slices"] == len(checked)
    assert isinstance(result["auroc"], dict)
    assert result["auroc"]["unit"] == "patient"
    predictor = Predictor.load(output)
    assert "int8" in predictor.runtime.about
    wanted = Predictor.load(source, device="cpu").predict_pixels(draw())
    found = predictor.predict_pixels(draw())
    assert 1e-6 < np.abs(found - wanted).max() < 0.2
    with pytest.raises(ExportError, match=r"AUROC|decisions"):
        export_checkpoint(
            load_checkpoint(source),
            ExportPlan("openvino", "int8", calibrate_on=manifest, bounds=Bounds(auroc=0.0, auroc_low=0.0)),
            tmp_path / "d.openvino",
        )


class OneBright:
    """31 dark slices and one bright one."""

    @property
    def slice_ids(self) -> list[str]:
        return [str(number) for number in range(32)]

    def read_one(self, slice_id: str) -> np.ndarray:
        return np.full((8, 8), 250 if slice_id == "17" else 10, np.uint8)


@pytest.mark.slow
def test_int8_keeps_the_range_that_only_one_slice_needs() -> None:
    openvino = import_openvino()
    ops = openvino.opset13
    pixels = ops.parameter([-1, 8, 8], np.uint8, name="pixels")
    grey = ops.unsqueeze(ops.convert(pixels, np.float32), np.int64(1))
    filters = np.array([0.01, 0.02], np.float32).reshape(2, 1, 1, 1)
    hidden = ops.relu(ops.convolution(grey, filters, [1, 1], [0, 0], [0, 0], [1, 1]))
    model = openvino.Model([ops.reduce_mean(hidden, np.array([2, 3]))], [pixels])
    compiled = openvino.Core().compile_model(quantise(model, OneBright()), "CPU")
    (found,) = compiled(np.full((1, 8, 8), 250, np.uint8)).values()
    assert found[0] == pytest.approx([2.5, 5.0], rel=0.02)


def test_filters_and_biases_are_constants_in_the_file(tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path / "c.safetensors", "test_efficientnet")
    path = tmp_path / "c.openvino"
    export_checkpoint(load_checkpoint(source), ExportPlan("openvino"), path)
    found = [
        operation.get_type_name() for operation in read_openvino(import_openvino().Core(), path).get_ops()
    ]
    assert "GroupConvolution" in found
    assert not {"ShapeOf", "VariadicSplit", "Broadcast"} & set(found)


def test_predict_takes_an_exported_file_like_a_checkpoint(
    source: Path, onnx_file: Path, manifest: Manifest, tmp_path: Path
) -> None:
    tables = []
    for model in (source, onnx_file):
        output = tmp_path / f"{model.suffix[1:]}.parquet"
        done = run_here("predict", manifest.root, "-c", model, "--split", "val", "-o", output)
        assert done.returncode == 0, done.stderr
        tables.append(read_predictions(output))
    wanted, found = tables
    assert found["slice_id"].equals(wanted["slice_id"])
    np.testing.assert_allclose(found["prob"].to_numpy(), wanted["prob"].to_numpy(), atol=1e-4)
    assert found["checkpoint_hash"][0] == hash_checkpoint(onnx_file)


@pytest.mark.parametrize("runtime", ["openvino", "onnx"])
def test_a_checkpoint_runs_on_another_engine_without_a_file(source: Path, runtime: Any) -> None:
    predictor = Predictor.load(source, runtime=runtime)
    assert predictor.runtime.name == runtime
    wanted = Predictor.load(source, device="cpu").predict_pixels(draw())
    assert predictor.predict_pixels(draw()) == pytest.approx(wanted, abs=1e-4)
    with pytest.raises(CheckpointError, match="torch network itself"):
        _ = predictor.model
