"""Signatures of many slices in a temporary file, so that memory does not grow with their pixels."""

from __future__ import annotations

import tempfile
from pathlib import Path
from types import TracebackType

import numpy as np
import numpy.typing as npt

from cspine.audit.signatures import FREQUENCIES, RINGS, Signature
from cspine.files import explain_os_error

_SPECTRUM_BYTES = RINGS * FREQUENCIES * np.dtype(np.complex64).itemsize


class SignatureStore:
    """Write signatures one after the other, then read them by number. The file goes when the store is closed.

    Args:
        largest_px: Side of the largest picture to come; every slice takes `largest_px`**2 + 9,216 bytes.
        folder: Where the file lies; None is the system's folder for temporary files.
    """

    def __init__(self, largest_px: int, folder: Path | None = None) -> None:
        self._folder = folder or Path(tempfile.gettempdir())
        self._slot_bytes = largest_px**2
        self._sides_px: list[int] = []
        try:
            self._file = tempfile.TemporaryFile(prefix="cspine-copies-", dir=folder)  # noqa: SIM115
        except OSError as error:
            raise explain_os_error(error, self._folder) from error

    def __enter__(self) -> SignatureStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def __len__(self) -> int:
        return len(self._sides_px)

    def append(self, signature: Signature) -> None:
        """Add one at the end.

        Raises:
            OutputError: the disk is full.
        """
        picture = signature.picture
        padding = bytes(self._slot_bytes - picture.size)
        try:
            self._file.write(signature.spectrum.tobytes() + picture.tobytes() + padding)
        except OSError as error:
            raise explain_os_error(error, self._folder) from error
        self._sides_px.append(picture.shape[0])

    def open_map(self) -> SignatureMap:
        """Read access to all that has been written; nothing may be appended any more."""
        try:
            self._file.flush()
        except OSError as error:
            raise explain_os_error(error, self._folder) from error
        shape = (len(self), _SPECTRUM_BYTES + self._slot_bytes)
        return SignatureMap(np.memmap(self._file, np.uint8, "r", shape=shape), self._sides_px)


class SignatureMap:
    """Pictures and spectra by number; threads may read at the same time."""

    def __init__(self, data: npt.NDArray[np.uint8], sides_px: list[int]) -> None:
        self._data = data
        self._sides_px = sides_px

    def read_spectrum(self, number: int) -> npt.NDArray[np.complex64]:
        """(RINGS, FREQUENCIES) complex64."""
        values = np.frombuffer(self._data[number, :_SPECTRUM_BYTES].tobytes(), np.complex64)
        return values.reshape(RINGS, FREQUENCIES)

    def read_picture(self, number: int) -> npt.NDArray[np.uint8]:
        """(n, n) uint8."""
        side_px = self._sides_px[number]
        values = self._data[number, _SPECTRUM_BYTES : _SPECTRUM_BYTES + side_px**2]
        return np.array(values).reshape(side_px, side_px)
