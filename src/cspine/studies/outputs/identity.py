"""Whose objects these are: patient, study and UIDs as the source has them, or replaced (PS3.15 annex E).

De-identified objects are made from a header that holds no identifying value to begin with: what is written is named
one by one, so nothing of the source can slip through an attribute that nobody thought of.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from pydicom.dataset import Dataset
from pydicom.uid import UID, generate_uid

from cspine.errors import InputError
from cspine.studies.outputs.source import HEADER_KEYWORDS

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
