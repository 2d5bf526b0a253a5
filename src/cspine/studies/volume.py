"""A CT series in memory: Hounsfield units, and where in the patient every voxel lies.

Every reader (DICOM, NIfTI) ends in a `Volume`; everything after that knows nothing of files. Coordinates are DICOM's
patient frame, LPS, in mm: x to the patient's left, y to the back, z to the head (PS3.3 C.7.6.2.1.1).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from cspine.data.types import Slice, find_nearest
from cspine.studies.voxels import RELEASE_EVERY, release_pages

CANONICAL_DIRECTION = ((0.0, 0.0, 1.0), (0.0, 1.0, 0.0), (1.0, 0.0, 0.0))
"""The frame that readers bring volumes to: slices go to the head, rows to the back, columns to the patient's left, as
in an axial scan of a supine patient. An oblique scan keeps its angle: its axes are the nearest to these."""

PADDING_HU = -1024
"""What stands where a scan has no value (outside the circle that was reconstructed)."""

_ORTHOGONAL = 1e-3


@dataclass(frozen=True)
class Volume:
    """One series of parallel slices.

    Attributes:
        hu: (slice, row, column) int16 Hounsfield units; padding is `PADDING_HU`. Of a large volume they lie in a file
            (`voxels`).
        spacing_mm: (slice, row, column), all above 0. The slice spacing is the median distance along the normal; the
            only slice of a volume has its thickness there.
        direction: Three unit vectors in LPS: where the slice, the row and the column index grow to. They are at right
            angles, and slice = column x row (DICOM's normal: the cross product of Image Orientation's two halves).
        origins_mm: (slices, 3) LPS position of the centre of the first voxel of each slice: Image Position (Patient).
            They say exactly where uneven slices lie, and those of a tilted gantry, which are not stacked along the
            normal. See `grid_origins` for an even grid.
        patient_id, study_uid, series_uid, frame_of_reference_uid: None where the source does not say; nothing invents
            one.
        sop_instance_uids: One for each slice, in order (that of its file, for a frame of a multi-frame file); empty
            where the source has none, as NIfTI.
        frame_numbers: From 1, for each slice, where the source is multi-frame; else empty.
        source: What the volume was read from, for messages.
    """

    hu: npt.NDArray[np.int16]
    spacing_mm: tuple[float, float, float]
    direction: tuple[tuple[float, float, float], tuple[float, float, float], tuple[float, float, float]]
    origins_mm: npt.NDArray[np.float64]
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
    def positions_mm(self) -> npt.NDArray[np.float64]:
        """(slices,) Position of each slice along the normal; strictly growing."""
        return np.asarray(self.origins_mm @ np.asarray(self.direction[0], np.float64), np.float64)

    @property
    def origin_mm(self) -> tuple[float, float, float]:
        """LPS position of the centre of voxel [0, 0, 0]."""
        x, y, z = (float(value) for value in self.origins_mm[0])
        return (x, y, z)

    @property
    def is_even(self) -> bool:
        """Whether the slices are stacked along the normal, equally far apart, to a twentieth of their distance."""
        first, last = self.origins_mm[0], self.origins_mm[-1]
        along = np.asarray(self.direction[0]) * (self.positions_mm[-1] - self.positions_mm[0])
        even = first + np.linspace(0.0, 1.0, len(self))[:, None] * along
        off_mm = max(np.abs(even - self.origins_mm).max(), np.abs(first + along - last).max())
        return bool(off_mm <= 0.05 * self.spacing_mm[0])

    @property
    def affine(self) -> npt.NDArray[np.float64]:
        """(4, 4) From (slice, row, column, 1) to LPS mm; exact where the slices are evenly spaced, tilted or not."""
        matrix = np.eye(4)
        last = len(self) - 1
        step = np.asarray(self.direction[0]) * self.spacing_mm[0]
        matrix[:3, 0] = (self.origins_mm[-1] - self.origins_mm[0]) / last if last else step
        matrix[:3, 1] = np.asarray(self.direction[1]) * self.spacing_mm[1]
        matrix[:3, 2] = np.asarray(self.direction[2]) * self.spacing_mm[2]
        matrix[:3, 3] = self.origins_mm[0]
        return matrix

    def find_point_mm(self, index: int, row_px: float, column_px: float) -> tuple[float, float, float]:
        """LPS position of a point of slice `index` (PS3.3 C.7.6.2.1.1, equation C.7.6.2.1-1)."""
        down = np.asarray(self.direction[1]) * self.spacing_mm[1] * row_px
        right = np.asarray(self.direction[2]) * self.spacing_mm[2] * column_px
        x, y, z = (float(value) for value in self.origins_mm[index] + down + right)
        return (x, y, z)

    def slice_id(self, index: int) -> str:
        """The SOP Instance UID, with `#frame` for a frame of several; without UIDs the series and the number."""
        if not self.sop_instance_uids:
            return f"{self.series_uid or self.study_uid or self.source}#{index + 1}"
        frame = f"#{self.frame_numbers[index]}" if self.frame_numbers else ""
        return self.sop_instance_uids[index] + frame

    def slice(self, index: int, offsets_mm: Sequence[float] = ()) -> Slice:
        """One slice, as recipes and predictors take it, with those at `offsets_mm` from it; its pixels are views."""
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

    def slices(self) -> Iterator[Slice]:
        """All slices, in order of position."""
        return (self.slice(index) for index in range(len(self)))


def grid_origins(
    origin_mm: tuple[float, float, float],
    normal: tuple[float, float, float],
    spacing_mm: float,
    count: int,
) -> npt.NDArray[np.float64]:
    """(count, 3) Origins of slices `spacing_mm` apart along `normal`, the first at `origin_mm`."""
    steps = np.arange(count, dtype=np.float64)[:, None] * spacing_mm
    return np.asarray(origin_mm, np.float64) + steps * np.asarray(normal, np.float64)
