"""What a training step is given: labelled slices by the batch, as pixels or as features of a frozen backbone.

An epoch is planned as a whole: the order of its cases and the random rotations, flips and scales of their pixels
(paper, section V.B) are drawn on the CPU and brought to the device at once. Slices that are predicted are not
resampled, so those that are learned from must not be smoother: by default each pixel is that of the nearest
(docs/log.md).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import polars as pl
import torch
import torch.nn.functional as F
from torch import Tensor

from cspine.data.cache import SliceCache
from cspine.experiment import AugmentSettings, Interpolation, TrainingSettings
from cspine.models.classifier import FractureClassifier


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


RESIDENT_SHARE = 0.5
"""Pixels stay on a GPU where they take no more than this share of its free memory; a step needs the rest."""

LOADED_AT_ONCE = 1024
"""Slices that are copied to a GPU at once, when all of them are."""


@dataclass(frozen=True)
class Cases:
    """Labelled slices of one split: ids, rows of the cache in the same order, and labels 0 or 1."""

    slice_ids: tuple[str, ...]
    rows: np.ndarray[Any, np.dtype[np.int64]]
    labels: Tensor

    def __len__(self) -> int:
        return len(self.slice_ids)


@dataclass(frozen=True)
class BatchPlan:
    """Which cases make a batch, and how their pixels are changed.

    Attributes:
        positions: (N,) int64 positions among the cases, on the CPU.
        there: The same on the device that trains.
        matrices: (N, 2, 3) float32 on that device, see `draw_matrices`; None changes nothing.
        interpolation: Between pixels, where they are changed.
    """

    positions: Tensor
    there: Tensor
    matrices: Tensor | None = None
    interpolation: Interpolation = "nearest"

    def __len__(self) -> int:
        return len(self.positions)


@dataclass(frozen=True)
class Source:
    """Where the batches of some cases come from.

    Attributes:
        cases: All of them.
        labels: Theirs, on the device that trains.
        gather: A plan in; out come, on that device, (N, channels, H, W) uint8 pixels or, for the head behind a frozen
            backbone, (N, features) float32.
        aspect: Width / height of the pixels; None for features, which are never changed at random.
    """

    cases: Cases
    labels: Tensor
    gather: Callable[[BatchPlan], Tensor]
    aspect: float | None

    def read(self, plan: BatchPlan) -> tuple[Tensor, Tensor]:
        """What the network is given, changed as planned, and (N,) float labels."""
        inputs = self.gather(plan)
        if plan.matrices is not None:
            inputs = resample(inputs, plan.matrices, plan.interpolation)
        return inputs, self.labels[plan.there]

    def name_slices(self, plan: BatchPlan) -> tuple[str, ...]:
        """The slices of a batch."""
        return tuple(self.cases.slice_ids[position] for position in plan.positions.tolist())

    def plan_epoch(
        self, batch_size: int, augment: AugmentSettings, generator: torch.Generator
    ) -> list[BatchPlan]:
        """All cases in random order with their random maps; the generator alone decides, whatever the device."""
        batches = list(shuffle_batches(len(self.cases), batch_size, generator))
        if not augment.enabled or self.aspect is None:
            return self._plan(batches)
        maps = [draw_matrices(len(one), augment, generator, aspect=self.aspect) for one in batches]
        return [replace(plan, interpolation=augment.interpolation) for plan in self._plan(batches, maps)]

    def plan_in_order(self, batch_size: int) -> list[BatchPlan]:
        """All cases as they stand."""
        return self._plan(list(torch.split(torch.arange(len(self.cases)), batch_size)))

    def _plan(self, batches: list[Tensor], matrices: list[Tensor] | None = None) -> list[BatchPlan]:
        if not batches:
            return []
        there = self._bring(batches)
        maps = self._bring(matrices) if matrices else [None] * len(batches)
        return [BatchPlan(*each) for each in zip(batches, there, maps, strict=True)]

    def _bring(self, parts: list[Tensor]) -> Sequence[Tensor]:
        """The same on the device, in one copy for all."""
        return torch.split(torch.cat(parts).to(self.labels.device), [len(part) for part in parts])


def make_cases(table: pl.DataFrame, cache: SliceCache) -> Cases:
    """Find the labelled slices of a manifest's table in the cache, by slice_id."""
    table = table.filter(pl.col("label").is_not_null())
    slice_ids = tuple(table["slice_id"].to_list())
    labels = torch.tensor(table["label"].to_list(), dtype=torch.float32)
    return Cases(slice_ids, cache.rows(slice_ids), labels)


def shuffle_batches(count: int, size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Positions 0..count-1 in random order, `size` at a time; a last batch of one is left out (batch norm)."""
    order = torch.randperm(count, generator=generator)
    for start in range(0, count, size):
        index = order[start : start + size]
        if len(index) > 1:
            yield index


def open_sources(
    model: FractureClassifier,
    cache: SliceCache,
    parts: Sequence[Cases],
    settings: TrainingSettings,
    device: torch.device,
) -> list[Source]:
    """Where batches of each part come from: the cache, its rows on the GPU, or features, computed here once."""
    aspect = cache.pixels.shape[-1] / cache.pixels.shape[-2]
    streams = [
        Source(part, part.labels.to(device), stream_pixels(cache, part, device), aspect) for part in parts
    ]
    if settings.backbone == "frozen":
        return [keep_features(model, stream, settings.batch_size) for stream in streams]
    bytes_needed = sum(len(part) for part in parts) * cache.pixels[:1].nbytes
    if bytes_needed > RESIDENT_SHARE * count_free_bytes(device):
        return streams
    return [keep_pixels(stream) for stream in streams]


def count_free_bytes(device: torch.device) -> int:
    """Memory of a GPU that nothing uses; 0 for other devices, whose pixels are as near in the cache."""
    if device.type != "cuda":
        return 0
    torch.cuda.empty_cache()
    return torch.cuda.mem_get_info(device)[0]


def stream_pixels(cache: SliceCache, cases: Cases, device: torch.device) -> Callable[[BatchPlan], Tensor]:
    """Copy each batch out of the cache onto the device: (N, channels, H, W) uint8."""
    pixels = cache.pixels[:, None] if cache.pixels.ndim == 3 else cache.pixels
    pinned = device.type == "cuda"  # only from pinned memory does the copy run beside the steps before it

    def gather(plan: BatchPlan) -> Tensor:
        host = torch.empty((len(plan), *pixels.shape[1:]), dtype=torch.uint8, pin_memory=pinned)
        np.take(pixels, cases.rows[plan.positions.numpy()], axis=0, out=host.numpy(), mode="clip")
        return host.to(device, non_blocking=True)

    return gather


def keep_pixels(stream: Source) -> Source:
    """The same batches out of pixels that lie on the device, all of them."""
    plans = stream.plan_in_order(LOADED_AT_ONCE)
    first = stream.gather(plans[0])
    loaded = first.new_empty(
        (len(stream.cases), *first.shape[1:])
    )  # a list of parts, joined, would take twice as much
    for plan in plans:
        loaded[plan.there] = stream.gather(plan)
    return replace(stream, gather=lambda plan: loaded.index_select(0, plan.there))


@torch.no_grad()
def keep_features(model: FractureClassifier, stream: Source, batch_size: int) -> Source:
    """What the head is given, of all cases, computed once in evaluation mode."""
    model.eval()
    parts = [model.find_features(stream.gather(plan)).float() for plan in stream.plan_in_order(batch_size)]
    features = torch.cat(parts)
    return replace(stream, gather=lambda plan: features.index_select(0, plan.there), aspect=None)
