"""Where CT series lie, whatever the format: one stream of results, each with what labels may be joined by.

    dicom   a file, a folder of any names and depth, a DICOMDIR, a zip
    nifti   a file, or all .nii and .nii.gz files of a folder; with a table that has a column `volume`, those it names
    rsna    the folder of the RSNA 2022 challenge: train.csv and train_images/<StudyInstanceUID>/<n>.dcm

One series is in memory at a time.
"""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl

from cspine.core.answers import IntakeFinding, IntakeRow, Reason
from cspine.core.errors import InputError, MissingExtraError
from cspine.ct.annotations import Box, SeriesTruth, complete_truth, read_mask
from cspine.ct.intake import Findings, IntakePolicy, SeriesResult, check_extent, check_values
from cspine.ct.nifti import SUFFIXES, is_nifti, read_nifti
from cspine.ct.volume import OnBegin, Volume
from cspine.data.tables import (
    OVERALL,
    TARGETS,
    cast_numbers,
    number_rows,
    read_study_labels,
    read_text_table,
    refuse_cells,
)

Format = Literal["dicom", "nifti", "rsna"]
FORMATS: tuple[Format, ...] = ("dicom", "nifti", "rsna")
Progress = Callable[[int, int], None]
Skip = Callable[[str, str | None], bool]

TRAIN_TABLE, TRAIN_IMAGES = "train.csv", "train_images"


@dataclass(frozen=True)
class FoundSeries:
    """One series of a source, or one file that belongs to none.

    Attributes:
        result: What intake says, and the volume unless refused.
        name: By which a table may name it: the file's path from the source folder; None for DICOM.
        frames: The DICOM frames of the series (`dicom_header.Frame`), whatever intake made of them; else empty.
        done, total: How far the source is read.
    """

    result: SeriesResult
    name: str | None = None
    frames: tuple[Any, ...] = ()
    done: int = 0
    total: int = 0


def recognise_format(source: Path) -> Format | None:
    """What CT format a source is of, by its contents; None for anything else, such as a folder of pictures."""
    if (source / TRAIN_TABLE).is_file() and (source / TRAIN_IMAGES).is_dir():
        return "rsna"
    if source.is_file() and is_nifti(source):
        return "nifti"
    from cspine.ct.dicom_files import is_dicom

    if is_dicom(source):
        return "dicom"
    return "nifti" if source.is_dir() and next(_walk_nifti(source), None) is not None else None


def find_series(
    source: Path,
    source_format: Format,
    policy: IntakePolicy,
    *,
    volumes: Sequence[str] | None = None,
    progress: Progress | None = None,
    on_passed_over: Callable[[int], None] | None = None,
    skip: Skip | None = None,
    on_begin: OnBegin | None = None,
) -> Iterator[FoundSeries]:
    """Read the series of a source one by one.

    Args:
        source: File or folder.
        source_format: As `recognise_format` returns it, or as the user says.
        policy: What to do about what intake finds.
        volumes: NIfTI files, as paths from the source folder; None is all that are there.
        progress: Called as (files done, files in all) while headers of DICOM files are read.
        on_passed_over: Called with how many files of a folder are not DICOM and were left alone.
        skip: Called with the Series Instance UID, or for NIfTI with the row's source, and the Patient ID before pixels
            are read; a series for which it is true is left out.
        on_begin: Called with every DICOM series that is about to be read; see `DicomSeries.read`.

    Raises:
        InputError: there is no such file or folder.
        MissingExtraError: the format's packages are not installed.
    """
    if not source.exists():
        raise InputError("no such file or folder", where=str(source), fix="name a file or a folder")
    if source_format == "nifti":
        return _find_nifti(source, policy, volumes, skip)
    try:
        import pydicom  # noqa: F401
    except ImportError:
        raise MissingExtraError("DICOM", "studies") from None
    if source_format == "rsna":
        return _find_rsna(source, policy, on_passed_over, skip, on_begin)
    return _find_dicom(source, policy, progress, on_passed_over, skip, on_begin)


def _find_dicom(
    source: Path,
    policy: IntakePolicy,
    progress: Progress | None,
    on_passed_over: Callable[[int], None] | None,
    skip: Skip | None,
    on_begin: OnBegin | None,
) -> Iterator[FoundSeries]:
    from cspine.ct.dicom import scan_dicom

    scan = scan_dicom(source, policy, progress)
    if on_passed_over is not None and scan.passed_over:
        on_passed_over(scan.passed_over)
    yield from (FoundSeries(SeriesResult(row)) for row in scan.rows)
    for number, series in enumerate(scan.series):
        if skip is not None and skip(series.key, series.frames[0].patient_id):
            continue
        result = series.read(policy, on_begin=on_begin)
        yield FoundSeries(result, frames=series.frames, done=number + 1, total=len(scan.series))
        del result  # or its voxels would be held while the next series is read


def _find_rsna(
    source: Path,
    policy: IntakePolicy,
    on_passed_over: Callable[[int], None] | None,
    skip: Skip | None,
    on_begin: OnBegin | None,
) -> Iterator[FoundSeries]:
    """Study by study, so that the headers of one are in memory and not those of two thousand."""
    folder = source / TRAIN_IMAGES
    if not folder.is_dir():
        raise InputError(f"there is no folder {TRAIN_IMAGES}", where=str(source), fix="name the set's folder")
    studies = sorted(path for path in folder.iterdir() if path.is_dir())
    for number, study in enumerate(studies):
        for found in _find_dicom(study, policy, None, on_passed_over, skip, on_begin):
            yield replace(found, done=number + 1, total=len(studies))
            del found  # or its voxels would be held while the next study is read


def _walk_nifti(folder: Path) -> Iterator[Path]:
    for name, folders, files in os.walk(folder):
        folders.sort()
        yield from (Path(name, file) for file in sorted(files) if is_nifti(Path(file)))


def _find_nifti(
    source: Path, policy: IntakePolicy, volumes: Sequence[str] | None, skip: Skip | None
) -> Iterator[FoundSeries]:
    folder = source if source.is_dir() else source.parent
    if source.is_file():
        paths = [source]
    elif volumes is not None:
        paths = [folder / name for name in volumes]
    else:
        paths = list(_walk_nifti(folder))
    for number, path in enumerate(paths):
        if skip is not None and skip(str(path), None):
            continue
        name = path.relative_to(folder).as_posix()
        yield FoundSeries(_read_nifti(path, name, policy), name=name, done=number + 1, total=len(paths))


def _read_nifti(path: Path, name: str, policy: IntakePolicy) -> SeriesResult:
    row = IntakeRow(source=str(path), format="nifti", encoding=("NIfTI",))
    try:
        volume = replace(read_nifti(path), source=name)
    except InputError as error:
        reason = Reason.UNUSABLE_NIFTI
        finding = IntakeFinding(reason=reason, action=policy.find_action(reason), detail=error.what)
        return SeriesResult(row.model_copy(update={"findings": (finding,)}))
    found = Findings(policy)
    extent_mm = check_extent(len(volume), volume.positions_mm, volume.direction[0], found)
    check_values(volume.hu, found)
    return SeriesResult(_describe(row, volume, found, extent_mm), None if found.refused else volume)


def _describe(row: IntakeRow, volume: Volume, found: Findings, extent_mm: float) -> IntakeRow:
    taken = not found.refused
    return row.model_copy(
        update={
            "slices_found": len(volume),
            "slices": len(volume) if taken else 0,
            "size_px": (volume.hu.shape[1], volume.hu.shape[2]) if taken else None,
            "spacing_mm": tuple(float(np.round(step, 4)) for step in volume.spacing_mm),
            "extent_mm": extent_mm,
            "findings": tuple(found.met),
        }
    )


# The folder of the RSNA 2022 Cervical Spine Fracture Detection challenge: study labels, boxes and segmentations.
#
#     train.csv                                StudyInstanceUID, patient_overall, C1 .. C7
#     train_images/<StudyInstanceUID>/<n>.dcm  one series a study; n is the slice number
#     train_bounding_boxes.csv                 StudyInstanceUID, x, y, width, height, slice_number; of some studies
#     segmentations/<StudyInstanceUID>.nii     1 to 7 are C1 to C7, 8 and above thoracic; of some studies
#
# After the challenge's published description (Lin et al., Radiology: Artificial Intelligence 2023, doi
# 10.1148/ryai.230034), which says that boxes were drawn around fractures on axial slices of a part of the broken
# studies.


BOXES_TABLE, SEGMENTATIONS = "train_bounding_boxes.csv", "segmentations"
_BOX_NUMBERS = ("x", "y", "width", "height")


@dataclass(frozen=True, slots=True)
class StoredBox:
    """A box in pixels of the DICOM file `slice_number`, from the corner of its first pixel."""

    slice_number: int
    x: float
    y: float
    width: float
    height: float


@dataclass
class RsnaLabels:
    """The challenge's labels.

    Attributes:
        root: The set's folder.
        studies: Study UID to `TARGETS`.
        patients: Study UID to patient, where the table has a column for it; the challenge's has not.
        boxes: Study UID to its boxes.
        taken: Studies that a volume was found for.
    """

    root: Path
    studies: dict[str, dict[str, int]]
    patients: dict[str, str | None]
    boxes: dict[str, list[StoredBox]]
    taken: set[str] = field(default_factory=set)

    def find_truth(self, volume: Volume, frames: Sequence[Any], notes: Counter[str]) -> SeriesTruth:
        """What the tables and the segmentation say of a volume.

        Args:
            volume: Taken by intake.
            frames: The `dicom_header.Frame` that it was read from, by which boxes are placed.
            notes: Gets what could not be joined, to how many.
        """
        nothing: list[None] = [None] * len(volume)
        truth = SeriesTruth([*nothing], [*nothing], [*nothing], patient_id=volume.patient_id)
        study = volume.study_uid or ""
        truth.study = self.studies.get(study)
        if truth.study is None:
            notes[f"series are of studies that {TRAIN_TABLE} does not name"] += 1
        self.taken.add(study)
        truth.patient_id = self.patients.get(study) or truth.patient_id
        truth.vertebrae = read_mask(self._find_segmentation(study), volume, notes)
        by_number = {_find_number(frame): frame for frame in frames}
        for stored in self.boxes.get(study, ()):
            frame = by_number.get(stored.slice_number)
            if frame is None or frame.position_mm is None or frame.orientation is None:
                notes["boxes are of slices that were not taken"] += 1
            else:
                truth.boxes.append(place_box(stored, frame, volume))
        complete_truth(truth, None if truth.study is None else truth.study[OVERALL])
        return truth

    def _find_segmentation(self, study: str) -> Path | None:
        paths = (self.root / SEGMENTATIONS / f"{study}{suffix}" for suffix in SUFFIXES)
        return next((path for path in paths if study and path.is_file()), None)

    def describe(self) -> list[str]:
        """Sentences for the report."""
        sentences = []
        if left := len(self.studies.keys() - self.taken):
            sentences.append(f"{left:,} of {len(self.studies):,} studies of {TRAIN_TABLE} were not taken.")
        broken = [study for study in self.taken if self.studies.get(study, {}).get(OVERALL)]
        if unboxed := sum(study not in self.boxes for study in broken):
            sentences.append(
                f"{unboxed:,} of {len(broken):,} studies with a fracture have no boxes: nothing says which of their "
                "slices show it, and these stay without a label."
            )
        return sentences


def read_rsna_labels(root: Path) -> RsnaLabels:
    """Read the tables of the set's folder; boxes and segmentations may be missing.

    Raises:
        InputError: `train.csv` is missing, or a table cannot be read; the message names the row.
    """
    table_path = root / TRAIN_TABLE
    if not table_path.is_file():
        raise InputError(f"there is no {TRAIN_TABLE}", where=str(root), fix="name the challenge's folder")
    studies: dict[str, dict[str, int]] = {}
    patients: dict[str, str | None] = {}
    for row in read_study_labels(table_path).iter_rows(named=True):
        studies[row["study_uid"]] = {target: int(row[target]) for target in TARGETS}
        patients[row["study_uid"]] = row["patient_id"]
    boxes_path = root / BOXES_TABLE
    boxes = _read_boxes(boxes_path, studies) if boxes_path.is_file() else {}
    return RsnaLabels(root, studies, patients, boxes)


def _read_boxes(path: Path, studies: Iterable[str]) -> dict[str, list[StoredBox]]:
    needed = ("studyinstanceuid", *_BOX_NUMBERS, "slice_number")
    table = number_rows(read_text_table(path, needed, what="table of boxes", row="box"), path)
    unknown = ~pl.col("studyinstanceuid").is_in(list(studies)).fill_null(False)
    refuse_cells(table, unknown, "studyinstanceuid", f"a study that is not in {TRAIN_TABLE}", path)
    for name in _BOX_NUMBERS:
        refuse_cells(table, pl.col(name).is_null(), name, f"no {name}", path)
        table = cast_numbers(table, name, pl.Float64, path)
    refuse_cells(table, pl.col("slice_number").is_null(), "slice_number", "no slice number", path)
    table = cast_numbers(table, "slice_number", pl.Int64, path)
    for name in ("width", "height"):
        refuse_cells(table, pl.col(name) <= 0, name, f"a {name} that is not above 0", path)
    boxes: dict[str, list[StoredBox]] = defaultdict(list)
    for row in table.iter_rows(named=True):
        numbers = (float(row[name]) for name in _BOX_NUMBERS)
        boxes[row["studyinstanceuid"]].append(StoredBox(row["slice_number"], *numbers))
    return dict(boxes)


def _find_number(frame: Any) -> int | None:
    """The slice number of a file: its name, as the challenge has it."""
    stem = Path(frame.file.member or frame.file.path).stem
    return int(stem) if stem.isdigit() else None


def place_box(stored: StoredBox, frame: Any, volume: Volume) -> Box:
    """Bring a box from the pixels of a DICOM file to those of the slice of the volume that lies nearest to it.

    By way of the patient, so that it fits whatever intake did: turned rows, a tilt taken out, gaps filled.
    """
    right, down = (np.array(axis) for axis in frame.orientation)
    row_mm, column_mm = frame.pixel_spacing_mm
    corners = []
    for x, y in ((stored.x, stored.y), (stored.x + stored.width, stored.y + stored.height)):
        # Coordinates count from the corner of the first pixel, the position is that of its middle.
        corners.append(
            np.array(frame.position_mm) + right * (x - 0.5) * column_mm + down * (y - 0.5) * row_mm
        )
    normal = np.asarray(volume.direction[0])
    position = float(np.mean([corner @ normal for corner in corners]))
    index = int(np.abs(volume.positions_mm - position).argmin())
    within = np.array(corners) - volume.origins_mm[index]
    rows = within @ np.asarray(volume.direction[1]) / volume.spacing_mm[1]
    columns = within @ np.asarray(volume.direction[2]) / volume.spacing_mm[2]
    return Box(
        index=index,
        x_px=float(columns.min()),
        y_px=float(rows.min()),
        width_px=float(np.ptp(columns)),
        height_px=float(np.ptp(rows)),
    )
