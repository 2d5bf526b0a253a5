"""How many series are in memory while studies are answered."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from cspine.inference import answering
from cspine.studies import ct_sources
from cspine.studies.intake import IntakePolicy
from cspine.studies.nifti import read_nifti, write_nifti
from cspine.studies.series import read_series
from cspine.studies.volume import CANONICAL_DIRECTION, Volume, grid_origins


def test_a_large_series_is_let_go_before_the_next_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    normal = CANONICAL_DIRECTION[0]
    hu = np.full((60, 8, 8), -1000, np.int16)
    hu[:, 4:] = 40
    for name in "abc":
        volume = Volume(
            hu, (2.0, 1.0, 1.0), CANONICAL_DIRECTION, grid_origins((0.0, 0.0, 0.0), normal, 2.0, 60)
        )
        write_nifti(tmp_path / f"{name}.nii", volume)
    read = read_nifti
    known: list[weakref.ref[Any]] = []
    alive: list[int] = []

    def read_counted(path: Path) -> Volume:
        gc.collect()
        alive.append(sum(one() is not None for one in known))
        found = read(path)
        known.append(weakref.ref(found.hu))
        return found

    monkeypatch.setattr(ct_sources, "read_nifti", read_counted)
    monkeypatch.setattr(answering, "AHEAD_VOXELS", 0)
    predictor: Any = SimpleNamespace(answer=lambda slices, intake, levels: None)
    folder: Any = SimpleNamespace(add=lambda answered: None)
    series = read_series(tmp_path, "nifti", IntakePolicy())
    answering.answer_all(series, predictor, folder, lambda item, answer: None)
    assert alive == [0, 0, 0]
