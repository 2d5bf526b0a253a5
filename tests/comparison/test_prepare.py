"""What stage 1 finds wrong with splits, on folders whose faults are planted."""

from __future__ import annotations

import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from cspine.auditing.findings import AuditResult
from cspine.comparison.auditing import audit_prepared
from cspine.comparison.prepare import PreparedData, prepare_data
from cspine.core.errors import ExperimentError, RecipeError
from cspine.core.progress import Silent
from cspine.experiment import Experiment, ModelSettings
from cspine.preprocess import Window


def write_folder(root: Path, splits: tuple[str, ...]) -> Path:
    """Three different slices of each class in each split."""
    rng = np.random.default_rng(0)
    for split in splits:
        for kind in ("fracture", "normal"):
            folder = root / split / kind
            folder.mkdir(parents=True)
            for number in range(3):
                cv2.imwrite(str(folder / f"{number}.png"), rng.integers(0, 255, (32, 32), dtype=np.uint8))
    return root


def make_experiment(root: Path, models: tuple[str, ...] = ("small",), **splits: str) -> Experiment:
    return Experiment.model_validate(
        {
            "name": "t",
            "title": "T",
            "data": {"root": str(root)},
            "splits": splits,
            "models": {name: ModelSettings(backbone="test_resnet", weights="none") for name in models},
        }
    )


def prepare(root: Path, **splits: str) -> PreparedData:
    return prepare_data(make_experiment(root, **splits), Silent())


def audit(root: Path, folder: Path, models: tuple[str, ...] = ("small",), **splits: str) -> AuditResult:
    experiment = make_experiment(root, models, **splits)
    return audit_prepared(experiment, prepare_data(experiment, Silent()), folder, Silent())


def list_leaks(root: Path, folder: Path, **splits: str) -> list[str]:
    result = audit(root, folder, **splits)
    return [finding.text for finding in result.findings if finding.code == "file-across-splits"]


def test_a_clean_folder_has_no_leak(tmp_path: Path) -> None:
    assert list_leaks(write_folder(tmp_path / "set", ("train", "val", "test")), tmp_path) == []


@pytest.mark.parametrize(("one", "other"), [("train", "test"), ("val", "test"), ("train", "val")])
def test_the_same_file_in_two_splits_is_a_leak(tmp_path: Path, one: str, other: str) -> None:
    root = write_folder(tmp_path / "set", ("train", "val", "test"))
    shutil.copy(root / one / "normal/0.png", root / other / "normal/copy.png")
    where = f"in both {one} and {other}: 1 of the 7 slices of {other}."
    assert list_leaks(root, tmp_path) == [f"1 file stands, byte for byte, {where}"]


def test_a_split_that_is_not_used_cannot_leak(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "set", ("train", "val", "test"))
    shutil.copy(root / "train/normal/0.png", root / "test/normal/copy.png")
    assert list_leaks(root, tmp_path, selection="val", reported="val") == []


def test_an_unchanged_audit_is_read_again(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "set", ("train", "val", "test"))
    first = audit(root, tmp_path)
    written = (tmp_path / "audit.json").stat().st_mtime_ns
    assert audit(root, tmp_path) == first
    assert (tmp_path / "audit.json").stat().st_mtime_ns == written
    (tmp_path / "audit.json").write_text("{}")
    assert audit(root, tmp_path) == first
    twice = audit(root, tmp_path, ("small", "again"))
    assert [one.code for one in twice.findings if one not in first.findings] == ["several-runs"]
    assert (tmp_path / "audit.html").read_text(encoding="utf-8").startswith("<!DOCTYPE html>")


def test_selection_on_the_reported_split_is_said(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "set", ("train", "val"))
    result = audit(root, tmp_path, selection="val", reported="val")
    assert result.verdict == "not evidence"
    (found,) = [one for one in result.findings if one.code == "selection-on-reported"]
    assert found.evidence["chosen"] == [
        "early stopping",
        "the learning rate's schedule",
        "the choice of the best epoch",
    ]


def test_nothing_is_carved_where_val_and_test_exist(tmp_path: Path) -> None:
    root = write_folder(tmp_path, ("train", "val", "test"))
    with pytest.raises(ExperimentError, match="no part can be carved"):
        prepare(root, selection="carve", reported="val")


def test_a_hu_recipe_for_pictures_is_refused_first(
    tmp_path: Path,
) -> None:
    experiment = make_experiment(write_folder(tmp_path / "set", ("train", "val", "test")))
    preprocess = experiment.preprocess.model_copy(update={"window": Window()})
    with pytest.raises(RecipeError, match="takes Hounsfield units but the slices hold 8-bit"):
        prepare_data(experiment.model_copy(update={"preprocess": preprocess}), Silent())
