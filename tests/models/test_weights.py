"""Starting weights: a local file or a pinned tag, checked tensor by tensor; never a silent fall back."""

from __future__ import annotations

import hashlib
import json
import socket
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from cspine.core.errors import WeightsError
from cspine.models.classifier import build_classifier
from cspine.models.header import ModelSpec, resolve_spec
from cspine.models.weights import apply_weights, load_weights
from cspine.preprocess import Scale

SPEC = ModelSpec(name="small", backbone="test_resnet")
SHARED = Path(__file__).parents[3] / "shared/weights/mobilenetv2_100.imagenet-uint8.safetensors"


def make_backbone(seed: int) -> nn.Module:
    return build_classifier(SPEC, Scale(), seed=seed).backbone


def make_state(seed: int = 3) -> dict[str, Tensor]:
    return dict(make_backbone(seed).state_dict())


def save(folder: Path, state: dict[str, Tensor], metadata: dict[str, str] | None = None) -> str:
    save_file(state, folder / "w.safetensors", metadata=metadata)
    return str(folder / "w.safetensors")


def refuse(path: str) -> str:
    with pytest.raises(WeightsError) as caught:
        apply_weights(make_backbone(0), load_weights(path, SPEC), SPEC)
    return str(caught.value)


def test_none_is_random_weights_and_plain_scaling() -> None:
    loaded = load_weights("none", SPEC)
    assert (loaded.state, loaded.origin, loaded.scale) == (None, "none", Scale())
    backbone, wanted = make_backbone(4), make_state(4)
    apply_weights(backbone, loaded, SPEC)
    assert all(torch.equal(value, wanted[name]) for name, value in backbone.state_dict().items())
    assert load_weights("none", SPEC, channels=1).scale.channels == 1


def test_a_local_file_fills_the_backbone_without_its_classifier(tmp_path: Path) -> None:
    source = make_state()
    path = save(tmp_path, {**source, "fc.weight": torch.zeros(9, 2), "fc.bias": torch.zeros(9)})
    loaded = load_weights(path, SPEC)
    backbone = make_backbone(4)
    apply_weights(backbone, loaded, SPEC)
    assert all(torch.equal(value, source[name]) for name, value in backbone.state_dict().items())
    assert loaded.origin.startswith("file:w.safetensors")
    assert "/" not in loaded.origin


def test_two_files_of_one_name_are_told_apart_in_the_record(tmp_path: Path) -> None:
    for number in range(2):
        (tmp_path / str(number)).mkdir()
    origins = [load_weights(save(tmp_path / str(seed), make_state(seed)), SPEC).origin for seed in range(2)]
    assert origins[0] != origins[1]
    path = tmp_path / "0" / "w.safetensors"
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert origins[0] == f"file:w.safetensors (SHA-256 {digest[:16]})"


def test_counters_of_batch_norm_may_be_missing(tmp_path: Path) -> None:
    state = {name: value for name, value in make_state().items() if "num_batches" not in name}
    backbone = make_backbone(4)
    apply_weights(backbone, load_weights(save(tmp_path, state), SPEC), SPEC)
    assert torch.equal(backbone.state_dict()["conv1.0.weight"], state["conv1.0.weight"])


def test_mean_and_std_of_the_file_become_the_scaling(tmp_path: Path) -> None:
    metadata = {"mean": json.dumps([0.1, 0.2, 0.3]), "std": json.dumps([0.4, 0.5, 0.6])}
    scale = load_weights(save(tmp_path, make_state(), metadata), SPEC).scale
    assert (scale.mean, scale.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))


@pytest.mark.parametrize("text", ["(x - 128) / 128", "RGB uint8, (x-128)/128 in NCHW", "(x - 128.0) / 128.0"])
def test_an_input_formula_becomes_the_scaling(tmp_path: Path, text: str) -> None:
    scale = load_weights(save(tmp_path, make_state(), {"input": text}), SPEC).scale
    for pixel in (0.0, 128.0, 255.0):
        assert (pixel / 255 - scale.mean[0]) / scale.std[0] == pytest.approx((pixel - 128) / 128)
    assert scale.channels == 3


def test_a_file_that_says_nothing_gets_timms_scaling(tmp_path: Path) -> None:
    scale = load_weights(save(tmp_path, make_state(), {"input": "RGB"}), SPEC).scale
    assert (scale.mean, scale.std) == ((0.5,) * 3, (0.5,) * 3)
    assert load_weights(str(tmp_path / "w.safetensors"), SPEC, channels=1).scale.mean == pytest.approx((0.5,))


@pytest.mark.parametrize(
    "metadata",
    [
        {"mean": "half", "std": "[1]"},
        {"mean": "[0.5]", "std": "[0, 1]"},
        {"mean": "0.5", "std": "1"},
        {"input": "(x - 1.2.3) / 4"},
        {"input": "(x - 128) / 0"},
    ],
)
def test_a_scaling_that_cannot_be_read_is_refused(tmp_path: Path, metadata: dict[str, str]) -> None:
    assert "w.safetensors" in refuse(save(tmp_path, make_state(), metadata))


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    state = make_state()
    del state["conv1.0.weight"]
    text = refuse(save(tmp_path, state))
    assert "no tensor 'conv1.0.weight'" in text
    assert "w.safetensors" in text


def test_an_unknown_tensor_is_named(tmp_path: Path) -> None:
    text = refuse(save(tmp_path, {**make_state(), "extra.weight": torch.zeros(1)}))
    assert "unknown tensor 'extra.weight'" in text


def test_a_tensor_of_another_shape_is_named_with_both_shapes(tmp_path: Path) -> None:
    state = make_state()
    wanted = tuple(state["conv1.0.weight"].shape)
    text = refuse(save(tmp_path, {**state, "conv1.0.weight": torch.zeros(2, 3)}))
    assert f"'conv1.0.weight' is (2, 3), not {wanted}" in text


def test_weights_of_quite_another_network_do_not_fill_the_screen(tmp_path: Path) -> None:
    text = refuse(save(tmp_path, {"a": torch.zeros(1)}))
    assert "and " in text
    assert len(text) < 600


@pytest.mark.parametrize("name", ["missing.safetensors", "model.pth", "missing", "folder.safetensors"])
def test_what_is_no_safetensors_file_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder.safetensors").mkdir()
    torch.save(make_state(), tmp_path / "model.pth")
    text = refuse(str(tmp_path / name))
    assert name in text
    assert ".safetensors" in text


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    path = Path(save(tmp_path, make_state()))
    path.write_bytes(path.read_bytes()[:-100])
    assert "not readable as safetensors" in refuse(str(path))
    path.write_bytes(b"")
    assert "not readable as safetensors" in refuse(str(path))


def load_unreachable(weights: str, spec: ModelSpec) -> tuple[WeightsError, float]:
    started = time.perf_counter()
    with pytest.raises(WeightsError) as caught:
        load_weights(weights, spec)
    return caught.value, time.perf_counter() - started


@pytest.mark.parametrize(
    ("weights", "spec"),
    [("pretrained", resolve_spec("resnet50")), ("pretrained", SPEC), ("timm:test_resnet.r160_in1k", SPEC)],
)
@pytest.mark.parametrize("by_proxy", [False, True])
@pytest.mark.parametrize("answers_connections", [False, True])
def test_an_unreachable_hub_fails_fast_and_names_the_ways_out(
    monkeypatch: pytest.MonkeyPatch, weights: str, spec: ModelSpec, by_proxy: bool, answers_connections: bool
) -> None:
    monkeypatch.setattr("cspine.models.weights.try_to_load_from_cache", lambda *_: None)
    monkeypatch.setattr("cspine.models.weights._HUB_TIMEOUT_S", 0.5)
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        if answers_connections:
            server.listen()  # the connection is made by the system; nobody ever answers on it
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        if by_proxy:
            monkeypatch.setenv("http_proxy", address)
            monkeypatch.setenv("https_proxy", address)
            monkeypatch.setenv("no_proxy", "")
        else:
            monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
            monkeypatch.setenv("no_proxy", "127.0.0.1")
        caught, seconds = load_unreachable(weights, spec)
    assert seconds < 5
    assert 'weights = "none"' in str(caught)
    assert 'weights = "path/to/backbone.safetensors"' in str(caught)
    assert caught.where == f"models.{spec.name}.weights"


@pytest.mark.parametrize("weights", ["timm:resnet18.a1_in1k", "timm:test_resnet2.x"])
def test_a_tag_of_another_architecture_is_refused(weights: str) -> None:
    with pytest.raises(WeightsError, match="another architecture") as caught:
        load_weights(weights, SPEC)
    assert "test_resnet." in str(caught.value.fix)


@pytest.mark.skipif(not SHARED.exists(), reason="the shared MobileNetV2 file is not here")
def test_the_shared_mobilenetv2_file_loads() -> None:
    spec = resolve_spec("mobilenetv2")
    loaded = load_weights(str(SHARED), spec)
    model = build_classifier(spec, loaded.scale, seed=0).eval()
    before = model.backbone.state_dict()["conv_stem.weight"].clone()
    apply_weights(model.backbone, loaded, spec)
    assert not torch.equal(model.backbone.state_dict()["conv_stem.weight"], before)
    with torch.no_grad():
        assert torch.isfinite(model(torch.full((1, 64, 64), 128, dtype=torch.uint8))).all()
