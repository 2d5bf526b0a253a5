"""The optimizer, and its learning rate over the epochs."""

from __future__ import annotations

import math
from typing import Any

import torch

from cspine.experiment import TrainingSettings


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
