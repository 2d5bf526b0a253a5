from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from cspine.ct.volume import CANONICAL_DIRECTION, Volume, grid_origins


def make_volume(**changes: Any) -> Volume:
    values: dict[str, Any] = {
        "hu": np.arange(24, dtype=np.int16).reshape(2, 3, 4),
        "spacing_mm": (2.0, 0.5, 0.25),
        "direction": CANONICAL_DIRECTION,
        "origins_mm": grid_origins((-10.0, -20.0, 5.0), (0.0, 0.0, 1.0), 2.0, 2),
    }
    return Volume(**{**values, **changes})


def test_a_voxel_lies_where_dicoms_equation_puts_it() -> None:
    volume = make_volume()
    # Slice 1 is 2 mm higher; row 2 is 1 mm further back; column 3 is 0.75 mm further to the left.
    assert volume.find_point_mm(1, 2, 3) == (-9.25, -19.0, 7.0)
    assert volume.affine @ [1, 2, 3, 1] == pytest.approx([-9.25, -19.0, 7.0, 1.0])
    assert list(volume.positions_mm) == [5.0, 7.0]
    assert volume.is_even


def test_slices_of_a_tilted_gantry_keep_their_places() -> None:
    sin, cos = 0.6, 0.8
    direction = ((0.0, sin, cos), (0.0, cos, -sin), (1.0, 0.0, 0.0))
    origins = np.array([[0.0, 0.0, 0.0], [0.0, 0.0, 5.0]])  # the table moves along z, not along the normal
    volume = make_volume(direction=direction, origins_mm=origins, spacing_mm=(4.0, 0.5, 0.25))
    assert list(volume.positions_mm) == [0.0, 4.0]
    assert not volume.is_even
    assert volume.affine @ [1, 0, 0, 1] == pytest.approx([0, 0, 5, 1])


def test_a_slice_carries_ids_spacing_and_position() -> None:
    volume = make_volume(
        series_uid="1.2", study_uid="1.1", patient_id="P", sop_instance_uids=("1.2.9", "1.2.8")
    )
    slices = [volume.slice(index) for index in range(len(volume))]
    assert [one.slice_id for one in slices] == ["1.2.9", "1.2.8"]
    assert slices[1].domain == "hu"
    assert slices[1].spacing_mm == (0.5, 0.25)
    assert slices[1].position == 7.0
    assert np.shares_memory(slices[1].pixels, volume.hu)


def test_frames_of_one_file_and_slices_without_uids_get_ids_of_their_own() -> None:
    frames = make_volume(sop_instance_uids=("1.2.9", "1.2.9"), frame_numbers=(2, 1))
    assert [frames.slice_id(index) for index in range(2)] == ["1.2.9#2", "1.2.9#1"]
    assert make_volume(source="neck.nii").slice_id(1) == "neck.nii#2"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hu": np.zeros((2, 3, 4), np.float32)}, "int16"),
        ({"hu": np.zeros((3, 3, 4), np.int16)}, "finite origins"),
        ({"spacing_mm": (2.0, 0.0, 1.0)}, "above 0"),
        ({"direction": ((0, 0, 1), (0, 1, 0.5), (1, 0, 0))}, "right angles"),
        ({"direction": ((0, 0, -1), (0, 1, 0), (1, 0, 0))}, "cross product"),
        ({"origins_mm": np.array([[0.0, 0, 2], [0, 0, 0]])}, "sorted"),
        ({"origins_mm": np.array([[0.0, 0, 2], [0, 0, 2]])}, "none twice"),
        ({"sop_instance_uids": ("1.2",)}, "one for each"),
    ],
)
def test_a_volume_that_contradicts_itself_cannot_be_made(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_volume(**changes)
