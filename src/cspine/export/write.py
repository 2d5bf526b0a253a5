"""Networks as files of other engines, each with its record inside."""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from cspine.errors import MissingExtraError
from cspine.inference.exported import (
    BIN_FILE,
    RECORD_FILE,
    RECORD_KEY,
    XML_FILE,
    ExportFormat,
    ExportPrecision,
    ExportRecord,
)
from cspine.inference.runtimes import import_openvino, refuse_telemetry
from cspine.models.checkpoint import Checkpoint
from cspine.models.graph import make_onnx, trace_graph

Writer = Callable[[Path, ExportRecord], None]
"""Writes the network with a record to a path."""


class Calibration(Protocol):
    """Slices whose activations give the ranges of int8, such as `Material`."""

    @property
    def slice_ids(self) -> list[str]:
        """What they are called."""

    def read_one(self, slice_id: str) -> npt.NDArray[np.uint8]:
        """The pixels that the network is given."""


_EPOCH = (1980, 1, 1, 0, 0, 0)  # no time in the archive: the same model is the same bytes


def prepare_writer(
    checkpoint: Checkpoint, to: ExportFormat, precision: ExportPrecision, calibration: Calibration | None
) -> Writer:
    """Convert the network once; what is given back writes it, with whatever record, as often as is needed.

    Args:
        checkpoint: Whose network; it must lie on the CPU.
        to: Format.
        precision: int8 quantises the graph; bf16 is a matter of how it is run.
        calibration: Training slices, for int8.

    Raises:
        MissingExtraError: packages of the extra `export` are not installed.
    """
    recipe = checkpoint.header.recipe
    if to == "torchscript":
        module = trace_graph(checkpoint.model, recipe)
        return lambda path, record: _write_torchscript(module, path, record)
    graph = make_onnx(checkpoint.model, recipe)
    if to == "onnx":
        return lambda path, record: _write_onnx(graph, path, record)
    openvino = import_openvino()
    model = openvino.convert_model(io.BytesIO(graph))
    if precision == "int8":
        assert calibration is not None
        model = quantise(model, calibration)
    return lambda path, record: _write_openvino(openvino, model, path, record)


def _write_onnx(graph: bytes, path: Path, record: ExportRecord) -> None:
    try:
        import onnx
    except ImportError as error:
        raise MissingExtraError("export to ONNX", "export") from error
    model = onnx.load_from_string(graph)
    entry = model.metadata_props.add()
    entry.key, entry.value = RECORD_KEY, record.model_dump_json()
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString())


def _write_openvino(openvino: Any, model: Any, path: Path, record: ExportRecord) -> None:
    with tempfile.TemporaryDirectory() as folder:
        # In fp16, as OpenVINO would store them, weights would fail the gate of fp32.
        openvino.save_model(model, str(Path(folder) / XML_FILE), compress_to_fp16=False)
        with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
            archive.writestr(zipfile.ZipInfo(RECORD_FILE, _EPOCH), record.model_dump_json())
            for name in (XML_FILE, BIN_FILE):
                archive.writestr(zipfile.ZipInfo(name, _EPOCH), (Path(folder) / name).read_bytes())


def _write_torchscript(module: Any, path: Path, record: ExportRecord) -> None:
    module.save(str(path), _extra_files={RECORD_KEY: record.model_dump_json()})


def quantise(model: Any, calibration: Calibration) -> Any:
    """Post-training quantisation of weights and activations to int8 by NNCF; the ranges are those of the slices.

    Args:
        model: Of OpenVINO, with its constants folded: biases and filters that are computed are not seen as such.
        calibration: Slices.

    Raises:
        MissingExtraError: NNCF is not installed.
    """
    refuse_telemetry()
    # What NNCF prints are its bars; ours are on the screen.
    with _hush_warnings(), contextlib.redirect_stdout(io.StringIO()):
        try:
            import nncf
            from nncf.quantization.range_estimator import RangeEstimatorParametersSet
        except ImportError as error:
            raise MissingExtraError("export in int8", "export") from error
        nncf.set_log_level("ERROR")
        ids = calibration.slice_ids
        slices = nncf.Dataset(ids, lambda slice_id: calibration.read_one(slice_id)[None])
        return nncf.quantize(
            model,
            slices,
            # Activations that are not centred on zero (after ReLU6, GELU) keep their whole range.
            preset=nncf.QuantizationPreset.MIXED,
            subset_size=len(ids),
            fast_bias_correction=False,
            # NNCF's own choice, the mean over slices of each one's extremes, cuts off what only some slices have:
            # near the head that is the fracture (docs/log.md).
            advanced_parameters=nncf.AdvancedQuantizationParameters(
                activations_range_estimator_params=RangeEstimatorParametersSet.MINMAX
            ),
        )


@contextlib.contextmanager
def _hush_warnings() -> Iterator[None]:
    """No warnings in the log meanwhile, such as that there is no CUDA, which nothing here needs."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
