"""The phantom as DICOM objects: a CT image for each slice, or one Enhanced CT object (PS3.3 A.3, A.38).

Every UID and date follows from the volume and the seed, so the same volume gives the same bytes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import imagecodecs
import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.pixels.encoders.base import get_encoder
from pydicom.uid import UID

from cspine.core.errors import MissingExtraError
from cspine.ct.volume import Volume

Encoding = Literal[
    "implicit", "explicit", "big-endian", "deflated", "rle", "jpeg-lossless", "jpeg-ls", "jpeg-2000"
]
TRANSFER_SYNTAXES: Mapping[Encoding, str] = {
    "implicit": "1.2.840.10008.1.2",
    "explicit": "1.2.840.10008.1.2.1",
    "big-endian": "1.2.840.10008.1.2.2",
    "deflated": "1.2.840.10008.1.2.1.99",
    "rle": "1.2.840.10008.1.2.5",
    "jpeg-lossless": "1.2.840.10008.1.2.4.70",
    "jpeg-ls": "1.2.840.10008.1.2.4.80",
    "jpeg-2000": "1.2.840.10008.1.2.4.90",
}
"""All lossless. Big endian is retired, but archives still hold it."""
COMPRESSED = ("rle", "jpeg-lossless", "jpeg-ls", "jpeg-2000")


@dataclass(frozen=True)
class Habit:
    """One way in which scanners and archives write a CT series; all of them mean the same.

    Attributes:
        name: Of the habit.
        encoding: How pixels and elements are stored; a key of `TRANSFER_SYNTAXES`.
        slope, intercept: HU = slope * stored + intercept. 1 / slope is whole, so that no HU is lost.
        signed: Pixel Representation.
        bits_stored: 12 or 16, of 16 allocated.
        high_aligned: Whether 12 bits lie at the top of the 16 (High Bit 15), as old scanners stored them.
        padding: Stored value outside the reconstructed circle, named in Pixel Padding Value; None where the picture
            fills its square.
        padding_as_unsigned: Write Pixel Padding Value of signed pixels with an unsigned VR, as some do.
        photometric: MONOCHROME1 says that low values are shown white; it changes no HU.
        patient_position: HFS, FFS (feet first) or HFP (prone), which turns rows and columns.
        top_first: Whether Instance Number 1 is the slice nearest the head.
        decimals: Format of decimal strings.
        multi_frame: One Enhanced CT object in place of a file a slice.
        file_name: Of file `number` (from 1, feet to head); `uid` and `instance`: SOP Instance UID, Instance Number.
        says_spacing: Whether Spacing Between Slices and Slice Location are written; neither is to be trusted.
    """

    name: str
    encoding: Encoding = "explicit"
    slope: float = 1.0
    intercept: float = -1024.0
    signed: bool = False
    bits_stored: int = 12
    high_aligned: bool = False
    padding: int | None = None
    padding_as_unsigned: bool = False
    photometric: str = "MONOCHROME2"
    patient_position: Literal["HFS", "FFS", "HFP"] = "HFS"
    top_first: bool = False
    decimals: str = "{:.6f}"
    multi_frame: bool = False
    file_name: str = "IM{number:06d}"
    says_spacing: bool = True


PLAIN = Habit("plain")
HABITS: tuple[Habit, ...] = (
    PLAIN,
    Habit(
        "padded",
        signed=True,
        bits_stored=16,
        padding=-2000,
        padding_as_unsigned=True,
        file_name="i{number}.CTDC.{number}",
        top_first=True,
    ),
    Habit("half-steps", "jpeg-ls", slope=0.5, bits_stored=16, decimals="{:.8e}", file_name="{uid}.dcm"),
    Habit("turned", "implicit", patient_position="HFP", says_spacing=False, file_name="{number}.ima"),
    Habit("feet-first", "rle", patient_position="FFS", decimals=" {:g} ", file_name="E{number:05d}"),
    Habit("enhanced", "jpeg-2000", multi_frame=True, signed=True, bits_stored=16, intercept=0.0),
    Habit("archived", "jpeg-lossless", file_name="DICOM/{uid}", top_first=True),
    Habit("inverse", "deflated", photometric="MONOCHROME1", file_name="SER/{number:03d}"),
    Habit("high-bits", "big-endian", high_aligned=True, file_name="{number:03d}.acr", decimals="{:.4f}"),
)
"""Dealt to the patients of a set in this order, over and over."""


def require_encoder(encoding: Encoding) -> None:
    """Raise unless pixels can be written in an encoding.

    Raises:
        MissingExtraError: the encoder is not installed.
    """
    # pydicom writes these itself, where the packages that encode them are installed.
    if (
        encoding in ("rle", "jpeg-ls", "jpeg-2000")
        and not get_encoder(UID(TRANSFER_SYNTAXES[encoding])).is_available
    ):
        raise MissingExtraError(f"writing DICOM as {encoding}", "studies")


_CT, _ENHANCED_CT = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.2.1"
_DATE, _TIME = "20200101", "120000"
_IMPLEMENTATION = "2.25.86187314028137613276"


def make_uid(*parts: object) -> str:
    """A UID that follows from `parts` (PS3.5 B.2: 2.25 and a number of 128 bits)."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return f"2.25.{int.from_bytes(digest[:15], 'big')}"


def make_objects(volume: Volume, habit: Habit, first: int = 0) -> list[Dataset]:
    """The data sets of a series, uncompressed, in the order of the volume (feet to head).

    Args:
        volume: With patient, study and series ids. Its axes may be any; the patient position of the habit turns them.
        habit: How it is written.
        first: Added to the numbers that UIDs and instance numbers come from, where a series has several parts.
    """
    turned = _Turned(volume, habit)
    if habit.multi_frame:
        return [_make_enhanced(turned, habit)]
    return [_make_slice(turned, habit, index, first) for index in range(len(turned.stored))]


def write_objects(folder: Path, objects: Sequence[Dataset], habit: Habit) -> list[Path]:
    """Write data sets as files, named and encoded as the habit has it; the objects themselves stay as they are."""
    paths = []
    for number, dataset in enumerate(objects):
        name = habit.file_name.format(
            number=number + 1, uid=dataset.SOPInstanceUID, instance=dataset.InstanceNumber
        )
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_object(path, dataset, habit.encoding)
        paths.append(path)
    return paths


def write_object(path: Path, dataset: Dataset, encoding: Encoding) -> None:
    """Write one uncompressed data set in a transfer syntax."""
    syntax = UID(TRANSFER_SYNTAXES[encoding])
    written = Dataset(dataset)
    written.file_meta = _make_meta(written, UID(TRANSFER_SYNTAXES["explicit"]))
    if encoding == "jpeg-lossless":
        written.file_meta.TransferSyntaxUID = syntax
        written.PixelData = encapsulate(
            [
                # First-order prediction, selection value 1 (PS3.5 A.4.2), which pydicom cannot encode.
                bytes(
                    imagecodecs.jpeg_encode(
                        frame, lossless=True, predictor=1, bitspersample=written.BitsStored
                    )
                )
                for frame in _list_frames(written)
            ]
        )
        written["PixelData"].is_undefined_length = True
    elif encoding in COMPRESSED:
        written.compress(syntax, generate_instance_uid=False)
    else:
        written.file_meta.TransferSyntaxUID = syntax
        if not syntax.is_little_endian and "PixelData" in written:
            written.PixelData = np.frombuffer(written.PixelData, "<u2").astype(">u2").tobytes()
    if "PixelData" in written:
        written["PixelData"].VR = "OB" if encoding in COMPRESSED else "OW"
    written.save_as(
        path,
        enforce_file_format=True,
        implicit_vr=syntax.is_implicit_VR,
        little_endian=syntax.is_little_endian,
    )


def _list_frames(dataset: Dataset) -> npt.NDArray[np.uint16]:
    """(frames, rows, columns) of uncompressed pixels, the bits that are stored."""
    pixels = np.frombuffer(dataset.PixelData, "<u2").reshape(-1, dataset.Rows, dataset.Columns)
    return np.asarray(pixels & ((1 << dataset.BitsStored) - 1), np.uint16)


def _make_meta(dataset: Dataset, syntax: UID) -> FileMetaDataset:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    meta.TransferSyntaxUID = syntax
    meta.ImplementationClassUID = UID(_IMPLEMENTATION)
    return meta


class _Turned:
    """A volume as the habit stores it: rows and columns turned, values as stored.

    Attributes:
        stored: (slice, row, column) uint16 bits.
        origins_mm: (slices, 3) of the stored first pixel.
        right, down: Unit vectors of Image Orientation (Patient).
    """

    def __init__(self, volume: Volume, habit: Habit) -> None:
        self.volume = volume
        hu = volume.hu
        right, down = (np.array(volume.direction[axis], np.float64) for axis in (2, 1))
        origins = volume.origins_mm.copy()
        rows, columns = hu.shape[1:]
        if habit.patient_position in ("FFS", "HFP"):
            origins += right * volume.spacing_mm[2] * (columns - 1)
            right, hu = -right, hu[:, :, ::-1]
        if habit.patient_position == "HFP":
            origins += down * volume.spacing_mm[1] * (rows - 1)
            down, hu = -down, hu[:, ::-1]
        self.origins_mm, self.right, self.down = origins, right + 0.0, down + 0.0
        self.stored = _store(hu, habit)


def find_outside(size_px: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """(rows, columns): what lies outside the circle that a scanner reconstructs, the largest in the picture."""
    rows, columns = size_px
    y, x = np.ogrid[:rows, :columns]
    radius = min(rows, columns) / 2
    far = (y - (rows - 1) / 2) ** 2 + (x - (columns - 1) / 2) ** 2 > radius**2
    return np.asarray(far)


def _store(hu: npt.NDArray[np.int16], habit: Habit) -> npt.NDArray[np.uint16]:
    """HU to the 16 bits of Pixel Data (PS3.3 C.11.1.1, PS3.5 8.1)."""
    values = np.rint((hu.astype(np.float64) - habit.intercept) / habit.slope).astype(np.int64)
    low, high = (-(1 << 15), (1 << 15) - 1) if habit.signed else (0, (1 << habit.bits_stored) - 1)
    values = np.clip(values, low, high)
    if habit.padding is not None:
        values = np.where(find_outside((hu.shape[1], hu.shape[2])), habit.padding, values)
    if habit.high_aligned:
        values = values << (16 - habit.bits_stored)
    return (values & 0xFFFF).astype(np.uint16)


def _make_common(turned: _Turned, habit: Habit) -> Dataset:
    """Patient, study, series, frame of reference, equipment and pixel description (PS3.3 C.7)."""
    volume, dataset = turned.volume, Dataset()
    dataset.SpecificCharacterSet = "ISO_IR 100"
    dataset.StudyDate = dataset.SeriesDate = dataset.ContentDate = dataset.AcquisitionDate = _DATE
    dataset.StudyTime = dataset.SeriesTime = dataset.ContentTime = dataset.AcquisitionTime = _TIME
    dataset.AccessionNumber = ""
    dataset.Modality = "CT"
    dataset.Manufacturer = f"cspine phantom, {habit.name}"
    dataset.ReferringPhysicianName = ""
    dataset.StudyDescription = "Drawn neck, no patient"
    dataset.SeriesDescription = f"Axial {habit.name}"
    dataset.ManufacturerModelName = "phantom"
    dataset.PatientName = f"Phantom^{volume.patient_id}"
    dataset.PatientID = volume.patient_id
    dataset.PatientBirthDate = ""
    dataset.PatientSex = ""
    dataset.BodyPartExamined = "CSPINE"
    dataset.PatientPosition = habit.patient_position
    dataset.StudyInstanceUID = volume.study_uid
    dataset.SeriesInstanceUID = volume.series_uid
    dataset.StudyID = "1"
    dataset.SeriesNumber = 1
    dataset.FrameOfReferenceUID = volume.frame_of_reference_uid or make_uid(volume.study_uid, "frame")
    dataset.PositionReferenceIndicator = ""
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = habit.photometric
    dataset.Rows, dataset.Columns = turned.stored.shape[1:]
    dataset.BitsAllocated = 16
    dataset.BitsStored = habit.bits_stored
    dataset.HighBit = 15 if habit.high_aligned else habit.bits_stored - 1
    dataset.PixelRepresentation = int(habit.signed)
    if habit.padding is not None:
        value, kind = habit.padding, "SS" if habit.signed else "US"
        if habit.padding_as_unsigned:
            value, kind = value & 0xFFFF, "US"
        dataset.add_new("PixelPaddingValue", kind, value)
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    return dataset


def _format(values: Sequence[float] | npt.NDArray[np.float64], habit: Habit) -> list[str]:
    return [habit.decimals.format(float(value) + 0.0) for value in values]


def _describe_place(turned: _Turned, habit: Habit, index: int) -> tuple[list[str], list[str], list[str]]:
    """Image Position, Image Orientation and Pixel Spacing."""
    directions = [*turned.right, *turned.down]
    return (
        _format(turned.origins_mm[index], habit),
        _format(directions, habit),
        _format(turned.volume.spacing_mm[1:], habit),
    )


def _make_slice(turned: _Turned, habit: Habit, index: int, first: int) -> Dataset:
    volume, dataset = turned.volume, _make_common(turned, habit)
    count = len(turned.stored)
    dataset.SOPClassUID = UID(_CT)
    dataset.SOPInstanceUID = make_uid(volume.series_uid, "slice", first + index)
    dataset.InstanceNumber = first + (count - index if habit.top_first else index + 1)
    dataset.AcquisitionNumber = 1
    dataset.KVP = "120"
    place = _describe_place(turned, habit, index)
    dataset.ImagePositionPatient, dataset.ImageOrientationPatient, dataset.PixelSpacing = place
    dataset.SliceThickness = _format(volume.spacing_mm[:1], habit)[0]
    if habit.says_spacing:
        dataset.SpacingBetweenSlices = _format(volume.spacing_mm[:1], habit)[0]
        dataset.SliceLocation = _format([volume.positions_mm[index]], habit)[0]
    dataset.RescaleIntercept, dataset.RescaleSlope = _format([habit.intercept, habit.slope], habit)
    dataset.RescaleType = "HU"
    dataset.WindowCenter, dataset.WindowWidth = "400", "1800"
    dataset.PixelData = turned.stored[index].tobytes()
    return dataset


def _make_enhanced(turned: _Turned, habit: Habit) -> Dataset:
    """One object; what differs between frames is in the per-frame functional groups (PS3.3 C.7.6.16)."""
    volume, dataset = turned.volume, _make_common(turned, habit)
    dataset.SOPClassUID = UID(_ENHANCED_CT)
    dataset.SOPInstanceUID = make_uid(volume.series_uid, "enhanced")
    dataset.InstanceNumber = 1
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
    dataset.PixelPresentation, dataset.VolumetricProperties = "MONOCHROME", "VOLUME"
    dataset.VolumeBasedCalculationTechnique = "NONE"
    dataset.BurnedInAnnotation = "NO"
    dataset.LossyImageCompression = "00"
    dataset.PresentationLUTShape = "IDENTITY"
    dataset.AcquisitionDateTime = _DATE + _TIME
    dataset.AcquisitionNumber = 1
    dataset.ContentQualification = "RESEARCH"
    dataset.AcquisitionContextSequence = []
    dataset.NumberOfFrames = len(turned.stored)
    dimensions = make_uid(volume.series_uid, "dimensions")
    dataset.DimensionOrganizationSequence = [_item(DimensionOrganizationUID=dimensions)]
    dataset.DimensionIndexSequence = [
        _item(
            DimensionOrganizationUID=dimensions,
            DimensionIndexPointer=0x00209057,
            FunctionalGroupPointer=0x00209111,
        )
    ]
    dataset.SharedFunctionalGroupsSequence = [_make_shared(turned, habit)]
    dataset.PerFrameFunctionalGroupsSequence = list(_make_frame_groups(turned, habit))
    dataset.PixelData = turned.stored.tobytes()
    return dataset


def _make_shared(turned: _Turned, habit: Habit) -> Dataset:
    _, orientation, spacing = _describe_place(turned, habit, 0)
    intercept, slope = _format([habit.intercept, habit.slope], habit)
    thickness = _format(turned.volume.spacing_mm[:1], habit)[0]
    return _item(
        PixelMeasuresSequence=[_item(PixelSpacing=spacing, SliceThickness=thickness)],
        PlaneOrientationSequence=[_item(ImageOrientationPatient=orientation)],
        PixelValueTransformationSequence=[
            _item(RescaleIntercept=intercept, RescaleSlope=slope, RescaleType="HU")
        ],
        CTImageFrameTypeSequence=[
            _item(
                FrameType=["ORIGINAL", "PRIMARY", "VOLUME", "NONE"],
                PixelPresentation="MONOCHROME",
                VolumetricProperties="VOLUME",
                VolumeBasedCalculationTechnique="NONE",
            )
        ],
        FrameVOILUTSequence=[_item(WindowCenter="400", WindowWidth="1800")],
    )


def _make_frame_groups(turned: _Turned, habit: Habit) -> Iterator[Dataset]:
    for index in range(len(turned.stored)):
        position, _, _ = _describe_place(turned, habit, index)
        content = _item(
            FrameAcquisitionNumber=1,
            StackID="1",
            InStackPositionNumber=index + 1,
            DimensionIndexValues=[index + 1],
            FrameAcquisitionDateTime=_DATE + _TIME,
            FrameReferenceDateTime=_DATE + _TIME,
        )
        yield _item(
            FrameContentSequence=[content],
            PlanePositionSequence=[_item(ImagePositionPatient=position)],
        )


def _item(**attributes: Any) -> Dataset:
    dataset = Dataset()
    for keyword, value in attributes.items():
        setattr(dataset, keyword, value)
    return dataset
