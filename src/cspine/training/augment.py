"""Random rotation, flips and scale (paper, section V.B), on a whole batch at once and on its device.

Slices that are predicted are not resampled, so those that are learned from must not be smoother: by default each pixel
is that of the nearest, which keeps noise and fine lines as they are. Learned from bilinear slices, networks called
sharp ones wrongly (docs/log.md).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from cspine.experiment import AugmentSettings, Interpolation


def apply_augmentation(pixels: Tensor, settings: AugmentSettings, generator: torch.Generator) -> Tensor:
    """Draw one affine map a slice and resample the batch with it; nothing changes where that is switched off.

    Args:
        pixels: (N, 1, H, W), uint8 or float, 0..255.
        settings: Ranges.
        generator: The only source of randomness; on the CPU, so that a seed gives the same maps on any device.

    Returns:
        (N, 1, H, W) float32, 0..255.
    """
    if not settings.enabled:
        return pixels.to(torch.float32)
    aspect = pixels.shape[-1] / pixels.shape[-2]
    matrices = draw_matrices(len(pixels), settings, generator, aspect=aspect).to(pixels.device)
    return resample(pixels, matrices, settings.interpolation)


def resample(pixels: Tensor, matrices: Tensor, interpolation: Interpolation) -> Tensor:
    """Pixels by one affine map a slice; what comes from outside is black.

    Args:
        pixels: (N, 1, H, W), uint8 or float, 0..255.
        matrices: (N, 2, 3) of `draw_matrices`, on the same device.
        interpolation: Between pixels.

    Returns:
        (N, 1, H, W) float32, 0..255.
    """
    batch = pixels.to(torch.float32)
    grid = F.affine_grid(matrices, list(batch.shape), align_corners=False)
    changed = F.grid_sample(batch, grid, mode=interpolation, padding_mode="zeros", align_corners=False)
    return changed.clamp_(0, 255) if interpolation == "bicubic" else changed


def draw_matrices(
    count: int, settings: AugmentSettings, generator: torch.Generator, *, aspect: float = 1.0
) -> Tensor:
    """(count, 2, 3) maps from output to input in `affine_grid`'s units; `aspect` is width / height."""
    angle, size, across, down = torch.rand((4, count), generator=generator)
    angle = (2 * angle - 1) * math.radians(settings.rotation_deg)
    size = settings.scale_min + size * (settings.scale_max - settings.scale_min)
    across = torch.where(across < settings.flip_horizontal, -1.0, 1.0)
    down = torch.where(down < settings.flip_vertical, -1.0, 1.0)
    cosine, sine = torch.cos(angle) / size, torch.sin(angle) / size
    zero = torch.zeros(count)
    # A rotation in pixels is sheared in units of half the width and half the height unless the slice is square.
    rows = [across * cosine, -down * sine / aspect, zero, across * sine * aspect, down * cosine, zero]
    return torch.stack(rows, dim=1).view(count, 2, 3)
