"""A score belongs to its slice: no order, batch or way in changes it."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from cspine.core.errors import CheckpointError, ManifestError, RecipeError
from cspine.core.types import Slice
from cspine.data.cache import SliceCache
from cspine.inference.engines import Scores
from cspine.inference.predictor import Predictor
from cspine.models.checkpoint import Checkpoint, write_checkpoint
from cspine.models.classifier import FractureClassifier, build_classifier
from cspine.models.header import Calibration, CheckpointHeader, ModelSpec
from cspine.preprocess import Equalise, Recipe, Resize

SPEC = ModelSpec(name="small", backbone="test_resnet")
HEADER = CheckpointHeader(
    spec=SPEC,
    recipe=Recipe(steps=(Equalise(), Resize(height_px=32, width_px=32))),
    manifest_hash="m",
    weights="none",
)
COUNT = 11


@pytest.fixture(scope="module")
def model() -> FractureClassifier:
    return build_classifier(SPEC, HEADER.recipe.scale, seed=1)


@pytest.fixture(scope="module")
def slices() -> list[Slice]:
    rng = np.random.default_rng(0)
    return [
        Slice(rng.integers(0, 256, (40, 36), dtype=np.uint8), "display8", f"s{n:02}") for n in range(COUNT)
    ]


@pytest.fixture(scope="module")
def pixels(slices: list[Slice]) -> npt.NDArray[np.uint8]:
    return np.stack([HEADER.recipe.apply(item) for item in slices])


def make(model: FractureClassifier, header: CheckpointHeader = HEADER, **options: Any) -> Predictor:
    return Predictor(Checkpoint(model, header, "h"), device="cpu", **options)


def near(logits: npt.NDArray[np.float64]) -> Any:
    return pytest.approx(logits, abs=1e-5)


def test_the_order_of_slices_does_not_matter(
    model: FractureClassifier, pixels: npt.NDArray[np.uint8]
) -> None:
    predictor = make(model, batch_size=4)
    logits = predictor.predict_pixels(pixels)
    order = np.random.default_rng(3).permutation(COUNT)
    assert predictor.predict_pixels(pixels[order]) == near(logits[order])
    assert predictor.predict_pixels(pixels[::-1]) == near(logits[::-1])
    assert len(np.unique(logits.round(6))) == COUNT


@pytest.mark.parametrize("batch_size", [1, 3, 11, 64])
def test_the_batch_size_does_not_matter(
    model: FractureClassifier, pixels: npt.NDArray[np.uint8], batch_size: int
) -> None:
    wanted = make(model, batch_size=4).predict_pixels(pixels)
    assert make(model, batch_size=batch_size).predict_pixels(pixels) == near(wanted)


def test_raw_slices_go_through_the_recipe(
    model: FractureClassifier, slices: list[Slice], pixels: npt.NDArray[np.uint8]
) -> None:
    predictor = make(model)
    logits = predictor.predict_slices(slices)
    assert logits.dtype == np.float64
    assert np.array_equal(logits, predictor.predict_pixels(pixels))


def test_cached_slices_are_found_by_id(model: FractureClassifier, pixels: npt.NDArray[np.uint8]) -> None:
    predictor = make(model, batch_size=3)
    cache = SliceCache(pixels, tuple(f"s{number:02}" for number in range(COUNT)), Path())
    asked = ["s07", "s00", "s10", "s03"]
    wanted = predictor.predict_pixels(pixels)[[7, 0, 10, 3]]
    heard: list[int] = []
    assert predictor.predict_cached(cache, asked, heard.append) == near(wanted)
    assert heard == [3, 1]
    with pytest.raises(ManifestError):
        predictor.predict_cached(cache, ["s99"])


def test_nothing_in_is_nothing_out(model: FractureClassifier) -> None:
    assert make(model).predict_slices([]).shape == (0,)
    assert make(model).predict_pixels(np.empty((0, 32, 32), dtype=np.uint8)).shape == (0,)


@pytest.mark.parametrize(
    "pixels",
    [
        np.zeros((2, 32, 31), dtype=np.uint8),
        np.zeros((2, 16, 16), dtype=np.uint8),
        np.zeros((32, 32), dtype=np.uint8),
        np.zeros((2, 32, 32), dtype=np.float32),
    ],
)
def test_pixels_of_another_size_or_type_are_refused(model: FractureClassifier, pixels: Any) -> None:
    with pytest.raises(CheckpointError, match=r"recipe makes \(32, 32\) uint8"):
        make(model).predict_pixels(pixels)


def test_a_slice_in_hounsfield_units_is_refused(model: FractureClassifier) -> None:
    with pytest.raises(RecipeError):
        make(model).predict_slices([Slice(np.zeros((32, 32), dtype=np.int16), "hu", "s")])


def test_calibration_is_slope_times_logit_plus_intercept(
    model: FractureClassifier, pixels: npt.NDArray[np.uint8]
) -> None:
    header = HEADER.model_copy(update={"calibration": Calibration(slope=2.0, intercept=-1.0)})
    predictor = make(model, header)
    logits = predictor.predict_pixels(pixels)
    assert np.array_equal(logits, make(model).predict_pixels(pixels))
    wanted = 1 / (1 + np.exp(-(2 * logits - 1)))
    assert predictor.find_probabilities(logits) == pytest.approx(wanted, abs=1e-12)


def test_the_checkpoints_precision_is_the_default(
    model: FractureClassifier, pixels: npt.NDArray[np.uint8]
) -> None:
    plain = make(model).predict_pixels(pixels)
    header = HEADER.model_copy(update={"precision": "bf16"})
    half = make(model, header).predict_pixels(pixels)
    assert not np.array_equal(half, plain)
    assert half == pytest.approx(plain, abs=0.1)
    assert np.array_equal(make(model, header, precision="fp32").predict_pixels(pixels), plain)


def test_a_predictor_loads_from_a_file_with_its_hash(
    model: FractureClassifier, pixels: npt.NDArray[np.uint8], tmp_path: Path
) -> None:
    digest = write_checkpoint(tmp_path / "c.safetensors", model, HEADER)
    predictor = Predictor.load(tmp_path / "c.safetensors", device="cpu")
    assert predictor.checkpoint_hash == digest
    assert predictor.recipe == HEADER.recipe
    assert predictor.count_parameters() == sum(parameter.numel() for parameter in model.parameters())
    assert predictor.predict_pixels(pixels) == near(make(model).predict_pixels(pixels))


def test_prediction_is_in_evaluation_mode_and_keeps_no_gradient(
    model: FractureClassifier, pixels: npt.NDArray[np.uint8]
) -> None:
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    make(model).predict_pixels(pixels)
    assert not model.training
    assert all(value.equal(before[name]) for name, value in model.state_dict().items())


def test_scoring_lets_the_features_of_a_batch_go_before_the_next(
    model: FractureClassifier, slices: list[Slice]
) -> None:
    """Of 100,000 slices they would take half a gigabyte, and nobody asked for them."""

    class Counting:
        name, about, features, batch_size = "torch", "counts what is kept", 4, 2

        def __init__(self) -> None:
            self.given: list[weakref.ref[npt.NDArray[np.float32]]] = []
            self.most_alive = 0

        def run(self, batches: Iterable[npt.NDArray[np.uint8]]) -> Iterator[Scores]:
            for batch in batches:
                features = np.ones((len(batch), 4), np.float32)
                self.given.append(weakref.ref(features))
                self.most_alive = max(self.most_alive, sum(one() is not None for one in self.given))
                yield Scores(batch.mean(axis=(1, 2)), features)

    runtime = Counting()
    predictor = make(model, runtime=runtime, batch_size=2)
    scored = predictor.score_read(COUNT, slices.__getitem__)
    assert len(runtime.given) == 6
    assert runtime.most_alive <= 3
    logits, features = predictor.predict_read(COUNT, slices.__getitem__)
    assert np.array_equal(scored, logits)
    assert features.shape == (COUNT, 4)
