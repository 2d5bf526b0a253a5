"""`cspine fit-studies` on a small set with series, and a network that sees brightness."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import polars as pl
import pytest

from cspine.models.checkpoint import load_checkpoint, write_checkpoint
from cspine.models.classifier import build_classifier
from cspine.models.header import CheckpointHeader, ModelSpec
from cspine.preprocess import Recipe, Resize, Scale
from tests.commands import Finished, run_here

SLICES = 6


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set of 24 patients with a series each, and a checkpoint of random weights."""
    folder = tmp_path_factory.mktemp("fit")
    rng = np.random.default_rng(0)
    rows = []
    for patient in range(24):
        broken = patient % 2
        for number in range(SLICES):
            name = f"{patient:02}-{number}.png"
            pixels = rng.integers(0, 120, (32, 32), dtype=np.uint8)
            if broken and number == 3:
                pixels[:] = 250
            cv2.imwrite(str(folder / name), pixels)
            rows.append(
                {
                    "path": name,
                    "label": "fracture" if broken and number == 3 else "normal",
                    "split": "train" if patient < 12 else "val",
                    "patient_id": f"Doe{patient:02}",
                    "series_uid": f"1.2.{patient}",
                }
            )
    pl.DataFrame(rows).write_csv(folder / "labels.csv")
    spec = ModelSpec(name="small", backbone="test_resnet")
    recipe = Recipe(steps=(Resize(height_px=32, width_px=32),))
    header = CheckpointHeader(spec=spec, recipe=recipe, manifest_hash="m", weights="none")
    write_checkpoint(folder / "m.safetensors", build_classifier(spec, Scale(), seed=0), header)
    return folder


def fit(place: Path, *arguments: object) -> Finished:
    return run_here("fit-studies", "m.safetensors", "labels.csv", *arguments, cwd=place)


def test_a_fit_adds_a_rule_and_a_limit_and_keeps_weights(place: Path) -> None:
    result = fit(place, "-o", "fitted.safetensors", "--json")
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    before, after = load_checkpoint(place / "m.safetensors"), load_checkpoint(place / "fitted.safetensors")
    assert before.header.aggregation is None
    assert after.header.aggregation is not None
    assert after.header.aggregation.studies == 12
    assert after.header.aggregation.positives == 6
    assert (
        after.header.distance_limit
        == found["distance_limit"]
        == pytest.approx(1.25 * max(found["distances"].values()))
    )
    assert len(found["distances"]) == 12
    assert found["checkpoint_hash"] == after.hash
    for name, value in before.model.state_dict().items():
        assert value.equal(after.model.state_dict()[name])
    assert "Doe" not in result.stdout


def test_rules_are_shown_and_a_second_fit_replaces_them(place: Path) -> None:
    first = fit(place, "-o", "again.safetensors")
    second = run_here("fit-studies", "again.safetensors", "labels.csv", cwd=place)
    for result in (first, second):
        assert result.returncode == 0, result.stderr
        for words in (
            "noisy_or",
            "chosen:",
            "fitted on 12 studies (6 with a fracture",
            "distance from the training",
        ):
            assert words in result.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--selection", "train"], "the network was trained on"),
        (["--selection", "test"], "no slices in split 'test'"),
        (["-o", "labels.csv"], "safetensors"),
    ],
)
def test_what_cannot_be_fitted_is_one_message(place: Path, arguments: list[str], words: str) -> None:
    before = {path: path.read_bytes() for path in place.iterdir() if path.is_file()}
    result = fit(place, *arguments)
    assert result.returncode == 2, result.stdout
    assert words in result.stderr
    assert "Traceback" not in result.stderr
    assert {path: path.read_bytes() for path in place.iterdir() if path.is_file()} == before


def test_a_set_without_series_is_refused(place: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(place, tmp_path / "set")
    pl.read_csv(folder / "labels.csv").drop("series_uid").write_csv(folder / "labels.csv")
    result = fit(folder, "-o", "x.safetensors")
    assert result.returncode == 2
    assert "no slice names the series" in result.stderr
    assert not (folder / "x.safetensors").exists()
