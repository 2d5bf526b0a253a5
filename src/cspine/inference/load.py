"""From a file to what runs it: an exported model, or a checkpoint on the engine that is asked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cspine.errors import CheckpointError
from cspine.inference.exported import ExportPrecision, ExportRecord, read_record
from cspine.inference.runtimes import (
    OnnxRuntime,
    OpenVinoRuntime,
    Runtime,
    RuntimeName,
    choose_runtime,
)
from cspine.models.familiarity import Familiarity
from cspine.models.header import CheckpointHeader, Precision, hash_checkpoint

if TYPE_CHECKING:
    from cspine.models.checkpoint import Checkpoint

TOLERANCE = 1e-3
"""So far may logits in fp32 lie from those of torch."""


@dataclass(frozen=True)
class ExportedModel:
    """A loaded exported file: its record, what runs it, and the hash of the file.

    The hash is not that of the checkpoint, which `record.source_hash` is: predictions say which of the two made them.
    """

    record: ExportRecord
    runtime: Runtime
    hash: str

    @property
    def header(self) -> CheckpointHeader:
        """Of the checkpoint that was exported."""
        return self.record.header

    @property
    def familiarity(self) -> Familiarity | None:
        """Of the checkpoint that was exported."""
        stored = self.record.familiarity
        return stored.restore() if stored else None


def load_exported(
    path: Path, runtime: RuntimeName = "auto", precision: Precision | None = None
) -> ExportedModel:
    """Load what `cspine export` wrote; torch is imported for TorchScript only.

    Args:
        path: The file; its name ends in its format.
        runtime: See `Predictor.load`.
        precision: None is what it was exported for; "fp32" also runs a bf16 export exactly.

    Raises:
        CheckpointError: see `Predictor.load`.
        MissingExtraError: the engine is not installed.
    """
    record = read_record(path)
    if precision not in (None, record.precision) and (precision, record.precision) != ("fp32", "bf16"):
        raise CheckpointError(
            f"the model was exported for {record.precision} and passed its gate in that, not in {precision}",
            where=str(path),
            fix=f"export the checkpoint with --precision {precision}",
        )
    name, why = choose_runtime(record.format, runtime, str(path))
    return ExportedModel(
        record,
        start_engine(path, record, name, precision or record.precision, why),
        hash_checkpoint(path),
    )


def start_engine(
    model: Path | bytes, record: ExportRecord, name: RuntimeName, precision: ExportPrecision, why: str
) -> Runtime:
    """Give a file of the record's format, or the bytes of ONNX, to an engine that runs it; errors as of each."""
    if name == "torchscript":
        from cspine.inference.torch_runtime import TorchScriptRuntime

        assert isinstance(model, Path)
        return TorchScriptRuntime(model, record.features, why)
    if name == "onnx":
        return OnnxRuntime(model, record.features, why)
    return OpenVinoRuntime(model, record.features, precision, why)


def start_torch(
    checkpoint: Checkpoint | ExportedModel, device: str, precision: Precision | None, why: str = ""
) -> Runtime:
    """The network of a checkpoint on torch; what was exported brings its own runtime."""
    if isinstance(checkpoint, ExportedModel):
        return checkpoint.runtime
    from cspine.inference.torch_runtime import TorchRuntime

    bf16 = (precision or checkpoint.header.precision) == "bf16"
    return TorchRuntime(checkpoint.model, device, bf16=bf16, why=why)


def load_with_runtime(
    path: Path, runtime: RuntimeName, device: str, precision: Precision | None
) -> tuple[Checkpoint, Runtime]:
    """A checkpoint on torch, or handed to another engine in memory, where fp32 is checked against torch at once.

    Raises:
        CheckpointError: as of `load_checkpoint`; or the engine's logits are not those of torch.
        MissingExtraError: the engine is not installed.
    """
    from cspine.models.checkpoint import load_checkpoint

    name, why = choose_runtime(None, runtime, str(path))
    checkpoint = load_checkpoint(path)
    if name == "torch":
        return checkpoint, start_torch(checkpoint, device, precision, why)
    from cspine.models.graph import make_onnx

    wanted = precision or checkpoint.header.precision
    if name == "onnx" and wanted == "bf16":
        raise CheckpointError(
            "ONNX Runtime has no bf16 on CPUs, which the checkpoint was validated in",
            where=str(path),
            fix="choose the runtime openvino, or ask for the precision fp32",
        )
    graph, width = make_onnx(checkpoint.model, checkpoint.header.recipe), checkpoint.model.find_width()
    engine: Runtime = (
        OnnxRuntime(graph, width, why) if name == "onnx" else OpenVinoRuntime(graph, width, wanted, why)
    )
    if wanted == "fp32":
        _check(checkpoint, engine, path)
    return checkpoint, engine


def _check(checkpoint: Checkpoint, engine: Runtime, path: Path) -> None:
    shape = (4, *checkpoint.header.recipe.shape)
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    reference = start_torch(checkpoint, "cpu", "fp32")
    (wanted,), (found,) = list(reference.run([pixels])), list(engine.run([pixels]))
    difference = float(np.abs(wanted.logits - found.logits).max())
    if not difference <= TOLERANCE:
        raise CheckpointError(
            f"logits by {engine.name} differ from those by torch by {difference:.3g}, more than {TOLERANCE:g}",
            where=str(path),
            fix="choose the runtime torch",
        )
