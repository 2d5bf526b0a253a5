"""Where the voxels of a volume live: in memory, and those of a large one in a temporary file that is mapped into it.

A file's pages are the system's to write out and to drop, so a study of a thousand slices needs no more memory than one
of a hundred. The file has no name: it is gone with the array, or with the program, however that ends.
"""

from __future__ import annotations

import math
import mmap
import os
import tempfile
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from cspine.errors import OutputError

MAPPED_BYTES = 2**27
"""From how many bytes on an array lives in a file (256 slices of 512 x 512 pixels)."""

RELEASE_EVERY = 64
"""After how many slices that were written or read their pages are given back."""

_Kind = TypeVar("_Kind", bound=np.generic)


def make_voxels(shape: tuple[int, ...], dtype: type[_Kind]) -> npt.NDArray[_Kind]:
    """An array to be filled, which takes room on the disk where it is large.

    Raises:
        OutputError: there is no room for it.
    """
    size = math.prod(shape) * np.dtype(dtype).itemsize
    # Without this function (macOS, Windows) a disk that fills up later would end the program by a signal.
    reserve = getattr(os, "posix_fallocate", None)
    if size < MAPPED_BYTES or reserve is None:
        return np.empty(shape, dtype)
    try:
        with tempfile.TemporaryFile(prefix="cspine-") as file:
            reserve(file.fileno(), 0, size)
            pages = mmap.mmap(file.fileno(), size)
    except OSError as error:
        raise OutputError(
            f"no room for the voxels of a series, {size / 1e6:,.0f} MB: {error.strerror or error}",
            where=tempfile.gettempdir(),
            fix="free some room there, or set TMPDIR to a folder that has it",
        ) from error
    return np.ndarray(shape, dtype, buffer=pages)


def release_pages(voxels: npt.NDArray[Any]) -> None:
    """Let the system drop the pages of an array of `make_voxels`, or of a view of one; they are read again when used.

    Nothing happens to an array in memory. May be called while other threads read and write.
    """
    base: Any = voxels
    while isinstance(base, np.ndarray):
        base = base.base
    if isinstance(base, mmap.mmap):
        base.madvise(mmap.MADV_DONTNEED)
