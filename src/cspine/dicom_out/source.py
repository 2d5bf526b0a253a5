"""What DICOM objects are made of: the series that an answer is about, and the identity under which they are written.

An answer counts in slices of a volume, which intake may have turned, moved or interpolated; objects for an archive
refer to instances and lie in the patient. De-identified objects are made from a header that holds no identifying value
to begin with (PS3.15 annex E): what is written is named one by one, so nothing of the source can slip through.
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
import numpy.typing as npt
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.uid import UID, generate_uid
from pydicom.valuerep import format_number_as_ds

import cspine
from cspine.core.answers import Reason, StudyAnswer
from cspine.core.errors import InputError
from cspine.ct.dicom import DicomSeries, scan_dicom
from cspine.ct.dicom_files import CT_IMAGES, Frame, hush_pydicom, read_dataset
from cspine.ct.dicom_stack import Stack
from cspine.ct.intake import IntakePolicy

NOTICE = "RESEARCH USE ONLY - not for clinical use"
"""In every object, and in the description of every series."""
MANUFACTURER = "cspine"
CHARACTER_SET = "ISO_IR 192"
"""UTF-8, whatever the source was written in."""
MIN_KEY_CHARACTERS = 16

# What an object takes over from the series: of the patient, the study, the frame of reference and the scanner (modules
# PS3.3 C.7.1.1, C.7.2.1, C.7.2.2, C.7.4.1 and C.7.5.1).
HEADER_KEYWORDS = (
    "SpecificCharacterSet SOPClassUID SOPInstanceUID StudyInstanceUID SeriesInstanceUID SeriesNumber "
    "PatientName PatientID IssuerOfPatientID TypeOfPatientID PatientBirthDate PatientBirthTime PatientSex EthnicGroup "
    "PatientAge PatientSize PatientWeight "
    "StudyDate StudyTime AccessionNumber ReferringPhysicianName StudyID StudyDescription "
    "FrameOfReferenceUID PositionReferenceIndicator "
    "Manufacturer ManufacturerModelName InstitutionName StationName SoftwareVersions LossyImageCompression "
    "LossyImageCompressionRatio LossyImageCompressionMethod"
)
# What a de-identified object keeps of its source: how pixels were made, and nothing of whom, when, where and by whom.
_KEPT = (
    "SOPClassUID SeriesNumber LossyImageCompression LossyImageCompressionRatio LossyImageCompressionMethod"
)
_EMPTY = "PatientBirthDate PatientSex StudyDate StudyTime AccessionNumber ReferringPhysicianName StudyID"
_MAPPED = ("SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID")
# The content date of de-identified objects: our own would say, near enough, when a patient was examined.
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
_SAME_POSITION_MM = 0.05


@dataclass(frozen=True)
class HeatMaps:
    """Where a model looked.

    Attributes:
        slices: (n,) Numbers of slices of the volume, none twice.
        maps: (n, rows, columns) float32, 0..1, on the grid of the volume.
        method: How they were made, such as "Grad-CAM".
    """

    slices: tuple[int, ...]
    maps: npt.NDArray[np.float32]
    method: str

    def __post_init__(self) -> None:
        if self.maps.ndim != 3 or len(self.maps) != len(self.slices) or not len(self.maps):
            raise ValueError(f"{len(self.slices)} slices need as many maps, not {self.maps.shape}")
        if len(set(self.slices)) != len(self.slices):
            raise ValueError("two maps are of the same slice")
        if not (np.isfinite(self.maps).all() and self.maps.min() >= 0 and self.maps.max() <= 1):
            raise ValueError("heat must lie in 0..1")


@dataclass(frozen=True)
class SourceSeries:
    """The source of an answer.

    Attributes:
        frames: Every picture of the series, in the order in which they were met.
        stack: How the slices of the volume are made of them; None if the answer has none.
        header: HEADER_KEYWORDS of the first file.
        has_place: Whether positions are those of the headers, in a frame of reference that they name.
    """

    frames: tuple[Frame, ...]
    stack: Stack | None
    header: Dataset
    has_place: bool

    @property
    def is_interpolated(self) -> bool:
        """Whether slices of the volume may lie between two of the source's."""
        return self.stack is not None and self.stack.blend is not None

    def find_frames(self, index: int) -> tuple[Frame, ...]:
        """Return the frames that slice `index` of the volume is made of: one, or two if it is interpolated."""
        assert self.stack is not None
        if self.stack.blend is None:
            return (self.stack.frames[index],)
        first, weight = self.stack.blend[index]
        pair = (self.stack.frames[first], *self.stack.frames[first + 1 : first + 2])
        if weight == 0:
            return pair[:1]
        return pair[1:] if weight == 1 else pair

    def list_frames(self, indices: Iterable[int]) -> list[Frame]:
        """Return the frames of several slices in their order, none twice."""
        found: dict[tuple[str, int | None], Frame] = {}
        for index in indices:
            for frame in self.find_frames(index):
                found.setdefault((str(frame.sop_instance_uid), frame.index), frame)
        return list(found.values())


def find_source(path: Path, answer: StudyAnswer, policy: IntakePolicy | None = None) -> SourceSeries:
    """Find the series of an answer among the files of a source, from headers alone.

    Args:
        path: A file, folder, DICOMDIR or zip, as for `scan_dicom`.
        answer: Its intake row names the series.
        policy: That the series was read with; None takes the default limits. What was done about each reason is in
            the answer.

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
    """Plan the volume of a scanned series as the answer's intake row says; errors as for `find_source`."""
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
        policy = policy or IntakePolicy()
        done = {finding.reason: finding.action for finding in answer.intake.findings}
        policy = policy.model_copy(update={"actions": {**policy.actions, **done}})
        stack = replace(series, frames=kept).plan(policy)
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
    """Return whether objects can be about a series: CT images with UIDs."""
    return all(
        frame.sop_class_uid in CT_IMAGES and frame.sop_instance_uid and frame.study_uid for frame in frames
    )


def _slice_id(frame: Frame) -> str:
    return f"{frame.sop_instance_uid}" + ("" if frame.index is None else f"#{frame.index + 1}")


def _agree(stack: Stack, answer: StudyAnswer) -> bool:
    if len(stack) != len(answer.slice_ids):
        return False
    positions_mm = stack.origins_mm @ np.asarray(stack.direction[0])
    if np.abs(positions_mm - answer.positions_mm).max() > _SAME_POSITION_MM:
        return False
    return stack.blend is not None or [_slice_id(frame) for frame in stack.frames] == list(answer.slice_ids)


def _read_header(frame: Frame) -> Dataset:
    """Read HEADER_KEYWORDS, as far as they can be read."""
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
        """Return 32 bytes that follow from the key and `parts`."""
        text = "\0".join(map(str, parts))
        return hmac.new(self.key.encode(), text.encode(), hashlib.sha256).digest()

    def map_uid(self, uid: str) -> str:
        """Return the replacement of a UID (PS3.5 B.2: 2.25 and a number of 128 bits)."""
        return f"2.25.{int.from_bytes(self.derive('uid', uid)[:16], 'big')}"

    def map_patient(self, patient_id: str) -> str:
        """Return the replacement of a Patient ID."""
        return f"cspine-{self.derive('patient', patient_id).hex()[:16]}"


@dataclass(frozen=True)
class Identity:
    """What all objects of one answer share.

    Attributes:
        header: Patient, study, frame of reference and scanner, as they are to be written; in UTF-8.
        series_number: Of the source, times 100: what Series Numbers are counted from.
        created: Content date and time.
        deidentify: None if the identity is the source's.
        content: What UIDs follow from if they are to be the same in every run.
    """

    header: Dataset
    series_number: int
    created: datetime
    deidentify: Deidentify | None
    content: str

    def map_uid(self, uid: str) -> str:
        """Return a UID of the source as it is to be written."""
        return uid if self.deidentify is None else self.deidentify.map_uid(uid)

    def make_uid(self, *parts: object) -> str:
        """Return a UID for something new: a fresh one, or (de-identified) one that follows from key and content."""
        if self.deidentify is None:
            return generate_uid()
        return self.deidentify.map_uid("\0".join(map(str, (*parts, self.content))))

    def describe_object(self, name: str, place: int) -> dict[str, Any]:
        """Return what highdicom is told of every object: the only one of the series `place`."""
        return {
            "series_instance_uid": self.make_uid(f"{name} series"),
            "series_number": self.series_number + place,
            "sop_instance_uid": self.make_uid(name),
            "instance_number": 1,
            "manufacturer": MANUFACTURER,
            "manufacturer_model_name": "cspine",
            "software_versions": cspine.__version__,
            "series_description": f"cspine {name} - {NOTICE}"[:64],
            "content_date": self.created.date(),
            "content_time": self.created.time(),
        }

    def make_references(self, frames: Iterable[Frame]) -> list[Dataset]:
        """Return a data set with the UIDs of each file that frames lie in, none twice, as they are to be written."""
        by_uid = {str(frame.sop_instance_uid): frame for frame in frames}
        return [
            make_item(
                SOPClassUID=frame.sop_class_uid,
                SOPInstanceUID=self.map_uid(uid),
                StudyInstanceUID=self.map_uid(str(frame.study_uid)),
                SeriesInstanceUID=self.map_uid(str(frame.series_uid)),
            )
            for uid, frame in by_uid.items()
        ]

    def finish(self, dataset: Dataset) -> None:
        """Add what every object says, and remove what none may say; the last thing that is done to one."""
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
        dataset.DeidentificationMethodCodeSequence = [
            make_code(Code("113100", "DCM", "Basic Application Confidentiality Profile"))
        ]
        dataset.LongitudinalTemporalInformationModified = "REMOVED"


def read_key(path: Path) -> Deidentify:
    """Read a key from a text file, without white space around it.

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


def make_identity(source: Dataset, deidentify: Deidentify | None, content: str) -> Identity:
    """Make the identity of objects from the header of the source's first file; `content` as in `Identity`."""
    number = _find_series_number(source)
    if deidentify is None:
        return Identity(_clean(source), number, datetime.now().replace(microsecond=0), None, content)
    header = Dataset()
    for keyword in _KEPT.split(" "):
        if keyword in source:
            header[keyword] = source[keyword]
    for keyword in (*_EMPTY.split(" "), "PositionReferenceIndicator"):
        setattr(header, keyword, "")
    for keyword in _MAPPED:
        if source.get(keyword):
            setattr(header, keyword, UID(deidentify.map_uid(str(source[keyword].value))))
    # If nobody is named, patients are told apart by their study.
    owner = str(source.get("PatientID") or source.StudyInstanceUID)
    header.PatientID = deidentify.map_patient(owner)
    header.PatientName = f"{header.PatientID}^"
    return Identity(_clean(header), number, _NO_DATE, deidentify, content)


def _find_series_number(header: Dataset) -> int:
    """Return what Series Numbers are counted from: behind the source's, and told apart from the scanner's own."""
    try:
        number = int(header.get("SeriesNumber") or 0)
    except (TypeError, ValueError):
        number = 0
    return (number if 0 < number < 1_000_000 else 99) * 100


def _clean(source: Dataset) -> Dataset:
    """Return the header with every attribute that objects must have, and none that cannot be read."""
    header = Dataset()
    for keyword in HEADER_KEYWORDS.split(" "):
        element = source.get_item(keyword) if keyword in source else None
        if element is None:
            continue
        form, value = _FORMS.get(keyword), str(source[keyword].value or "").strip()
        if form is not None:
            value = value if re.fullmatch(form, value) else ""
            if value or keyword in _EMPTY.split(" "):
                setattr(header, keyword, value)
        else:
            header[keyword] = source[keyword]
    for keyword in ("PatientName", "PatientID", *_EMPTY.split(" ")):
        if keyword not in header:
            setattr(header, keyword, "")
    header.SpecificCharacterSet = CHARACTER_SET
    return header


def make_item(**attributes: Any) -> Dataset:
    """Return a data set of these attributes, by keyword."""
    dataset = Dataset()
    for keyword, value in attributes.items():
        setattr(dataset, keyword, value)
    return dataset


def make_code(code: Code) -> Dataset:
    """Return an item of a code sequence (PS3.3 8.8)."""
    return make_item(
        CodeValue=code.value, CodingSchemeDesignator=code.scheme_designator, CodeMeaning=code.meaning
    )


def make_source_item(identity: Identity, frame: Frame, **attributes: Any) -> Dataset:
    """Return an item of Source Image Sequence: the instance, and the frame in a multi-frame one."""
    item = make_item(
        ReferencedSOPClassUID=frame.sop_class_uid,
        ReferencedSOPInstanceUID=identity.map_uid(str(frame.sop_instance_uid)),
        PurposeOfReferenceCodeSequence=[make_code(codes.DCM.SourceImageForImageProcessingOperation)],
        **attributes,
    )
    if frame.index is not None:
        item.ReferencedFrameNumber = frame.index + 1
    return item


def format_numbers(values: Iterable[float]) -> list[str]:
    """Return decimal strings, which have 16 characters at most (PS3.5 6.2)."""
    return [format_number_as_ds(float(value)) for value in values]
