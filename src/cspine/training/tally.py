"""Loss and accuracy of one pass over some batches, without waiting for a GPU at each of them."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

import torch
from torch import Tensor

from cspine.training.batches import BatchPlan
from cspine.training.state import Progress

READ_PAUSE_S = {"cpu": 0.0, "cuda": 2.0}
"""Seconds between two readings within an epoch, by device: for each, the host waits for the steps that a GPU is at."""


class Tally:
    """What the steps of an epoch gave. It stays on the device until it is read.

    Attributes:
        count: Slices that were added.
        losses: The mean loss of each batch, of those that were read.
    """

    def __init__(self, plans: Sequence[BatchPlan], device: torch.device) -> None:
        self.count = 0
        self.losses: list[float] = []
        self._sizes = [len(plan) for plan in plans]
        self._kept = torch.zeros((len(plans), 2), device=device)  # loss, number right
        self._added = 0
        self._loss_sum, self._right, self._counted = 0.0, 0.0, 0
        self._pause_s = READ_PAUSE_S.get(device.type, 2.0)
        self._started_s = time.perf_counter()
        self._read_s = -math.inf

    def add(self, logits: Tensor, labels: Tensor, loss: Tensor) -> None:
        """Count the next batch; nothing waits for its values."""
        right = ((logits.detach() >= 0) == (labels > 0.5)).sum()
        self._kept[self._added] = torch.stack((loss.detach(), right.to(loss.dtype)))
        self.count += self._sizes[self._added]
        self._added += 1

    def read_if_due(self) -> None:
        """Read, unless that was done on a GPU a moment ago."""
        if time.perf_counter() - self._read_s >= self._pause_s:
            self.read()
            self._read_s = time.perf_counter()

    def read(self) -> None:
        """Bring over what was added since the last time."""
        for loss, right in self._kept[len(self.losses) : self._added].tolist():
            size = self._sizes[len(self.losses)]
            self.losses.append(loss)
            self._loss_sum += loss * size
            self._right += right
            self._counted += size

    @property
    def mean_loss(self) -> float:
        """Mean binary cross-entropy a slice, of what was read."""
        return self._loss_sum / max(self._counted, 1)

    @property
    def accuracy(self) -> float:
        """Fraction right at probability 0.5, of what was read."""
        return self._right / max(self._counted, 1)

    def describe(self, epoch: int, epochs: int) -> Progress:
        """What a progress bar shows."""
        speed = self.count / max(time.perf_counter() - self._started_s, 1e-9)
        return Progress(epoch, epochs, self._added, len(self._sizes), self.mean_loss, self.accuracy, speed)
