"""The predictor: a checkpoint, or its export, that answers. Validation, robustness and the command line use this one.

Threads make slices ready through the recipe, batch by batch, while the network works on those before.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import polars as pl

from cspine.core.errors import CheckpointError
from cspine.core.logistic import expit
from cspine.core.machine import count_cpus
from cspine.core.predictions import make_predictions
from cspine.core.types import Slice
from cspine.data.cache import SliceCache
from cspine.data.manifest import Manifest
from cspine.inference.engines import (
    ExportPrecision,
    ExportRecord,
    OnnxRuntime,
    OpenVinoRuntime,
    Runtime,
    RuntimeName,
    Scores,
    choose_runtime,
    find_format,
    read_record,
)
from cspine.models.header import CheckpointHeader, Precision, hash_checkpoint
from cspine.models.ood import OodDetector
from cspine.preprocess import Recipe

if TYPE_CHECKING:
    from cspine.models.checkpoint import Checkpoint
    from cspine.models.classifier import FractureClassifier

ReadSlice = Callable[[int], Slice]
Pixels = npt.NDArray[np.uint8]

_AHEAD = 2
"""Batches that are being made ready while the caller works on one."""


def prepare_batches(recipe: Recipe, size: int, count: int, read: ReadSlice) -> Iterator[Pixels]:
    """Batches of slices as a network takes them, in order.

    OpenCV and numpy let go of Python's lock, so the threads share the cores with the network.

    Args:
        recipe: What is done to each slice.
        size: Slices of a batch; the last may have fewer.
        count: Slices in all.
        read: Gives slice 0 to `count` - 1, with the recipe's `offsets_mm`; is called by several threads.

    Raises:
        RecipeError: the recipe does not take these slices.
        Exception: of `read`.
    """

    def prepare(index: int) -> Pixels:
        return recipe.apply(read(index))

    waiting: deque[list[Future[Pixels]]] = deque()
    with ThreadPoolExecutor(count_cpus(), "prepare") as pool:
        try:
            for start in range(0, count, size):
                waiting.append(
                    [pool.submit(prepare, index) for index in range(start, min(start + size, count))]
                )
                if len(waiting) > _AHEAD:
                    yield np.stack([future.result() for future in waiting.popleft()])
            while waiting:
                yield np.stack([future.result() for future in waiting.popleft()])
        finally:
            for batch in waiting:
                for future in batch:
                    future.cancel()


TOLERANCE = 1e-3
"""Largest difference of a logit in fp32 from that of torch."""


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
    def ood(self) -> OodDetector | None:
        """Of the checkpoint that was exported."""
        stored = self.record.familiarity
        return stored.restore() if stored else None


def load_exported(
    path: Path, runtime: RuntimeName = "auto", precision: Precision | None = None
) -> ExportedModel:
    """Load what `cspine export` wrote; torch is not imported.

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
    if name == "onnx":
        return OnnxRuntime(model, record.features, why)
    return OpenVinoRuntime(model, record.features, precision, why)


def start_torch(
    checkpoint: Checkpoint | ExportedModel, device: str, precision: Precision | None, why: str = ""
) -> Runtime:
    """The network of a checkpoint on torch; what was exported brings its own runtime."""
    if isinstance(checkpoint, ExportedModel):
        return checkpoint.runtime
    from cspine.inference.torch_engine import TorchRuntime

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
    from cspine.models.classifier import make_onnx

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


class Predictor:
    """Scores slices with one checkpoint, or what it was exported to, through the checkpoint's own recipe.

    Args:
        checkpoint: From `load_checkpoint`, or an exported model.
        device: Of torch: "auto" is the first GPU, else the CPU.
        precision: None is the one that the checkpoint was validated with.
        batch_size: Slices at a time; None is what suits the engine.
        runtime: What runs the network; None is torch.
    """

    def __init__(
        self,
        checkpoint: Checkpoint | ExportedModel,
        *,
        device: str = "auto",
        precision: Precision | None = None,
        batch_size: int | None = None,
        runtime: Runtime | None = None,
    ) -> None:
        self.header: CheckpointHeader = checkpoint.header
        self.checkpoint_hash = checkpoint.hash
        self.recipe = checkpoint.header.recipe
        self.ood = checkpoint.ood
        if runtime is None:
            runtime = start_torch(checkpoint, device, precision)
        self.runtime: Runtime = runtime
        self.batch_size = batch_size or runtime.batch_size

    @classmethod
    def load(
        cls,
        path: Path,
        *,
        device: str = "auto",
        precision: Precision | None = None,
        runtime: RuntimeName = "auto",
    ) -> Predictor:
        """Load a checkpoint, or a model that was exported from one.

        Args:
            path: A `.safetensors`, or what `cspine export` wrote.
            device: Of torch; other engines run on the CPU.
            precision: None is the one that it was validated with, or exported for.
            runtime: "auto" takes torch for a checkpoint, and for an exported model the fastest engine that is
                installed; `predictor.runtime.about` says which and why.

        Raises:
            CheckpointError: as of `load_checkpoint` or `read_record`, or the file does not run on that engine or in
                that precision.
            MissingExtraError: the engine is not installed.
        """
        if find_format(path):
            exported = load_exported(Path(path), runtime, precision)
            return cls(exported, runtime=exported.runtime)
        checkpoint, engine = load_with_runtime(Path(path), runtime, device, precision)
        return cls(checkpoint, runtime=engine)

    @property
    def model(self) -> FractureClassifier:
        """The torch network.

        Raises:
            CheckpointError: another engine runs it, which cannot be looked into.
        """
        from cspine.inference.torch_engine import TorchRuntime

        if not isinstance(self.runtime, TorchRuntime):
            raise CheckpointError(
                f"the model runs on {self.runtime.name}, and this needs the torch network itself",
                where=self.header.spec.name,
                fix="name the checkpoint (.safetensors), not what was exported from it",
            )
        return self.runtime.model

    def count_parameters(self) -> int:
        """Of backbone and head together; errors as of `model`."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    def predict_pixels(
        self, pixels: npt.NDArray[np.uint8], on_batch: Callable[[int], None] | None = None
    ) -> npt.NDArray[np.float64]:
        """Logits of slices that have been through the recipe's pixel steps.

        Args:
            pixels: (N, *recipe.shape) uint8; may be memory-mapped.
            on_batch: Called with the number of slices of each batch when it is done.

        Returns:
            (N,) logits of `fracture`, in the same order, as the network gives them: see `find_probabilities`.

        Raises:
            CheckpointError: the pixels are not of the size that the recipe makes.
        """
        return _join_logits(self._run(self._cut(pixels), on_batch))

    def predict_features(
        self, pixels: npt.NDArray[np.uint8], on_batch: Callable[[int], None] | None = None
    ) -> Scores:
        """Logits, and what the head was given for them, in one pass.

        Args and errors as for `predict_pixels`.

        Returns:
            (N,) logits and (N, features) float32, which take 5 KB a slice and more.
        """
        return self._join(self._run(self._cut(pixels), on_batch))

    def _cut(self, pixels: npt.NDArray[np.uint8]) -> Iterator[npt.NDArray[np.uint8]]:
        """Checked pixels by the batch; errors as of `predict_pixels`."""
        if pixels.shape[1:] != self.recipe.shape or pixels.dtype != np.uint8:
            raise CheckpointError(
                f"the slices are {pixels.shape[1:]} {pixels.dtype}, the checkpoint's recipe makes "
                f"{self.recipe.shape} uint8",
                where=self.header.spec.name,
                fix="run them through the checkpoint's own recipe",
            )
        size = self.batch_size
        return (pixels[at : at + size] for at in range(0, len(pixels), size))

    def predict_read(
        self, count: int, read: ReadSlice, on_batch: Callable[[int], None] | None = None
    ) -> Scores:
        """Logits and features, as of `predict_features`, of slices that threads read and prepare meanwhile.

        Args:
            count: Slices in all.
            read: Gives slice 0 to `count` - 1, with the recipe's `offsets_mm`; is called by several threads.
            on_batch: Called with the number of slices of each batch when it is done.

        Raises:
            RecipeError: as of `Recipe.apply`.
            Exception: of `read`.
        """
        return self._join(self._run(prepare_batches(self.recipe, self.batch_size, count, read), on_batch))

    def score_read(
        self, count: int, read: ReadSlice, on_batch: Callable[[int], None] | None = None
    ) -> npt.NDArray[np.float64]:
        """Logits alone, as of `predict_read`: for sets so large that their features would fill the memory."""
        return _join_logits(self._run(prepare_batches(self.recipe, self.batch_size, count, read), on_batch))

    def _run(
        self, batches: Iterable[npt.NDArray[np.uint8]], on_batch: Callable[[int], None] | None
    ) -> Iterator[Scores]:
        for answer in self.runtime.run(batches):
            yield answer
            if on_batch:
                on_batch(len(answer.logits))

    def _join(self, answers: Iterable[Scores]) -> Scores:
        found = list(answers)
        if not found:
            return Scores(np.empty(0), np.empty((0, self.runtime.features), np.float32))
        return Scores(*(np.concatenate(parts) for parts in zip(*found, strict=True)))

    def measure_distances(self, features: npt.NDArray[np.float32]) -> npt.NDArray[np.float64] | None:
        """How far (N, features) slices lie from those of the training; None where the checkpoint cannot say."""
        return None if self.ood is None else self.ood.measure(features)

    def calibrate(self, logits: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Logits of this predictor after the calibration that is stored."""
        calibration = self.header.calibration
        return calibration.slope * logits + calibration.intercept

    def find_probabilities(self, logits: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Probabilities of `fracture`, 0..1, of logits of this predictor: after the calibration that is stored."""
        return np.asarray(expit(self.calibrate(logits)))

    def predict_slices(self, slices: Sequence[Slice]) -> npt.NDArray[np.float64]:
        """Logits of raw slices, in order, read with the recipe's `offsets_mm`. Errors as for `Recipe.apply`."""
        return self.score_read(len(slices), slices.__getitem__)

    def predict_cached(
        self, cache: SliceCache, slice_ids: Sequence[str], on_batch: Callable[[int], None] | None = None
    ) -> npt.NDArray[np.float64]:
        """Logits of cached slices, in the order of `slice_ids`. The cache must be of this recipe's pixel steps."""
        rows = cache.rows(slice_ids)
        size = self.batch_size
        # Read when the engine is ready for more, so a large cache is never in memory.
        batches = (np.asarray(cache.pixels[rows[at : at + size]]) for at in range(0, len(rows), size))
        return _join_logits(self._run(batches, on_batch))


def _join_logits(answers: Iterable[Scores]) -> npt.NDArray[np.float64]:
    """The logits, in order; features go as they come."""
    logits = [answer.logits for answer in answers]
    return np.concatenate(logits) if logits else np.empty(0)


def label_logits(
    table: pl.DataFrame,
    slice_ids: Sequence[str],
    logits: npt.NDArray[np.float64],
    predictor: Predictor,
    manifest: Manifest,
) -> pl.DataFrame:
    """Join logits to a manifest's rows by slice_id, with the hashes of where they come from."""
    return make_predictions(
        table,
        slice_ids,
        logits,
        model=predictor.header.spec.name,
        checkpoint_hash=predictor.checkpoint_hash,
        recipe_hash=predictor.recipe.hash,
        manifest_hash=manifest.hash,
        prob=predictor.find_probabilities(logits),
    )
