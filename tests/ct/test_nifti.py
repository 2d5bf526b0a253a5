"""NIfTI in and out: where every voxel lies, whatever the order of axes in the file, and what must be refused.

The files are written by nibabel from affines made here by hand; the answers are looked up by place in the patient.
"""

from __future__ import annotations

import gzip
import itertools
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cspine.core.errors import InputError, MissingExtraError
from cspine.ct.nifti import read_nifti, read_nifti_labels, write_nifti
from cspine.ct.volume import CANONICAL_DIRECTION, PADDING_HU, Volume, grid_origins

nibabel = pytest.importorskip("nibabel")

# Which way an axis of the file grows, as a unit vector in NIfTI's RAS.
AXES = {
    "R": (1, 0, 0),
    "L": (-1, 0, 0),
    "A": (0, 1, 0),
    "P": (0, -1, 0),
    "S": (0, 0, 1),
    "I": (0, 0, -1),
}
ORIENTATIONS = [
    "".join(sign[axis] for sign, axis in zip(pairs, order, strict=True))
    for order in itertools.permutations((0, 1, 2))
    for pairs in itertools.product(("RAS", "LPI"), repeat=3)
]


def make_file(
    path: Path,
    orientation: str,
    *,
    shape: tuple[int, ...] = (4, 5, 6),
    spacing_mm: tuple[float, float, float] = (0.5, 0.75, 2.0),
    origin_ras: tuple[float, float, float] = (-20.0, 13.0, -7.0),
    turn: np.ndarray[Any, Any] | None = None,
    dtype: type = np.int16,
    values: np.ndarray[Any, Any] | None = None,
) -> np.ndarray[Any, Any]:
    """A file of distinct values; returns its (n, 4) table: RAS x, y, z and value of every voxel."""
    affine = np.eye(4)
    columns = np.array([AXES[letter] for letter in orientation], float).T * np.array(spacing_mm)
    affine[:3, :3] = columns if turn is None else turn @ columns
    affine[:3, 3] = origin_ras
    if values is None:
        values = (np.arange(np.prod(shape)) - 60).reshape(shape)
    image = nibabel.Nifti1Image(values.astype(dtype), affine)
    image.set_sform(affine, 1)
    image.set_qform(affine, 1)
    nibabel.save(image, path)
    index = np.array(list(np.ndindex(*shape)), float)
    points = index @ affine[:3, :3].T + affine[:3, 3]
    return np.column_stack([points, values.reshape(-1)])


def list_points(volume: Volume) -> np.ndarray[Any, Any]:
    """(n, 4): RAS x, y, z and value of every voxel, by the volume's own account of its places."""
    rows = []
    for index, row, column in np.ndindex(*volume.hu.shape):
        x, y, z = volume.find_point_mm(index, row, column)
        rows.append((-x, -y, z, volume.hu[index, row, column]))
    return np.array(rows)


def sort_by_value(table: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return table[np.argsort(table[:, 3])]


def test_there_are_48_orientations() -> None:
    assert len(set(ORIENTATIONS)) == 48
    assert {"RAS", "LPS", "PIR", "ASL"} <= set(ORIENTATIONS)


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_every_voxel_keeps_its_place_in_all_48_orientations(tmp_path: Path, orientation: str) -> None:
    truth = make_file(tmp_path / "ct.nii", orientation)
    volume = read_nifti(tmp_path / "ct.nii")
    assert np.allclose(volume.direction, CANONICAL_DIRECTION)
    np.testing.assert_allclose(sort_by_value(list_points(volume)), sort_by_value(truth), atol=1e-4)


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_a_mark_on_the_left_stays_left_in_all_48_orientations(tmp_path: Path, orientation: str) -> None:
    """Left is where the column index grows, the back where the row index does, the head where slices do."""
    shape = (5, 7, 9)
    values = np.full(shape, -1000)
    place = []
    for letter, length in zip(orientation, shape, strict=True):
        # The mark is on the patient's left, at the back, at the head: the last voxel where the axis grows there.
        place.append(length - 1 if letter in "LPS" else 0)
    values[tuple(place)] = 700
    make_file(tmp_path / "ct.nii.gz", orientation, shape=shape, values=values)
    volume = read_nifti(tmp_path / "ct.nii.gz")
    assert np.argwhere(volume.hu == 700).tolist() == [[length - 1 for length in volume.hu.shape]]


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    orientation=st.sampled_from(ORIENTATIONS),
    shape=st.tuples(*[st.integers(1, 20)] * 3).filter(lambda s: 2 <= s[0] * s[1] * s[2] <= 600),
    spacing_mm=st.tuples(*[st.floats(0.2, 5.0)] * 3),
    origin=st.tuples(*[st.floats(-300, 300)] * 3),
    angles=st.tuples(*[st.floats(-0.35, 0.35)] * 3),
    dtype=st.sampled_from([np.int16, np.int32, np.float32, np.float64]),
    ending=st.sampled_from([".nii", ".nii.gz"]),
)
def test_oblique_files_keep_every_voxels_place(
    tmp_path: Path,
    orientation: str,
    shape: tuple[int, int, int],
    spacing_mm: tuple[float, float, float],
    origin: tuple[float, float, float],
    angles: tuple[float, float, float],
    dtype: type,
    ending: str,
) -> None:
    turn = np.eye(3)
    for axis, angle in enumerate(angles):
        one, two = [other for other in range(3) if other != axis]
        part = np.eye(3)
        part[one, one] = part[two, two] = np.cos(angle)
        part[one, two], part[two, one] = -np.sin(angle), np.sin(angle)
        turn = part @ turn
    path = tmp_path / f"ct{ending}"
    truth = make_file(
        path,
        orientation,
        shape=shape,
        spacing_mm=spacing_mm,
        origin_ras=origin,
        turn=turn,
        dtype=dtype,
    )
    volume = read_nifti(path)
    np.testing.assert_allclose(sort_by_value(list_points(volume)), sort_by_value(truth), atol=2e-3)
    # Labels in another order of axes, at the same places, come out beside their voxels.
    labels = (truth[:, 3].reshape(shape) + 61) % 200
    make_file(
        path,
        orientation,
        shape=shape,
        spacing_mm=spacing_mm,
        origin_ras=origin,
        turn=turn,
        values=labels,
        dtype=np.uint8,
    )
    np.testing.assert_array_equal(read_nifti_labels(path, volume), (volume.hu + 61) % 200)


def test_labels_of_another_orientation_fit_the_volume(tmp_path: Path) -> None:
    """The challenge's segmentations are sagittal, its images axial."""
    affine = np.diag([-0.5, -0.5, 2.0, 1.0])
    ct = np.random.default_rng(0).integers(-1000, 1000, (8, 7, 6)).astype(np.int16)
    seg = (ct > 0).astype(np.uint8) * 3
    nibabel.save(nibabel.Nifti1Image(ct, affine), tmp_path / "ct.nii")
    volume = read_nifti(tmp_path / "ct.nii")
    sagittal = nibabel.Nifti1Image(seg, affine).as_reoriented(np.array([[1, -1], [2, 1], [0, -1]]))
    assert nibabel.aff2axcodes(sagittal.affine) != nibabel.aff2axcodes(affine)
    nibabel.save(sagittal, tmp_path / "seg.nii")
    np.testing.assert_array_equal(read_nifti_labels(tmp_path / "seg.nii", volume), (volume.hu > 0) * 3)


def test_a_segmentation_of_another_place_is_refused(tmp_path: Path) -> None:
    make_file(tmp_path / "ct.nii", "LPS")
    volume = read_nifti(tmp_path / "ct.nii")
    # A mirrored copy has the same shape; only its place tells it apart.
    make_file(tmp_path / "seg.nii", "RPS", dtype=np.uint8, values=np.ones((4, 5, 6)))
    with pytest.raises(InputError, match="do not lie where"):
        read_nifti_labels(tmp_path / "seg.nii", volume)
    make_file(tmp_path / "seg.nii", "LPS", dtype=np.float32, values=np.full((4, 5, 6), 0.5))
    with pytest.raises(InputError, match="no label map"):
        read_nifti_labels(tmp_path / "seg.nii", volume)


def test_scaled_values_are_scaled_and_padding_is_one_value(tmp_path: Path) -> None:
    stored = np.array([[[0, 1024, 3000, -2000]]], np.int16)
    image = nibabel.Nifti1Image(stored, np.diag([1, 1, 1, 1]))
    image.header.set_slope_inter(1, -1024)
    image.to_filename(tmp_path / "a.nii")
    raw = bytearray((tmp_path / "a.nii").read_bytes())
    image = nibabel.load(tmp_path / "a.nii")
    # nibabel scales while it writes; the stored values are put back, as a converter leaves them.
    raw[image.dataobj.offset :] = stored.astype("<i2").tobytes(order="F")
    raw[112:120] = np.array([1, -1024], "<f4").tobytes()
    (tmp_path / "a.nii").write_bytes(raw)
    assert read_nifti(tmp_path / "a.nii").hu.reshape(-1).tolist() == [-1024, 0, 1976, PADDING_HU]

    floats = np.array([[[np.nan, -3024.0, -0.6, 41.4]]], np.float32)
    nibabel.save(nibabel.Nifti1Image(floats, np.eye(4)), tmp_path / "b.nii")
    assert read_nifti(tmp_path / "b.nii").hu.reshape(-1).tolist() == [PADDING_HU, PADDING_HU, -1, 41]


def test_metres_and_micrometres_become_millimetres(tmp_path: Path) -> None:
    for unit, factor in (("meter", 1e-3), ("micron", 1e3)):
        image = nibabel.Nifti1Image(
            np.full((3, 3, 3), -5, np.int16), np.diag([factor, factor, 2 * factor, 1])
        )
        image.header.set_xyzt_units(unit)
        nibabel.save(image, tmp_path / "ct.nii")
        np.testing.assert_allclose(read_nifti(tmp_path / "ct.nii").spacing_mm, (2, 1, 1), rtol=1e-5)


def save(path: Path, array: np.ndarray[Any, Any], affine: Any = None, **codes: int) -> None:
    image = nibabel.Nifti1Image(array, np.eye(4) if affine is None else affine)
    image.set_sform(image.affine, codes.get("sform", 1))
    image.set_qform(codes.get("flip", 1) * np.diag([1, 1, 1, 1]), codes.get("qform", 0))
    nibabel.save(image, path)


CT = np.full((3, 4, 5), -100, np.int16)


@pytest.mark.parametrize(
    ("array", "affine", "codes", "message"),
    [
        (np.zeros((3, 4, 5, 2), np.int16), None, {}, "4-dimensional"),
        (np.zeros((3, 4), np.int16), None, {}, "2-dimensional"),
        (CT, None, {"sform": 0}, "left and right are unknown"),
        (CT, np.diag([-1, 1, 1, 1]), {"qform": 1}, "says twice"),
        (CT, [[1, 0.4, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]], {}, "right angles"),
        (CT, [[1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]], {}, "no volume"),
        (CT + 100, None, {}, "below 0"),
        ((CT + 100).astype(np.uint8), None, {}, "below 0"),
        (CT.astype(np.float32) + 1e6, None, {}, "no Hounsfield units"),
        (CT.astype(np.complex64), None, {}, "not numbers"),
    ],
)
def test_what_is_no_ct_of_a_known_place_is_refused(
    tmp_path: Path, array: np.ndarray[Any, Any], affine: Any, codes: dict[str, int], message: str
) -> None:
    save(tmp_path / "ct.nii", array, affine, **codes)
    with pytest.raises(InputError, match=message):
        read_nifti(tmp_path / "ct.nii")


def test_a_fourth_dimension_of_one_is_a_volume(tmp_path: Path) -> None:
    save(tmp_path / "ct.nii.gz", CT[..., None])
    assert read_nifti(tmp_path / "ct.nii.gz").hu.shape == (5, 4, 3)


def test_damaged_and_foreign_files_are_refused(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(-1000, 1000, (30, 30, 40))
    make_file(tmp_path / "ct.nii", "LPS", shape=values.shape, values=values)
    whole = (tmp_path / "ct.nii").read_bytes()
    packed = gzip.compress(whole)
    for name, content in {
        "a.nii": whole[:-100],
        "b.nii.gz": packed[:-2000],
        "c.nii.gz": packed[:3000] + b"\0" * 50 + packed[3050:],
        "d.nii": b"",
        "e.nii": b"text" * 200,
        "f.nii.gz": whole,
    }.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match="damaged"):
            read_nifti(tmp_path / name)
    with pytest.raises(InputError, match="no such file"):
        read_nifti(tmp_path / "g.nii")


def test_without_nibabel_one_line_says_which_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "nibabel", None)
    with pytest.raises(MissingExtraError, match="NIfTI") as error:
        read_nifti(tmp_path / "ct.nii")
    assert error.value.fix == "pip install 'cspine[studies]'"


def make_volume() -> Volume:
    hu = np.random.default_rng(3).integers(-1000, 1500, (6, 5, 4)).astype(np.int16)
    return Volume(hu, (2.0, 0.5, 0.75), CANONICAL_DIRECTION, grid_origins((3, -4, 9), (0, 0, 1), 2.0, 6))


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_what_is_written_is_read_again_and_twice_the_same_bytes(tmp_path: Path, ending: str) -> None:
    volume = make_volume()
    labels = (volume.hu > 200).astype(np.uint8)
    paths = [tmp_path / f"{name}{ending}" for name in ("a", "b", "seg")]
    write_nifti(paths[0], volume)
    write_nifti(paths[1], volume)
    write_nifti(paths[2], volume, labels)
    assert paths[0].read_bytes() == paths[1].read_bytes()
    again = read_nifti(paths[0])
    np.testing.assert_array_equal(again.hu, volume.hu)
    np.testing.assert_allclose(again.affine, volume.affine, atol=1e-5)
    np.testing.assert_array_equal(read_nifti_labels(paths[2], again), labels)
    # nibabel, which knows nothing of us, finds the first voxel at the same place.
    np.testing.assert_allclose(nibabel.load(paths[0]).affine @ [0, 0, 0, 1], [-3, 4, 9, 1], atol=1e-5)


def test_uneven_slices_are_not_written(tmp_path: Path) -> None:
    origins = grid_origins((0, 0, 0), (0, 0, 1), 2.0, 6)
    origins[4:] += [0, 0, 1.0]
    volume = Volume(make_volume().hu, (2.0, 0.5, 0.75), CANONICAL_DIRECTION, origins)
    with pytest.raises(InputError, match="not equally far apart"):
        write_nifti(tmp_path / "ct.nii", volume)
    with pytest.raises(InputError, match="no name of a NIfTI file"):
        write_nifti(tmp_path / "ct.img", make_volume())
    assert list(tmp_path.iterdir()) == []
