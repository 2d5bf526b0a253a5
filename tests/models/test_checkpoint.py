"""Checkpoints carry their recipe, and anything else is refused."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from cspine.errors import CheckpointError, InputError, WeightsError
from cspine.inference.predictor import Predictor
from cspine.models.checkpoint import (
    Calibration,
    Checkpoint,
    CheckpointHeader,
    load_checkpoint,
    write_checkpoint,
)
from cspine.models.classifier import DenseSigmoidHead, SoftmaxHead, build_classifier
from cspine.models.weights import apply_weights, load_weights
from cspine.models.zoo import ModelSpec, resolve_spec
from cspine.preprocess import Recipe, Resize, Scale

SPEC = ModelSpec(name="small", backbone="test_resnet")
HEADER = CheckpointHeader(
    spec=SPEC, recipe=Recipe(steps=(Resize(height_px=32, width_px=32),)), manifest_hash="m", weights="none"
)


def test_a_checkpoint_gives_the_same_logits_and_its_recipe(tmp_path: Path) -> None:
    model = build_classifier(SPEC, Scale(), seed=1).eval()
    path = tmp_path / "c.safetensors"
    digest = write_checkpoint(path, model, HEADER)
    loaded = load_checkpoint(path)
    pixels = torch.randint(0, 256, (4, 32, 32), dtype=torch.uint8)
    with torch.no_grad():
        torch.testing.assert_close(loaded.model(pixels), model(pixels), rtol=1e-4, atol=1e-5)
    assert loaded.header == HEADER
    assert loaded.hash == digest


@pytest.mark.parametrize("kind", ["missing", "empty", "truncated", "bare", "other tensors"])
def test_what_is_no_checkpoint_is_refused(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    if kind == "empty":
        path.touch()
    elif kind == "truncated":
        write_checkpoint(path, build_classifier(SPEC, Scale(), seed=1), HEADER)
        path.write_bytes(path.read_bytes()[:5000])
    elif kind == "bare":
        save_file({"a": torch.zeros(1)}, path)
    elif kind == "other tensors":
        save_file({"a": torch.zeros(1)}, path, metadata={"cspine": HEADER.model_dump_json()})
    with pytest.raises(CheckpointError):
        load_checkpoint(path)


def test_calibration_is_applied_and_the_size_is_checked() -> None:
    model = build_classifier(SPEC, Scale(), seed=1)
    plain = Predictor(Checkpoint(model, HEADER, "h"))
    header = HEADER.model_copy(update={"calibration": Calibration(slope=2.0, intercept=-1.0)})
    pixels = torch.randint(0, 256, (5, 32, 32), dtype=torch.uint8).numpy()
    logits = plain.predict_pixels(pixels)
    assert Predictor(Checkpoint(model, header, "h")).predict_pixels(pixels) == pytest.approx(2 * logits - 1)
    assert plain.predict_pixels(pixels[::-1]) == pytest.approx(logits[::-1], abs=1e-5)
    with pytest.raises(CheckpointError, match="recipe"):
        plain.predict_pixels(pixels[:, :16])


def test_the_softmax_head_gives_the_log_odds_of_the_softmax() -> None:
    head, features = SoftmaxHead(7), torch.randn(5, 7)
    fracture = torch.softmax(head.class_scores(features), dim=1)[:, 1]
    torch.testing.assert_close(torch.sigmoid(head(features)), fracture)


def test_the_dense_head_is_relu_of_256_units_and_one_unit() -> None:
    head, features = DenseSigmoidHead(7), torch.randn(5, 7)
    hidden = torch.clamp(features @ head.dense.weight.T + head.dense.bias, min=0)
    assert hidden.shape == (5, 256)
    torch.testing.assert_close(head(features), (hidden @ head.output.weight.T + head.output.bias)[:, 0])


def test_scaling_is_eq_1_then_mean_and_std() -> None:
    scale = Scale(mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.1))
    layer = build_classifier(SPEC, scale, seed=0).scale
    wanted = torch.tensor([(1 - 0.5) / 0.2, (1 - 0.4) / 0.2, (1 - 0.3) / 0.1])
    torch.testing.assert_close(layer(torch.full((1, 1, 1, 1), 255)).flatten(), wanted)


def test_a_local_file_loads_with_its_scaling_and_without_its_classifier(tmp_path: Path) -> None:
    source = build_classifier(SPEC, Scale(), seed=3).backbone.state_dict()
    path = tmp_path / "w.safetensors"
    save_file({**source, "fc.weight": torch.zeros(2, 2)}, path, metadata={"input": "RGB, (x-128)/128"})
    loaded = load_weights(str(path), SPEC)
    assert loaded.scale.mean == pytest.approx((128 / 255,) * 3)
    model = build_classifier(SPEC, Scale(), seed=4)
    apply_weights(model.backbone, loaded, SPEC)
    assert all(torch.equal(value, source[name]) for name, value in model.backbone.state_dict().items())


def test_weights_that_do_not_fit_or_exist_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_file({"conv1.weight": torch.zeros(1)}, path)
    with pytest.raises(WeightsError, match="do not fit"):
        apply_weights(build_classifier(SPEC, Scale(), seed=0).backbone, load_weights(str(path), SPEC), SPEC)
    for name in ("missing.safetensors", "model.pth"):
        with pytest.raises(WeightsError):
            load_weights(str(tmp_path / name), SPEC)
    with pytest.raises(WeightsError, match="another architecture"):
        load_weights("timm:resnet18.a1_in1k", resolve_spec("resnet50"))


def test_an_unreachable_hub_names_both_ways_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError

    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr("cspine.models.weights.try_to_load_from_cache", lambda *_: None)
    monkeypatch.setattr("urllib.request.getproxies", dict)
    with pytest.raises(WeightsError) as caught:
        load_weights("pretrained", resolve_spec("resnet50"))
    assert '"none"' in str(caught.value)
    assert ".safetensors" in str(caught.value)


def test_unknown_architectures_and_tags_are_refused() -> None:
    with pytest.raises(InputError, match="no architecture"):
        build_classifier(resolve_spec("resnet_of_mine"), Scale(), seed=0)
    with pytest.raises(InputError, match="weights as well"):
        resolve_spec("r", "resnet50.a1_in1k")
