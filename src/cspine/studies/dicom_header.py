"""From the header of a DICOM file to one `Frame` for each picture in it.

Headers come from scanners, archives and anonymisers of thirty years, so a value that is absent or malformed is None
here, and what follows from that is for intake to say. Attributes of an enhanced (multi-frame) object are looked up in
the functional groups of the frame, then in the shared ones (PS3.3 C.7.6.16).
"""

from __future__ import annotations

import contextlib
import logging
import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

import pydicom
from pydicom.dataset import Dataset
from pydicom.tag import BaseTag, Tag
from pydicom.uid import UID

from cspine.studies.dicom_files import DicomFile
from cspine.studies.dicom_native import KEYWORDS as PIXEL_KEYWORDS
from cspine.studies.dicom_native import NativePixels, find_native

MEDIA_DIRECTORY = "1.2.840.10008.1.3.10"
CT_IMAGES = (
    "1.2.840.10008.5.1.4.1.1.2",  # CT Image Storage
    "1.2.840.10008.5.1.4.1.1.2.1",  # Enhanced CT Image Storage
    "1.2.840.10008.5.1.4.1.1.2.2",  # Legacy Converted Enhanced CT Image Storage
)
_MULTI_FRAME = CT_IMAGES[1:]
_LOSSY = {"1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51"}

# What a frame's header is made of; pixel data is not read with it.
_KEYWORDS = (
    "SpecificCharacterSet ImageType SOPClassUID SOPInstanceUID Modality PatientID StudyInstanceUID SeriesInstanceUID "
    "AcquisitionNumber InstanceNumber FrameOfReferenceUID ImagePositionPatient ImageOrientationPatient SliceLocation "
    "SliceThickness PixelSpacing Rows Columns SamplesPerPixel NumberOfFrames RescaleSlope RescaleIntercept RescaleType "
    "ModalityLUTSequence LossyImageCompression SharedFunctionalGroupsSequence PerFrameFunctionalGroupsSequence "
    f"{PIXEL_KEYWORDS}"
)
_TAGS = [Tag(keyword) for keyword in _KEYWORDS.split(" ")]  # once, for there are a thousand files in a study

Triple = tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class Frame:
    """One picture: a file with one, or a frame of a file with several. None is what the header does not say.

    Attributes:
        file: Where it lies.
        index: From 0, in a file of several frames; None in a file of one.
        orientation: Unit vectors of the row and column directions of DICOM, as in Image Orientation (Patient): the
            first three numbers say where columns grow to, the others where rows do.
        rescale: (slope, intercept).
        has_lut: Whether a Modality LUT Sequence stands in their place.
        meaning: Rescale Type, or Modality LUT Type.
        native: How the pixels lie in the file, where they can be read without pydicom.
    """

    file: DicomFile
    index: int | None
    sop_class: str | None
    sop_uid: str | None
    study_uid: str | None
    series_uid: str | None
    patient_id: str | None
    frame_of_reference_uid: str | None
    modality: str | None
    image_type: tuple[str, ...]
    rows: int
    columns: int
    samples: int
    position_mm: Triple | None
    orientation: tuple[Triple, Triple] | None
    pixel_spacing_mm: tuple[float, float] | None
    thickness_mm: float | None
    location_mm: float | None
    instance_number: int | None
    acquisition: int | None
    rescale: tuple[float, float] | None
    has_lut: bool
    meaning: str | None
    lossy: bool
    encoding: str
    native: NativePixels | None = None

    @property
    def is_ct(self) -> bool:
        """Whether it is a CT image by SOP class, and by modality where that is named."""
        return self.sop_class in CT_IMAGES and self.modality in (None, "CT")

    @property
    def is_localizer(self) -> bool:
        """Whether Image Type has the value for a localizer (PS3.3 C.8.2.1.1.1), or Siemens' word for one."""
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

    Without `pixels` the file is left at the element of the pixel data, unless it is deflated.

    A transfer syntax that the file does not name is set to what its encoding shows, if it is not compressed.

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
    """Read the headers of all frames of a file; one frame without rows and columns where it holds no image.

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
    """Attributes of one frame: its functional groups, the shared ones, then the data set itself."""

    def __init__(self, dataset: Dataset, index: int | None) -> None:
        self.dataset = dataset
        self.places: list[Any] = []
        if index is not None:
            self.places.append(dataset["PerFrameFunctionalGroupsSequence"].value[index])
            self.places += list(dataset.get("SharedFunctionalGroupsSequence") or [])[:1]

    def find(self, sequence: str, keyword: str) -> Any:
        """The item of `sequence` that holds `keyword`; the data set itself where no group does."""
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
        sop_class=_find_class(dataset),
        sop_uid=_text(dataset, "SOPInstanceUID"),
        study_uid=_text(dataset, "StudyInstanceUID"),
        series_uid=_text(dataset, "SeriesInstanceUID"),
        patient_id=_text(dataset, "PatientID"),
        frame_of_reference_uid=_text(dataset, "FrameOfReferenceUID"),
        modality=_text(dataset, "Modality"),
        image_type=_words(image, "FrameType") or _words(dataset, "ImageType"),
        rows=_integer(dataset, "Rows") or 0,
        columns=_integer(dataset, "Columns") or 0,
        samples=_integer(dataset, "SamplesPerPixel") or 1,
        position_mm=(position[0], position[1], position[2]) if position else None,
        orientation=_read_orientation(groups),
        pixel_spacing_mm=(spacing[0], spacing[1]) if spacing and min(spacing) > 0 else None,
        thickness_mm=_number(groups.find("PixelMeasuresSequence", "SliceThickness"), "SliceThickness"),
        location_mm=_number(dataset, "SliceLocation"),
        instance_number=_integer(dataset, "InstanceNumber"),
        acquisition=_integer(content, "FrameAcquisitionNumber") or _integer(dataset, "AcquisitionNumber"),
        rescale=None if slope is None or intercept is None or slope == 0 else (slope, intercept),
        has_lut=bool(lut),
        meaning=_text(lut[0], "ModalityLUTType") if lut else _text(rescale, "RescaleType"),
        lossy=_text(dataset, "LossyImageCompression") == "01" or str(syntax) in _LOSSY,
        encoding=syntax.name,
        native=None if lut or index is not None else find_native(dataset, end),
    )


def _find_class(dataset: Dataset) -> str | None:
    """The SOP Class UID; a DICOMDIR has its own in the file meta information only."""
    return _text(dataset, "SOPClassUID") or _text(dataset.file_meta, "MediaStorageSOPClassUID")


def _read_orientation(groups: _Groups) -> tuple[Triple, Triple] | None:
    """Two unit vectors at right angles, or None."""
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
