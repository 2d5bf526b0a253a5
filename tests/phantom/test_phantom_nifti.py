"""The phantom's NIfTI set, read back as any other."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from cspine.cli.app import main
from cspine.core.errors import OutputError
from cspine.ct.nifti import read_nifti, read_nifti_labels
from cspine.data.tables import OVERALL, VERTEBRAE
from cspine.phantom.dataset import write_phantom_nifti
from cspine.phantom.patient import PhantomSettings, make_patient
from cspine.phantom.scanner import render_volume

pytest.importorskip("nibabel")
SETTINGS = PhantomSettings(patients=6, size_px=30, field_of_view_mm=90, seed=2)


def test_volumes_masks_and_labels_agree_with_the_patients(tmp_path: Path) -> None:
    folder = write_phantom_nifti(tmp_path / "set", SETTINGS, slice_spacing_mm=4.0)
    table = pl.read_csv(folder / "labels.csv")
    assert table.height == 6
    assert 0 < table[OVERALL].sum() < 6
    for index, row in enumerate(table.iter_rows(named=True)):
        volume = read_nifti(folder / row["volume"])
        rendered = render_volume(make_patient(index, SETTINGS), (4.0, 3.0, 3.0))
        np.testing.assert_array_equal(volume.hu, rendered.hu)
        vertebrae = read_nifti_labels(folder / row["segmentation"], volume)
        fractures = read_nifti_labels(folder / row["fracture_mask"], volume)
        np.testing.assert_array_equal(vertebrae, rendered.vertebra_mask)
        np.testing.assert_array_equal(fractures, rendered.fracture_mask)
        broken = [name for name in VERTEBRAE if row[name]]
        assert bool(broken) == bool(row[OVERALL])
        shown = {f"C{number}" for number in np.unique(vertebrae[fractures > 0]) if number}
        assert shown <= set(broken)
        # C1 lies above C7, and the back of a vertebra behind its front: the frame is the canonical one.
        heights = [np.argwhere(vertebrae == number)[:, 0].mean() for number in (1, 4, 7)]
        assert heights == sorted(heights, reverse=True)


def test_a_folder_in_use_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("kept")
    with pytest.raises(OutputError, match="not empty"):
        write_phantom_nifti(tmp_path, SETTINGS)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_the_command_refuses_an_unknown_format(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["phantom", str(tmp_path / "set"), "--format", "jpeg"])
    assert stop.value.code == 2
    assert "png, nifti" in capsys.readouterr().err
    assert not (tmp_path / "set").exists()
