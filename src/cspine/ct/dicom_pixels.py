"""From the pixel data of one frame to Hounsfield units (PS3.3 C.7.6.3 and C.11.1).

    stored bytes ── decoder of the transfer syntax ──▶ integers ── bits, sign ──▶ stored values
                 ── padding set apart, modality LUT ──▶ HU ── rounded, clipped ──▶ int16

Photometric interpretation plays no part: MONOCHROME1 says that the lowest value is shown white *after* the VOI LUT
(C.7.6.3.1.2), so it changes a display and never a Hounsfield unit. Presentation is left to the recipe.
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

import cv2
import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset
from pydicom.encaps import get_frame, parse_basic_offsets, parse_fragments
from pydicom.pixels.utils import pixel_array
from pydicom.uid import JPEG2000Lossless, RLELossless

from cspine.ct.dicom_files import (
    DicomFile,
    Frame,
    Span,
    as_stored,
    find_padding,
    keep_bits,
    read_dataset,
    read_native,
)
from cspine.ct.volume import PADDING_HU

_INT16 = np.iinfo(np.int16)
# pylibjpeg-rle ends the whole program on some damaged frames (a panic in Rust, which is no Exception).
_PLUGINS = {RLELossless: "pydicom"}


class UndecodableError(Exception):
    """Pixel data that cannot be decoded; the message says why."""


@dataclass(frozen=True, slots=True)
class HuFrame:
    """One frame.

    Attributes:
        hu: (rows, columns) int16; padding is `PADDING_HU`.
        clipped: How many pixels lay beyond int16.
    """

    hu: npt.NDArray[np.int16]
    clipped: int


class PixelReader:
    """Reads frames; the last file stays parsed, and of one with several frames only the one asked for is in memory.

    Not to be shared by threads: each takes a reader of its own.
    """

    def __init__(self) -> None:
        self._file: DicomFile | None = None
        self._dataset = Dataset()
        self._options: dict[str, Any] = {}
        self._stream: BinaryIO | None = None

    def read_hu(self, frame: Frame) -> HuFrame:
        """Decode one frame.

        Raises:
            UndecodableError: there are no pixels, fewer than there should be, or no decoder can read them.
        """
        try:
            if (native := frame.native) is not None:
                values = read_native(frame.file, native, (frame.rows, frame.columns))
                if values is not None:
                    return _to_hu(values, frame, native.padding)
            self._open(frame)
            stored = _read_stored(self._dataset, frame, self._options)
            padding = find_padding(self._dataset, stored.dtype)
            if frame.has_lut:
                return _to_int16(apply_modality_lut(stored, self._dataset), _find_padded(stored, padding))
            return _to_hu(stored, frame, padding)
        except UndecodableError:
            raise
        except MemoryError:
            raise
        # Decoders in C and Python meet damage with errors of every kind; all mean the same to the user.
        except Exception as error:
            text = " ".join(str(error).split()) or type(error).__name__
            raise UndecodableError(text[:200]) from error

    def close(self) -> None:
        """Close the file."""
        self._file = None
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def _open(self, frame: Frame) -> None:
        if frame.file is self._file:
            return
        self.close()
        self._options = {}
        stream = frame.file.open()
        try:
            self._dataset = read_dataset(stream, pixels=frame.index is None)
            if frame.index is not None:
                if _attach_pixels(self._dataset, stream):
                    self._options = _find_frames(self._dataset, stream)
                    self._stream = stream
                else:
                    stream.seek(0)
                    self._dataset = read_dataset(stream)
        finally:
            if self._stream is None:
                stream.close()
        self._file = frame.file


def _attach_pixels(dataset: Dataset, stream: BinaryIO) -> bool:
    """Make a stream the value of Pixel Data, whose element it stands at; False where it does not, as if deflated.

    pydicom reads a frame from a stream when it is asked for, and leaves the stream where it was.
    """
    implicit, little = dataset.original_encoding
    head = stream.read(8 if implicit else 12)
    order = "<" if little else ">"
    if len(head) < 8 or struct.unpack(f"{order}HH", head[:4]) != (0x7FE0, 0x0010):
        return False
    dataset.add_new("PixelData", "OW" if implicit else head[4:6].decode("ascii"), stream)
    return True


def _find_frames(dataset: Dataset, stream: BinaryIO) -> dict[str, Any]:
    """Where the frames lie, as an option of pydicom's decoders, if compressed ones stand in a file without a table.

    It would else look through the whole file for every frame.
    """
    if not dataset.file_meta.TransferSyntaxUID.is_encapsulated or "ExtendedOffsetTable" in dataset:
        return {}
    begin = stream.tell()
    offsets = parse_basic_offsets(stream)
    first = stream.tell()
    count, places = (0, []) if offsets else parse_fragments(stream)
    lengths: list[int] = []
    for place in places:
        stream.seek(place + 4)
        lengths += struct.unpack("<L", stream.read(4))
    stream.seek(begin)
    # Where a frame has several fragments pydicom finds its end by itself.
    if not count == int(dataset.get("NumberOfFrames") or 1) > 1:
        return {}
    return {"extended_offsets": ([place - first for place in places], lengths)}


def _read_stored(dataset: Dataset, frame: Frame, options: dict[str, Any]) -> npt.NDArray[Any]:
    """(rows, columns) stored values, as signed or unsigned as Pixel Representation says."""
    if "PixelData" not in dataset:
        raise UndecodableError("there is no Pixel Data")
    if dataset.PixelData in (None, b""):
        raise UndecodableError("Pixel Data is empty")
    if frame.samples != 1:
        raise UndecodableError(f"{frame.samples} samples a pixel: colour, not CT")
    syntax = dataset.file_meta.TransferSyntaxUID
    bits, high = int(dataset.BitsStored), int(dataset.get("HighBit", dataset.BitsStored - 1))
    # Old scanners stored 12 bits at the top of 16; pydicom takes them to be at the bottom.
    shift = 0 if syntax.is_encapsulated else high + 1 - bits
    stored = _decode_in_opencv(dataset, frame, options)
    if stored is None:
        stored = pixel_array(
            dataset,
            index=frame.index or 0,
            raw=True,
            correct_unused_bits=shift <= 0,
            decoding_plugin=_PLUGINS.get(syntax, ""),
            **options,
        )
    if stored.shape != (frame.rows, frame.columns) or stored.dtype.kind not in "iu":
        raise UndecodableError(
            f"{stored.dtype} pixels of shape {stored.shape}, not {frame.rows} x {frame.columns}"
        )
    return keep_bits(stored, bits, high) if shift > 0 else stored


def _decode_in_opencv(
    dataset: Dataset, frame: Frame, options: dict[str, Any]
) -> npt.NDArray[np.uint16] | None:
    """(rows, columns) of lossless JPEG 2000; None for all else, and for what OpenCV does not read just as it is stored.

    It is the decoder that pydicom's plugins have (OpenJPEG), called without Python's lock: threads share the work.
    """
    bits = int(dataset.BitsStored)
    if not decodes_in_threads(frame) or dataset.PixelRepresentation != 0 or dataset.BitsAllocated != 16:
        return None
    table = options.get("extended_offsets")
    if table is None and "ExtendedOffsetTable" in dataset:
        table = dataset.ExtendedOffsetTable, dataset.ExtendedOffsetTableLengths
    count = int(dataset.get("NumberOfFrames") or 1)
    encoded = get_frame(dataset.PixelData, frame.index or 0, extended_offsets=table, number_of_frames=count)
    try:
        stored = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error:
        return None
    if stored is None or stored.dtype != np.uint16 or stored.shape != (frame.rows, frame.columns):
        return None
    return np.asarray(stored, np.uint16) if int(stored.max()) < 1 << bits else None


def decodes_in_threads(frame: Frame) -> bool:
    """Whether several threads decode frames such as this one faster than one does."""
    return frame.encoding == JPEG2000Lossless.name


@contextlib.contextmanager
def hush_opencv() -> Iterator[None]:
    """Keep OpenCV's remarks on colour spaces off the terminal."""
    level = cv2.utils.logging.getLogLevel()
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    try:
        yield
    finally:
        cv2.utils.logging.setLogLevel(level)


def _to_hu(stored: npt.NDArray[Any], frame: Frame, padding: Span | None) -> HuFrame:
    """Rescale stored values; those of the padding become `PADDING_HU`."""
    slope, intercept = frame.rescale or (1.0, 0.0)
    hu = _shift(stored, int(intercept)) if slope == 1 and intercept.is_integer() else None
    if hu is None:
        if slope.is_integer() and intercept.is_integer():
            values: npt.NDArray[Any] = stored.astype(np.int64) * int(slope) + int(intercept)
        else:
            values = np.rint(stored.astype(np.float64) * slope + intercept)
        return _to_int16(values, _find_padded(stored, padding))
    padded = _find_padded(stored, padding)
    if padded is not None:
        hu[padded] = PADDING_HU
    return HuFrame(hu, 0)


def _shift(stored: npt.NDArray[Any], intercept: int) -> npt.NDArray[np.int16] | None:
    """`stored` + `intercept`, in one pass over 16 bits; None where the sum does not always fit."""
    if int(stored.min()) + intercept < _INT16.min or int(stored.max()) + intercept > _INT16.max:
        return None
    hu = stored.astype(np.int16)  # modulo 2^16, as is the sum: what fits comes out right
    hu += np.array([intercept & 0xFFFF], np.uint16).view(np.int16)
    return hu


def _to_int16(values: npt.NDArray[Any], padded: npt.NDArray[np.bool_] | None) -> HuFrame:
    if padded is not None:
        values = np.where(padded, PADDING_HU, values)
    clipped = int(np.count_nonzero((values < _INT16.min) | (values > _INT16.max)))
    return HuFrame(np.clip(values, _INT16.min, _INT16.max).astype(np.int16), clipped)


def _find_padded(stored: npt.NDArray[Any], padding: Span | None) -> npt.NDArray[np.bool_] | None:
    return None if padding is None else np.asarray((stored >= padding[0]) & (stored <= padding[1]))


def apply_modality_lut(stored: npt.NDArray[Any], dataset: Dataset) -> npt.NDArray[np.int64]:
    """Look stored values up in the Modality LUT Sequence (PS3.3 C.11.1.1).

    LUT Descriptor is (entries, 0 meaning 65536; first stored value mapped; bits an entry). Values below the first one
    mapped get the first entry, those beyond the last one the last.
    """
    item = dataset.ModalityLUTSequence[0]
    entries, first, bits = (int(value) for value in item.LUTDescriptor)
    entries = entries or 65536
    first = as_stored(first, stored.dtype)
    table = _read_table(item.LUTData, entries, bits, little=bool(dataset.original_encoding[1]))
    index = np.clip(stored.astype(np.int64) - first, 0, entries - 1)
    return np.asarray(table[index], np.int64)


def _read_table(data: Any, entries: int, bits: int, *, little: bool) -> npt.NDArray[np.int64]:
    if isinstance(data, bytes):
        order = "<" if little else ">"
        wide = len(data) >= 2 * entries
        table = np.frombuffer(data, np.dtype(f"{order}u2" if wide else "u1"))
    else:
        table = np.atleast_1d(np.asarray(data))
    if len(table) < entries or not 8 <= bits <= 16:
        raise UndecodableError(
            f"a Modality LUT of {len(table)} entries of {bits} bits, where {entries} are named"
        )
    return table[:entries].astype(np.int64)
