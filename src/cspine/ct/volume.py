"""A CT series in memory: Hounsfield units, and where in the patient every voxel lies.

Every reader (DICOM, NIfTI) ends in a `Volume`; nothing after it knows of files. Coordinates are DICOM's patient frame,
LPS, in mm: x to the patient's left, y to the back, z to the head (PS3.3 C.7.6.2.1.1).
"""

from __future__ import annotations

import math
import mmap
import os
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from cspine.core.errors import OutputError
from cspine.core.types import Slice, find_nearest

if TYPE_CHECKING:
    pass

CANONICAL_DIRECTION = ((0.0, 0.0, 1.0), (0.0, 1.0, 0.0), (1.0, 0.0, 0.0))
"""The frame that readers bring volumes to: slices go to the head, rows to the back, columns to the patient's left, as
in an axial scan of a supine patient. An oblique scan keeps its angle: its axes are the nearest to these."""

PADDING_HU = -1024
"""The value of voxels outside the reconstructed circle."""

MAPPED_BYTES = 2**27
"""From how many bytes on an array lives in a file (256 slices of 512 x 512 pixels)."""

RELEASE_EVERY = 64
"""After how many slices that were written or read their pages are given back."""

Floats = npt.NDArray[np.float64]
Vector = tuple[float, float, float]

_ORTHOGONAL = 1e-3
_Kind = TypeVar("_Kind", bound=np.generic)


def make_voxels(shape: tuple[int, ...], dtype: type[_Kind]) -> npt.NDArray[_Kind]:
    """Return an array to be filled: in memory, or a large one in a temporary file that is mapped into memory.

    A file's pages are the system's to write out and to drop, so a study of a thousand slices needs no more memory than
    one of a hundred. The file has no name: it is gone with the array, or with the program, however that ends.

    Raises:
        OutputError: there is no room for it on the disk.
    """
    size = math.prod(shape) * np.dtype(dtype).itemsize
    # Without this function (macOS, Windows) a disk that fills up later would end the program by a signal.
    reserve = getattr(os, "posix_fallocate", None)
    if size < MAPPED_BYTES or reserve is None:
        return np.empty(shape, dtype)
    try:
        with tempfile.TemporaryFile(prefix="cspine-") as file:
            reserve(file.fileno(), 0, size)
            pages = mmap.mmap(file.fileno(), size)
    except OSError as error:
        raise OutputError(
            f"no room for the voxels of a series, {size / 1e6:,.0f} MB: {error.strerror or error}",
            where=tempfile.gettempdir(),
            fix="free some room there, or set TMPDIR to a folder that has it",
        ) from error
    return np.ndarray(shape, dtype, buffer=pages)


def release_pages(voxels: npt.NDArray[Any]) -> None:
    """Let the system drop the pages of a mapped array, or of a view of one; they are read again when used.

    An array in memory stays as it is. May be called while other threads read and write.
    """
    base: Any = voxels
    while isinstance(base, np.ndarray):
        base = base.base
    if isinstance(base, mmap.mmap):
        base.madvise(mmap.MADV_DONTNEED)


@dataclass(frozen=True)
class Volume:
    """One series of parallel slices.

    Attributes:
        hu: (slice, row, column) int16 Hounsfield units; padding is `PADDING_HU`.
        spacing_mm: (slice, row, column), all above 0. The slice spacing is the median distance along the normal, or the
            thickness of an only slice.
        direction: Three unit vectors in LPS: where the slice, the row and the column index grow to. They are at right
            angles, and slice = column x row (DICOM's normal: the cross product of Image Orientation's two halves).
        origins_mm: (slices, 3) LPS position of the centre of the first voxel of each slice, Image Position (Patient):
            exact for uneven slices, and for those of a tilted gantry, which are not stacked along the normal.
        patient_id, study_uid, series_uid, frame_of_reference_uid: None if the source does not say; nothing invents one.
        sop_instance_uids: One for each slice, in order; empty if the source has none, as NIfTI.
        frame_numbers: From 1, for each slice of a multi-frame source; else empty.
        source: What the volume was read from, for messages.
    """

    hu: npt.NDArray[np.int16]
    spacing_mm: tuple[float, float, float]
    direction: tuple[Vector, Vector, Vector]
    origins_mm: Floats
    patient_id: str | None = None
    study_uid: str | None = None
    series_uid: str | None = None
    frame_of_reference_uid: str | None = None
    sop_instance_uids: tuple[str, ...] = ()
    frame_numbers: tuple[int, ...] = ()
    source: str = ""

    def __post_init__(self) -> None:
        if self.hu.ndim != 3 or self.hu.dtype != np.int16 or 0 in self.hu.shape:
            raise ValueError(
                f"a volume needs (slice, row, column) int16 HU, not {self.hu.shape} {self.hu.dtype}"
            )
        count = len(self.hu)
        if self.origins_mm.shape != (count, 3) or not np.isfinite(self.origins_mm).all():
            raise ValueError(f"{count} slices need as many finite origins, not {self.origins_mm.shape}")
        if not all(np.isfinite(step) and step > 0 for step in self.spacing_mm):
            raise ValueError(f"spacing must be above 0, not {self.spacing_mm}")
        axes = np.asarray(self.direction, np.float64)
        if not np.allclose(axes @ axes.T, np.eye(3), atol=_ORTHOGONAL):
            raise ValueError("direction must be three unit vectors at right angles")
        if not np.allclose(np.cross(axes[2], axes[1]), axes[0], atol=_ORTHOGONAL):
            raise ValueError("the slice axis must be the cross product of the column and the row axis")
        if (np.diff(self.positions_mm) <= 0).any():
            raise ValueError("slices must be sorted by position along the normal, none twice")
        for name in ("sop_instance_uids", "frame_numbers"):
            if len(getattr(self, name)) not in (0, count):
                raise ValueError(f"{name} must be one for each of the {count} slices, or none")

    def __len__(self) -> int:
        return len(self.hu)

    @cached_property
    def positions_mm(self) -> Floats:
        """(slices,) Position of each slice along the normal; strictly increasing."""
        return np.asarray(self.origins_mm @ np.asarray(self.direction[0], np.float64), np.float64)

    @property
    def origin_mm(self) -> Vector:
        """LPS position of the centre of voxel [0, 0, 0]."""
        x, y, z = (float(value) for value in self.origins_mm[0])
        return (x, y, z)

    @property
    def is_even(self) -> bool:
        """Whether slices are equally far apart along the normal, to a twentieth of their distance."""
        first, last = self.origins_mm[0], self.origins_mm[-1]
        along = np.asarray(self.direction[0]) * (self.positions_mm[-1] - self.positions_mm[0])
        even = first + np.linspace(0.0, 1.0, len(self))[:, None] * along
        off_mm = max(np.abs(even - self.origins_mm).max(), np.abs(first + along - last).max())
        return bool(off_mm <= 0.05 * self.spacing_mm[0])

    @property
    def affine(self) -> Floats:
        """(4, 4) From (slice, row, column, 1) to LPS mm; exact for evenly spaced slices, tilted or not."""
        matrix = np.eye(4)
        last = len(self) - 1
        step = np.asarray(self.direction[0]) * self.spacing_mm[0]
        matrix[:3, 0] = (self.origins_mm[-1] - self.origins_mm[0]) / last if last else step
        matrix[:3, 1] = np.asarray(self.direction[1]) * self.spacing_mm[1]
        matrix[:3, 2] = np.asarray(self.direction[2]) * self.spacing_mm[2]
        matrix[:3, 3] = self.origins_mm[0]
        return matrix

    def find_point_mm(self, index: int, row_px: float, column_px: float) -> Vector:
        """Return the LPS position of a point of slice `index` (PS3.3 C.7.6.2.1.1, equation C.7.6.2.1-1)."""
        down = np.asarray(self.direction[1]) * self.spacing_mm[1] * row_px
        right = np.asarray(self.direction[2]) * self.spacing_mm[2] * column_px
        x, y, z = (float(value) for value in self.origins_mm[index] + down + right)
        return (x, y, z)

    def slice_id(self, index: int) -> str:
        """Return the SOP Instance UID, with `#frame` for one of several frames; without UIDs series and number."""
        if not self.sop_instance_uids:
            return f"{self.series_uid or self.study_uid or self.source}#{index + 1}"
        frame = f"#{self.frame_numbers[index]}" if self.frame_numbers else ""
        return self.sop_instance_uids[index] + frame

    @property
    def slice_ids(self) -> tuple[str, ...]:
        """Of all slices, in order."""
        return tuple(self.slice_id(index) for index in range(len(self)))

    def slice(self, index: int, offsets_mm: Sequence[float] = ()) -> Slice:
        """Return one slice, with those at `offsets_mm` from it in `around`; pixels are views."""
        if index % RELEASE_EVERY == RELEASE_EVERY - 1:
            release_pages(self.hu)  # of the slices before, where they are read in order
        position = float(self.positions_mm[index])
        return Slice(
            pixels=self.hu[index],
            domain="hu",
            slice_id=self.slice_id(index),
            spacing_mm=self.spacing_mm[1:],
            patient_id=self.patient_id,
            study_uid=self.study_uid,
            series_uid=self.series_uid,
            position=position,
            around=tuple(self.hu[other] for other in find_nearest(self.positions_mm, position, offsets_mm)),
        )


def grid_origins(origin_mm: Vector, normal: Vector, spacing_mm: float, count: int) -> Floats:
    """Return (count, 3) origins of slices `spacing_mm` apart along `normal`, the first at `origin_mm`."""
    steps = np.arange(count, dtype=np.float64)[:, None] * spacing_mm
    return np.asarray(origin_mm, np.float64) + steps * np.asarray(normal, np.float64)


class SeriesSlices(Protocol):
    """The slices of one series, from feet to head: of a `Volume`, a `StreamingVolume` or an imported set."""

    @property
    def slice_ids(self) -> tuple[str, ...]:
        """Of all slices, in order."""

    @property
    def positions_mm(self) -> Floats:
        """(n,) Along the normal, increasing."""

    def slice(self, index: int, offsets_mm: Sequence[float]) -> Slice:
        """Return one slice, with those at `offsets_mm` from it in `around`; threads may call it."""


class AbandonedError(Exception):
    """The volume will not be finished; who finished it, or gave it up, says why."""


class StreamingVolume:
    """A volume whose slices can be had, from feet to head, while it is still being read.

    One thread fills `volume.hu` and says how far it is; any number may ask for slices. What is made of them counts only
    if intake then takes the volume.

    Args:
        volume: Complete but for its voxels.
    """

    def __init__(self, volume: Volume) -> None:
        self.volume = volume
        self.slice_ids = volume.slice_ids
        self.positions_mm = volume.positions_mm
        self._ready = 0
        self._abandoned = False
        self._changed = threading.Condition()

    @property
    def abandoned(self) -> bool:
        """Whether no more slices will come, or intake refused the volume."""
        return self._abandoned

    def advance(self, ready: int) -> None:
        """Announce that the first `ready` slices are in place."""
        with self._changed:
            self._ready = ready
            self._changed.notify_all()

    def abandon(self) -> None:
        """Announce that no more slices will come."""
        with self._changed:
            self._abandoned = True
            self._changed.notify_all()

    def slice(self, index: int, offsets_mm: Sequence[float] = ()) -> Slice:
        """Return one slice with those at `offsets_mm` from it, as soon as all of them are there.

        Raises:
            AbandonedError: they will never be.
        """
        needed = max([index, *find_nearest(self.positions_mm, float(self.positions_mm[index]), offsets_mm)])
        with self._changed:
            self._changed.wait_for(lambda: self._abandoned or self._ready > needed)
            if self._abandoned:
                raise AbandonedError
        return self.volume.slice(index, offsets_mm)


OnBegin = Callable[[StreamingVolume], None]
"""Called with a volume that is about to be read."""


@dataclass(frozen=True)
class Plane:
    """One plane as it is displayed: head or front at the top; sagittal from the patient's left, front at the left.

    Attributes:
        name: "axial", "sagittal" or "coronal".
        hu: (H, W) float32 Hounsfield units.
        values: (H, W) float32 beside the HU; 0 where there are none.
        spacing_mm: (row, column).
        cross: (row, column) of the point.
        sides: What is at the left, right, top and bottom: R, L, A, P, H or F.
        between: (first, last) row between which there are values, for a plane across the slices.
    """

    name: str
    hu: npt.NDArray[np.float32]
    values: npt.NDArray[np.float32]
    spacing_mm: tuple[float, float]
    cross: tuple[float, float]
    sides: dict[str, str]
    between: tuple[float, float] | None = None


def cut_planes(
    volume: Volume, point: tuple[int, float, float], values: Mapping[int, npt.NDArray[Any]]
) -> tuple[Plane, Plane, Plane]:
    """Cut axial, sagittal and coronal planes of a volume of `CANONICAL_DIRECTION` through one point.

    Slices may be unevenly far apart, and stacked at a slant (a tilted gantry): every line is taken from where its slice
    lies, so the planes are true to the patient.

    Args:
        volume: To cut.
        point: (slice, row, column).
        values: Slice number to (H, W) values; slices that are missing have none.
    """
    index, row, column = point
    axial = Plane(
        name="axial",
        hu=volume.hu[index].astype(np.float32),
        values=np.asarray(values.get(index, np.zeros(volume.hu.shape[1:])), np.float32),
        spacing_mm=volume.spacing_mm[1:],
        cross=(row, column),
        sides={"left": "R", "right": "L", "top": "A", "bottom": "P"},
    )
    shifts = _find_shifts(volume, index)
    sagittal = _cut_upright(volume, values, point, shifts, across=1)
    coronal = _cut_upright(volume, values, point, shifts, across=0)
    return axial, sagittal, coronal


def _find_shifts(volume: Volume, index: int) -> Floats:
    """Return (slices, 2): by how many rows and columns a place of slice `index` is moved in each slice."""
    moved = volume.origins_mm[index] - volume.origins_mm
    return np.stack(
        [
            moved @ np.asarray(volume.direction[1]) / volume.spacing_mm[1],
            moved @ np.asarray(volume.direction[2]) / volume.spacing_mm[2],
        ],
        axis=1,
    )


def _cut_upright(
    volume: Volume,
    values: Mapping[int, npt.NDArray[Any]],
    point: tuple[int, float, float],
    shifts: Floats,
    *,
    across: int,
) -> Plane:
    """Cut across the slices: along their rows' direction (`across` 1, sagittal) or their columns' (0, coronal)."""
    index, fixed, along = point[0], point[1 + across], 1 - across
    length = volume.hu.shape[1 + along]
    step_mm = volume.spacing_mm[1 + along]

    def stack(find: Callable[[int], npt.NDArray[Any] | None], outside: float) -> Floats:
        lines = np.full((len(volume), length), outside)
        for number in range(len(volume)):
            pixels = find(number)
            at = round(fixed + shifts[number, across])
            if pixels is not None and 0 <= at < pixels.shape[across]:
                line = pixels[:, at] if across == 1 else pixels[at]
                places = np.arange(length) + shifts[number, along]
                lines[number] = np.interp(places, np.arange(length), line, left=outside, right=outside)
        return _fill_height(lines, volume.positions_mm, step_mm)

    positions = volume.positions_mm
    height = (positions[-1] - positions) / step_mm
    known = [number for number in range(len(volume)) if number in values]
    plane = "sagittal" if across == 1 else "coronal"
    sides = {"left": "A", "right": "P"} if across == 1 else {"left": "R", "right": "L"}
    return Plane(
        name=plane,
        hu=stack(lambda number: volume.hu[number], PADDING_HU).astype(np.float32),
        values=stack(values.get, 0.0).astype(np.float32),
        spacing_mm=(step_mm, step_mm),
        cross=(float(height[index]), point[1 + along]),
        sides={**sides, "top": "H", "bottom": "F"},
        between=(float(height[known[-1]]), float(height[known[0]])) if known else None,
    )


def _fill_height(lines: Floats, positions_mm: Floats, step_mm: float) -> Floats:
    """Interpolate lines at positions from feet to head to rows `step_mm` apart from head to feet."""
    if len(lines) == 1:
        return lines
    count = max(2, round((positions_mm[-1] - positions_mm[0]) / step_mm) + 1)
    wanted = positions_mm[-1] - np.arange(count) * step_mm
    upper = np.clip(np.searchsorted(positions_mm, wanted), 1, len(lines) - 1)
    gap = positions_mm[upper] - positions_mm[upper - 1]
    share = np.clip((wanted - positions_mm[upper - 1]) / gap, 0, 1)[:, None]
    return np.asarray((1 - share) * lines[upper - 1] + share * lines[upper], np.float64)
