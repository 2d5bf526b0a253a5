"""An exported model: one file whose record says all that the checkpoint said, what it became and how it was checked.

Where the record lies: ONNX, in `metadata_props`; OpenVINO, beside `model.xml` and `model.bin` in one zip archive;
TorchScript, in an extra file of its archive. It is read here without any engine, so a file can be asked who it is where
nothing can run it. Loads no torch.
"""

from __future__ import annotations

import base64
import os
import zipfile
from pathlib import Path
from typing import BinaryIO, Literal, get_args

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError

from cspine.errors import CheckpointError
from cspine.models.familiarity import Familiarity
from cspine.models.header import CheckpointHeader, read_header

ExportFormat = Literal["onnx", "openvino", "torchscript"]
ExportPrecision = Literal["fp32", "bf16", "int8"]
FORMATS: tuple[ExportFormat, ...] = get_args(ExportFormat)

RECORD_KEY = "cspine"
"""Of the record: in ONNX the key of the property, in TorchScript the name of the extra file."""
RECORD_FILE, XML_FILE, BIN_FILE = "cspine.json", "model.xml", "model.bin"
"""Members of an archive for OpenVINO."""

_FIX = "export the checkpoint again with `cspine export`"
_MOST_RECORD_BYTES = 64 * 2**20
# Protocol Buffers: the number of a field and how it is stored, in one integer.
_METADATA_PROPS, _KEY, _VALUE = 14, 1, 2
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


class StoredFamiliarity(BaseModel):
    """`Familiarity` as text: float32, little-endian, base64."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    directions: int
    mean: str
    whitening: str

    @classmethod
    def store(cls, familiarity: Familiarity) -> StoredFamiliarity:
        """Put into text."""
        return cls(
            directions=len(familiarity.whitening),
            mean=_to_text(familiarity.mean),
            whitening=_to_text(familiarity.whitening),
        )

    def restore(self) -> Familiarity:
        """Take out of the text again, the same bits."""
        return Familiarity(_from_text(self.mean), _from_text(self.whitening).reshape(self.directions, -1))


def _to_text(values: npt.NDArray[np.float32]) -> str:
    return base64.b64encode(np.ascontiguousarray(values, dtype="<f4").tobytes()).decode()


def _from_text(text: str) -> npt.NDArray[np.float32]:
    return np.frombuffer(base64.b64decode(text, validate=True), dtype="<f4").astype(np.float32)


class ExportRecord(BaseModel):
    """What travels in an exported file.

    Attributes:
        header: Of the checkpoint, as it was.
        source_hash: Of the checkpoint's file.
        format, precision: What it became.
        features: How many the head is given.
        familiarity: Of the checkpoint; None where it has none.
        calibrated_on: Which slices gave the ranges of int8, in words.
        gate: What the parity gate found on each engine (`cspine.export.gate.GateResult`).
        versions: Of the packages that exported it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: Literal[1] = 1
    header: CheckpointHeader
    source_hash: str
    format: ExportFormat
    precision: ExportPrecision
    features: int
    familiarity: StoredFamiliarity | None = None
    calibrated_on: str | None = None
    gate: tuple[dict[str, JsonValue], ...] = ()
    versions: dict[str, str] = {}


def find_format(path: Path) -> ExportFormat | None:
    """The format of an exported file by its name, or None: it ends in what the format is called."""
    name = Path(path).suffix.lower().removeprefix(".")
    return name if name in FORMATS else None


def read_record(path: Path, file_format: ExportFormat | None = None) -> ExportRecord:
    """Read what an exported file says of itself.

    Args:
        path: The file.
        file_format: None goes by its name.

    Raises:
        CheckpointError: no such file, damaged, or not one of ours.
    """
    path = Path(path)
    file_format = file_format or find_format(path)
    if file_format is None or not path.is_file():
        raise CheckpointError(
            "there is no such exported model",
            where=str(path),
            fix="name a file that ends in " + ", ".join(f".{name}" for name in FORMATS),
        )
    try:
        text = _read_property(path) if file_format == "onnx" else _read_member(path, file_format)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise CheckpointError("the file is damaged or of another kind", where=str(path), fix=_FIX) from error
    if text is None:
        raise CheckpointError(
            "this model was not exported by cspine: no recipe goes with it", where=str(path), fix=_FIX
        )
    try:
        record = ExportRecord.model_validate_json(text)
    except ValidationError as error:
        raise CheckpointError(
            f"the record of the exported model does not validate ({error.error_count()} problems)",
            where=str(path),
            fix="it may come from another version of cspine; " + _FIX,
        ) from error
    if record.format != file_format:
        raise CheckpointError(
            f"the file holds {record.format} and is named as {file_format}", where=str(path), fix=_FIX
        )
    return record


def read_any_header(path: Path) -> CheckpointHeader:
    """The header of a checkpoint, or of what was exported from one; errors as of `read_header` and `read_record`."""
    return read_record(path).header if find_format(path) else read_header(path)


def _read_member(path: Path, file_format: ExportFormat) -> bytes | None:
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            # TorchScript puts all of its files into one folder, whose name is its own affair.
            ours = (
                entry.filename == RECORD_FILE
                if file_format == "openvino"
                else entry.filename.endswith(f"/extra/{RECORD_KEY}")
            )
            if ours:
                if entry.file_size > _MOST_RECORD_BYTES:
                    raise ValueError("the record is too large")
                return archive.read(entry)
    return None


def _read_property(path: Path) -> bytes | None:
    """The record among the properties of an ONNX file, which is passed over without being read whole."""
    size = path.stat().st_size
    with path.open("rb") as file:
        while file.tell() < size:
            tag = _read_varint(file)
            number, kind = tag >> 3, tag & 7
            if kind == _BYTES:
                length = _read_varint(file)
                if length > size - file.tell():
                    raise ValueError("a field is longer than the file")
                if number == _METADATA_PROPS:
                    if length > _MOST_RECORD_BYTES:
                        raise ValueError("a property is too large")
                    key, value = _read_pair(file, file.tell() + length)
                    if key == RECORD_KEY.encode():
                        return value
                else:
                    file.seek(length, os.SEEK_CUR)
            elif kind == _VARINT:
                _read_varint(file)
            elif kind in (_FIXED64, _FIXED32):
                file.seek(8 if kind == _FIXED64 else 4, os.SEEK_CUR)
            else:
                raise ValueError("not Protocol Buffers")
    return None


def _read_pair(file: BinaryIO, end: int) -> tuple[bytes, bytes]:
    found = {_KEY: b"", _VALUE: b""}
    while file.tell() < end:
        tag = _read_varint(file)
        if tag & 7 != _BYTES:
            raise ValueError("not a pair of texts")
        length = _read_varint(file)
        if length > end - file.tell():
            raise ValueError("a text is longer than its pair")
        found[tag >> 3] = file.read(length)
    return found[_KEY], found[_VALUE]


def _read_varint(file: BinaryIO) -> int:
    value = 0
    for shift in range(0, 70, 7):
        byte = file.read(1)
        if not byte:
            raise EOFError
        value |= (byte[0] & 0x7F) << shift
        if byte[0] < 0x80:
            return value
    raise ValueError("not a number")
