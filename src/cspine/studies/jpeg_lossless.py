"""JPEG lossless, as hospitals' archives use it more than any other compression, written for the phantom.

Process 14, first-order prediction (selection value 1), one component, one Huffman table for every picture (ITU-T T.81,
annexes C, F and H; DICOM PS3.5 A.4.2). There is no encoder of it for Python that one could rely on.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

# 14 codes of four bits and three of five, for categories 0 to 16; none is all ones, which T.81 C.2 forbids.
_LENGTHS = np.array([4] * 14 + [5] * 3)
_CODES = np.array([*range(14), 0b11100, 0b11101, 0b11110])
_MOST_BITS = 20


def encode_jpeg_lossless(pixels: npt.NDArray[np.uint16], bits: int) -> bytes:
    """Encode (rows, columns) values below 2 ** `bits`, 2 to 16, as one JPEG stream."""
    rows, columns = pixels.shape
    difference = _predict(pixels.astype(np.int64), bits)
    data = _pack(difference)
    return b"".join(
        (
            b"\xff\xd8",
            b"\xff\xc3"
            + _number(11)
            + bytes([bits])
            + _number(rows)
            + _number(columns)
            + bytes([1, 1, 0x11, 0]),
            b"\xff\xc4"
            + _number(2 + 17 + 17)
            + b"\x00"
            + bytes([0, 0, 0, 14, 3] + [0] * 11)
            + bytes(range(17)),
            b"\xff\xda" + _number(8) + bytes([1, 1, 0x00, 1, 0, 0]),
            data,
            b"\xff\xd9",
        )
    )


def _number(value: int) -> bytes:
    return value.to_bytes(2, "big")


def _predict(values: npt.NDArray[np.int64], bits: int) -> npt.NDArray[np.int64]:
    """(n,) Differences from the pixel to the left, or above in the first column, modulo 2 ** 16 (T.81 H.1.2.1)."""
    prediction = np.empty_like(values)
    prediction[:, 1:] = values[:, :-1]
    prediction[1:, 0] = values[:-1, 0]
    prediction[0, 0] = 1 << (bits - 1)
    difference = (values - prediction + (1 << 15) - 1) % (1 << 16) - (1 << 15) + 1
    return np.asarray(difference.ravel(), np.int64)


def _pack(difference: npt.NDArray[np.int64]) -> bytes:
    """Huffman code of each category and its further bits, zeros stuffed (T.81 F.1.2.1, H.1.2.2)."""
    category = np.zeros(len(difference), np.int64)
    size = np.abs(difference)
    while size.any():
        category += size > 0
        size >>= 1
    further = np.where(category == 16, 0, category)
    low = np.where(difference < 0, difference + (1 << category) - 1, difference) & ((1 << further) - 1)
    words, lengths = (_CODES[category] << further) | low, _LENGTHS[category] + further
    places = np.arange(_MOST_BITS)
    bits = (words[:, None] >> (lengths[:, None] - 1 - places).clip(0)) & 1
    stream = bits[places < lengths[:, None]].astype(np.uint8)
    stream = np.concatenate([stream, np.ones(-len(stream) % 8, np.uint8)])
    return np.packbits(stream).tobytes().replace(b"\xff", b"\xff\x00")


def encode_frames(stored: npt.NDArray[Any], bits: int) -> list[bytes]:
    """Each of (frames, rows, columns) uint16."""
    return [encode_jpeg_lossless(np.asarray(frame, np.uint16), bits) for frame in stored]
