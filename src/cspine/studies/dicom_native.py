"""Pixels that lie in their file as they are, which most do: found with the header, read without parsing the file again.

Only what every scanner writes is taken this way: one frame of one sample in 16 bits, little endian, not compressed
(PS3.5 A.1 and A.2). All else is left to pydicom.
"""

from __future__ import annotations

import struct
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

from cspine.studies.dicom_files import DicomFile

Span = tuple[int, int]
KEYWORDS = "BitsAllocated BitsStored HighBit PixelRepresentation PixelPaddingValue PixelPaddingRangeLimit"

_PIXEL_DATA = (0x7FE0, 0x0010)
_KINDS = {0: "<u2", 1: "<i2"}


@dataclass(frozen=True, slots=True)
class NativePixels:
    """Where and how pixels are stored.

    Attributes:
        offset: Of the element Pixel Data in the file.
        explicit: Whether the element names its VR.
        kind: Of a pixel, as it lies there.
        bits_stored, high_bit: Which of its 16 bits count.
        padding: The lowest and the highest stored value that is padding; None where the header names none.
    """

    offset: int
    explicit: bool
    kind: np.dtype[Any]
    bits_stored: int
    high_bit: int
    padding: Span | None


def find_native(dataset: Dataset, offset: int) -> NativePixels | None:
    """How the pixels of a file are stored; None where pydicom must read them.

    Args:
        dataset: Its header.
        offset: Where the header ends.
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
        kind = np.dtype(_KINDS[int(dataset.PixelRepresentation)])
        padding = find_padding(dataset, kind)
    # A value that is absent or malformed: pydicom says what follows from it.
    except Exception:
        return None
    return NativePixels(offset, syntax == ExplicitVRLittleEndian, kind, bits, high, padding)


def read_native(file: DicomFile, native: NativePixels, shape: tuple[int, int]) -> npt.NDArray[Any] | None:
    """(rows, columns) stored values; None where the file does not hold just these: pydicom says what it holds."""
    wanted = shape[0] * shape[1] * native.kind.itemsize
    begin = 12 if native.explicit else 8
    with file.open() as stream:
        stream.seek(native.offset)
        head = stream.read(begin)
        if len(head) < begin or struct.unpack_from("<HH", head) != _PIXEL_DATA:
            return None
        # Before so much is read: a damaged header may want gigabytes.
        if struct.unpack_from("<L", head, begin - 4) != (wanted,):
            return None
        found = stream.read(wanted)
    if len(found) < wanted:
        return None
    stored = np.frombuffer(found, native.kind).reshape(shape)
    return keep_bits(stored, native.bits_stored, native.high_bit)


def keep_bits(stored: npt.NDArray[Any], bits_stored: int, high_bit: int) -> npt.NDArray[Any]:
    """The bits that count, up to the high bit, as numbers of the sign of the type (PS3.5 8.1.1)."""
    top = 8 * stored.dtype.itemsize - 1 - high_bit
    down = 8 * stored.dtype.itemsize - bits_stored
    if top == down:  # the bits lie at the bottom; those above them are rarely anything but zeros or the sign
        low, high = (
            (0, 1 << bits_stored)
            if stored.dtype.kind == "u"
            else (-1 << bits_stored - 1, 1 << bits_stored - 1)
        )
        if low <= int(stored.min()) and int(stored.max()) < high:
            return stored
    return np.asarray(np.right_shift(np.left_shift(stored, top), down))


def find_padding(dataset: Dataset, kind: np.dtype[Any]) -> Span | None:
    """Which stored values are padding (PS3.3 C.7.5.1.1.2), or None where the header names none.

    Scanners have written the value of signed pixels as unsigned (63536 for -2000) and the other way round; it is taken
    as the pixels are.
    """
    ends = [dataset.get(keyword) for keyword in ("PixelPaddingValue", "PixelPaddingRangeLimit")]
    if ends[0] is None:
        return None
    values = [as_stored(value, kind) for value in ends if value is not None]
    return min(values), max(values)


def as_stored(value: Any, kind: np.dtype[Any]) -> int:
    """A number of the header as pixels of a type would hold it; it may be there as unsigned for signed, or as bytes."""
    number = int.from_bytes(value[:2], sys.byteorder) if isinstance(value, bytes) else int(value)
    wrap = 1 << (8 * kind.itemsize)
    if kind.kind == "i" and number >= wrap // 2:
        number -= wrap
    elif kind.kind == "u" and number < 0:
        number += wrap
    return number
