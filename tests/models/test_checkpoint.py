"""Checkpoints carry their recipe, hold no pickle, and anything else is refused."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from cspine.core.errors import CheckpointError, InputError, OutputError
from cspine.models import checkpoint as checkpoint_module
from cspine.models.checkpoint import load_checkpoint, rewrite_header, write_checkpoint
from cspine.models.classifier import FractureClassifier, build_classifier
from cspine.models.header import Calibration, CheckpointHeader, HeadKind, ModelSpec, read_header
from cspine.preprocess import Equalise, Recipe, Resize, Scale, Window

SPEC = ModelSpec(name="small", backbone="test_resnet")
SCALE = Scale(mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
HEADER = CheckpointHeader(
    spec=SPEC,
    recipe=Recipe(steps=(Window(), Equalise(method="clahe"), Resize(height_px=32, width_px=32)), scale=SCALE),
    calibration=Calibration(slope=1.5, intercept=-0.25),
    threshold=0.3,
    precision="bf16",
    manifest_hash="m",
    weights="none",
    training={"epochs": 3, "best_loss": 0.1, "schedule": "cosine", "early": None},
    versions={"torch": "2"},
)


def make_model(seed: int = 1, spec: ModelSpec = SPEC) -> FractureClassifier:
    return build_classifier(spec, SCALE, seed=seed).to(memory_format=torch.channels_last).eval()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "c.safetensors"
    write_checkpoint(path, make_model(), HEADER)
    return path


@pytest.mark.parametrize("backbone", ["test_resnet", "test_convnext"])
@pytest.mark.parametrize("head", HeadKind)
def test_a_checkpoint_keeps_weights_to_the_bit_and_logits(
    tmp_path: Path, backbone: str, head: HeadKind
) -> None:
    spec = ModelSpec(name="m", backbone=backbone, head=head)
    model = make_model(spec=spec)
    path = tmp_path / "c.safetensors"
    digest = write_checkpoint(path, model, HEADER.model_copy(update={"spec": spec}))
    loaded = load_checkpoint(path)
    pixels = torch.randint(0, 256, (4, 32, 32), dtype=torch.uint8)
    assert all(
        torch.equal(value, loaded.model.state_dict()[name]) for name, value in model.state_dict().items()
    )
    with torch.no_grad():  # a loaded model is channels_last, and its sums are ordered otherwise
        torch.testing.assert_close(loaded.model(pixels), model(pixels), rtol=0, atol=1e-5)
    assert loaded.hash == digest
    assert not loaded.model.training


def test_the_header_comes_back_whole_and_can_be_read_alone(path: Path) -> None:
    assert read_header(path) == load_checkpoint(path).header == HEADER
    assert read_header(path).recipe.hash == HEADER.recipe.hash
    assert read_header(path).labels == {"0": "normal", "1": "fracture"}


def test_the_hash_depends_on_weights_and_header(tmp_path: Path) -> None:
    other = HEADER.model_copy(update={"threshold": 0.4})
    hashes = [
        write_checkpoint(tmp_path / f"{number}.safetensors", make_model(seed), header)
        for number, (seed, header) in enumerate([(1, HEADER), (1, HEADER), (2, HEADER), (1, other)])
    ]
    assert hashes[0] == hashes[1]
    assert len(set(hashes)) == 3


def test_a_checkpoint_holds_no_pickle(path: Path) -> None:
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    tensors = json.loads(data[8 : 8 + length])
    assert json.loads(tensors.pop("__metadata__")["cspine"])["manifest_hash"] == "m"
    assert len(data) == 8 + length + max(entry["data_offsets"][1] for entry in tensors.values())


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "missing.safetensors", tmp_path):
        with pytest.raises(CheckpointError, match="no such checkpoint") as caught:
            load_checkpoint(path)
        assert caught.value.where == str(path)


@pytest.mark.parametrize("size", [0, 4, 8, 5000, -1])
def test_a_truncated_file_is_refused(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(CheckpointError, match="damaged or not safetensors"):
        load_checkpoint(path)


def test_a_pickle_is_refused(path: Path) -> None:
    torch.save(make_model().state_dict(), path)
    with pytest.raises(CheckpointError, match="damaged or not safetensors"):
        load_checkpoint(path)


def test_bare_weights_are_refused(path: Path) -> None:
    save_file(build_classifier(SPEC, SCALE, seed=1).backbone.state_dict(), path)
    with pytest.raises(CheckpointError, match="no recipe goes with them"):
        load_checkpoint(path)


@pytest.mark.parametrize(
    "text", ["{}", "not json", HEADER.model_dump_json().replace('"format_version":1', '"format_version":2')]
)
def test_a_header_that_does_not_validate_is_refused(path: Path, text: str) -> None:
    save_file(load_file(path), path, metadata={"cspine": text})
    with pytest.raises(CheckpointError, match="header does not validate"):
        load_checkpoint(path)


@pytest.mark.parametrize("kind", ["missing", "unknown", "shape", "architecture", "no such architecture"])
def test_tensors_that_do_not_fit_the_header_are_refused(path: Path, kind: str) -> None:
    state, header = load_file(path), HEADER
    if kind == "missing":
        del state["head.linear.bias"]
    elif kind == "unknown":
        state["more"] = torch.zeros(1)
    elif kind == "shape":
        state["head.linear.bias"] = torch.zeros(3)
    else:
        backbone = "test_convnext" if kind == "architecture" else "of_a_later_timm"
        header = HEADER.model_copy(update={"spec": ModelSpec(name="m", backbone=backbone)})
    save_file(state, path, metadata={"cspine": header.model_dump_json()})
    with pytest.raises(CheckpointError):
        load_checkpoint(path)


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failed_write_leaves_the_old_checkpoint(
    path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    before = path.read_bytes()

    def write_half(_: object, temporary: Path, **__: object) -> None:
        temporary.write_bytes(before[:100])
        raise error

    monkeypatch.setattr(checkpoint_module, "save_file", write_half)
    with pytest.raises(OutputError if isinstance(error, OSError) else KeyboardInterrupt):
        write_checkpoint(path, make_model(2), HEADER)
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]


def test_a_full_disk_in_safetensors_is_an_output_error(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    signal = pytest.importorskip("signal")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(OutputError, match="cannot write: file too large"):
            write_checkpoint(tmp_path / "c.safetensors", make_model(), HEADER)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert os.listdir(tmp_path) == []


def read_tensors(path: Path) -> bytes:
    """What follows the header: the tensors as they lie in the file."""
    data = path.read_bytes()
    return data[8 + int.from_bytes(data[:8], "little") :]


def test_a_header_is_rewritten_and_the_weights_stay_to_the_byte(path: Path) -> None:
    tensors, before = read_tensors(path), load_checkpoint(path)
    digest = rewrite_header(path, calibration=Calibration(slope=0.5, intercept=2.0), threshold=0.8)
    after = load_checkpoint(path)
    assert after.header == HEADER.model_copy(
        update={"calibration": Calibration(slope=0.5, intercept=2.0), "threshold": 0.8}
    )
    assert after.hash == digest != before.hash
    assert read_tensors(path) == tensors
    assert len(path.read_bytes()) % 8 == len(tensors) % 8
    assert rewrite_header(path, calibration=HEADER.calibration, threshold=HEADER.threshold) == before.hash


def test_what_is_not_given_stays_in_the_header(path: Path) -> None:
    rewrite_header(path, threshold=1)
    assert read_header(path) == HEADER.model_copy(update={"threshold": 1.0})
    rewrite_header(path, calibration=Calibration(slope=3.0))
    assert (read_header(path).threshold, read_header(path).calibration.slope) == (1.0, 3.0)


@pytest.mark.parametrize(
    "change",
    [
        {"threshold": 1.5},
        {"threshold": float("nan")},
        {"calibration": Calibration(slope=0.0)},
        {"calibration": Calibration(intercept=float("inf"))},
    ],
)
def test_a_senseless_header_is_refused_and_the_file_stays(path: Path, change: dict[str, Any]) -> None:
    data = path.read_bytes()
    with pytest.raises(InputError):
        rewrite_header(path, **change)
    assert path.read_bytes() == data


def test_a_rewrite_that_fails_leaves_the_old_checkpoint(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint_module.shutil, "copyfileobj", fail)
    data = path.read_bytes()
    with pytest.raises(OutputError, match="disk is full"):
        rewrite_header(path, threshold=0.9)
    assert path.read_bytes() == data
    assert [found.name for found in path.parent.iterdir()] == [path.name]
