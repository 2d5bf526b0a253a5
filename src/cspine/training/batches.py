"""What a training step is given: labelled slices by the batch, as pixels or as features of a frozen backbone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import Tensor

from cspine.data.cache import SliceCache
from cspine.experiment import AugmentSettings, TrainingSettings
from cspine.models.classifier import FractureClassifier
from cspine.training.augment import apply_augmentation


@dataclass(frozen=True)
class Cases:
    """Labelled slices of one split: ids, rows of the cache in the same order, and labels 0 or 1."""

    slice_ids: tuple[str, ...]
    rows: np.ndarray[Any, np.dtype[np.int64]]
    labels: Tensor

    def __len__(self) -> int:
        return len(self.slice_ids)


@dataclass(frozen=True)
class Batch:
    """What the network is given, (N,) float labels, and which slices they are.

    Attributes:
        inputs: (N, 1, H, W) uint8 pixels; or, for the head behind a frozen backbone, (N, features) float32.
    """

    inputs: Tensor
    labels: Tensor
    slice_ids: tuple[str, ...]

    def draw(self, augment: AugmentSettings, generator: torch.Generator) -> Tensor:
        """The inputs with pixels changed at random; features are left as they are."""
        return apply_augmentation(self.inputs, augment, generator) if self.inputs.ndim == 4 else self.inputs


Source = Callable[[Tensor], Batch]
"""Positions among the cases in, their batch out, on the device that trains."""


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


def open_source(
    model: FractureClassifier,
    cache: SliceCache,
    cases: Cases,
    settings: TrainingSettings,
    device: torch.device,
) -> Source:
    """Where batches come from: the cache, or the features of all cases, computed here, once."""

    def read_pixels(index: Tensor) -> Batch:
        return read_batch(cache, cases, index, device)

    if settings.backbone == "trained":
        return read_pixels
    features = compute_features(model, read_pixels, len(cases), settings.batch_size)

    def read_features(index: Tensor) -> Batch:
        chosen = tuple(cases.slice_ids[position] for position in index.tolist())
        return Batch(features[index.to(features.device)], cases.labels[index].to(device), chosen)

    return read_features


def read_batch(cache: SliceCache, cases: Cases, index: Tensor, device: torch.device) -> Batch:
    """Copy some cases out of the cache onto the device, pixels and labels by the same index."""
    chosen = index.numpy()
    pixels = torch.from_numpy(np.ascontiguousarray(cache.pixels[cases.rows[chosen]]))
    slice_ids = tuple(cases.slice_ids[position] for position in chosen)
    pixels = pixels.unsqueeze(1) if pixels.ndim == 3 else pixels
    return Batch(pixels.to(device), cases.labels[index].to(device), slice_ids)


@torch.no_grad()
def compute_features(model: FractureClassifier, source: Source, count: int, batch_size: int) -> Tensor:
    """(count, features) float32: what the head is given, in evaluation mode."""
    model.eval()
    parts = [
        model.find_features(source(index).inputs).float()
        for index in torch.split(torch.arange(count), batch_size)
    ]
    return torch.cat(parts)
