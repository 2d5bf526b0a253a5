"""The training loop on a set that anything can learn: bright against dark squares."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.torch import load_file

from cspine.data.cache import SliceCache
from cspine.errors import InputError, TrainingError
from cspine.experiment import AugmentSettings, TrainingSettings
from cspine.models.checkpoint import CheckpointHeader, load_checkpoint
from cspine.models.classifier import build_classifier
from cspine.models.zoo import HeadKind, ModelSpec
from cspine.preprocess import Equalise, Recipe, Resize, Scale
from cspine.training.loop import make_cases, make_class_weights, set_learning_rate, shuffle_batches, train
from cspine.training.state import Outcome, Progress

RECIPE = Recipe(steps=(Equalise(method="none"), Resize(height_px=32, width_px=32)))
SPEC = ModelSpec(name="small", backbone="test_resnet", head=HeadKind.SOFTMAX)


@pytest.fixture(scope="module")
def cache() -> SliceCache:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 60, (48, 32, 32), dtype=np.uint8)
    pixels[::2, 8:24, 8:24] += 150
    return SliceCache(pixels, tuple(f"s{number:02}" for number in range(48)), Path())  # type: ignore[arg-type]


def run(cache: SliceCache, folder: Path, fingerprint: str = "same", seed: int = 5, **options: Any) -> Outcome:
    on_step = options.pop("on_step", None)
    labels = [1 - number % 2 for number in range(48)]
    table = pl.DataFrame({"slice_id": cache.slice_ids, "label": labels})
    settings = TrainingSettings(**{"epochs": 4, "batch_size": 8, "learning_rate": 3e-3, **options})
    return train(
        build_classifier(SPEC, Scale(), seed=seed),
        cache,
        make_cases(table[:32], cache),
        make_cases(table[32:], cache),
        CheckpointHeader(spec=SPEC, recipe=RECIPE, manifest_hash="m", weights="none"),
        folder,
        settings=settings,
        augment=AugmentSettings(),
        seed=seed,
        fingerprint=fingerprint,
        on_step=on_step,
    )


def strip(outcome: Outcome) -> list[dict[str, Any]]:
    return [record.model_dump(exclude={"seconds", "slices_per_s"}) for record in outcome.history]


def test_it_learns_and_keeps_the_best_epoch(cache: SliceCache, tmp_path: Path) -> None:
    outcome = run(cache, tmp_path, epochs=12, early_stopping_patience=0)
    losses = [record.val_loss for record in outcome.history]
    assert outcome.best_epoch == 1 + int(np.argmin(losses))
    assert outcome.history[outcome.best_epoch - 1].val_accuracy > 0.95
    checkpoint = load_checkpoint(tmp_path / "checkpoint.safetensors")
    assert checkpoint.header.training["best_epoch"] == outcome.best_epoch
    with torch.no_grad():
        logits = checkpoint.model(torch.from_numpy(cache.pixels[32:]))
    labels = torch.tensor([1.0, 0.0] * 8)
    loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, labels)
    assert float(loss) == pytest.approx(min(losses), rel=1e-3, abs=1e-6)
    assert pl.read_parquet(tmp_path / "history.parquet")["epoch"].to_list() == list(range(1, 13))
    assert list((tmp_path / "events").iterdir())


@pytest.mark.parametrize("schedule", ["plateau", "cosine"])
def test_interrupted_and_resumed_is_bit_equal(cache: SliceCache, tmp_path: Path, schedule: str) -> None:
    def interrupt(progress: Progress) -> None:
        if (progress.epoch, progress.step) == (3, 2):
            raise KeyboardInterrupt

    options = {"schedule": schedule, "warmup_epochs": 0.5}
    whole = run(cache, tmp_path / "whole", **options)
    with pytest.raises(KeyboardInterrupt):
        run(cache, tmp_path / "parts", on_step=interrupt, **options)
    assert not (tmp_path / "parts/outcome.json").exists()
    parts = run(cache, tmp_path / "parts", **options)
    assert strip(whole) == strip(parts)
    one, other = (load_file(tmp_path / name / "checkpoint.safetensors") for name in ("whole", "parts"))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_finished_run_is_returned_and_another_is_refused(cache: SliceCache, tmp_path: Path) -> None:
    first = run(cache, tmp_path, epochs=1)
    assert run(cache, tmp_path, epochs=1) == first
    with pytest.raises(InputError, match="other settings"):
        run(cache, tmp_path, fingerprint="another", epochs=1)


def test_early_stopping_waits_for_its_patience(cache: SliceCache, tmp_path: Path) -> None:
    outcome = run(cache, tmp_path, epochs=30, learning_rate=1e-9, early_stopping_patience=2, optimizer="sgd")
    assert outcome.stopped_early == (len(outcome.history) < 30)
    if outcome.stopped_early:
        assert len(outcome.history) == outcome.best_epoch + 2


def test_a_loss_that_is_not_finite_names_the_slices(cache: SliceCache, tmp_path: Path) -> None:
    with pytest.raises(TrainingError) as caught:
        run(
            cache, tmp_path, optimizer="sgd", learning_rate=10.0, gradient_clip=0.0, momentum=0.99, epochs=200
        )
    assert "loss" in str(caught.value)
    assert not (tmp_path / "outcome.json").exists()


def test_class_weights_balance_the_classes() -> None:
    labels = torch.tensor([0.0, 0.0, 0.0, 1.0])
    balanced = make_class_weights(labels, TrainingSettings(class_weights="balanced"))
    assert balanced.tolist() == pytest.approx([4 / 6, 2.0])
    assert make_class_weights(labels, TrainingSettings()).tolist() == [1.0, 1.0]


@pytest.mark.parametrize(
    ("passed", "wanted"), [(0.0, 0.01 / 1.01), (0.5, 0.51 / 1.01), (5.0, 0.5), (10.0, 0.0)]
)
def test_the_rate_warms_up_and_follows_a_cosine(passed: float, wanted: float) -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    settings = TrainingSettings(learning_rate=1.0, epochs=10, warmup_epochs=1.0, schedule="cosine")
    set_learning_rate(optimizer, settings, passed, base=1.0)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(wanted, abs=1e-12)


def test_batches_hold_every_case_once_but_a_last_one_alone() -> None:
    batches = list(shuffle_batches(9, 4, torch.Generator().manual_seed(0)))
    assert [len(batch) for batch in batches] == [4, 4]
    assert sorted(torch.cat(list(shuffle_batches(10, 4, torch.Generator()))).tolist()) == list(range(10))
