"""An exported model: one file whose record says all that the checkpoint said, what it became and how it was checked.

Where the record lies: ONNX, in `metadata_props`; OpenVINO, beside `model.xml` and `model.bin` in one zip archive. It is
read without any engine, so that a file says what it is where nothing can run it. Loads no torch.
"""

from __future__ import annotations

import base64
import contextlib
import importlib.util
import os
import sys
import zipfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple, Protocol, get_args

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError

from cspine.core.errors import CheckpointError, MissingExtraError
from cspine.core.machine import count_cpus
from cspine.models.header import CheckpointHeader, read_header
from cspine.models.ood import OodDetector

ExportFormat = Literal["onnx", "openvino"]
ExportPrecision = Literal["fp32", "bf16", "int8"]
FORMATS: tuple[ExportFormat, ...] = get_args(ExportFormat)

RECORD_KEY = "cspine"
"""Key of the record among the properties of an ONNX file."""
RECORD_FILE, XML_FILE, BIN_FILE = "cspine.json", "model.xml", "model.bin"
"""Members of an archive for OpenVINO."""

_FIX = "export the checkpoint again with `cspine export`"
_MOST_RECORD_BYTES = 64 * 2**20
# Protocol Buffers: the number of a field and how it is stored, in one integer.
_METADATA_PROPS, _KEY, _VALUE = 14, 1, 2
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


class StoredOod(BaseModel):
    """`OodDetector` as text: float32, little-endian, base64."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    directions: int
    mean: str
    whitening: str

    @classmethod
    def store(cls, ood: OodDetector) -> StoredOod:
        """Put into text."""
        return cls(
            directions=len(ood.whitening),
            mean=_to_text(ood.mean),
            whitening=_to_text(ood.whitening),
        )

    def restore(self) -> OodDetector:
        """Take out of the text again, the same bits."""
        return OodDetector(_from_text(self.mean), _from_text(self.whitening).reshape(self.directions, -1))


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
        familiarity: The OOD detector of the checkpoint; None where it has none.
        calibrated_on: Which slices gave the ranges of int8, in words.
        gate: What the parity gate found on each engine (`cspine.inference.gate.GateResult`).
        versions: Of the packages that exported it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: Literal[1] = 1
    header: CheckpointHeader
    source_hash: str
    format: ExportFormat
    precision: ExportPrecision
    features: int
    familiarity: StoredOod | None = None
    calibrated_on: str | None = None
    gate: tuple[dict[str, JsonValue], ...] = ()
    versions: dict[str, str] = {}


def find_format(path: Path) -> ExportFormat | None:
    """Return the format of an exported file by its name, None for other files.

    Raises:
        CheckpointError: a TorchScript, which earlier versions exported.
    """
    name = Path(path).suffix.lower().removeprefix(".")
    if name == "torchscript":
        raise CheckpointError(
            "TorchScript is not supported any more",
            where=str(path),
            fix="export the checkpoint with `cspine export --to openvino` or `--to onnx`",
        )
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
        text = _read_property(path) if file_format == "onnx" else _read_member(path)
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
    """Return the header of a checkpoint or of an export; errors as of `read_header` and `read_record`."""
    return read_record(path).header if find_format(path) else read_header(path)


def _read_member(path: Path) -> bytes | None:
    with zipfile.ZipFile(path) as archive:
        if RECORD_FILE not in archive.namelist():
            return None
        if archive.getinfo(RECORD_FILE).file_size > _MOST_RECORD_BYTES:
            raise ValueError("the record is too large")
        return archive.read(RECORD_FILE)


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


# The engines: each is given batches of pixels and gives logits and features, in order. Only the one that is used is
# imported, and an exported file needs no torch.

RuntimeName = Literal["auto", "torch", "onnx", "openvino"]
CPU_BATCH = 16
"""Slices at a time on CPUs: more are hardly faster, and take more memory."""

RUNTIMES: tuple[RuntimeName, ...] = get_args(RuntimeName)

_EXTRA = "export"
_MOST_BYTES = 8 * 2**30


class Scores(NamedTuple):
    """Of a batch: (n,) float64 logits, and (n, features) float32, what the head was given."""

    logits: npt.NDArray[np.float64]
    features: npt.NDArray[np.float32]


class Runtime(Protocol):
    """An engine with a network in it.

    Attributes:
        name: "torch", "onnx" or "openvino".
        about: What runs and why it was chosen, in words.
        features: How many the head is given.
        batch_size: Slices at a time that suit it.
    """

    name: str
    about: str
    features: int
    batch_size: int

    def run(self, batches: Iterable[npt.NDArray[np.uint8]]) -> Iterator[Scores]:
        """Answer each batch of pixels, in order; some batches may be taken ahead."""


class OnnxRuntime:
    """ONNX Runtime on the CPU, on all of its cores; fp32."""

    name = "onnx"
    batch_size = CPU_BATCH

    def __init__(self, model: Path | bytes, features: int, why: str = "it was asked for") -> None:
        onnxruntime = _import_onnxruntime()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = count_cpus()
        options.log_severity_level = 3
        with _explain(model, "ONNX Runtime"):
            source = model if isinstance(model, bytes) else str(model)
            self._session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
            self._input = self._session.get_inputs()[0].name
        self.features = features
        self.about = f"ONNX Runtime {onnxruntime.__version__}, fp32, CPU: {why}"

    def run(self, batches: Iterable[npt.NDArray[np.uint8]]) -> Iterator[Scores]:
        """One batch after the other."""
        for pixels in batches:
            logits, features = self._session.run(None, {self._input: np.ascontiguousarray(pixels)})
            yield Scores(logits.astype(np.float64), features.astype(np.float32, copy=False))


class OpenVinoRuntime:
    """OpenVINO on the CPU: a stream a core, batches in flight on all of them, answers in order.

    Args:
        model: An ONNX file as a path or as its bytes, or an archive of ours.
        features: How many the head is given.
        precision: What the file was exported for. bf16 on a CPU that has none runs as fp32, which is nearer to the
            reference.
        why: Why this engine was chosen.
    """

    name = "openvino"
    batch_size = CPU_BATCH

    def __init__(
        self, model: Path | bytes, features: int, precision: ExportPrecision, why: str = "it was asked for"
    ) -> None:
        openvino = import_openvino()
        core = openvino.Core()
        # What is not said is chosen by the processor: on some, fp32 networks would run in bf16.
        bf16 = precision == "bf16" and has_bf16(core)
        streams = count_cpus()
        with _explain(model, "OpenVINO"):
            self._compiled = core.compile_model(
                read_openvino(core, model),
                "CPU",
                {
                    "PERFORMANCE_HINT": "THROUGHPUT",
                    "INFERENCE_PRECISION_HINT": "bf16" if bf16 else "f32",
                    "NUM_STREAMS": streams,
                    "INFERENCE_NUM_THREADS": streams,
                },
            )
        self._requests = [self._compiled.create_infer_request() for _ in range(2 * streams)]
        self.features = features
        runs = "int8" if precision == "int8" else "bf16" if bf16 else "fp32"
        lacking = " (this CPU has no bf16)" if precision == "bf16" and not bf16 else ""
        version = openvino.get_version().split("-")[0]
        self.about = f"OpenVINO {version}, {runs}{lacking}, CPU, {streams} streams: {why}"

    def run(self, batches: Iterable[npt.NDArray[np.uint8]]) -> Iterator[Scores]:
        """Two batches a stream in flight: while some are computed, the next are made ready."""
        free, flying = deque(self._requests), deque[Any]()
        try:
            for pixels in batches:
                if not free:
                    yield self._land(flying, free)
                request = free.popleft()
                request.start_async({0: np.ascontiguousarray(pixels)})
                flying.append(request)
            while flying:
                yield self._land(flying, free)
        finally:
            for request in flying:  # whoever stops listening leaves none at work
                request.wait()

    def _land(self, flying: deque[Any], free: deque[Any]) -> Scores:
        request = flying[0]
        request.wait()
        flying.popleft()
        # Copies: the next batch is computed into the same memory.
        answer = Scores(
            np.array(request.get_output_tensor(0).data, dtype=np.float64),
            np.array(request.get_output_tensor(1).data, dtype=np.float32),
        )
        free.append(request)
        return answer


@contextlib.contextmanager
def _explain(model: Path | bytes, engine: str) -> Iterator[None]:
    """Turn what an engine says of a file that it cannot run into one error."""
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:  # each engine has kinds of its own
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise CheckpointError(
            f"{engine} cannot run the model: {first[:200]}",
            where=None if isinstance(model, bytes) else str(model),
            fix=_FIX,
        ) from error


def read_openvino(core: Any, model: Path | bytes) -> Any:
    """A model of OpenVINO from ONNX (a file, or its bytes), or from an archive of ours."""
    if isinstance(model, bytes):
        return core.read_model(model=model)
    if model.suffix.lower() == ".onnx" or not zipfile.is_zipfile(model):
        return core.read_model(str(model))
    with zipfile.ZipFile(model) as archive:
        if any(archive.getinfo(name).file_size > _MOST_BYTES for name in (XML_FILE, BIN_FILE)):
            raise ValueError("the archive is too large")
        return core.read_model(model=archive.read(XML_FILE), weights=archive.read(BIN_FILE))


def import_openvino() -> Any:
    """OpenVINO, with nothing that could send anything; errors as of `refuse_telemetry`."""
    refuse_telemetry()
    try:
        import openvino
    except ImportError as error:
        raise MissingExtraError("OpenVINO", _EXTRA) from error
    return openvino


def refuse_telemetry() -> None:
    """Keep `openvino_telemetry`, which sends who uses what, from being imported in this process.

    OpenVINO and NNCF then use the stand-ins that they have for where it is not installed.
    """
    if "openvino_telemetry" not in sys.modules:
        sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]


def has_bf16(core: Any) -> bool:
    """Whether OpenVINO computes in bf16 on this CPU."""
    return "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def _import_onnxruntime() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingExtraError("ONNX Runtime", _EXTRA) from error
    onnxruntime.disable_telemetry_events()
    return onnxruntime


def is_installed(package: str) -> bool:
    """Whether a package can be imported, without doing so."""
    return package in sys.modules or importlib.util.find_spec(package) is not None


def choose_runtime(
    file_format: ExportFormat | None,
    asked: RuntimeName,
    where: str,
    *,
    installed: Callable[[str], bool] = is_installed,
) -> tuple[RuntimeName, str]:
    """Which engine runs a file, and why.

    Args:
        file_format: Of an exported file; None for a checkpoint.
        asked: "auto" leaves the choice.
        where: The file, for messages.
        installed: Tells whether a package is there.

    Raises:
        CheckpointError: this kind of file does not run on the engine that was asked for.
        MissingExtraError: no engine for it is installed.
    """
    suited: Mapping[ExportFormat | None, tuple[RuntimeName, ...]] = {
        None: ("torch", "onnx", "openvino"),
        "onnx": ("openvino", "onnx"),
        "openvino": ("openvino",),
    }
    choices = suited[file_format]
    if asked not in ("auto", *choices):
        raise CheckpointError(
            f"{'a checkpoint' if file_format is None else 'a model exported to ' + file_format} does not run on "
            f"{asked}",
            where=where,
            fix=f"choose one of auto, {', '.join(choices)}",
        )
    packages = {"openvino": "openvino", "onnx": "onnxruntime"}
    if asked == "onnx" and not installed("onnxruntime") and installed("openvino"):
        return "openvino", "ONNX Runtime is not installed, and OpenVINO reads ONNX"
    if asked != "auto":
        return asked, "it was asked for"
    for name in choices:
        if name not in packages or installed(packages[name]):
            return name, _EXPLAIN[file_format, name]
    raise MissingExtraError(f"a model exported to {file_format}", _EXTRA)


_EXPLAIN: Mapping[tuple[ExportFormat | None, RuntimeName], str] = {
    (None, "torch"): "the checkpoint itself, which exports are held to",
    ("onnx", "openvino"): "the faster engine for ONNX on CPUs, and installed",
    ("onnx", "onnx"): "OpenVINO is not installed",
    ("openvino", "openvino"): "the only engine for this format",
}
