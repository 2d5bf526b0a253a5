"""Training steps that are timed and change nothing: what choices are measured with."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import nn

from cspine.experiment import TrainingSettings
from cspine.models.classifier import FractureClassifier
from cspine.models.header import Precision
from cspine.training.optimizer import make_optimizer
from cspine.training.step import Network, Stepper

MARGIN = 1.1
"""What costs something, such as digits, has to be this many times as fast."""

Clock = Callable[[], float]


class Probe:
    """Steps of a copy of a model, on random pixels that lie on the device.

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
        optimizer = make_optimizer(self.network, settings)
        precisions: tuple[Precision, ...] = ("fp32", "bf16")
        self._steppers = {
            precision: Stepper(self.network, optimizer, settings, precision, device)
            for precision in precisions
        }
        self._pixels = 255 * torch.rand((settings.batch_size, 1, *size_px), device=device)
        self._labels = (torch.arange(settings.batch_size, device=device) % 2).float()
        self._clock = clock

    def step(
        self, precision: Precision, count: int, *, network: Network | None = None, steps: int = 1
    ) -> float:
        """Slices a second of `steps` steps with `count` slices; `network` may be another way to run the same one."""
        started = self._clock()
        for _ in range(steps):
            _, loss = self._steppers[precision].take(
                network or self.network, self._pixels[:count], self._labels[:count]
            )
        loss.item()  # waits for a GPU
        return steps * count / max(self._clock() - started, 1e-9)
