"""Segmented vertebrae of other programs: TotalSegmentator's numbers and folders, and which file is of which volume.

TotalSegmentator's class map (task `total`, version 2): 1 spleen, 5 liver, 43 vertebrae_T1, 44 vertebrae_C7 ...
50 vertebrae_C1, 79 spinal_cord.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from cspine.ct.annotations import Segmentations, translate_mask
from cspine.ct.nifti import write_nifti
from cspine.ct.volume import CANONICAL_DIRECTION, Volume, grid_origins

SHAPE, SPACING_MM = (7, 3, 4), (2.0, 0.5, 0.5)


def make_volume(first_mm: float = 0.0) -> Volume:
    return Volume(
        hu=np.full(SHAPE, -1000, np.int16),
        spacing_mm=SPACING_MM,
        direction=CANONICAL_DIRECTION,
        origins_mm=grid_origins((0.0, 0.0, first_mm), CANONICAL_DIRECTION[0], SPACING_MM[0], SHAPE[0]),
        study_uid="1.2.3",
        series_uid="1.2.3.4",
        source="neck.nii.gz",
    )


def one_a_slice(values: list[int]) -> npt.NDArray[np.uint8]:
    """Each value in the first row of its slice, 0 elsewhere."""
    labels = np.zeros(SHAPE, np.uint8)
    labels[:, 0] = np.array(values, np.uint8)[:, None]
    return labels


def write_structures(folder: Path, volume: Volume, names: dict[str, int]) -> None:
    """One file a structure: 1 in the first row of its slice."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, place in names.items():
        mask = np.zeros(SHAPE, np.uint8)
        mask[place, 0] = 1
        write_nifti(folder / f"{name}.nii.gz", volume, mask)


def test_totalsegmentators_numbers_run_from_c7_up_to_c1() -> None:
    theirs = one_a_slice([44, 45, 46, 47, 48, 49, 50])
    np.testing.assert_array_equal(translate_mask(theirs), one_a_slice([7, 6, 5, 4, 3, 2, 1]))


def test_labels_of_the_neck_are_kept_and_lower_ones_left_out() -> None:
    labels = one_a_slice([1, 2, 6, 7, 8, 19, 28])
    np.testing.assert_array_equal(translate_mask(labels), one_a_slice([1, 2, 6, 7, 0, 0, 0]))


def test_organs_of_totalsegmentator_are_no_vertebrae() -> None:
    """The spleen is its 1, the liver its 5: a trunk must not be answered as C1 and C5."""
    assert not translate_mask(one_a_slice([1, 2, 5, 7, 43, 79, 0])).any()


@pytest.mark.parametrize("name", ["1.2.3.4", "1.2.3", "neck"])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_one_file_is_found_by_series_study_or_name(tmp_path: Path, name: str, suffix: str) -> None:
    volume = make_volume()
    write_nifti(tmp_path / f"{name}{suffix}", volume, one_a_slice([50, 49, 0, 0, 0, 0, 44]))
    np.testing.assert_array_equal(
        Segmentations(tmp_path).find(volume), one_a_slice([1, 2, 0, 0, 0, 0, 7]), strict=True
    )


@pytest.mark.parametrize("inside", ["1.2.3", "."])
def test_a_folder_of_structures_is_put_together(tmp_path: Path, inside: str) -> None:
    """In a folder that is called after the study, or named itself; what is no cervical vertebra is passed over."""
    volume = make_volume()
    write_structures(
        tmp_path / inside,
        volume,
        {"vertebrae_C1": 6, "vertebrae_C4": 3, "vertebrae_C7": 1, "vertebrae_T1": 0, "spleen": 2},
    )
    np.testing.assert_array_equal(
        Segmentations(tmp_path).find(volume), one_a_slice([0, 7, 0, 4, 0, 0, 1]), strict=True
    )


def test_a_segmentation_of_another_place_is_not_taken(
    tmp_path: Path,
) -> None:
    write_structures(tmp_path, make_volume(first_mm=40.0), {"vertebrae_C2": 0})
    assert Segmentations(tmp_path).find(make_volume()) is None
    write_structures(tmp_path / "1.2.3.4", make_volume(first_mm=40.0), {"vertebrae_C2": 0})
    segmentations = Segmentations(tmp_path)
    assert segmentations.find(make_volume()) is None
    assert len(segmentations.unusable) == 1
    assert "do not lie where" in segmentations.unusable[0]


def test_a_uid_that_leads_out_of_the_folder_is_not_followed(tmp_path: Path) -> None:
    volume = replace(make_volume(), series_uid="../secret", study_uid=None)
    (tmp_path / "folder").mkdir()
    write_nifti(tmp_path / "secret.nii.gz", volume, one_a_slice([1, 0, 0, 0, 0, 0, 0]))
    assert Segmentations(tmp_path / "folder").find(volume) is None
