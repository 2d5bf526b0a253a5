"""What a command refuses before it does anything, so that nothing of the user's is replaced and no hour is lost."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from cspine.cli.app import main

EXPERIMENT = """\
name = "tiny"
title = "Tiny"
[data]
root = "set"
[preprocess]
image_size_px = 32
[training]
epochs = 1
[models.small]
backbone = "test_resnet"
weights = "none"
"""


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.toml").write_text(EXPERIMENT)
    rows = ["path,label,split"]
    for number, split in enumerate(("train", "train", "val", "val", "test", "test")):
        pixels = np.random.default_rng(number).integers(0, 256, (32, 32), dtype=np.uint8)
        (tmp_path / "set").mkdir(exist_ok=True)
        cv2.imwrite(str(tmp_path / f"set/{number}.png"), pixels)
        rows.append(f"{number}.png,{number % 2},{split}")
    (tmp_path / "set/labels.csv").write_text("\n".join(rows) + "\n")
    return tmp_path


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("import set -o set/labels.csv", "replace its own source"),
        ("import set -o manifest.csv", "ends in .parquet"),
        ("predict set -c model.safetensors -o p.csv", "ends in .parquet"),
        ("evaluate set/labels.csv -o set/labels.csv", "replace its own source"),
        ("evaluate a.parquet --calibrate-on set/labels.csv -o set/labels.csv", "replace its own source"),
        ("compare tiny.toml -o set", "not empty"),
        ("compare tiny.toml -o set --resume", "no run to continue"),
        ("train tiny.toml -m small -o set", "not empty"),
        ("train tiny.toml -m small -o set --resume", "no run to continue"),
        (
            "compare tiny.toml -o r --set models.small.backbone=vit_tiny_patch16_224",
            "cannot take slices of 32x32",
        ),
        (
            "train tiny.toml -m small -o r --set models.small.backbone=vit_tiny_patch16_224",
            "cannot take slices of 32x32",
        ),
        ("compare tiny.toml -o r --set preprocess.window.center_hu=400", "Hounsfield units"),
    ],
)
def test_refused_at_once_and_nothing_changes(
    command: str, words: str, work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.read_bytes() for path in work.rglob("*") if path.is_file()}
    with pytest.raises(SystemExit) as stop:
        main(command.split())
    assert stop.value.code == 2
    assert words in capsys.readouterr().err
    assert {path: path.read_bytes() for path in work.rglob("*") if path.is_file()} == before
