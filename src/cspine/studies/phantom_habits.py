"""How scanners and archives write a CT series: what differs between them and means the same.

A habit is a value. The names are invented; each bundles what is met together in files of one kind of machine: the
rescale, what stands outside the reconstructed circle, where bits lie, which way a patient lies, how decimal strings
look, how files are called, and how pixels are compressed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from cspine.errors import InputError, MissingExtraError

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
"""What the phantom can be written in; all of it without loss. Big endian is retired, and still in archives."""
COMPRESSED = ("rle", "jpeg-lossless", "jpeg-ls", "jpeg-2000")
# Written by pydicom, where the packages that encode them are installed.
_FOREIGN = ("rle", "jpeg-ls", "jpeg-2000")


@dataclass(frozen=True)
class Habit:
    """One way to write a CT series.

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


def find_habit(name: str) -> Habit:
    """The habit of a name.

    Raises:
        InputError: there is none of that name.
    """
    for habit in HABITS:
        if habit.name == name:
            return habit
    names = ", ".join(habit.name for habit in HABITS)
    raise InputError(f"no such habit: {name}", where="--habit", fix=f"choose one of {names}")


def require_encoder(encoding: Encoding) -> None:
    """Raise unless pixels can be written in an encoding.

    Raises:
        MissingExtraError: pydicom or the encoder is not installed.
    """
    try:
        from pydicom.pixels.encoders.base import get_encoder
        from pydicom.uid import UID
    except ImportError:
        raise MissingExtraError("DICOM", "studies") from None
    if encoding in _FOREIGN and not get_encoder(UID(TRANSFER_SYNTAXES[encoding])).is_available:
        raise MissingExtraError(f"writing DICOM as {encoding}", "studies")
