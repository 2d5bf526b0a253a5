"""From the headers of one series to the plan of a volume: which frames are kept, in which order, and what is wrong.

    frames ─▶ CT, ids, sizes, position, orientation, acquisitions, duplicates ─▶ sorted frames
           ─▶ reading direction, gantry tilt, gaps, uneven distances ─▶ Stack

Each check reports what it finds and hands on the frames that are left, so that as many reasons as possible are said at
once. All is decided from headers alone, but whether two slices at one position are the same picture. The plan says for
every slice of the volume which source slices it is made of and how, so pixels are read once and in order.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from cspine.core.answers import Action, Reason
from cspine.ct.dicom_files import Frame, Triple
from cspine.ct.intake import IntakeFindings, check_extent
from cspine.ct.volume import PADDING_HU

Direction = tuple[Triple, Triple, Triple]
Floats = npt.NDArray[np.float64]
Pixels = npt.NDArray[np.int16]
SamePixels = Callable[[Frame, Frame], bool]

_SAME_POSITION_MM = 0.01
_SUPINE: tuple[Triple, Triple] = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0))


def check_frames(frames: Sequence[Frame], found: IntakeFindings, same_pixels: SamePixels) -> list[Frame]:
    """Run all checks on the frames of one Series Instance UID.

    Args:
        frames: To check.
        found: Gets what is found.
        same_pixels: Whether two frames show the same picture.

    Returns:
        Parallel frames of one size, sorted along `compute_normal`, no two at one position. Of use only if `found` has
        not refused.
    """
    kept = _check_kind(list(frames), found)
    if not kept:
        return []
    _check_ids(kept, found)
    _check_values(kept, found)
    kept = _check_sizes(kept, found)
    kept = _check_position(kept, found)
    if not kept:
        return []
    kept = _check_orientation(kept, found)
    kept = sort_frames(kept)
    kept = _check_acquisitions(kept, found)
    return _check_duplicates(kept, found, same_pixels)


def compute_normal(frame: Frame) -> Floats:
    """Return the (3,) unit normal of a slice, to the head: the cross product of Image Orientation's two halves."""
    assert frame.image_orientation is not None
    right, down = frame.image_orientation
    normal = np.cross(right, down)
    return np.asarray(normal if normal[2] >= 0 else -normal, np.float64)


def compute_positions(frames: Sequence[Frame]) -> Floats:
    """Return (frames,) positions in mm along the normal of the first."""
    origins = np.array([frame.image_position_mm for frame in frames], np.float64)
    return np.asarray(origins @ compute_normal(frames[0]), np.float64)


def sort_frames(frames: Sequence[Frame]) -> list[Frame]:
    """Sort by position; at one position by acquisition, instance number and UID, so that the order is unique."""
    positions = compute_positions(frames)

    def key(index: int) -> tuple[float, int, int, str]:
        frame = frames[index]
        return (
            float(positions[index]),
            frame.acquisition_number or 0,
            frame.instance_number or frame.index or 0,
            frame.sop_instance_uid or frame.file.name,
        )

    return [frames[index] for index in sorted(range(len(frames)), key=key)]


def _check_kind(frames: list[Frame], found: IntakeFindings) -> list[Frame]:
    """Keep CT images that are no localizers."""
    if others := [frame for frame in frames if not frame.is_ct]:
        kinds = Counter(f"{frame.modality or 'no modality'}" for frame in others)
        listed = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
        found.report(Reason.NOT_CT, f"{len(others)} of {len(frames)} are no CT image ({listed})")
    kept = [frame for frame in frames if frame.is_ct]
    if not kept:
        return []
    if scouts := [frame for frame in kept if frame.is_localizer]:
        rest = [frame for frame in kept if not frame.is_localizer]
        found.report(Reason.LOCALIZER, f"{len(scouts)} of {len(kept)} slices", correctable=bool(rest))
        kept = rest or kept
    if derived := sum("DERIVED" in frame.image_type[:1] for frame in kept):
        found.report(Reason.DERIVED_IMAGE, f"{derived} of {len(kept)} slices")
    return kept


def _check_ids(frames: list[Frame], found: IntakeFindings) -> None:
    for name, values in (
        ("studies", {frame.study_uid for frame in frames}),
        ("patients", {frame.patient_id for frame in frames}),
        ("frames of reference", {frame.frame_of_reference_uid for frame in frames}),
    ):
        if len(values) > 1:
            found.report(Reason.CONTRADICTORY_IDS, f"one series in {len(values)} {name}")
    if frames[0].series_uid is None:
        found.report(Reason.CONTRADICTORY_IDS, "there is no Series Instance UID")
    places = defaultdict(set)
    for frame in frames:
        if frame.sop_instance_uid is not None:
            places[frame.sop_instance_uid, frame.index].add(frame.image_position_mm)
    if twice := sum(len(values) > 1 for values in places.values()):
        found.report(Reason.CONTRADICTORY_IDS, f"{twice} SOP Instance UIDs at several positions each")


def _check_values(frames: list[Frame], found: IntakeFindings) -> None:
    """Check what the header says of the meaning of the values."""
    if missing := sum(frame.rescale is None and not frame.has_modality_lut for frame in frames):
        found.report(Reason.MISSING_RESCALE, f"{missing} of {len(frames)} slices")
    if other := sorted(
        {frame.rescale_type for frame in frames if frame.rescale_type not in (None, "HU")}, key=str
    ):
        found.report(Reason.NOT_HU, f"the rescale type is {', '.join(map(str, other))}")
    if lossy := sum(frame.lossy for frame in frames):
        found.report(Reason.LOSSY_COMPRESSION, f"{lossy} of {len(frames)} slices")


def _largest(frames: Iterable[Frame], key: Callable[[Frame], Hashable]) -> tuple[list[Frame], int]:
    """Return the frames of the commonest key (the first of equals), and how many keys there are."""
    groups: dict[Hashable, list[Frame]] = defaultdict(list)
    for frame in frames:
        groups[key(frame)].append(frame)
    return max(groups.values(), key=len), len(groups)


def _check_sizes(frames: list[Frame], found: IntakeFindings) -> list[Frame]:
    def size(frame: Frame) -> Hashable:
        spacing = frame.pixel_spacing_mm
        return frame.rows, frame.columns, spacing and tuple(round(step, 4) for step in spacing)

    if empty := sum(frame.rows < 2 or frame.columns < 2 for frame in frames):
        found.report(
            Reason.CONTRADICTORY_SIZES, f"{empty} slices without rows and columns", correctable=False
        )
    kept, kinds = _largest(frames, size)
    if kinds > 1:
        found.report(
            Reason.CONTRADICTORY_SIZES, f"{kinds} sizes; {len(frames) - len(kept)} slices are unlike the rest"
        )
    if missing := sum(frame.pixel_spacing_mm is None for frame in kept):
        found.report(Reason.MISSING_SPACING, f"{missing} of {len(kept)} slices")
    return kept


def _check_position(frames: list[Frame], found: IntakeFindings) -> list[Frame]:
    """Keep frames with position and orientation."""
    bad = [frame for frame in frames if frame.image_position_mm is None or frame.image_orientation is None]
    if not bad:
        return frames
    placed = all(frame.slice_location_mm is not None for frame in frames)
    action = found.report(Reason.MISSING_POSITION, f"{len(bad)} of {len(frames)} slices", correctable=placed)
    if action is Action.CORRECT:
        return [
            replace(
                frame, image_position_mm=(0.0, 0.0, frame.slice_location_mm or 0.0), image_orientation=_SUPINE
            )
            for frame in frames
        ]
    return [frame for frame in frames if frame not in bad]


def _check_orientation(frames: list[Frame], found: IntakeFindings) -> list[Frame]:
    limit = np.cos(np.radians(found.policy.orientation_deg))
    groups: list[tuple[Floats, list[Frame]]] = []
    for frame in frames:
        axes = np.array(frame.image_orientation)
        near = (group for first, group in groups if (np.sum(axes * first, axis=1) >= limit).all())
        group = next(near, None)
        if group is None:
            groups.append((axes, [frame]))
        else:
            group.append(frame)
    kept = max((group for _, group in groups), key=len)
    if len(groups) > 1:
        found.report(
            Reason.MIXED_ORIENTATION,
            f"{len(groups)} orientations; {len(frames) - len(kept)} of {len(frames)} slices are unlike the rest",
        )
    oblique_deg = float(np.degrees(np.arccos(np.clip(compute_normal(kept[0])[2], 0, 1))))
    if oblique_deg > found.policy.max_oblique_deg:
        found.report(Reason.NOT_AXIAL, f"the normal is {oblique_deg:.0f} degrees off the body axis")
    return kept


def _check_acquisitions(frames: list[Frame], found: IntakeFindings) -> list[Frame]:
    """Keep one of several acquisitions that overlap; those that follow each other along the body are one scan."""
    positions = compute_positions(frames)
    spans: dict[int | None, list[float]] = defaultdict(list)
    for frame, position in zip(frames, positions, strict=True):
        spans[frame.acquisition_number].append(float(position))
    ends = sorted((min(values), max(values)) for values in spans.values())
    reach, overlap = -np.inf, False
    for low, high in ends:
        overlap = overlap or low <= reach + _SAME_POSITION_MM
        reach = max(reach, high)
    if not overlap:
        return frames
    kept, kinds = _largest(frames, lambda frame: frame.acquisition_number)
    found.report(
        Reason.SEVERAL_ACQUISITIONS,
        f"{kinds} acquisitions overlap; the largest has {len(kept)} of {len(frames)} slices",
    )
    return kept


def _check_duplicates(frames: list[Frame], found: IntakeFindings, same_pixels: SamePixels) -> list[Frame]:
    positions = compute_positions(frames)
    kept: list[Frame] = []
    last = -np.inf
    different = extra = 0
    for frame, position in zip(frames, positions, strict=True):
        if position - last > _SAME_POSITION_MM:
            kept.append(frame)
            last = position
            continue
        extra += 1
        # Once refused, more decoding would change nothing.
        if not different and not found.refused:
            different += not same_pixels(kept[-1], frame)
    if extra:
        what = "with different pictures" if different else "with the same picture"
        found.report(
            Reason.DUPLICATE_POSITIONS,
            f"{extra} of {len(frames)} slices lie where another does, {what}",
            correctable=not different,
        )
    return kept


@dataclass(frozen=True)
class Turn:
    """How stored rows and columns become those of the canonical frame: first swapped, then reversed."""

    swapped: bool = False
    rows_reversed: bool = False
    columns_reversed: bool = False

    def apply(self, pixels: Pixels) -> Pixels:
        """Return a view of stored (H, W) pixels in the canonical frame."""
        pixels = pixels.T if self.swapped else pixels
        return pixels[:: -1 if self.rows_reversed else 1, :: -1 if self.columns_reversed else 1]

    def undo(self, pixels: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return a view of (H, W) pixels as they were stored."""
        pixels = pixels[:: -1 if self.rows_reversed else 1, :: -1 if self.columns_reversed else 1]
        return pixels.T if self.swapped else pixels

    def __str__(self) -> str:
        parts = {
            "rows and columns swapped": self.swapped,
            "rows reversed": self.rows_reversed,
            "columns reversed": self.columns_reversed,
        }
        return ", ".join(text for text, applies in parts.items() if applies)


@dataclass(frozen=True)
class Stack:
    """The plan of a volume.

    Attributes:
        frames: Source slices, in order.
        turn: Of every source slice.
        shifts_px: (slices, 2) By how much the turned slice is moved down and right; None if nothing moves.
        size_px: (rows, columns) of the volume.
        blend: For every slice of the volume (source slice, weight of the next one); None if they are the same.
        direction, spacing_mm, origins_mm: As in `Volume`.
        extent_mm: How much of the body axis the centres of the slices span.
    """

    frames: tuple[Frame, ...]
    turn: Turn
    shifts_px: Floats | None
    size_px: tuple[int, int]
    blend: tuple[tuple[int, float], ...] | None
    direction: Direction
    spacing_mm: tuple[float, float, float]
    origins_mm: Floats
    extent_mm: float

    def __len__(self) -> int:
        return len(self.origins_mm)

    def place(self, index: int, pixels: Pixels) -> Pixels:
        """Turn the pixels of source slice `index`, and move them to where they lie in the volume."""
        turned = self.turn.apply(pixels)
        if self.shifts_px is None:
            return turned
        down, right = self.shifts_px[index]
        move, size = np.array([[1, 0, right], [0, 1, down]], np.float64), self.size_px[::-1]
        moved = cv2.warpAffine(
            np.ascontiguousarray(turned), move, size, flags=cv2.INTER_LINEAR, borderValue=PADDING_HU
        )
        return np.asarray(moved, np.int16)

    def restore(self, index: int, values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Invert `place` for values of slice `index` of a volume whose slices are source slices, such as a heat map.

        Returns:
            (rows, columns) of the source slice: every value at the place in the patient where it was, else 0.
        """
        if self.shifts_px is None:
            return self.turn.undo(values)
        frame, (down, right) = self.frames[index], self.shifts_px[index]
        rows, columns = (frame.columns, frame.rows) if self.turn.swapped else (frame.rows, frame.columns)
        move = np.array([[1, 0, -right], [0, 1, -down]], np.float64)
        moved = cv2.warpAffine(np.ascontiguousarray(values), move, (columns, rows), flags=cv2.INTER_LINEAR)
        return self.turn.undo(np.asarray(moved, np.float32))


def plan_stack(frames: Sequence[Frame], found: IntakeFindings) -> Stack:
    """Check how sorted, parallel frames are stacked, and plan the volume.

    Args:
        frames: As `check_frames` returns them, with spacing, at least one.
        found: Gets what is found; if it has refused, only the figures of the plan are of use.
    """
    turn, axes, spacing_mm, size_px, origins = _turn(frames, found)
    positions = origins @ axes[0]
    shifts_px, size_px, origins = _unshear(positions, axes, spacing_mm, size_px, origins, found)
    step_mm, grid_mm = _check_gaps(frames, positions, found)
    blend = None
    if grid_mm is not None:
        blend = tuple(_find_blend(positions, position) for position in grid_mm)
        origins = _interpolate_origins(positions, origins, grid_mm)
    extent_mm = check_extent(len(frames), positions, axes[0], found)
    return Stack(
        frames=tuple(frames),
        turn=turn,
        shifts_px=shifts_px,
        size_px=size_px,
        blend=blend,
        direction=_as_direction(axes),
        spacing_mm=(step_mm, *spacing_mm),
        origins_mm=origins,
        extent_mm=extent_mm,
    )


def _as_direction(axes: Floats) -> Direction:
    # Adding 0 turns -0 into 0.
    (a, b, c), (d, e, f), (g, h, i) = (tuple(float(value) + 0.0 for value in axis) for axis in axes)
    return (a, b, c), (d, e, f), (g, h, i)


def _turn(
    frames: Sequence[Frame], found: IntakeFindings
) -> tuple[Turn, Floats, tuple[float, float], tuple[int, int], Floats]:
    """Bring rows to the back and columns to the left; voxels stay where they are (PS3.3 C.7.6.2.1.1)."""
    first = frames[0]
    assert first.image_orientation is not None
    assert first.pixel_spacing_mm is not None
    right, down = (np.array(axis) for axis in first.image_orientation)
    row_mm, column_mm = first.pixel_spacing_mm
    rows, columns = first.rows, first.columns
    origins = np.array([frame.image_position_mm for frame in frames], np.float64)
    swapped = bool(abs(right[0]) < abs(down[0]))
    if swapped:
        right, down = down, right
        row_mm, column_mm, rows, columns = column_mm, row_mm, columns, rows
    up, left = bool(down[1] < 0), bool(right[0] < 0)
    if up:
        origins = origins + down * row_mm * (rows - 1)
        down = -down
    if left:
        origins = origins + right * column_mm * (columns - 1)
        right = -right
    turn = Turn(swapped, up, left)
    if turn != Turn():
        found.report(Reason.TURNED, str(turn))
    axes = np.stack([np.cross(right, down), down, right])
    return turn, axes, (row_mm, column_mm), (rows, columns), origins


def _unshear(
    positions: Floats,
    axes: Floats,
    spacing_mm: tuple[float, float],
    size_px: tuple[int, int],
    origins: Floats,
    found: IntakeFindings,
) -> tuple[Floats | None, tuple[int, int], Floats]:
    """Find how slices move within their plane along the stack; plan to move them back if the policy says so."""
    within_mm = (origins - origins[0]) @ axes[1:].T
    along_mm = positions - positions[0]
    slope, stray_mm = _fit_tilt(along_mm, within_mm, max(spacing_mm))
    tilt_deg = float(np.degrees(np.arctan(np.hypot(*slope))))
    actions = []
    if tilt_deg > found.policy.tilt_deg:
        actions.append(found.report(Reason.GANTRY_TILT, f"{tilt_deg:.1f} degrees"))
    if stray_mm > max(spacing_mm):
        actions.append(found.report(Reason.SHIFTED_SLICES, f"by up to {stray_mm:.1f} mm"))
    if Action.CORRECT not in actions or found.refused:
        return None, size_px, origins
    moves_px = within_mm / np.array(spacing_mm)
    low = np.floor(moves_px.min(axis=0))
    grow = np.ceil(moves_px.max(axis=0) - low).astype(int)
    corner = origins[0] + (low * np.array(spacing_mm)) @ axes[1:]
    larger_px = (size_px[0] + int(grow[0]), size_px[1] + int(grow[1]))
    return moves_px - low, larger_px, corner + along_mm[:, None] * axes[0]


def _fit_tilt(along_mm: Floats, within_mm: Floats, allowed_mm: float) -> tuple[Floats, float]:
    """Return how far slices move within their plane for each mm along the stack, (2,), and the most one strays from it.

    A line through all slices evens rounding out. If they do not lie on one, a jump must not pass for a tilt: then the
    median of the steps counts.
    """
    span_mm = float(along_mm @ along_mm)
    slope = along_mm @ within_mm / span_mm if span_mm else np.zeros(2)
    stray_mm = float(np.abs(within_mm - along_mm[:, None] * slope).max())
    if stray_mm > allowed_mm:
        slope = np.median(np.diff(within_mm, axis=0) / np.diff(along_mm)[:, None], axis=0)
        stray_mm = float(np.abs(within_mm - along_mm[:, None] * slope).max())
    return np.asarray(slope, np.float64), stray_mm


def _check_gaps(
    frames: Sequence[Frame], positions: Floats, found: IntakeFindings
) -> tuple[float, Floats | None]:
    """Return the slice distance, and the positions of an even grid if the policy asks for one."""
    if len(frames) == 1:
        thickness = frames[0].slice_thickness_mm
        return (thickness if thickness and thickness > 0 else 1.0), None
    gaps = np.diff(positions)
    step = float(np.median(gaps))
    allowed = found.policy.spacing_tolerance * step
    times = np.rint(gaps / step)
    near = np.abs(gaps - times * step) <= allowed
    holes = near & (times >= 2)
    uneven = ~near | (times < 1)
    fillable = bool(gaps.max() <= found.policy.max_gap_mm)
    actions = []
    if holes.any():
        count = int((times[holes] - 1).sum())
        wide = f"{int(holes.sum())} gaps of up to {gaps[holes].max():.2f} mm"
        detail = f"{count} in {wide}; the distance is {step:.2f} mm"
        actions.append(found.report(Reason.MISSING_SLICES, detail, correctable=fillable))
    if uneven.any():
        detail = f"distances from {gaps.min():.2f} to {gaps.max():.2f} mm, median {step:.2f} mm"
        actions.append(found.report(Reason.UNEVEN_SPACING, detail, correctable=fillable))
    if Action.CORRECT not in actions or found.refused:
        return step, None
    count = round((positions[-1] - positions[0]) / step) + 1
    grid = np.linspace(positions[0], positions[-1], count)
    return float(grid[1] - grid[0]), grid


def _find_blend(positions: Floats, position: float) -> tuple[int, float]:
    index = int(np.clip(np.searchsorted(positions, position, side="right") - 1, 0, len(positions) - 2))
    weight = float((position - positions[index]) / (positions[index + 1] - positions[index]))
    return index, float(np.clip(weight, 0.0, 1.0))


def _interpolate_origins(positions: Floats, origins: Floats, grid: Floats) -> Floats:
    return np.stack([np.interp(grid, positions, origins[:, axis]) for axis in range(3)], axis=1)
