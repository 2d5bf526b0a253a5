"""What goes wrong with CT series, planted on purpose: one fault for each reason that intake names.

A fault works at one of three stages, where it would arise in life: on the volume (how the patient was scanned), on the
DICOM objects (what the scanner or archive wrote), on the files (what happened to them).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset
from pydicom.fileset import FileSet
from pydicom.uid import UID
from scipy.ndimage import map_coordinates

from cspine.core.answers import Reason
from cspine.ct.volume import PADDING_HU, Volume
from cspine.phantom.dataset import make_volume
from cspine.phantom.dicom import HABITS, PLAIN, Habit, make_objects, make_uid, write_objects
from cspine.phantom.patient import PhantomPatient
from cspine.phantom.scanner import PhantomVolume
from cspine.phantom.series import mask_outside

TILT_DEG = 15.0
SHIFT_MM = 12.0
_FEW = 5
_SHORT_MM = 30.0

Floats = npt.NDArray[np.float64]
Axes = tuple[tuple[float, float, float], tuple[float, float, float], tuple[float, float, float]]
VolumeFault = Callable[[Volume], list[Volume]]
ObjectFault = Callable[[list[Dataset]], list[Dataset]]
FileFault = Callable[[Sequence[Path]], None]


@dataclass(frozen=True)
class Fault:
    """One fault; of the three stages those that it works at.

    Attributes:
        says: What is planted.
        volume: From the volume to the parts of the series.
        objects: From copies of the data sets to those that are written.
        files: Changes the files.
    """

    says: str
    volume: VolumeFault | None = None
    objects: ObjectFault | None = None
    files: FileFault | None = None


def _tilt(volume: Volume, degrees: float = TILT_DEG) -> Volume:
    """Planes turned about the patient's left-right axis, stacked along the body axis as the table moves."""
    angle = np.radians(degrees)
    down = np.array([0.0, np.cos(angle), np.sin(angle)])
    right = np.array([1.0, 0.0, 0.0])
    rows, columns = volume.hu.shape[1:]
    middle = volume.origins_mm + _half(volume)
    origins = (
        middle
        - down * volume.spacing_mm[1] * (rows - 1) / 2
        - right * volume.spacing_mm[2] * (columns - 1) / 2
    )
    spacing = (float(volume.spacing_mm[0] * np.cos(angle)), *volume.spacing_mm[1:])
    return resample_volume(
        volume,
        direction=_as_axes(np.cross(right, down), down, right),
        origins_mm=origins,
        size_px=(rows, columns),
        spacing_mm=spacing,
    )


def resample_volume(
    volume: Volume,
    *,
    direction: Axes,
    origins_mm: Floats,
    size_px: tuple[int, int],
    spacing_mm: tuple[float, float, float],
) -> Volume:
    """Cut an evenly spaced volume along other planes (linear interpolation); outside it is `PADDING_HU`."""
    to_index = np.linalg.inv(volume.affine)
    down = np.asarray(direction[1]) * spacing_mm[1]
    right = np.asarray(direction[2]) * spacing_mm[2]
    rows, columns = np.meshgrid(np.arange(size_px[0]), np.arange(size_px[1]), indexing="ij")
    within = rows[..., None] * down + columns[..., None] * right
    source = volume.hu.astype(np.float32)
    planes = []
    for origin in origins_mm:
        index = (origin + within) @ to_index[:3, :3].T + to_index[:3, 3]
        values = map_coordinates(source, np.moveaxis(index, -1, 0), order=1, mode="constant", cval=PADDING_HU)
        planes.append(np.rint(values).astype(np.int16))
    return replace(
        volume,
        hu=np.stack(planes),
        direction=direction,
        origins_mm=np.asarray(origins_mm, np.float64),
        spacing_mm=spacing_mm,
        sop_instance_uids=(),
        frame_numbers=(),
    )


def _half(volume: Volume) -> Floats:
    """From the first pixel of a slice to its middle."""
    rows, columns = volume.hu.shape[1:]
    down = np.asarray(volume.direction[1]) * volume.spacing_mm[1] * (rows - 1) / 2
    right = np.asarray(volume.direction[2]) * volume.spacing_mm[2] * (columns - 1) / 2
    return np.asarray(down + right, np.float64)


def _as_axes(*axes: Floats) -> Axes:
    (a, b, c), (d, e, f), (g, h, i) = (tuple(float(v) for v in axis) for axis in axes)
    return (a, b, c), (d, e, f), (g, h, i)


def _same_planes(volume: Volume, origins_mm: Floats) -> Volume:
    return resample_volume(
        volume,
        direction=volume.direction,
        origins_mm=origins_mm,
        size_px=(volume.hu.shape[1], volume.hu.shape[2]),
        spacing_mm=volume.spacing_mm,
    )


def _space_unevenly(volume: Volume) -> list[Volume]:
    """Six tenths at the distance, the rest, towards the head, at one and a half of it."""
    step, count = volume.spacing_mm[0], len(volume)
    length = (count - 1) * step
    heights, at = [], 0.0
    while at <= length + 1e-6:
        heights.append(at)
        at += step if at < 0.6 * length else 1.5 * step
    origins = volume.origins_mm[0] + np.array(heights)[:, None] * np.asarray(volume.direction[0])
    return [_same_planes(volume, origins)]


def _shift(volume: Volume) -> list[Volume]:
    """The field of view of the upper half lies `SHIFT_MM` to the left."""
    origins = volume.origins_mm.copy()
    origins[len(origins) // 2 :] += SHIFT_MM * np.asarray(volume.direction[2])
    return [_same_planes(volume, origins)]


def _cut_sagittal(volume: Volume, count: int | None = None) -> Volume:
    """Planes from left to right: columns go to the back, rows to the feet."""
    right, down = np.array([0.0, 1.0, 0.0]), np.array([0.0, 0.0, -1.0])
    pixel_mm = volume.spacing_mm[2]
    depth, height = volume.hu.shape[1], round(len(volume) * volume.spacing_mm[0] / pixel_mm)
    columns = volume.hu.shape[2]
    at = np.arange(columns)[::-1] if count is None else np.linspace(0, columns - 1, count + 2)[1:-1][::-1]
    top = volume.origins_mm[-1]
    origins = top + at[:, None] * pixel_mm * np.asarray(volume.direction[2])
    distance = float(abs(at[0] - at[1]) * pixel_mm) if len(at) > 1 else pixel_mm
    return resample_volume(
        volume,
        direction=_as_axes(np.cross(right, down), down, right),
        origins_mm=origins,
        size_px=(max(2, height), depth),
        spacing_mm=(distance, pixel_mm, volume.spacing_mm[1]),
    )


def _take(volume: Volume, count: int) -> Volume:
    start = (len(volume) - count) // 2
    kept = slice(start, start + count)
    return replace(volume, hu=volume.hu[kept], origins_mm=volume.origins_mm[kept])


def _add_scout(volume: Volume) -> list[Volume]:
    return [volume, _cut_sagittal(volume, count=1)]


def _add_tilted(volume: Volume) -> list[Volume]:
    return [volume, _take(_tilt(volume, 8.0), 3)]


def _shorten(volume: Volume) -> list[Volume]:
    return [_take(volume, max(2, int(_SHORT_MM / volume.spacing_mm[0])))]


def _change(some: slice, **attributes: object) -> ObjectFault:
    """Set attributes of some objects; None deletes one."""

    def apply(objects: list[Dataset]) -> list[Dataset]:
        for dataset in objects[some]:
            for keyword, value in attributes.items():
                if value is None:
                    if keyword in dataset:
                        delattr(dataset, keyword)
                else:
                    setattr(dataset, keyword, value)
        return objects

    return apply


ALL, FIRST, LAST = slice(None), slice(1), slice(-1, None)


def _halve_rows(objects: list[Dataset]) -> list[Dataset]:
    rows = objects[0].Rows // 2
    objects[0].PixelData = objects[0].PixelData[: 2 * rows * objects[0].Columns]
    objects[0].Rows = rows
    return objects


def _scan_again(objects: list[Dataset]) -> list[Dataset]:
    """The lower half is there a second time, as another acquisition with other noise."""
    again = deepcopy(objects[: len(objects) // 2])
    for number, dataset in enumerate(again):
        dataset.SOPInstanceUID = make_uid(dataset.SOPInstanceUID, "again")
        dataset.AcquisitionNumber = 2
        dataset.InstanceNumber = len(objects) + number + 1
        stored = np.frombuffer(dataset.PixelData, np.uint16)
        dataset.PixelData = np.where(stored > 100, stored ^ 1, stored).astype(np.uint16).tobytes()
    return objects + again


def _copy_one(objects: list[Dataset]) -> list[Dataset]:
    copy = deepcopy(objects[len(objects) // 2])
    copy.SOPInstanceUID = make_uid(copy.SOPInstanceUID, "copy")
    copy.InstanceNumber = len(objects) + 1
    return [*objects, copy]


def _lose_some(objects: list[Dataset]) -> list[Dataset]:
    middle = len(objects) // 2
    return objects[:middle] + objects[middle + 2 :]


def _saturate(objects: list[Dataset]) -> list[Dataset]:
    """Metal on the extended CT scale: stored values whose HU lie beyond int16."""
    for dataset in objects:
        dataset.BitsStored, dataset.HighBit = 16, 15
    stored = np.frombuffer(objects[0].PixelData, np.uint16).copy()
    stored[:3] = 65535
    objects[0].PixelData = stored.tobytes()
    return objects


def _write_nonsense(paths: Sequence[Path]) -> None:
    for path in paths:
        path.write_text("This is no picture.\n", encoding="utf-8")


def _cut_header(paths: Sequence[Path]) -> None:
    paths[0].write_bytes(paths[0].read_bytes()[:150])


def _cut_pixels(paths: Sequence[Path]) -> None:
    content = paths[0].read_bytes()
    paths[0].write_bytes(content[: -len(content) // 4])


def write_disc(folder: Path, paths: Sequence[Path]) -> Path:
    """Copy DICOM files to a new folder as a disc has them, with a DICOMDIR (PS3.10 8.6); returns that one's path."""
    disc = FileSet()
    disc.UID = UID(make_uid("disc", folder.name))
    for path in paths:
        disc.add(path)
    disc.write(folder)
    # Else pydicom leaves its own temporary folder to the garbage collector, which warns.
    disc._stage["t"].cleanup()
    return folder / "DICOMDIR"


def _lose_file(paths: Sequence[Path]) -> None:
    """A disc with a DICOMDIR, of which one picture could not be copied."""
    directory = write_disc(paths[0].parent / "disc", paths)
    for path in paths:
        path.unlink()
    copied = sorted(path for path in directory.parent.rglob("*") if path.is_file() and path != directory)
    copied[0].unlink()


FAULTS: Mapping[Reason, Fault] = {
    Reason.NOT_DICOM: Fault("text files where pictures should be", files=_write_nonsense),
    Reason.DAMAGED_FILE: Fault("one file ends in its header", files=_cut_header),
    Reason.MISSING_FILE: Fault("a DICOMDIR names a file that is gone", files=_lose_file),
    Reason.NOT_CT: Fault(
        "MR images", objects=_change(ALL, Modality="MR", SOPClassUID="1.2.840.10008.5.1.4.1.1.4")
    ),
    Reason.LOCALIZER: Fault(
        "a scout is in the series",
        volume=_add_scout,
        objects=_change(LAST, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"]),
    ),
    Reason.DERIVED_IMAGE: Fault(
        "a reformat", objects=_change(ALL, ImageType=["DERIVED", "SECONDARY", "REFORMATTED"])
    ),
    Reason.CONTRADICTORY_IDS: Fault(
        "one slice names another study", objects=_change(FIRST, StudyInstanceUID=make_uid("another study"))
    ),
    Reason.CONTRADICTORY_SIZES: Fault("one slice has half the rows", objects=_halve_rows),
    Reason.MISSING_POSITION: Fault(
        "two slices say no position", objects=_change(slice(2), ImagePositionPatient=None)
    ),
    Reason.MISSING_SPACING: Fault("no Pixel Spacing", objects=_change(ALL, PixelSpacing=None)),
    Reason.MIXED_ORIENTATION: Fault("three slices lie at another angle", volume=_add_tilted),
    Reason.NOT_AXIAL: Fault("sagittal slices", volume=lambda volume: [_cut_sagittal(volume)]),
    Reason.TURNED: Fault("the patient lies prone"),
    Reason.SEVERAL_ACQUISITIONS: Fault("the lower half was scanned twice", objects=_scan_again),
    Reason.DUPLICATE_POSITIONS: Fault("one slice is there twice", objects=_copy_one),
    Reason.GANTRY_TILT: Fault(
        f"the gantry is tilted by {TILT_DEG:g} degrees", volume=lambda volume: [_tilt(volume)]
    ),
    Reason.SHIFTED_SLICES: Fault(f"the upper half is shifted by {SHIFT_MM:g} mm", volume=_shift),
    Reason.MISSING_SLICES: Fault("two slices in the middle are gone", objects=_lose_some),
    Reason.UNEVEN_SPACING: Fault(
        "upper slices are half as far again from each other", volume=_space_unevenly
    ),
    Reason.TOO_FEW_SLICES: Fault(f"{_FEW} slices", volume=lambda volume: [_take(volume, _FEW)]),
    Reason.NO_CERVICAL_EXTENT: Fault(f"{_SHORT_MM:g} mm of a neck", volume=_shorten),
    Reason.MISSING_RESCALE: Fault(
        "no Rescale Slope and Intercept",
        objects=_change(ALL, RescaleSlope=None, RescaleIntercept=None, RescaleType=None),
    ),
    Reason.NOT_HU: Fault("electron density in place of HU", objects=_change(ALL, RescaleType="ED")),
    Reason.IMPLAUSIBLE_HU: Fault(
        "a rescale intercept 3000 too high", objects=_change(ALL, RescaleIntercept="1976")
    ),
    Reason.CLIPPED_HU: Fault("three voxels beyond int16", objects=_saturate),
    Reason.LOSSY_COMPRESSION: Fault(
        "was compressed with loss before",
        objects=_change(ALL, LossyImageCompression="01", LossyImageCompressionRatio="8"),
    ),
    Reason.UNDECODABLE: Fault("the pixels of one file are cut short", files=_cut_pixels),
}
"""Every reason of intake that DICOM can have, planted."""


HABIT_BY_NAME = {habit.name: habit for habit in HABITS}


def scan_with_faults(
    patient: PhantomPatient, rendered: PhantomVolume, habit: Habit = PLAIN, faults: Sequence[Reason] = ()
) -> list[Volume]:
    """The parts of a series as a reader should find them, with the faults that arise while scanning."""
    parts = [make_volume(patient, rendered)]
    for reason in faults:
        change = FAULTS[reason].volume
        if change is not None:
            parts = [piece for part in parts for piece in change(part)]
    return [mask_outside(part, habit) for part in parts]


def write_with_faults(
    folder: Path, parts: Sequence[Volume], habit: Habit = PLAIN, faults: Sequence[Reason] = ()
) -> None:
    """Write one series into a folder, with the faults on objects and files."""
    if Reason.TURNED in faults:
        habit = replace(habit, patient_position="HFP")
    objects: list[Dataset] = []
    for part in parts:
        objects += make_objects(part, habit, len(objects))
    for reason in faults:
        change = FAULTS[reason].objects
        objects = objects if change is None else change(objects)
    paths = write_objects(folder, objects, habit)
    for reason in faults:
        damage = FAULTS[reason].files
        if damage is not None:
            damage(paths)
