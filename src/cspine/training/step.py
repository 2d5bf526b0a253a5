"""One step of training, on one CPU or one GPU (Lightning Fabric); the optimizer and its learning rate."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from torch import Tensor, nn

from cspine.experiment import TrainingSettings
from cspine.models.header import Precision


def make_optimizer(model: torch.nn.Module, settings: TrainingSettings) -> torch.optim.Optimizer:
    """Adam (paper eq. 4 and 5), AdamW, or SGD with momentum. Norms and biases are not decayed."""
    groups = [
        {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in model.parameters() if p.ndim <= 1], "weight_decay": 0.0},
    ]
    rate, beta = settings.learning_rate, settings.momentum
    match settings.optimizer:
        case "adam":
            return torch.optim.Adam(groups, lr=rate, betas=(beta, 0.999), fused=True)
        case "adamw":
            return torch.optim.AdamW(groups, lr=rate, betas=(beta, 0.999), fused=True)
        case "sgd":
            return torch.optim.SGD(groups, lr=rate, momentum=beta, fused=True)


def set_learning_rate(optimizer: Any, settings: TrainingSettings, passed: float, base: float) -> None:
    """Set the rate after `passed` epochs (a fraction within one): warm-up, then the schedule. `base` is plateau's."""
    rate = base
    if settings.schedule == "cosine":
        rate = settings.learning_rate * (1 + math.cos(math.pi * passed / settings.epochs)) / 2
    if passed < settings.warmup_epochs:
        rate = settings.learning_rate * (passed + 0.01) / (settings.warmup_epochs + 0.01)
    for group in optimizer.param_groups:
        group["lr"] = rate


Network = Callable[[Tensor], Tensor]

_FABRIC_PRECISION = {"fp32": "32-true", "bf16": "bf16-mixed"}


def find_device() -> torch.device:
    """Where Lightning Fabric trains."""
    return Fabric(accelerator="auto", devices=1).device


class Stepper:
    """Takes steps with a module: forward, backward, clipping, optimizer.

    Args:
        module: Lies on `device`.
        optimizer: Of its weights.
        settings: Of the training.
        precision: Of forward and backward; the weights are fp32.
        device: Where it runs.
    """

    def __init__(
        self,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        settings: TrainingSettings,
        precision: Precision,
        device: torch.device,
    ) -> None:
        self.fabric = Fabric(
            accelerator=device.type,
            devices=1,
            precision=_FABRIC_PRECISION[precision],  # type: ignore[arg-type]
        )
        self.fabric.launch()
        wrapped: tuple[Any, Any] = self.fabric.setup(module, optimizer)
        self._wrapped, self.optimizer = wrapped
        self._clip = settings.gradient_clip

    def take(
        self, network: Network, inputs: Tensor, labels: Tensor, weights: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """One step on a batch.

        Args:
            network: The module, or another way to run it.
            inputs: What it takes, on the device.
            labels: (count,) float, 0 or 1.
            weights: (count,) of the losses; ones where none are given.

        Returns:
            (count,) fp32 logits, and the mean loss.
        """
        with self.fabric.autocast():
            logits = network(inputs).float()
        loss = F.binary_cross_entropy_with_logits(logits, labels, weight=weights)
        self.optimizer.zero_grad(set_to_none=True)
        self.fabric.backward(loss)
        if self._clip:
            self.fabric.clip_gradients(
                self._wrapped, self.optimizer, max_norm=self._clip, error_if_nonfinite=False
            )
        self.optimizer.step()
        return logits, loss
