"""Slices in Hounsfield units on disk: one file a series, made by the import of CT studies.

A file is a plain `.npz` of numpy with one array a slice, "00000", "00001" and so on from feet to head: int16 HU, or
uint8 for labels beside them. Slices are compressed one by one, so that any of them can be read without the others, by
several threads at once, and the archive's own checksums find damage. The same content gives the same bytes.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cspine.errors import ImageError

HU_MODE = "HU"
"""What the column `mode` of a manifest says of a slice that lies in such a file."""
HU_BITS = 16
SUFFIX = ".npz"

_DATE = (1980, 1, 1, 0, 0, 0)
# Level 1: higher ones take three times as long for a few percent of noise.
_LEVEL = 1


def write_stack(path: Path, slices: Iterable[npt.NDArray[Any]]) -> list[tuple[int, str]]:
    """Write (H, W) int16 or uint8 slices to a new file.

    Returns:
        For each slice its size in bytes as stored, and the SHA-256 of its pixels (little endian, row by row).
    """
    found = []
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=_LEVEL) as archive:
        for number, pixels in enumerate(slices):
            pixels = np.ascontiguousarray(pixels, np.uint8 if pixels.dtype == np.uint8 else "<i2")
            buffer = io.BytesIO()
            np.lib.format.write_array(buffer, pixels, allow_pickle=False)
            info = zipfile.ZipInfo(f"{number:05d}.npy", _DATE)
            info.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(info, buffer.getvalue())
            found.append((archive.getinfo(info.filename).compress_size, hash_pixels(pixels)))
    return found


def hash_pixels(pixels: npt.NDArray[Any]) -> str:
    """SHA-256 of the values of a slice, as `write_stack` returns it."""
    wanted = np.ascontiguousarray(pixels, np.uint8 if pixels.dtype == np.uint8 else "<i2")
    return hashlib.sha256(wanted.tobytes()).hexdigest()


def read_stack_slice(path: Path, number: int, *, expected_sha256: str | None = None) -> npt.NDArray[Any]:
    """Read slice `number`, from 0, of a file of `write_stack`: (H, W), int16 or uint8.

    Raises:
        ImageError: the file is missing or damaged, has no such slice, or has changed since it was imported.
    """
    name = f"{number:05d}.npy"
    try:
        with zipfile.ZipFile(path) as archive:
            pixels = np.lib.format.read_array(io.BytesIO(archive.read(name)), allow_pickle=False)
    except FileNotFoundError:
        raise ImageError("there is no such file", where=str(path), fix="import the set again") from None
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error):
        raise ImageError(
            f"slice {number + 1} is missing or damaged", where=str(path), fix="import the set again"
        ) from None
    if expected_sha256 is not None and hash_pixels(pixels) != expected_sha256:
        raise ImageError(
            f"slice {number + 1} has changed since it was imported",
            where=str(path),
            fix="import the set again",
        )
    return np.asarray(pixels)
