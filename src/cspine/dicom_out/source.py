"""The series that an answer is about: its headers, and the way from the volume's slices back to its instances.

    files ── headers only ──▶ DicomSeries ── planned as intake did ──▶ SourceSeries
                                       slice of the volume ──▶ its instances, its grid

An answer counts in slices of a volume, which intake may have turned, moved or interpolated. Objects for an archive
reference instances and lie in the patient, so everything that they need is looked up here.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.uid import UID, generate_uid
from pydicom.valuerep import format_number_as_ds

from cspine.core.answers import Action, Reason, StudyAnswer
from cspine.core.errors import InputError
from cspine.ct.dicom import DicomSeries, scan_dicom
from cspine.ct.dicom_files import CT_IMAGES, Frame, hush_pydicom, read_dataset
from cspine.ct.dicom_stack import Stack
from cspine.ct.intake import IntakePolicy

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


# Whose objects these are: patient, study and UIDs as the source has them, or replaced (PS3.15 annex E).
#
# De-identified objects are made from a header that holds no identifying value to begin with: what is written is named
# one by one, so nothing of the source can slip through an attribute that nobody thought of.


NOTICE = "RESEARCH USE ONLY - not for clinical use"
"""In every object, and in the description of every series."""

MANUFACTURER = "cspine"
CHARACTER_SET = "ISO_IR 192"
"""UTF-8, whatever the source was written in."""
MIN_KEY_CHARACTERS = 16

# What a de-identified object keeps of its source: how pixels were made, and nothing of whom, when, where and by whom.
_KEPT = (
    "SOPClassUID",
    "SeriesNumber",
    "LossyImageCompression",
    "LossyImageCompressionRatio",
    "LossyImageCompressionMethod",
)
_EMPTY = (
    "PatientBirthDate",
    "PatientSex",
    "StudyDate",
    "StudyTime",
    "AccessionNumber",
    "ReferringPhysicianName",
    "StudyID",
    "PositionReferenceIndicator",
)
_MAPPED = ("SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID")
# Dates of our own would say when a patient was examined, near enough; where the standard wants one, this stands.
_NO_DATE = datetime(1900, 1, 1)
# What a date and a time look like (PS3.5 6.2); headers hold others as well, which nobody can read.
_FORMS = {
    "PatientBirthDate": r"\d{8}",
    "StudyDate": r"\d{8}",
    "StudyTime": r"\d{2}(\d{2}(\d{2}(\.\d{1,6})?)?)?",
    "PatientBirthTime": r"\d{2}(\d{2}(\d{2}(\.\d{1,6})?)?)?",
    "PatientSex": r"[MFO]",
    "PatientAge": r"\d{3}[DWMY]",
    "LossyImageCompression": r"0[01]",
}


@dataclass(frozen=True)
class Deidentify:
    """Replace the identity of everything that is written.

    Attributes:
        key: A secret of 16 characters or more. The same key gives the same replacements, so studies of one patient stay
            together and a second run writes the same objects; nobody without it can find the originals.
    """

    key: str

    def __post_init__(self) -> None:
        if len(self.key) < MIN_KEY_CHARACTERS:
            raise ValueError(f"a key needs {MIN_KEY_CHARACTERS} characters or more")

    def __repr__(self) -> str:
        return "Deidentify(key=***)"

    def derive(self, *parts: object) -> bytes:
        """32 bytes that follow from the key and `parts`."""
        text = "\0".join(map(str, parts))
        return hmac.new(self.key.encode(), text.encode(), hashlib.sha256).digest()

    def map_uid(self, uid: str) -> str:
        """The replacement of a UID (PS3.5 B.2: 2.25 and a number of 128 bits)."""
        return f"2.25.{int.from_bytes(self.derive('uid', uid)[:16], 'big')}"

    def map_patient(self, patient_id: str) -> str:
        """The replacement of a Patient ID."""
        return f"cspine-{self.derive('patient', patient_id).hex()[:16]}"


@dataclass(frozen=True)
class Identity:
    """What all objects of one answer share.

    Attributes:
        header: Patient, study, frame of reference and scanner, as they are to be written; in UTF-8.
        created: Content date and time.
        deidentify: None where the identity is the source's.
    """

    header: Dataset
    created: datetime
    deidentify: Deidentify | None

    def map_uid(self, uid: str) -> str:
        """A UID of the source as it is to be written."""
        return uid if self.deidentify is None else self.deidentify.map_uid(uid)

    def make_uid(self, *parts: object) -> str:
        """A UID for something new: a fresh one, or (de-identified) one that follows from the key and `parts`."""
        return (
            generate_uid() if self.deidentify is None else self.deidentify.map_uid("\0".join(map(str, parts)))
        )

    def map_reference(self, reference: Dataset) -> Dataset:
        """The UIDs of an instance (`make_references`) as they are to be written."""
        mapped = Dataset()
        mapped.SOPClassUID = reference.SOPClassUID
        for keyword in _MAPPED[:3]:
            setattr(mapped, keyword, self.map_uid(str(reference[keyword].value)))
        return mapped

    def finish(self, dataset: Dataset) -> None:
        """What is to be said, and left out, in each object; the last thing that is done to one."""
        dataset.SpecificCharacterSet = CHARACTER_SET
        if "Rows" in dataset:
            dataset.BodyPartExamined = "CSPINE"  # which also says that there is no laterality (PS3.3 C.7.3.1)
        if self.deidentify is None:
            return
        for keyword in ("InstanceCreationDate", "InstanceCreationTime"):
            if keyword in dataset:
                delattr(dataset, keyword)
        for item in dataset.get("ContributingEquipmentSequence") or []:
            if "ContributionDateTime" in item:
                del item.ContributionDateTime
        dataset.PatientIdentityRemoved = "YES"
        dataset.DeidentificationMethod = "cspine: written from a header without identity"
        profile = Dataset()
        profile.CodeValue, profile.CodingSchemeDesignator = "113100", "DCM"
        profile.CodeMeaning = "Basic Application Confidentiality Profile"
        dataset.DeidentificationMethodCodeSequence = [profile]
        dataset.LongitudinalTemporalInformationModified = "REMOVED"


def read_key(path: Path) -> Deidentify:
    """Read a key from a text file; white space around it does not count.

    Raises:
        InputError: the file cannot be read, or the key is too short.
    """
    try:
        return Deidentify(Path(path).read_text(encoding="utf-8").strip())
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(
            f"no key for de-identification: {reason}",
            where=str(path),
            fix=f"name a text file that holds {MIN_KEY_CHARACTERS} characters or more",
        ) from None


def make_identity(source: Dataset, deidentify: Deidentify | None = None) -> Identity:
    """From the header of the source's first file (`SourceSeries.header`)."""
    if deidentify is None:
        return Identity(_clean(source), datetime.now().replace(microsecond=0), None)
    header = Dataset()
    for keyword in _KEPT:
        if keyword in source:
            header[keyword] = source[keyword]
    for keyword in _EMPTY:
        setattr(header, keyword, "")
    for keyword in _MAPPED:
        if source.get(keyword):
            setattr(header, keyword, UID(deidentify.map_uid(str(source[keyword].value))))
    # Where nobody is named, patients are told apart by their study.
    owner = str(source.get("PatientID") or source.StudyInstanceUID)
    header.PatientID = deidentify.map_patient(owner)
    header.PatientName = f"{header.PatientID}^"
    return Identity(_clean(header), _NO_DATE, deidentify)


def _clean(source: Dataset) -> Dataset:
    """The header with every attribute that objects must have, none that cannot be read, and no private one."""
    header = Dataset()
    for keyword in HEADER_KEYWORDS.split(" "):
        element = source.get_item(keyword) if keyword in source else None
        if element is None:
            continue
        form, value = _FORMS.get(keyword), str(source[keyword].value or "").strip()
        if form is not None:
            value = value if re.fullmatch(form, value) else ""
            if value or keyword in _EMPTY:
                setattr(header, keyword, value)
        else:
            header[keyword] = source[keyword]
    for keyword in ("PatientName", "PatientID", *_EMPTY[:-1]):
        if keyword not in header:
            setattr(header, keyword, "")
    header.SpecificCharacterSet = CHARACTER_SET
    return header


# Items of sequences, and numbers, as several objects hold them.


def make_item(**attributes: Any) -> Dataset:
    """A data set of these attributes, by keyword."""
    dataset = Dataset()
    for keyword, value in attributes.items():
        setattr(dataset, keyword, value)
    return dataset


def make_code(code: Code) -> Dataset:
    """An item of a code sequence (PS3.3 8.8)."""
    return make_item(
        CodeValue=code.value, CodingSchemeDesignator=code.scheme_designator, CodeMeaning=code.meaning
    )


def make_source_item(identity: Identity, frame: Frame, **attributes: Any) -> Dataset:
    """An item of Source Image Sequence: the instance, and the frame in a multi-frame one."""
    item = make_item(
        ReferencedSOPClassUID=frame.sop_class,
        ReferencedSOPInstanceUID=identity.map_uid(str(frame.sop_uid)),
        PurposeOfReferenceCodeSequence=[make_code(codes.DCM.SourceImageForImageProcessingOperation)],
        **attributes,
    )
    if frame.index is not None:
        item.ReferencedFrameNumber = frame.index + 1
    return item


def format_numbers(values: Iterable[float]) -> list[str]:
    """As decimal strings, which have 16 characters at most (PS3.5 6.2)."""
    return [format_number_as_ds(float(value)) for value in values]
