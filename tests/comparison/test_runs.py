"""What a training is refused for before it begins."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from cspine.comparison.prepare import prepare_data
from cspine.comparison.training import check_training
from cspine.core.errors import ExperimentError
from cspine.core.progress import Silent
from cspine.experiment import Experiment


def test_a_frozen_backbone_of_random_weights_is_refused(tmp_path: Path) -> None:
    for split in ("train", "val", "test"):
        for name in ("fracture", "normal"):
            folder = tmp_path / "set" / split / name
            folder.mkdir(parents=True)
            cv2.imwrite(str(folder / "0.png"), np.full((32, 32), len(split + name), np.uint8))
    experiment = Experiment.model_validate(
        {
            "name": "t",
            "title": "T",
            "data": {"root": str(tmp_path / "set")},
            "training": {"backbone": "frozen"},
            "models": {"small": {"backbone": "test_resnet", "weights": "none"}},
        }
    )
    prepared = prepare_data(experiment, Silent())
    with pytest.raises(ExperimentError, match="a frozen backbone of random weights has nothing to show"):
        check_training(experiment, "small", prepared, tmp_path / "run", resume=False)
    assert not (tmp_path / "run").exists()
