"""The predictor: a checkpoint that answers; validation, robustness, the command line and a server use this object."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from scipy.special import expit

from cspine.data.cache import SliceCache
from cspine.data.types import Slice
from cspine.errors import CheckpointError
from cspine.inference.batches import ReadSlice, prepare_batches
from cspine.inference.exported import find_format
from cspine.inference.runtimes import Answer, Runtime, RuntimeName
from cspine.models.header import CheckpointHeader, Precision

if TYPE_CHECKING:  # an exported model is loaded and run without torch
    from cspine.inference.load import ExportedModel
    from cspine.models.checkpoint import Checkpoint
    from cspine.models.classifier import FractureClassifier


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
        self.familiarity = checkpoint.familiarity
        if runtime is None:
            from cspine.inference.load import start_torch

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
        from cspine.inference.load import load_exported, load_with_runtime

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
        from cspine.inference.torch_runtime import TorchRuntime

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
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float32]]:
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
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float32]]:
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
    ) -> Iterator[Answer]:
        for answer in self.runtime.run(batches):
            yield answer
            if on_batch:
                on_batch(len(answer.logits))

    def _join(self, answers: Iterable[Answer]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float32]]:
        found = list(answers)
        if not found:
            return np.empty(0), np.empty((0, self.runtime.features), np.float32)
        return np.concatenate([one.logits for one in found]), np.concatenate([one.features for one in found])

    def measure_distances(self, features: npt.NDArray[np.float32]) -> npt.NDArray[np.float64] | None:
        """How far (N, features) slices lie from those of the training; None where the checkpoint cannot say."""
        return None if self.familiarity is None else self.familiarity.measure(features)

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


def _join_logits(answers: Iterable[Answer]) -> npt.NDArray[np.float64]:
    """The logits, in order; features go as they come."""
    logits = [answer.logits for answer in answers]
    return np.concatenate(logits) if logits else np.empty(0)
