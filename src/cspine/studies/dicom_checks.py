"""The checks of intake on the headers of one series: which frames are kept, in which order, and what is wrong.

    frames ─▶ ids, CT, localizers ─▶ sizes ─▶ spacing, position, orientation ─▶ acquisitions ─▶ duplicates ─▶ stack

Each check notes what it meets and hands on the frames that are left, so that as many reasons as possible are said at
once. Pixels are only looked at to tell whether two slices at one position are the same picture.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from cspine.studies.dicom_header import Frame, Triple
from cspine.studies.intake import Action, Findings, Reason

SamePixels = Callable[[Frame, Frame], bool]

_SAME_POSITION_MM = 0.01
_SUPINE: tuple[Triple, Triple] = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0))


def check_frames(frames: Sequence[Frame], found: Findings, same_pixels: SamePixels) -> list[Frame]:
    """Run all checks up to the stack.

    Args:
        frames: Of one Series Instance UID.
        found: Gets what is met.
        same_pixels: Whether two frames show the same picture.

    Returns:
        Parallel frames of one size, sorted along `compute_normal`, no two at one position; empty where none are left.
        Of use only where `found` has not refused.
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


def compute_normal(frame: Frame) -> npt.NDArray[np.float64]:
    """(3,) Unit normal of a slice, to the head (or, where the slice is no axial one, as DICOM's cross product)."""
    assert frame.orientation is not None
    right, down = frame.orientation
    normal = np.cross(right, down)
    return np.asarray(normal if normal[2] >= 0 else -normal, np.float64)


def compute_positions(frames: Sequence[Frame]) -> npt.NDArray[np.float64]:
    """(frames,) Positions in mm along the normal of the first."""
    origins = np.array([frame.position_mm for frame in frames], np.float64)
    return np.asarray(origins @ compute_normal(frames[0]), np.float64)


def sort_frames(frames: Sequence[Frame]) -> list[Frame]:
    """Sorted by position; at one position by acquisition, instance number and UID, so that the order is always one."""
    positions = compute_positions(frames)

    def key(index: int) -> tuple[float, int, int, str]:
        frame = frames[index]
        return (
            float(positions[index]),
            frame.acquisition or 0,
            frame.instance_number or frame.index or 0,
            frame.sop_uid or frame.file.name,
        )

    return [frames[index] for index in sorted(range(len(frames)), key=key)]


def _check_kind(frames: list[Frame], found: Findings) -> list[Frame]:
    """Leave CT images that are no localizers."""
    if others := [frame for frame in frames if not frame.is_ct]:
        kinds = Counter(f"{frame.modality or 'no modality'}" for frame in others)
        listed = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
        found.meet(Reason.NOT_CT, f"{len(others)} of {len(frames)} are no CT image ({listed})")
    kept = [frame for frame in frames if frame.is_ct]
    if not kept:
        return []
    if scouts := [frame for frame in kept if frame.is_localizer]:
        rest = [frame for frame in kept if not frame.is_localizer]
        found.meet(Reason.LOCALIZER, f"{len(scouts)} of {len(kept)} slices", correctable=bool(rest))
        kept = rest or kept
    if derived := sum("DERIVED" in frame.image_type[:1] for frame in kept):
        found.meet(Reason.DERIVED_IMAGE, f"{derived} of {len(kept)} slices")
    return kept


def _check_ids(frames: list[Frame], found: Findings) -> None:
    for name, values in (
        ("studies", {frame.study_uid for frame in frames}),
        ("patients", {frame.patient_id for frame in frames}),
        ("frames of reference", {frame.frame_of_reference_uid for frame in frames}),
    ):
        if len(values) > 1:
            found.meet(Reason.CONTRADICTORY_IDS, f"one series in {len(values)} {name}")
    if frames[0].series_uid is None:
        found.meet(Reason.CONTRADICTORY_IDS, "there is no Series Instance UID")
    places = defaultdict(set)
    for frame in frames:
        if frame.sop_uid is not None:
            places[frame.sop_uid, frame.index].add(frame.position_mm)
    if twice := sum(len(values) > 1 for values in places.values()):
        found.meet(Reason.CONTRADICTORY_IDS, f"{twice} SOP Instance UIDs at several positions each")


def _check_values(frames: list[Frame], found: Findings) -> None:
    """What the header says of the meaning of the values."""
    if missing := sum(frame.rescale is None and not frame.has_lut for frame in frames):
        found.meet(Reason.MISSING_RESCALE, f"{missing} of {len(frames)} slices")
    if other := sorted({frame.meaning for frame in frames if frame.meaning not in (None, "HU")}, key=str):
        found.meet(Reason.NOT_HU, f"the rescale type is {', '.join(map(str, other))}")
    if lossy := sum(frame.lossy for frame in frames):
        found.meet(Reason.LOSSY_COMPRESSION, f"{lossy} of {len(frames)} slices")


def _largest(frames: Iterable[Frame], key: Callable[[Frame], Hashable]) -> tuple[list[Frame], int]:
    """The frames of the commonest key (the first of equals), and how many keys there are."""
    groups: dict[Hashable, list[Frame]] = defaultdict(list)
    for frame in frames:
        groups[key(frame)].append(frame)
    return max(groups.values(), key=len), len(groups)


def _check_sizes(frames: list[Frame], found: Findings) -> list[Frame]:
    def size(frame: Frame) -> Hashable:
        spacing = frame.pixel_spacing_mm
        return frame.rows, frame.columns, spacing and tuple(round(step, 4) for step in spacing)

    if empty := sum(frame.rows < 2 or frame.columns < 2 for frame in frames):
        found.meet(Reason.CONTRADICTORY_SIZES, f"{empty} slices without rows and columns", correctable=False)
    kept, kinds = _largest(frames, size)
    if kinds > 1:
        found.meet(
            Reason.CONTRADICTORY_SIZES, f"{kinds} sizes; {len(frames) - len(kept)} slices are unlike the rest"
        )
    if missing := sum(frame.pixel_spacing_mm is None for frame in kept):
        found.meet(Reason.MISSING_SPACING, f"{missing} of {len(kept)} slices")
    return kept


def _check_position(frames: list[Frame], found: Findings) -> list[Frame]:
    """Frames with position and orientation; all of them, or none."""
    bad = [frame for frame in frames if frame.position_mm is None or frame.orientation is None]
    if not bad:
        return frames
    placed = all(frame.location_mm is not None for frame in frames)
    action = found.meet(Reason.MISSING_POSITION, f"{len(bad)} of {len(frames)} slices", correctable=placed)
    if action is Action.CORRECT:
        return [_place_by_location(frame) for frame in frames]
    return [frame for frame in frames if frame not in bad]


def _place_by_location(frame: Frame) -> Frame:
    assert frame.location_mm is not None
    return replace(frame, position_mm=(0.0, 0.0, frame.location_mm), orientation=_SUPINE)


def _check_orientation(frames: list[Frame], found: Findings) -> list[Frame]:
    limit = np.cos(np.radians(found.policy.orientation_deg))
    groups: list[tuple[npt.NDArray[np.float64], list[Frame]]] = []
    for frame in frames:
        axes = np.array(frame.orientation)
        near = (group for first, group in groups if (np.sum(axes * first, axis=1) >= limit).all())
        group = next(near, None)
        if group is None:
            groups.append((axes, [frame]))
        else:
            group.append(frame)
    kept = max((group for _, group in groups), key=len)
    if len(groups) > 1:
        found.meet(
            Reason.MIXED_ORIENTATION,
            f"{len(groups)} orientations; {len(frames) - len(kept)} of {len(frames)} slices are unlike the rest",
        )
    oblique_deg = float(np.degrees(np.arccos(np.clip(compute_normal(kept[0])[2], 0, 1))))
    if oblique_deg > found.policy.max_oblique_deg:
        found.meet(Reason.NOT_AXIAL, f"the normal is {oblique_deg:.0f} degrees off the body axis")
    return kept


def _check_acquisitions(frames: list[Frame], found: Findings) -> list[Frame]:
    """Acquisitions that follow each other along the body are one scan; those that overlap are several."""
    positions = compute_positions(frames)
    spans: dict[int | None, list[float]] = defaultdict(list)
    for frame, position in zip(frames, positions, strict=True):
        spans[frame.acquisition].append(float(position))
    ends = sorted((min(values), max(values)) for values in spans.values())
    reach, overlap = -np.inf, False
    for low, high in ends:
        overlap = overlap or low <= reach + _SAME_POSITION_MM
        reach = max(reach, high)
    if not overlap:
        return frames
    kept, kinds = _largest(frames, lambda frame: frame.acquisition)
    found.meet(
        Reason.SEVERAL_ACQUISITIONS,
        f"{kinds} acquisitions overlap; the largest has {len(kept)} of {len(frames)} slices",
    )
    return kept


def _check_duplicates(frames: list[Frame], found: Findings, same_pixels: SamePixels) -> list[Frame]:
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
        found.meet(
            Reason.DUPLICATE_POSITIONS,
            f"{extra} of {len(frames)} slices lie where another does, {what}",
            correctable=not different,
        )
    return kept
