"""NIfTI files in and out: volumes in HU, and label maps on the grid of one.

Every file is brought from its own frame (RAS+, any order of axes) to that of `Volume` (LPS, slices to the head); axes
are permuted and flipped, never resampled. A file that does not say how it lies, or says it twice and differently, is
refused: left and right would be a guess (NIfTI-1, nifti1.h, "3D IMAGE (VOLUME) ORIENTATION AND LOCATION IN SPACE").
"""

from __future__ import annotations

import contextlib
import gzip
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from cspine.core.errors import InputError, MissingExtraError
from cspine.core.files import atomic_file
from cspine.ct.volume import PADDING_HU, Volume, make_voxels, release_pages

SUFFIXES = (".nii", ".nii.gz")

Floats = npt.NDArray[np.float64]
_Kind = TypeVar("_Kind", bound=np.generic)

_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
_MM_PER_UNIT = {"unknown": 1.0, "mm": 1.0, "meter": 1000.0, "micron": 0.001}
_CHUNK_SLICES = 16
_CHECKED_BYTES = 2**22
_UNREADABLE = (OSError, EOFError, zlib.error, ValueError)
_RIGHT_ANGLE = 1e-3
_SAME_PLACE_VOXELS = 0.1


def is_nifti(path: Path) -> bool:
    """Return whether a file has a NIfTI suffix."""
    return Path(path).name.lower().endswith(SUFFIXES)


def read_nifti(path: Path) -> Volume:
    """Read a CT in Hounsfield units into a volume in the canonical frame, without any ids: NIfTI has none.

    Values below `PADDING_HU`, and NaN, are padding and become `PADDING_HU`; others are rounded to whole HU.

    Raises:
        MissingExtraError: nibabel is not installed.
        InputError: no NIfTI file, damaged, not three-dimensional, without an orientation, sheared, or not in HU.
    """
    path = Path(path)
    image = _open(path)
    affine = _find_affine(image, path)
    hu = _read_array(image, affine, path, lambda values: _to_hu(values, path), np.int16)
    least, greatest = int(hu.min()), int(hu.max())
    release_pages(hu)
    if least >= 0:
        raise InputError(
            f"its values are {least} to {greatest}: a CT in Hounsfield units has air or fat, below 0",
            where=str(path),
            fix="convert it from DICOM again without windowing or shifting its values",
        )
    canonical = _to_canonical(affine, image.shape)
    direction, spacing_mm = _find_frame(canonical, path)
    steps = np.arange(len(hu), dtype=np.float64)[:, None]
    return Volume(
        hu=hu,
        spacing_mm=spacing_mm,
        direction=direction,
        origins_mm=canonical[:3, 3] + steps * canonical[:3, 0],
        source=path.name,
    )


def read_nifti_labels(path: Path, volume: Volume) -> npt.NDArray[np.uint8]:
    """Read a segmentation on the grid of `volume`, in any orientation, as (slice, row, column) uint8.

    Raises:
        MissingExtraError: nibabel is not installed.
        InputError: as for `read_nifti`; or its voxels do not lie where the volume's do; or a value is no label.
    """
    path = Path(path)
    image = _open(path)
    affine = _find_affine(image, path)
    canonical = _to_canonical(affine, image.shape)
    shape = _order_shape(affine, image.shape)
    if shape != volume.hu.shape or not _same_place(canonical, volume):
        raise InputError(
            f"its voxels ({_name_shape(shape)}) do not lie where those of the volume "
            f"({_name_shape(volume.hu.shape)}) do",
            where=str(path),
            fix="name a segmentation of the same series, not resampled",
        )
    return _read_array(image, affine, path, lambda values: _to_labels(values, path), np.uint8)


def write_nifti(path: Path, volume: Volume, labels: npt.NDArray[np.uint8] | None = None) -> Path:
    """Write a volume's HU, or labels on its grid, as NIfTI-1; the same content gives the same bytes.

    Args:
        path: Ends in .nii or .nii.gz.
        volume: Evenly spaced, or of a tilted gantry.
        labels: (slice, row, column) uint8, written instead of the HU.

    Raises:
        MissingExtraError: nibabel is not installed.
        InputError: another ending, or slices that are not equally far apart: NIfTI cannot hold them.
        OutputError: the file cannot be written.
    """
    path = Path(path)
    if not is_nifti(path):
        raise InputError("no name of a NIfTI file", where=str(path), fix=f"end it in {' or '.join(SUFFIXES)}")
    straight = volume.affine[:3, 3] + np.arange(len(volume))[:, None] * volume.affine[:3, 0]
    if np.abs(straight - volume.origins_mm).max() > 0.05 * volume.spacing_mm[0]:
        raise InputError(
            "the slices are not equally far apart, and a NIfTI file can only hold ones that are",
            where=volume.source or None,
            fix="resample the volume first, or write DICOM",
        )
    nibabel = _import_nibabel()
    array = volume.hu if labels is None else labels
    if array.shape != volume.hu.shape:
        raise ValueError(f"labels are {array.shape}, the volume is {volume.hu.shape}")
    # (slice, row, column) to (x, y, z), and LPS to RAS.
    affine = _TO_LPS @ volume.affine[:, [2, 1, 0, 3]]
    image = nibabel.Nifti1Image(array.transpose(2, 1, 0), affine)
    image.set_sform(affine, code="scanner")
    if volume.is_even:
        image.set_qform(affine, code="scanner")
    image.header.set_xyzt_units("mm")
    content = image.to_bytes()
    if path.name.lower().endswith(".gz"):
        content = gzip.compress(content, compresslevel=4, mtime=0)
    with atomic_file(path) as temporary:
        temporary.write_bytes(content)
    return path


def _import_nibabel() -> Any:
    try:
        import nibabel
    except ImportError:
        raise MissingExtraError("NIfTI", "studies") from None
    return nibabel


def _open(path: Path) -> Any:
    nibabel = _import_nibabel()
    if not path.is_file():
        raise InputError("there is no such file", where=str(path), fix="name a .nii or .nii.gz file")
    try:
        # Kept open, because a compressed file would else be read from its start again for each chunk.
        image = nibabel.load(path, keep_file_open=True)
    except (nibabel.filebasedimages.ImageFileError, nibabel.spatialimages.HeaderDataError, *_UNREADABLE):
        image = None
    if not isinstance(image, nibabel.Nifti1Image):
        raise InputError(
            "it is damaged, or no NIfTI file", where=str(path), fix=f"name a {' or '.join(SUFFIXES)} file"
        )
    shape = image.shape
    if len(shape) < 3 or 0 in shape or any(length != 1 for length in shape[3:]):
        raise InputError(
            f"it is {_name_shape(shape)}, {len(shape)}-dimensional; a CT series is 3-dimensional",
            where=str(path),
            fix="save one volume of it as a file of its own" if len(shape) > 3 else "name a whole volume",
        )
    kind = image.get_data_dtype()
    if kind.kind not in "iuf":
        raise InputError(
            f"its voxels are {'colours' if kind.fields else kind}, not numbers",
            where=str(path),
            fix="name a file of grey values or labels",
        )
    return image


def _find_affine(image: Any, path: Path) -> Floats:
    """Return (4, 4) from the file's voxel indices to LPS mm."""
    qform, qform_code = image.get_qform(coded=True)
    sform, sform_code = image.get_sform(coded=True)
    if not qform_code and not sform_code:
        raise InputError(
            "it does not say how it lies in the patient (sform and qform codes are 0): left and right are unknown",
            where=str(path),
            fix="convert it from DICOM again with a converter that writes the orientation",
        )
    affine = np.asarray(sform if sform_code else qform, np.float64)
    unit = _MM_PER_UNIT.get(image.header.get_xyzt_units()[0], 1.0)
    affine = _TO_LPS @ np.diag([unit, unit, unit, 1.0]) @ affine
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    if not np.isfinite(affine).all() or not abs(np.linalg.det(affine[:3, :3])) > 1e-6 * lengths.prod():
        raise InputError(
            "its affine is no place in a patient: a voxel has no volume",
            where=str(path),
            fix="convert it from DICOM again",
        )
    if qform_code and sform_code and not np.array_equal(_find_axes(qform), _find_axes(sform)):
        raise InputError(
            "it says twice how it lies in the patient (qform and sform), and differently",
            where=str(path),
            fix="convert it from DICOM again, or set the wrong one's code to 0",
        )
    return affine


def _find_axes(affine: Floats) -> Any:
    """Return for each axis of the file which axis of (x, y, z) it runs along, and 1 or -1 for its direction."""
    return _import_nibabel().io_orientation(affine).astype(int)


def _order_shape(affine: Floats, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return (slices, rows, columns) of a file of this shape."""
    along = _find_axes(affine)[:, 0].tolist()
    return tuple(int(shape[along.index(axis)]) for axis in (2, 1, 0))


def _to_canonical(affine: Floats, shape: tuple[int, ...]) -> Floats:
    """Return (4, 4) from (slice, row, column) in the canonical frame to LPS mm."""
    axes = _find_axes(affine)
    steps, origin = np.zeros((3, 3)), affine[:3, 3].copy()
    for file_axis, (axis, sign) in enumerate(axes):
        step = affine[:3, file_axis]
        steps[:, 2 - axis] = step * sign
        if sign < 0:
            origin += step * (shape[file_axis] - 1)
    canonical = np.eye(4)
    canonical[:3, :3], canonical[:3, 3] = steps, origin
    return canonical


def _find_frame(canonical: Floats, path: Path) -> tuple[Any, tuple[float, float, float]]:
    """Return direction and spacing of a volume; slices may be stacked aslant (gantry tilt), rows and columns not."""
    lengths = np.linalg.norm(canonical[:3, :3], axis=0)
    row, column = canonical[:3, 1] / lengths[1], canonical[:3, 2] / lengths[2]
    normal = np.cross(column, row)
    step_mm = float(normal @ canonical[:3, 0])
    if abs(float(row @ column)) > _RIGHT_ANGLE or step_mm <= 0:
        raise InputError(
            "its rows and columns are not at right angles",
            where=str(path),
            fix="name the file as it was converted from DICOM, before any registration",
        )
    direction = tuple(tuple(float(v) for v in axis) for axis in (normal, row, column))
    return direction, (step_mm, float(lengths[1]), float(lengths[2]))


def _same_place(canonical: Floats, volume: Volume) -> bool:
    """Return whether all corners lie within a tenth of a voxel of the volume's."""
    corners = np.array([[*index, 1] for index in np.ndindex(2, 2, 2)], np.float64)
    corners[:, :3] *= np.array(volume.hu.shape) - 1
    apart_mm = np.linalg.norm((corners @ canonical.T - corners @ volume.affine.T)[:, :3], axis=1)
    return bool(apart_mm.max() <= _SAME_PLACE_VOXELS * min(volume.spacing_mm))


def _read_array(
    image: Any,
    affine: Floats,
    path: Path,
    convert: Callable[[npt.NDArray[Any]], npt.NDArray[_Kind]],
    dtype: type[_Kind],
) -> npt.NDArray[_Kind]:
    """Read all voxels into the canonical frame.

    A few slices of the file at a time: a float64 copy of a large study would be four times its size as int16.
    """
    shape = image.shape[:3]
    array = make_voxels(_order_shape(affine, shape), dtype)
    in_file_order = array.transpose(2, 1, 0)
    axes = _find_axes(affine)
    for axis, sign in axes:
        if sign < 0:
            in_file_order = np.flip(in_file_order, axis)
    in_file_order = in_file_order.transpose(axes[:, 0])
    with _refuse_damage(path):
        _check_sum(path)
    for start in range(0, shape[2], _CHUNK_SLICES):
        part = slice(start, start + _CHUNK_SLICES)
        with _refuse_damage(path):
            values = np.asarray(image.dataobj[:, :, part])
        in_file_order[:, :, part] = convert(values.reshape(values.shape[:3]))
        release_pages(array)
    return array


def _check_sum(path: Path) -> None:
    """Read a compressed file to its end: nibabel stops before the checksum, so damage would go unnoticed."""
    if path.name.lower().endswith(".gz"):
        with gzip.open(path) as file:
            while file.read(_CHECKED_BYTES):
                pass


@contextlib.contextmanager
def _refuse_damage(path: Path) -> Iterator[None]:
    try:
        yield
    except _UNREADABLE:
        raise InputError(
            "it ends early, or its voxels are damaged", where=str(path), fix="fetch or convert it again"
        ) from None


def _to_hu(values: npt.NDArray[Any], path: Path) -> npt.NDArray[np.int16]:
    if values.dtype.kind == "f":
        values = np.where(np.isnan(values), PADDING_HU, np.rint(values))
    limits = np.iinfo(np.int16)
    if values.max() > limits.max:
        raise InputError(
            f"a value is {values.max():g}: no Hounsfield units, which end at {limits.max}",
            where=str(path),
            fix="name a CT in Hounsfield units",
        )
    # Types of one byte cannot be compared with what does not fit into them.
    return np.asarray(np.maximum(values.astype(np.int64), PADDING_HU), np.int16)


def _to_labels(values: npt.NDArray[Any], path: Path) -> npt.NDArray[np.uint8]:
    labels = values.astype(np.uint8) if np.isfinite(values).all() else None
    if labels is None or not np.array_equal(labels, values):
        raise InputError(
            "a value is no whole number of 0 to 255, so it is no label map",
            where=str(path),
            fix="name a segmentation whose voxels are labels, not probabilities",
        )
    return labels


def _name_shape(shape: tuple[int, ...]) -> str:
    return " x ".join(str(length) for length in shape)
