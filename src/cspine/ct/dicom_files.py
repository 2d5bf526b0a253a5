"""DICOM files: where they lie (a file, a folder of any names and depth, a zip), and a `Frame` for each picture in them.

Headers come from scanners, archives and anonymisers of thirty years: a value that is absent or malformed is None here,
and what follows from that is for intake to say.
"""

from __future__ import annotations

import contextlib
import io
import logging
import math
import os
import sys
import warnings
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.tag import BaseTag, Tag
from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from cspine.core.answers import Reason
from cspine.core.errors import InputError

MEDIA_DIRECTORY = "1.2.840.10008.1.3.10"
CT_IMAGES = (
    "1.2.840.10008.5.1.4.1.1.2",  # CT Image Storage
    "1.2.840.10008.5.1.4.1.1.2.1",  # Enhanced CT Image Storage
    "1.2.840.10008.5.1.4.1.1.2.2",  # Legacy Converted Enhanced CT Image Storage
)
PIXEL_DATA = (0x7FE0, 0x0010)

_MULTI_FRAME = CT_IMAGES[1:]
_LOSSY = {"1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51"}
# What a frame's header is made of; pixel data is not read with it.
_KEYWORDS = (
    "SpecificCharacterSet ImageType SOPClassUID SOPInstanceUID Modality PatientID StudyInstanceUID SeriesInstanceUID "
    "AcquisitionNumber InstanceNumber FrameOfReferenceUID ImagePositionPatient ImageOrientationPatient SliceLocation "
    "SliceThickness PixelSpacing Rows Columns SamplesPerPixel NumberOfFrames RescaleSlope RescaleIntercept RescaleType "
    "ModalityLUTSequence LossyImageCompression SharedFunctionalGroupsSequence PerFrameFunctionalGroupsSequence "
    "BitsAllocated BitsStored HighBit PixelRepresentation PixelPaddingValue PixelPaddingRangeLimit"
)
_TAGS = [Tag(keyword) for keyword in _KEYWORDS.split(" ")]  # once, for there are a thousand files in a study

_ZIP_MAGIC = (b"PK\x03\x04", b"PK\x05\x06")
# Without the preamble (as ACR-NEMA and some old archives write), a data set begins with group 0002 or 0008.
_FIRST_GROUPS = (b"\x02\x00", b"\x08\x00", b"\x00\x02", b"\x00\x08")
_MAX_MEMBER_BYTES = 4 * 2**30

Span = tuple[int, int]
Triple = tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class DicomFile:
    """One file that seems to be DICOM: `path`, or `member` of the zip `archive` at `path`; `name` is for messages."""

    name: str
    path: Path
    archive: zipfile.ZipFile | None = None
    member: str = ""

    def open(self) -> BinaryIO:
        """Open for reading; a member of an archive is unpacked in memory.

        Raises:
            OSError, zipfile.BadZipFile, RuntimeError, NotImplementedError: it cannot be read or unpacked.
        """
        if self.archive is None:
            return self.path.open("rb")
        if self.archive.getinfo(self.member).file_size > _MAX_MEMBER_BYTES:
            raise zipfile.BadZipFile("the member would unpack to more than 4 GiB")
        return io.BytesIO(self.archive.read(self.member))


@dataclass(frozen=True, slots=True)
class Problem:
    """A file that belongs to no series, and why."""

    reason: Reason
    name: str
    detail: str


@dataclass(slots=True)
class DicomFiles:
    """Files of a source that seem to be DICOM, problems, and the number of other files."""

    files: list[DicomFile] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    ignored: int = 0


def find_dicom_files(source: Path) -> DicomFiles:
    """Find the DICOM files of a source, by what is in them and never by their names.

    Args:
        source: A DICOM file, which may be a DICOMDIR; a zip; a folder, with everything below it and in the zips in it.

    Raises:
        InputError: there is no such file or folder.
    """
    source = Path(source)
    found = DicomFiles()
    if source.is_dir():
        for path in _walk(source, lambda error: found.problems.append(_refuse_unreadable(error))):
            _look_at(path, found, named=False)
    elif source.is_file():
        _look_at(source, found, named=True)
    else:
        raise InputError("no such file or folder", where=str(source), fix="name a DICOM file, folder or zip")
    return found


def is_dicom(source: Path) -> bool:
    """Return whether a file, or any file of a folder, or any member of a zip seems to be DICOM."""
    source = Path(source)
    if source.is_dir():
        return any(is_dicom(path) for path in _walk(source))
    found = DicomFiles()
    if source.is_file():
        _look_at(source, found, named=False)
    return bool(found.files)


def _walk(folder: Path, on_error: Callable[[OSError], None] | None = None) -> Iterator[Path]:
    """Yield regular files below a folder, sorted; links to folders are followed, each folder once."""
    on_error = on_error or (lambda error: None)
    seen: set[tuple[int, int]] = set()
    for name, folders, files in os.walk(folder, followlinks=True, onerror=on_error):
        status = os.stat(name)
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders.sort()
        for path in (Path(name, file) for file in sorted(files)):
            try:
                if path.is_file():
                    yield path
            except OSError as error:
                on_error(error)


def _refuse_unreadable(error: OSError) -> Problem:
    reason = (error.strerror or "it cannot be opened").lower()
    return Problem(Reason.DAMAGED_FILE, str(error.filename), reason)


def _head_is_dicom(head: bytes) -> bool:
    # The element of the first tag is small as well, which no text or picture file has.
    first = head[:2] in _FIRST_GROUPS and len(head) > 8 and b"\x00" in head[2:4]
    return head[128:132] == b"DICM" or first


def _look_at(path: Path, found: DicomFiles, *, named: bool) -> None:
    try:
        with path.open("rb") as file:
            head = file.read(132)
    except OSError as error:
        found.problems.append(_refuse_unreadable(error))
        return
    if head.startswith(_ZIP_MAGIC):
        _look_into_zip(path, found)
    elif not _head_is_dicom(head):
        if named:
            found.problems.append(Problem(Reason.NOT_DICOM, str(path), "no DICOM file"))
        else:
            found.ignored += 1
    else:
        found.files.append(DicomFile(str(path), path))


def _look_into_zip(path: Path, found: DicomFiles) -> None:
    try:
        archive = zipfile.ZipFile(path)
        members = sorted(archive.infolist(), key=lambda info: info.filename)
    except (zipfile.BadZipFile, OSError, NotImplementedError, ValueError) as error:
        found.problems.append(Problem(Reason.DAMAGED_FILE, str(path), f"a damaged zip: {error}"))
        return
    for info in members:
        name = f"{path}!{info.filename}"
        if info.is_dir():
            continue
        try:
            with archive.open(info) as file:
                head = file.read(132)
        # zipfile has RuntimeError for a password, NotImplementedError for a rare compression, zlib.error for damage.
        except Exception as error:
            found.problems.append(Problem(Reason.DAMAGED_FILE, name, f"cannot be unpacked: {error}"))
            continue
        if _head_is_dicom(head):
            found.files.append(DicomFile(name, path, archive, info.filename))
        else:
            found.ignored += 1


@dataclass(frozen=True, slots=True)
class NativePixels:
    """Where and how pixels lie in a file that stores them as they are: read without parsing the file again.

    Attributes:
        offset: Of the element Pixel Data in the file.
        explicit: Whether the element names its VR.
        kind: Of a pixel, as it lies there.
        bits_stored, high_bit: Which of its 16 bits count.
        padding: The lowest and the highest stored value that is padding; None if the header names none.
    """

    offset: int
    explicit: bool
    kind: np.dtype[Any]
    bits_stored: int
    high_bit: int
    padding: Span | None


def find_native(dataset: Dataset, offset: int) -> NativePixels | None:
    """Return how the pixels of a file with this header, which ends at `offset`, are stored.

    Only what every scanner writes is read natively: one frame of one sample in 16 bits, little endian, not compressed
    (PS3.5 A.1 and A.2). For all else it is None: pydicom reads it.
    """
    syntax = dataset.file_meta.TransferSyntaxUID
    if syntax not in (ImplicitVRLittleEndian, ExplicitVRLittleEndian):
        return None
    try:
        bits = int(dataset.BitsStored)
        high = int(dataset.get("HighBit", bits - 1))
        simple = int(dataset.BitsAllocated) == 16 and int(dataset.get("SamplesPerPixel") or 1) == 1
        if not simple or int(dataset.get("NumberOfFrames") or 1) != 1 or not 0 < bits <= high + 1 <= 16:
            return None
        kind = np.dtype({0: "<u2", 1: "<i2"}[int(dataset.PixelRepresentation)])
        padding = find_padding(dataset, kind)
    # A value that is absent or malformed: pydicom says what follows from it.
    except Exception:
        return None
    return NativePixels(offset, syntax == ExplicitVRLittleEndian, kind, bits, high, padding)


def find_padding(dataset: Dataset, kind: np.dtype[Any]) -> Span | None:
    """Return the span of stored values that are padding (PS3.3 C.7.5.1.1.2), or None if the header names none."""
    ends = [dataset.get(keyword) for keyword in ("PixelPaddingValue", "PixelPaddingRangeLimit")]
    if ends[0] is None:
        return None
    values = [as_stored(value, kind) for value in ends if value is not None]
    return min(values), max(values)


def as_stored(value: Any, kind: np.dtype[Any]) -> int:
    """Convert a number of the header to what pixels of a type would hold.

    Scanners have written the value of signed pixels as unsigned (63536 for -2000) and the other way round, or as bytes.
    """
    number = int.from_bytes(value[:2], sys.byteorder) if isinstance(value, bytes) else int(value)
    wrap = 1 << (8 * kind.itemsize)
    if kind.kind == "i" and number >= wrap // 2:
        number -= wrap
    elif kind.kind == "u" and number < 0:
        number += wrap
    return number


@dataclass(frozen=True, slots=True)
class Frame:
    """One picture: a file with one, or a frame of a multi-frame file. None is what the header does not say.

    Attributes:
        file: Where it lies.
        index: From 0, in a multi-frame file; else None.
        image_orientation: Unit vectors of Image Orientation (Patient): along a row (columns grow), then along a column.
        rescale: (slope, intercept).
        has_modality_lut: Whether a Modality LUT Sequence stands in their place.
        rescale_type: Rescale Type, or Modality LUT Type.
        native: How the pixels lie in the file, if they can be read without pydicom.
    """

    file: DicomFile
    index: int | None
    sop_class_uid: str | None
    sop_instance_uid: str | None
    study_uid: str | None
    series_uid: str | None
    patient_id: str | None
    frame_of_reference_uid: str | None
    modality: str | None
    image_type: tuple[str, ...]
    rows: int
    columns: int
    samples_per_pixel: int
    image_position_mm: Triple | None
    image_orientation: tuple[Triple, Triple] | None
    pixel_spacing_mm: tuple[float, float] | None
    slice_thickness_mm: float | None
    slice_location_mm: float | None
    instance_number: int | None
    acquisition_number: int | None
    rescale: tuple[float, float] | None
    has_modality_lut: bool
    rescale_type: str | None
    lossy: bool
    transfer_syntax: str
    native: NativePixels | None = None

    @property
    def is_ct(self) -> bool:
        """Whether it is a CT image by SOP class, and by modality if that is named."""
        return self.sop_class_uid in CT_IMAGES and self.modality in (None, "CT")

    @property
    def is_localizer(self) -> bool:
        """Whether Image Type says localizer (PS3.3 C.8.2.1.1.1), or Siemens' word for one."""
        return bool({"LOCALIZER", "TOPOGRAM", "SCOUT"} & set(self.image_type))


@contextlib.contextmanager
def hush_pydicom() -> Iterator[None]:
    """Keep pydicom's warnings on malformed values off the terminal: intake says what they lead to."""
    logger = logging.getLogger("pydicom")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def read_dataset(
    file: BinaryIO, keywords: Sequence[str | BaseTag] | None = None, *, pixels: bool = True
) -> Dataset:
    """Read a data set, with or without the preamble; without `keywords` all of it.

    Without `pixels` the file is left at the element of the pixel data, unless it is deflated. A transfer syntax
    that the file does not name is set to what its encoding shows, if it is not compressed.

    Raises:
        Exception: of whatever kind pydicom meets damage with.
    """
    tags: Any = keywords and list(keywords)
    pixels = pixels and keywords is None
    dataset = pydicom.dcmread(file, force=True, stop_before_pixels=not pixels, specific_tags=tags)
    meta = dataset.file_meta
    if "TransferSyntaxUID" not in meta:
        implicit, little = dataset.original_encoding
        kind = "1.2.840.10008.1.2" if implicit else "1.2.840.10008.1.2.1"
        meta.TransferSyntaxUID = UID(kind if little else "1.2.840.10008.1.2.2")
    return dataset


def read_frames(file: DicomFile) -> list[Frame]:
    """Read the headers of all frames of a file, at least one; it has no rows and columns if the file holds no image.

    Raises:
        ValueError: the header cannot be read; the message says why.
    """
    try:
        with file.open() as stream:
            dataset = read_dataset(stream, _TAGS)
            end = stream.tell()
        if not _find_class(dataset) and not _text(dataset, "SOPInstanceUID"):
            raise ValueError("neither SOP Class UID nor SOP Instance UID")
        multi = _text(dataset, "SOPClassUID") in _MULTI_FRAME
        count = _integer(dataset, "NumberOfFrames") or 1
        if not multi:
            return [_read_frame(file, dataset, None, end)]
        groups = dataset.get("PerFrameFunctionalGroupsSequence") or []
        if not 0 < count == len(groups):
            raise ValueError(f"{count} frames, but {len(groups)} per-frame functional groups")
        return [_read_frame(file, dataset, index) for index in range(count)]
    # pydicom and zipfile meet damage with OSError, ValueError, KeyError, struct.error, EOFError, zlib.error and others.
    except Exception as error:
        raise ValueError(str(error).splitlines()[0] if str(error) else type(error).__name__) from error


class _Groups:
    """Attributes of one frame: in its functional groups, the shared ones (PS3.3 C.7.6.16), then the data set itself."""

    def __init__(self, dataset: Dataset, index: int | None) -> None:
        self.dataset = dataset
        self.places: list[Any] = []
        if index is not None:
            self.places.append(dataset["PerFrameFunctionalGroupsSequence"].value[index])
            self.places += list(dataset.get("SharedFunctionalGroupsSequence") or [])[:1]

    def find(self, sequence: str, keyword: str) -> Any:
        """Return the item of `sequence` that holds `keyword`; the data set itself if no group does."""
        for place in self.places:
            for item in place.get(sequence) or []:
                if keyword in item:
                    return item
        return self.dataset


def _read_frame(file: DicomFile, dataset: Dataset, index: int | None, end: int = 0) -> Frame:
    groups = _Groups(dataset, index)
    measures = groups.find("PixelMeasuresSequence", "PixelSpacing")
    rescale = groups.find("PixelValueTransformationSequence", "RescaleSlope")
    image = groups.find("CTImageFrameTypeSequence", "FrameType")
    content = groups.find("FrameContentSequence", "FrameAcquisitionNumber")
    slope, intercept = _number(rescale, "RescaleSlope"), _number(rescale, "RescaleIntercept")
    lut = _items(dataset, "ModalityLUTSequence")
    syntax = dataset.file_meta.TransferSyntaxUID
    spacing = _numbers(measures, "PixelSpacing", 2)
    position = _numbers(
        groups.find("PlanePositionSequence", "ImagePositionPatient"), "ImagePositionPatient", 3
    )
    return Frame(
        file=file,
        index=index,
        sop_class_uid=_find_class(dataset),
        sop_instance_uid=_text(dataset, "SOPInstanceUID"),
        study_uid=_text(dataset, "StudyInstanceUID"),
        series_uid=_text(dataset, "SeriesInstanceUID"),
        patient_id=_text(dataset, "PatientID"),
        frame_of_reference_uid=_text(dataset, "FrameOfReferenceUID"),
        modality=_text(dataset, "Modality"),
        image_type=_words(image, "FrameType") or _words(dataset, "ImageType"),
        rows=_integer(dataset, "Rows") or 0,
        columns=_integer(dataset, "Columns") or 0,
        samples_per_pixel=_integer(dataset, "SamplesPerPixel") or 1,
        image_position_mm=(position[0], position[1], position[2]) if position else None,
        image_orientation=_read_orientation(groups),
        pixel_spacing_mm=(spacing[0], spacing[1]) if spacing and min(spacing) > 0 else None,
        slice_thickness_mm=_number(groups.find("PixelMeasuresSequence", "SliceThickness"), "SliceThickness"),
        slice_location_mm=_number(dataset, "SliceLocation"),
        instance_number=_integer(dataset, "InstanceNumber"),
        acquisition_number=_integer(content, "FrameAcquisitionNumber")
        or _integer(dataset, "AcquisitionNumber"),
        rescale=None if slope is None or intercept is None or slope == 0 else (slope, intercept),
        has_modality_lut=bool(lut),
        rescale_type=_text(lut[0], "ModalityLUTType") if lut else _text(rescale, "RescaleType"),
        lossy=_text(dataset, "LossyImageCompression") == "01" or str(syntax) in _LOSSY,
        transfer_syntax=syntax.name,
        native=None if lut or index is not None else find_native(dataset, end),
    )


def _find_class(dataset: Dataset) -> str | None:
    """Return the SOP Class UID; a DICOMDIR has its own in the file meta information only."""
    return _text(dataset, "SOPClassUID") or _text(dataset.file_meta, "MediaStorageSOPClassUID")


def _read_orientation(groups: _Groups) -> tuple[Triple, Triple] | None:
    """Return two unit vectors at right angles, or None."""
    values = _numbers(
        groups.find("PlaneOrientationSequence", "ImageOrientationPatient"), "ImageOrientationPatient", 6
    )
    if values is None:
        return None
    right, down = values[:3], values[3:]
    lengths = math.hypot(*right), math.hypot(*down)
    if not all(abs(length - 1) < 0.01 for length in lengths):
        return None
    right, down = [v / lengths[0] for v in right], [v / lengths[1] for v in down]
    dot = math.fsum(a * b for a, b in zip(right, down, strict=True))
    if abs(dot) > 0.01:
        return None
    # What rounding left of the angle goes into the second vector, so that the axes are at right angles.
    down = [b - dot * a for a, b in zip(right, down, strict=True)]
    length = math.hypot(*down)
    down = [v / length for v in down]
    return (right[0], right[1], right[2]), (down[0], down[1], down[2])


def _get(dataset: Any, keyword: str) -> Any:
    try:
        return dataset.get(keyword)
    except Exception:  # a malformed value, which pydicom converts at first use
        return None


def _items(dataset: Any, keyword: str) -> list[Any]:
    value = _get(dataset, keyword)
    return list(value) if isinstance(value, pydicom.Sequence) else []


def _words(dataset: Any, keyword: str) -> tuple[str, ...]:
    value = _get(dataset, keyword)
    words = [value] if isinstance(value, str) else (value or [])
    return tuple(str(word).strip().upper() for word in words)


def _text(dataset: Any, keyword: str) -> str | None:
    value = _get(dataset, keyword)
    text = "" if value is None else str(value).strip(" \0")
    return text or None


def _numbers(dataset: Any, keyword: str, count: int) -> list[float] | None:
    try:
        numbers = [float(value) for value in _get(dataset, keyword) or ()]
    except (TypeError, ValueError):
        return None
    return numbers if len(numbers) == count and all(map(math.isfinite, numbers)) else None


def _number(dataset: Any, keyword: str) -> float | None:
    try:
        number = float(_get(dataset, keyword))
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def _integer(dataset: Any, keyword: str) -> int | None:
    number = _number(dataset, keyword)
    return None if number is None else int(number)
