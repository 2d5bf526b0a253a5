"""How far slices lie from those of a training, and that a checkpoint keeps it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.covariance import ledoit_wolf

from cspine.core.aggregation import Aggregation
from cspine.core.errors import InputError
from cspine.inference.predictor import Predictor
from cspine.models.checkpoint import add_study_parts, load_checkpoint, write_checkpoint
from cspine.models.classifier import build_classifier
from cspine.models.header import CheckpointHeader, ModelSpec
from cspine.models.ood import OodDetector, choose_limit, fit_ood, measure_study
from cspine.preprocess import Recipe, Resize, Scale


def draw(count: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    mixing = np.random.default_rng(99).normal(size=(6, 20))
    return (rng.normal(size=(count, 6)) @ mixing + 3.0).astype(np.float32)


def test_training_like_slices_lie_at_one_and_others_farther() -> None:
    found = fit_ood(draw(3000))
    assert np.sqrt((found.measure(draw(3000, 1)) ** 2).mean()) == pytest.approx(1.0, abs=0.05)
    assert np.median(found.measure(3 * draw(50, 2))) > 2


def test_distance_is_mahalanobis_with_shrunk_covariance() -> None:
    features = np.random.default_rng(4).normal(size=(400, 5)).astype(np.float32) * [1, 2, 3, 4, 5]
    features = features.astype(np.float32)
    found = fit_ood(features)
    values = features.astype(np.float64)
    covariance, _ = ledoit_wolf(values)
    centred = values - values.mean(axis=0)
    wanted = np.sqrt(np.einsum("ij,jk,ik->i", centred, np.linalg.inv(covariance), centred) / 5)
    np.testing.assert_allclose(found.measure(features), wanted, rtol=1e-4)


def test_a_study_lies_at_its_median_and_the_limit_has_a_margin() -> None:
    assert measure_study(np.array([1.0, 9.0, 1.2])) == 1.2
    assert choose_limit([np.array([1.0, 1.1, 9.0]), np.array([2.0])]) == pytest.approx(2.5)


def test_too_little_to_learn_from_is_refused() -> None:
    with pytest.raises(InputError, match="too few"):
        fit_ood(draw(20))
    with pytest.raises(InputError, match="the same features"):
        fit_ood(np.ones((100, 8), np.float32))


@pytest.mark.parametrize("head", ["softmax", "dense_sigmoid"])
def test_a_checkpoint_keeps_it_and_its_weights_stay(head: str, tmp_path: Path) -> None:
    spec = ModelSpec(name="small", backbone="test_resnet", head=head)
    recipe = Recipe(steps=(Resize(height_px=32, width_px=32),))
    model = build_classifier(spec, Scale(), seed=0)
    path, other = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    write_checkpoint(
        path, model, CheckpointHeader(spec=spec, recipe=recipe, manifest_hash="m", weights="none")
    )
    pixels = np.random.default_rng(0).integers(0, 256, (60, 32, 32), dtype=np.uint8)
    before = Predictor.load(path)
    logits, features = before.predict_features(pixels)
    assert before.measure_distances(features) is None
    np.testing.assert_array_equal(logits, before.predict_pixels(pixels))
    with torch.inference_mode():
        # Other batches, other order of sums: on CPUs with AMX or AVX-512 the last bits differ.
        answers = before.model.answer(torch.from_numpy(features)).numpy()
    np.testing.assert_allclose(answers, logits, rtol=0, atol=1e-5)

    ood = fit_ood(features)
    rule = Aggregation(kind="top_k_mean", k=3, studies=9, positives=4, fitted_on="val")
    for _ in range(2):  # a second fit replaces the first
        digest = add_study_parts(path, other, aggregation=rule, ood=ood, distance_limit=2.0)
        path = other
    after = load_checkpoint(other)
    assert after.hash == digest
    assert after.header.aggregation == rule
    assert after.header.distance_limit == 2.0
    predictor = Predictor(after)
    np.testing.assert_array_equal(predictor.predict_pixels(pixels), logits)
    distances = predictor.measure_distances(features)
    assert distances is not None
    np.testing.assert_array_equal(distances, ood.measure(features))
    assert isinstance(after.ood, OodDetector)
    assert predictor.predict_features(pixels[:0])[1].shape == (0, features.shape[1])
