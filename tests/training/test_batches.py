"""Batches: planned for a whole epoch, the same from the cache and from pixels that lie on the device."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from cspine.data.cache import SliceCache
from cspine.experiment import AugmentSettings, TrainingSettings
from cspine.models.classifier import build_classifier
from cspine.models.header import HeadKind, ModelSpec
from cspine.preprocess import Scale
from cspine.training import batches as batches_module
from cspine.training.batches import Source, apply_augmentation, make_cases, open_sources, shuffle_batches

CPU = torch.device("cpu")
COUNT, HEIGHT, WIDTH = 10, 8, 12
MODEL = build_classifier(ModelSpec(name="s", backbone="test_resnet", head=HeadKind.SOFTMAX), Scale(), seed=1)


def make_cache(*channels: int) -> SliceCache:
    pixels = np.random.default_rng(2).integers(0, 256, (COUNT, *channels, HEIGHT, WIDTH), dtype=np.uint8)
    return SliceCache(pixels, tuple(f"s{number}" for number in range(COUNT)), Path())


def open_two(cache: SliceCache) -> list[Source]:
    """Sources of six and of three cases, in an order that is not the cache's."""
    table = pl.DataFrame({"slice_id": [f"s{n}" for n in (7, 1, 4, 3, 9, 0, 2, 8, 5)], "label": [1, 0, 1] * 3})
    parts = [make_cases(table[:6], cache), make_cases(table[6:], cache)]
    return open_sources(MODEL, cache, parts, TrainingSettings(), CPU)


@pytest.mark.parametrize("resident", [False, True])
@pytest.mark.parametrize("channels", [(), (3,)])
def test_a_batch_joins_pixels_labels_and_ids(
    channels: tuple[int, ...], resident: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches_module, "count_free_bytes", lambda _: 10**9 if resident else 0)
    cache = make_cache(*channels)
    source = open_two(cache)[0]
    second = source.plan_in_order(4)[1]
    pixels, labels = source.read(second)
    assert source.name_slices(second) == ("s9", "s0")
    assert labels.tolist() == [0.0, 1.0]
    assert pixels.dtype == torch.uint8
    assert torch.equal(pixels, torch.from_numpy(cache.pixels[[9, 0]]).view(2, -1, HEIGHT, WIDTH))


@pytest.mark.parametrize("resident", [False, True])
def test_an_epoch_planned_at_once_is_drawn_as_batch_by_batch(
    resident: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches_module, "count_free_bytes", lambda _: 10**9 if resident else 0)
    cache, ranges = make_cache(), AugmentSettings(rotation_deg=40, flip_vertical=0.5)
    source = open_two(cache)[0]
    plans = source.plan_epoch(4, ranges, torch.Generator().manual_seed(6))
    generator = torch.Generator().manual_seed(6)
    orders = list(shuffle_batches(6, 4, generator))
    assert [plan.positions.tolist() for plan in plans] == [order.tolist() for order in orders]
    for plan, order in zip(plans, orders, strict=True):
        pixels = torch.from_numpy(cache.pixels[source.cases.rows[order.numpy()]]).unsqueeze(1)
        changed, labels = source.read(plan)
        assert torch.equal(changed, apply_augmentation(pixels, ranges, generator))
        assert torch.equal(labels, source.cases.labels[order])


def test_without_augmentation_pixels_stay_as_they_are() -> None:
    source = open_two(make_cache())[0]
    generator = torch.Generator().manual_seed(6)
    plan = source.plan_epoch(6, AugmentSettings(enabled=False), generator)[0]
    assert torch.equal(source.read(plan)[0], source.gather(plan))
    other = torch.Generator().manual_seed(6)
    torch.randperm(6, generator=other)
    assert torch.equal(generator.get_state(), other.get_state())


@pytest.mark.parametrize(("more", "stays"), [(0, True), (-1, False)])
def test_pixels_stay_on_a_gpu_up_to_half_of_its_free_memory(
    more: int, stays: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches_module, "count_free_bytes", lambda _: 2 * 9 * HEIGHT * WIDTH + more)
    cache = make_cache()
    sources = open_two(cache)
    cache.pixels[:] = 0  # from here on only a copy could know what was there
    for source in sources:
        assert bool(source.gather(source.plan_in_order(9)[0]).any()) == stays


def test_one_case_alone_makes_no_batch() -> None:
    cache = make_cache()
    cases = make_cases(pl.DataFrame({"slice_id": ["s7"], "label": [1]}), cache)
    (source,) = open_sources(MODEL, cache, [cases], TrainingSettings(), CPU)
    assert source.plan_epoch(4, AugmentSettings(), torch.Generator()) == []
