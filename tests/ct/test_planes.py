"""Planes through a point: which side is which, true heights of uneven slices, and a tilted stack set upright."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from cspine.ct.volume import CANONICAL_DIRECTION, Volume, cut_planes, grid_origins


def make_volume(slices: int = 10, spacing_mm: tuple[float, float, float] = (3.0, 1.0, 0.5)) -> Volume:
    hu = np.full((slices, 20, 40), 40, np.int16)
    origins = grid_origins((0.0, 0.0, 0.0), CANONICAL_DIRECTION[0], spacing_mm[0], slices)
    return Volume(hu, spacing_mm, CANONICAL_DIRECTION, origins)


def test_a_dot_is_where_its_letters_say() -> None:
    volume = make_volume()
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
    volume = make_volume(4, (2.0, 1.0, 1.0))
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
    volume = make_volume(6, (2.0, 1.0, 1.0))
    origins = volume.origins_mm.copy()
    origins[:, 1] = np.arange(6) * 1.0  # each slice 1 mm further back than the one below
    volume = replace(volume, origins_mm=origins)
    for number in range(6):
        volume.hu[number, 12 - number] = 900  # a straight upright line in the patient
    sagittal = cut_planes(volume, (0, 12, 20), {})[1]
    assert (sagittal.hu.argmax(axis=1) == 12).all()


def test_a_single_slice_has_planes_of_one_line() -> None:
    axial, sagittal, coronal = cut_planes(make_volume(1), (0, 5, 5), {})
    assert axial.hu.shape == (20, 40)
    assert sagittal.hu.shape == (1, 20)
    assert coronal.hu.shape == (1, 40)
