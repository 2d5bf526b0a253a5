"""The engine of a checkpoint: torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np
import numpy.typing as npt
import torch

from cspine.core.machine import hold_memory
from cspine.inference.engines import CPU_BATCH, Scores
from cspine.models.classifier import FractureClassifier

_GPU_BATCH = 64


class TorchRuntime:
    """The network of a checkpoint.

    Args:
        model: The network; it is moved to the device and put into evaluation mode.
        device: "auto" is the first GPU, else the CPU.
        bf16: Whether the backbone computes in bf16.
    """

    name = "torch"

    def __init__(
        self, model: FractureClassifier, device: str = "auto", *, bf16: bool = False, why: str = ""
    ) -> None:
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        self._device = torch.device(device)
        self._bf16 = bf16
        self.batch_size = CPU_BATCH if self._device.type == "cpu" else _GPU_BATCH
        self.model = model.to(self._device).eval()
        self.features = model.find_width()
        self.about = f"torch {torch.__version__}, {'bf16' if bf16 else 'fp32'}, {device}" + (
            f": {why}" if why else ""
        )

    def run(self, batches: Iterable[npt.NDArray[np.uint8]]) -> Iterator[Scores]:
        """One batch after the other."""
        return _answer_all(batches, self.answer, self.batch_size)

    @torch.inference_mode()
    def answer(self, pixels: npt.NDArray[np.uint8]) -> Scores:
        """One batch, by itself."""
        part = torch.from_numpy(np.array(pixels)).to(self._device)
        with torch.autocast(self._device.type, dtype=torch.bfloat16, enabled=self._bf16):
            found = self.model.find_features(part)
            raw = self.model.answer(found)
        return Scores(raw.double().cpu().numpy(), found.float().cpu().numpy())


def _answer_all(
    batches: Iterable[npt.NDArray[np.uint8]], answer: Callable[[npt.NDArray[np.uint8]], Scores], full: int
) -> Iterator[Scores]:
    """Hold memory, but not for fewer than `full` slices alone: giving it back would cost more than holding saves."""
    waiting = iter(batches)
    first = next(waiting, None)
    if first is not None and len(first) < full:
        yield answer(first)
        first = next(waiting, None)
    if first is not None:
        with hold_memory():
            yield answer(first)
            yield from map(answer, waiting)
