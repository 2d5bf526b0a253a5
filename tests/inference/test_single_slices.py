"""Arrays, pictures and slices in memory are scored by a loaded model."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

import cspine
from cspine.core.errors import ImageError, InputError, RecipeError
from cspine.core.types import Slice
from cspine.models.checkpoint import write_checkpoint
from cspine.models.classifier import build_classifier
from cspine.models.header import Calibration, CheckpointHeader, ModelSpec
from cspine.preprocess import Equalise, Recipe, Resize

PIXELS = np.random.default_rng(3).integers(0, 256, (5, 40, 40), dtype=np.uint8)


def write_model(path: Path, seed: int = 1) -> Path:
    spec = ModelSpec(name="small", backbone="test_resnet")
    recipe = Recipe(steps=(Equalise(), Resize(height_px=32, width_px=32)))
    header = CheckpointHeader(
        spec=spec, recipe=recipe, calibration=Calibration(slope=2.0), manifest_hash="m", weights="none"
    )
    write_checkpoint(path, build_classifier(spec, recipe.scale, seed=seed).eval(), header)
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_model(tmp_path / "a.safetensors")


def test_arrays_slices_and_pictures_score_alike(path: Path, tmp_path: Path) -> None:
    model = cspine.load(path)
    found = model.predict_proba(PIXELS)
    assert found.shape == (5, 2)
    np.testing.assert_allclose(found.sum(axis=1), 1)
    logits = model.predictors[0].predict_slices([Slice(one, "display8", "s") for one in PIXELS])
    np.testing.assert_allclose(found[:, 1], 1 / (1 + np.exp(-2 * logits)), rtol=1e-12)
    files = [tmp_path / f"{number}.png" for number in range(5)]
    for file, pixels in zip(files, PIXELS, strict=True):
        cv2.imwrite(str(file), pixels)
    np.testing.assert_array_equal(model.predict_proba(files), found)
    for one in (PIXELS[0], files[0], [Slice(PIXELS[0], "display8", "s")]):
        np.testing.assert_allclose(model.predict_proba(one), found[:1], atol=1e-6)


def test_several_models_answer_by_the_mean_of_their_logits(path: Path, tmp_path: Path) -> None:
    other = write_model(tmp_path / "b.safetensors", seed=2)
    alone = [cspine.load(one).predict_proba(PIXELS)[:, 1] for one in (path, other)]
    mean = np.mean([np.log(prob / (1 - prob)) for prob in alone], axis=0)
    found = cspine.load(path, other).predict_proba(PIXELS)[:, 1]
    np.testing.assert_allclose(found, 1 / (1 + np.exp(-mean)), rtol=1e-9)


def test_what_is_no_slice_is_refused(path: Path, tmp_path: Path) -> None:
    model = cspine.load(path)
    with pytest.raises(InputError, match="uint8 or int16"):
        model.predict_proba(PIXELS / 255)
    with pytest.raises(RecipeError):
        model.predict_proba(PIXELS.astype(np.int16))
    (tmp_path / "no.png").write_text("no picture")
    with pytest.raises(ImageError):
        model.predict_proba(tmp_path / "no.png")
