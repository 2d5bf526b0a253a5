"""The series that an answer is about: its headers, and the way from the volume's slices back to its instances.

    files ── headers only ──▶ DicomSeries ── planned as intake did ──▶ SourceSeries
                                       slice of the volume ──▶ its instances, its grid

An answer counts in slices of a volume, which intake may have turned, moved or interpolated. Objects for an archive
reference instances and lie in the patient, so everything that they need is looked up here.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset

from cspine.errors import InputError
from cspine.studies.answer import StudyAnswer
from cspine.studies.dicom import DicomSeries, scan_dicom
from cspine.studies.dicom_header import CT_IMAGES, Frame, hush_pydicom, read_dataset
from cspine.studies.intake import Action, IntakePolicy, Reason
from cspine.studies.stack import Stack

# What an object takes over from the series: of the patient, the study, the frame of reference and the scanner. The
# modules are PS3.3 C.7.1.1, C.7.2.1, C.7.2.2, C.7.4.1 and C.7.5.1.
HEADER_KEYWORDS = (
    "SpecificCharacterSet SOPClassUID SOPInstanceUID StudyInstanceUID SeriesInstanceUID SeriesNumber "
    "PatientName PatientID IssuerOfPatientID TypeOfPatientID PatientBirthDate PatientBirthTime PatientSex EthnicGroup "
    "PatientAge PatientSize PatientWeight "
    "StudyDate StudyTime AccessionNumber ReferringPhysicianName StudyID StudyDescription "
    "FrameOfReferenceUID PositionReferenceIndicator "
    "Manufacturer ManufacturerModelName InstitutionName StationName SoftwareVersions LossyImageCompression "
    "LossyImageCompressionRatio LossyImageCompressionMethod"
)
_SAME_POSITION_MM = 0.05


@dataclass(frozen=True)
class SourceSeries:
    """The source of an answer.

    Attributes:
        frames: Every picture of the series, in the order in which they were met.
        stack: How the slices of the volume are made of them; None where the answer has none.
        header: HEADER_KEYWORDS of the first file.
        has_place: Whether positions are those of the headers, in a frame of reference that they name.
    """

    frames: tuple[Frame, ...]
    stack: Stack | None
    header: Dataset
    has_place: bool

    @property
    def series_uid(self) -> str:
        """Series Instance UID."""
        return str(self.header.SeriesInstanceUID)

    @property
    def is_interpolated(self) -> bool:
        """Whether slices of the volume are none of the source's, but lie between two of them."""
        return self.stack is not None and self.stack.blend is not None

    def find_frames(self, index: int) -> tuple[Frame, ...]:
        """The frames that slice `index` of the volume is made of: one, or two where it is interpolated."""
        assert self.stack is not None
        if self.stack.blend is None:
            return (self.stack.frames[index],)
        first, weight = self.stack.blend[index]
        pair = (self.stack.frames[first], *self.stack.frames[first + 1 : first + 2])
        if weight == 0:
            return pair[:1]
        return pair[1:] if weight == 1 else pair

    def list_frames(self, indices: Iterable[int]) -> list[Frame]:
        """The frames of several slices in their order, none twice."""
        found: dict[tuple[str, int | None], Frame] = {}
        for index in indices:
            for frame in self.find_frames(index):
                found.setdefault((str(frame.sop_uid), frame.index), frame)
        return list(found.values())


def find_source(path: Path, answer: StudyAnswer, policy: IntakePolicy | None = None) -> SourceSeries:
    """Find the series of an answer among the files of a source, from headers alone.

    Some hundred bytes are kept for each slice, whatever lies in the folder beside the series.

    Args:
        path: A file, folder, DICOMDIR or zip, as for `scan_dicom`.
        answer: Its intake row names the series.
        policy: That the series was read with; None takes the default limits. What was done about each reason is in
            the answer and holds.

    Raises:
        InputError: no such path; the series is not there, or is not the one that the answer is about.
    """
    wanted = answer.intake.series_uid
    if answer.intake.format != "dicom" or wanted is None:
        raise InputError(
            "DICOM objects need a DICOM series to refer to",
            where=answer.intake.source,
            fix="predict from DICOM, or leave DICOM output out",
        )
    for series in scan_dicom(path).series:
        if series.frames[0].series_uid == wanted:
            return make_source(series, answer, policy)
    raise InputError(
        "the series of this answer is not there", where=str(path), fix="name the files that were predicted"
    )


def make_source(series: DicomSeries, answer: StudyAnswer, policy: IntakePolicy | None = None) -> SourceSeries:
    """The same for a series that has been scanned already; errors as for `find_source`."""
    first = series.frames[0]
    if not is_referable(series.frames):
        raise InputError(
            "a report refers to CT images by their UIDs; the series holds something else, or has none",
            where=first.file.name,
            fix="leave DICOM output out, or add Study and SOP Instance UIDs",
        )
    header = _read_header(first)
    stack = None
    if answer.slice_ids:
        # Slices that could not be decoded are in no volume: what the answer names is what was read.
        named = set(answer.slice_ids)
        kept = tuple(frame for frame in series.frames if _slice_id(frame) in named) or series.frames
        stack = replace(series, frames=kept).plan(_repeat_policy(answer, policy))
        if stack is None or not _agree(stack, answer):
            raise InputError(
                "the answer is not of this series as it is read now",
                where=first.file.name,
                fix="give the same files and the intake policy that it was predicted with",
            )
    reasons = {finding.reason for finding in answer.intake.findings}
    placed = first.frame_of_reference_uid is not None and Reason.MISSING_POSITION not in reasons
    return SourceSeries(series.frames, stack, header, placed)


def is_referable(frames: Sequence[Frame]) -> bool:
    """Whether objects can be about a series: CT images with UIDs. What else lies in a study gets none."""
    return all(frame.sop_class in CT_IMAGES and frame.sop_uid and frame.study_uid for frame in frames)


def make_references(frames: Iterable[Frame]) -> list[Dataset]:
    """A data set with the UIDs of each file that frames lie in, none twice."""
    found: dict[str, Dataset] = {}
    for frame in frames:
        uid = str(frame.sop_uid)
        if uid not in found:
            found[uid] = dataset = Dataset()
            dataset.SOPClassUID, dataset.SOPInstanceUID = frame.sop_class, uid
            dataset.StudyInstanceUID, dataset.SeriesInstanceUID = frame.study_uid, frame.series_uid
    return list(found.values())


def _slice_id(frame: Frame) -> str:
    return f"{frame.sop_uid}" + ("" if frame.index is None else f"#{frame.index + 1}")


def _repeat_policy(answer: StudyAnswer, policy: IntakePolicy | None) -> IntakePolicy:
    policy = policy or IntakePolicy()
    done: dict[Reason, Action] = {finding.reason: finding.action for finding in answer.intake.findings}
    return policy.model_copy(update={"actions": {**policy.actions, **done}})


def _agree(stack: Stack, answer: StudyAnswer) -> bool:
    if len(stack) != len(answer.slice_ids):
        return False
    positions_mm = stack.origins_mm @ np.asarray(stack.direction[0])
    if np.abs(positions_mm - answer.positions_mm).max() > _SAME_POSITION_MM:
        return False
    return stack.blend is not None or [_slice_id(frame) for frame in stack.frames] == list(answer.slice_ids)


def _read_header(frame: Frame) -> Dataset:
    """HEADER_KEYWORDS, as far as they can be read."""
    header = Dataset()
    try:
        with hush_pydicom(), frame.file.open() as stream:
            dataset = read_dataset(stream, HEADER_KEYWORDS.split(" "))
            dataset.decode()
            for tag in list(dataset.keys()):
                # A value that its VR does not allow, such as a weight in words, raises when it is looked at.
                with contextlib.suppress(TypeError, ValueError, OverflowError):
                    header.add(dataset[tag])
    # The file was read a moment ago; pydicom meets damage with errors of many kinds.
    except Exception as error:
        raise InputError(
            f"the header cannot be read: {type(error).__name__}",
            where=frame.file.name,
            fix="see docs/intake.md",
        ) from error
    return header
