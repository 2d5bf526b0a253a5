"""Training steps that are timed and change nothing: what choices are measured with."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cspine.experiment import TrainingSettings
from cspine.models.classifier import FractureClassifier
from cspine.models.header import Precision
from cspine.training.optimizer import make_optimizer

MARGIN = 1.1
"""What costs something, such as digits, has to be this many times as fast."""

Clock = Callable[[], float]
Network = Callable[[Tensor], Tensor]


class Probe:
    """Forward, backward and step of a copy of a model, on random pixels that lie on the device.

    Args:
        model: Is copied.
        settings: Of the training: batch size and optimizer.
        size_px: (height, width) of a slice.
        device: Where the training will run.
        clock: Seconds, from any start.
    """

    def __init__(
        self,
        model: FractureClassifier,
        settings: TrainingSettings,
        size_px: tuple[int, int],
        device: torch.device,
        clock: Clock,
    ) -> None:
        self.network: nn.Module = (
            copy.deepcopy(model).to(device).to(memory_format=torch.channels_last).train()
        )
        self._optimizer = make_optimizer(self.network, settings)
        self._pixels = 255 * torch.rand((settings.batch_size, 1, *size_px), device=device)
        self._labels = (torch.arange(settings.batch_size, device=device) % 2).float()
        self._clock = clock

    def step(
        self, precision: Precision, count: int, *, network: Network | None = None, steps: int = 1
    ) -> float:
        """Slices a second of `steps` steps with `count` slices; `network` may be another way to run the same one."""
        run = network or self.network
        started = self._clock()
        for _ in range(steps):
            with torch.autocast(self._pixels.device.type, dtype=torch.bfloat16, enabled=precision == "bf16"):
                logits = run(self._pixels[:count])
            loss = F.binary_cross_entropy_with_logits(logits.float(), self._labels[:count])
            self._optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            self._optimizer.step()
        loss.item()  # waits for a GPU
        return steps * count / max(self._clock() - started, 1e-9)
