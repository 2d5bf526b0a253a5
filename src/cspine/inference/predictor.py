"""The predictor: a checkpoint that answers; validation, robustness, the command line and a server use this object."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from scipy.special import expit

from cspine.data.cache import SliceCache
from cspine.data.types import Slice
from cspine.errors import CheckpointError
from cspine.models.checkpoint import Checkpoint, load_checkpoint
from cspine.models.header import CheckpointHeader, Precision


class Predictor:
    """Scores slices with one checkpoint, through the checkpoint's own recipe.

    Args:
        checkpoint: From `load_checkpoint`.
        device: "auto" is the first GPU, else the CPU.
        precision: None is the one that the checkpoint was validated with.
        batch_size: Slices at a time.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        device: str = "auto",
        precision: Precision | None = None,
        batch_size: int = 32,
    ) -> None:
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        self.header: CheckpointHeader = checkpoint.header
        self.checkpoint_hash = checkpoint.hash
        self.recipe = checkpoint.header.recipe
        self.batch_size = batch_size
        self._device = torch.device(device)
        self._bf16 = (precision or checkpoint.header.precision) == "bf16"
        self.model = checkpoint.model.to(self._device).eval()
        self.familiarity = checkpoint.familiarity

    @classmethod
    def load(cls, path: Path, *, device: str = "auto", precision: Precision | None = None) -> Predictor:
        """Load a checkpoint file. Errors as for `load_checkpoint`."""
        return cls(load_checkpoint(path), device=device, precision=precision)

    def count_parameters(self) -> int:
        """Of backbone and head together."""
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
        return self.predict_features(pixels, on_batch)[0]

    @torch.inference_mode()
    def predict_features(
        self, pixels: npt.NDArray[np.uint8], on_batch: Callable[[int], None] | None = None
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float32]]:
        """Logits, and what the head was given for them, in one pass.

        Args and errors as for `predict_pixels`.

        Returns:
            (N,) logits and (N, features) float32.
        """
        if pixels.shape[1:] != self.recipe.shape or pixels.dtype != np.uint8:
            raise CheckpointError(
                f"the slices are {pixels.shape[1:]} {pixels.dtype}, the checkpoint's recipe makes "
                f"{self.recipe.shape} uint8",
                where=self.header.spec.name,
                fix="run them through the checkpoint's own recipe",
            )
        logits = np.empty(len(pixels), dtype=np.float64)
        features: list[npt.NDArray[np.float32]] = []
        for start in range(0, len(pixels), self.batch_size):
            part = torch.from_numpy(np.array(pixels[start : start + self.batch_size])).to(self._device)
            with torch.autocast(self._device.type, dtype=torch.bfloat16, enabled=self._bf16):
                found = self.model.find_features(part)
                raw = self.model.answer(found)
            logits[start : start + len(part)] = raw.double().cpu().numpy()
            features.append(found.float().cpu().numpy())
            if on_batch:
                on_batch(len(part))
        width = self.model.find_width()
        return logits, np.concatenate(features) if features else np.empty((0, width), np.float32)

    def measure_distances(self, features: npt.NDArray[np.float32]) -> npt.NDArray[np.float64] | None:
        """How far (N, features) slices lie from those of the training; None where the checkpoint cannot say."""
        return None if self.familiarity is None else self.familiarity.measure(features)

    def find_probabilities(self, logits: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Probabilities of `fracture`, 0..1, of logits of this predictor: after the calibration that is stored."""
        calibration = self.header.calibration
        return np.asarray(expit(calibration.slope * logits + calibration.intercept))

    def predict_slices(self, slices: Sequence[Slice]) -> npt.NDArray[np.float64]:
        """Logits of raw slices, in order, read with the recipe's `offsets_mm`. Errors as for `Recipe.apply`."""
        if not slices:
            return np.empty(0, dtype=np.float64)
        return self.predict_pixels(np.stack([self.recipe.apply(item) for item in slices]))

    def predict_cached(
        self, cache: SliceCache, slice_ids: Sequence[str], on_batch: Callable[[int], None] | None = None
    ) -> npt.NDArray[np.float64]:
        """Logits of cached slices, in the order of `slice_ids`. The cache must be of this recipe's pixel steps."""
        rows = cache.rows(slice_ids)
        logits = np.empty(len(rows), dtype=np.float64)
        for start in range(0, len(rows), self.batch_size):
            part = rows[start : start + self.batch_size]
            logits[start : start + len(part)] = self.predict_pixels(np.asarray(cache.pixels[part]), on_batch)
        return logits
