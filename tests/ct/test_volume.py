from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from cspine.ct.volume import CANONICAL_DIRECTION, Volume, cut_planes, grid_origins


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


def test_frames_and_slices_without_uids_get_their_own_ids() -> None:
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


def make_uneven(slices: int = 10, spacing_mm: tuple[float, float, float] = (3.0, 1.0, 0.5)) -> Volume:
    hu = np.full((slices, 20, 40), 40, np.int16)
    origins = grid_origins((0.0, 0.0, 0.0), CANONICAL_DIRECTION[0], spacing_mm[0], slices)
    return Volume(hu, spacing_mm, CANONICAL_DIRECTION, origins)


def test_a_dot_is_where_its_letters_say() -> None:
    volume = make_uneven()
    # Near the head (slice 8 of 10), to the front (row 3 of 20), on the patient's left (column 33 of 40).
    volume.hu[8, 3, 33] = 1000
    heat = np.zeros((20, 40), np.float32)
    heat[3, 33] = 2.0
    axial, sagittal, coronal = cut_planes(volume, (8, 3, 33), {8: heat})
    assert axial.sides == {"left": "R", "right": "L", "top": "A", "bottom": "P"}
    assert sagittal.sides == {"left": "A", "right": "P", "top": "H", "bottom": "F"}
    assert coronal.sides == {"left": "R", "right": "L", "top": "H", "bottom": "F"}
    assert axial.spacing_mm == (1.0, 0.5)
    assert sagittal.spacing_mm == (1.0, 1.0)
    assert coronal.spacing_mm == (0.5, 0.5)
    # 27 mm from foot to head; the dot is 3 mm below the top.
    assert sagittal.hu.shape == (28, 20)
    assert coronal.hu.shape == (55, 40)
    for plane, at in ((axial, (3, 33)), (sagittal, (3, 3)), (coronal, (6, 33))):
        assert np.argwhere(plane.hu == 1000).tolist() == [list(at)]
        assert np.argwhere(plane.values == 2.0).tolist() == [list(at)]
        assert plane.cross == pytest.approx(at)
    assert sagittal.between == (3.0, 3.0)


def test_uneven_slices_are_put_at_their_heights() -> None:
    volume = make_uneven(4, (2.0, 1.0, 1.0))
    origins = volume.origins_mm.copy()
    origins[:, 2] = [0, 2, 4, 10]
    volume = replace(volume, origins_mm=origins)
    volume.hu[2] = 500
    sagittal = cut_planes(volume, (2, 10, 20), {})[1]
    assert sagittal.hu.shape[0] == 11
    assert sagittal.hu[6, 0] == 500  # 4 mm above the lowest of 10
    assert sagittal.hu[3, 0] == 270  # half way to the next, of 40 HU
    assert sagittal.between is None


def test_a_tilted_stack_is_drawn_upright() -> None:
    volume = make_uneven(6, (2.0, 1.0, 1.0))
    origins = volume.origins_mm.copy()
    origins[:, 1] = np.arange(6) * 1.0  # each slice 1 mm further back than the one below
    volume = replace(volume, origins_mm=origins)
    for number in range(6):
        volume.hu[number, 12 - number] = 900  # a straight upright line in the patient
    sagittal = cut_planes(volume, (0, 12, 20), {})[1]
    assert (sagittal.hu.argmax(axis=1) == 12).all()


def test_a_single_slice_has_planes_of_one_line() -> None:
    axial, sagittal, coronal = cut_planes(make_uneven(1), (0, 5, 5), {})
    assert axial.hu.shape == (20, 40)
    assert sagittal.hu.shape == (1, 20)
    assert coronal.hu.shape == (1, 40)
