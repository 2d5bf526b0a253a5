"""The folder of the RSNA 2022 Cervical Spine Fracture Detection challenge: study labels, boxes and segmentations.

    train.csv                                StudyInstanceUID, patient_overall, C1 .. C7
    train_images/<StudyInstanceUID>/<n>.dcm  one series a study; n is the slice number
    train_bounding_boxes.csv                 StudyInstanceUID, x, y, width, height, slice_number; of some studies
    segmentations/<StudyInstanceUID>.nii     1 to 7 are C1 to C7, 8 and above thoracic; of some studies

After the challenge's published description (Lin et al., Radiology: Artificial Intelligence 2023, doi
10.1148/ryai.230034), which says that boxes were drawn around fractures on axial slices of a part of the broken studies.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from cspine.data.rsna_tables import OVERALL, TARGETS, read_study_labels
from cspine.data.text_table import cast_numbers, number_rows, read_text_table, refuse_cells
from cspine.errors import InputError
from cspine.studies.ct_sources import TRAIN_TABLE
from cspine.studies.ct_truth import Box, SeriesTruth, complete_truth, read_mask
from cspine.studies.nifti import SUFFIXES
from cspine.studies.volume import Volume

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
