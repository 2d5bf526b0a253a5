"""What stage 1 finds wrong with splits, on folders whose faults are planted."""

from __future__ import annotations

import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from cspine.comparison.prepare import find_notes, prepare_data
from cspine.comparison.watch import Silent
from cspine.errors import ExperimentError
from cspine.experiment import Experiment, ModelSettings


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


def describe(root: Path, **splits: str) -> list[str]:
    experiment = Experiment.model_validate(
        {
            "name": "t",
            "title": "T",
            "data": {"root": str(root)},
            "splits": splits,
            "models": {"small": ModelSettings(backbone="test_resnet", weights="none")},
        }
    )
    return [note.text for note in find_notes(prepare_data(experiment, Silent()))]


def test_a_clean_folder_has_no_leak(tmp_path: Path) -> None:
    notes = describe(write_folder(tmp_path, ("train", "val", "test")))
    assert not [text for text in notes if "leaks" in text]


@pytest.mark.parametrize(("one", "other"), [("train", "test"), ("val", "test"), ("train", "val")])
def test_the_same_file_in_two_splits_is_a_leak(tmp_path: Path, one: str, other: str) -> None:
    root = write_folder(tmp_path, ("train", "val", "test"))
    shutil.copy(root / one / "normal/0.png", root / other / "normal/copy.png")
    leaks = [text for text in describe(root) if "leaks" in text]
    where = f"in both {one} and {other}: 1 of the 7 slices of {other}."
    assert leaks == [f"The split leaks: 1 file stands, byte for byte, {where}"]


def test_nothing_is_carved_where_val_is_reported_and_there_is_a_test_split(tmp_path: Path) -> None:
    root = write_folder(tmp_path, ("train", "val", "test"))
    with pytest.raises(ExperimentError, match="no part can be carved"):
        describe(root, selection="carve", reported="val")
