"""Maps of all models of a comparison: when they are made, on which slices, and what stands in their place."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from cspine.comparison import explaining
from cspine.comparison.explaining import check_explanations, explain_models, find_ground
from cspine.comparison.prepare import PreparedData, prepare_data
from cspine.core.errors import CspineError, MissingExtraError
from cspine.core.progress import Silent
from cspine.experiment import Experiment
from cspine.inference.predictor import Predictor
from cspine.metrics.intervals import IntervalOptions
from cspine.models.checkpoint import Checkpoint
from cspine.models.classifier import build_classifier
from cspine.models.header import CheckpointHeader
from cspine.phantom.dataset import write_phantom
from cspine.phantom.patient import PhantomSettings

OPTIONS = IntervalOptions(60, 1)


def make_experiment(root: Path, **explanations: object) -> Experiment:
    return Experiment.model_validate(
        {
            "name": "t",
            "title": "T",
            "data": {"root": str(root)},
            "splits": {"selection": "val", "reported": "test"},
            "preprocess": {"image_size_px": 32, "equalise": {"method": "none"}},
            "explanations": {"max_slices": 3, **explanations},
            "models": {
                "a": {"backbone": "test_resnet", "weights": "none"},
                "b": {"backbone": "test_convnext", "weights": "none"},
            },
        }
    )


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("explaining") / "set"
    settings = PhantomSettings(
        patients=16, slices_per_patient=4, fracture_fraction=0.9, size_px=32, field_of_view_mm=70.0, seed=2
    )
    write_phantom(root, settings, workers=1)
    return root


@pytest.fixture(scope="module")
def prepared(drawn: Path) -> PreparedData:
    return prepare_data(make_experiment(drawn), Silent())


def make_predictors(experiment: Experiment) -> dict[str, Predictor]:
    made = {}
    for name in experiment.models:
        spec = experiment.find_spec(name)
        recipe = experiment.make_recipe(experiment.preprocess.make_recipe(_scale()).scale)
        model = build_classifier(spec, recipe.scale, seed=1).eval()
        header = CheckpointHeader(spec=spec, recipe=recipe, manifest_hash="m", weights="none")
        made[name] = Predictor(Checkpoint(model, header, "h"), device="cpu")
    return made


def _scale() -> Any:
    from cspine.preprocess import Scale

    return Scale()


def run(experiment: Experiment, prepared: PreparedData, folder: Path | None = None) -> Any:
    with tempfile.TemporaryDirectory() as place:
        return explain_models(
            experiment, prepared, make_predictors(experiment), OPTIONS, folder or Path(place), Silent()
        )


def test_all_models_are_explained_on_the_same_fractures(drawn: Path, prepared: PreparedData) -> None:
    found, notes = run(make_experiment(drawn), prepared)
    assert notes == ()
    assert [one.model for one in found] == ["a", "b"]
    shown = [[sample.slice_id for sample in one.samples] for one in found]
    assert shown[0] == shown[1]
    table = prepared.manifest.table.filter(pl.col("slice_id").is_in(shown[0]))
    assert table["label"].to_list() == [1, 1, 1]
    assert set(table["split"]) == {"test"}
    assert all(one.pointing.slices == 3 and one.pointing.masks == 3 for one in found)
    assert all([step.part for step in one.sanity.steps] == ["the head", "all weights"] for one in found)


def test_explanations_are_kept_for_a_resumed_run(
    drawn: Path, prepared: PreparedData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, _ = run(make_experiment(drawn), prepared, tmp_path)
    with monkeypatch.context() as context:
        context.delattr(explaining, "explain_set")
        assert run(make_experiment(drawn), prepared, tmp_path)[0] == first
    kept = sorted(tmp_path.rglob("explanation-*.json"))
    assert len(kept) == 2
    kept[0].write_text("damaged")
    assert [one.model for one in run(make_experiment(drawn), prepared, tmp_path)[0]] == ["a", "b"]


def test_nothing_is_explained_unasked_or_without_places(drawn: Path, prepared: PreparedData) -> None:
    assert run(make_experiment(drawn, enabled=False), prepared) == ((), ())
    bare = prepared.manifest.with_table(
        prepared.manifest.table.with_columns(mask_path=pl.lit(None, pl.String))
    )
    without = PreparedData(bare, prepared.report, "train", "val", "test")
    assert run(make_experiment(drawn), without) == ((), ())
    asked, _ = run(make_experiment(drawn, enabled=True), without)
    assert [one.pointing for one in asked] == [None, None]


def test_captum_is_needed_only_where_maps_are_asked_for(
    drawn: Path, prepared: PreparedData, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(explaining, "find_spec", lambda name: None)
    check_explanations(make_experiment(drawn))
    assert run(make_experiment(drawn), prepared) == ((), ())
    with pytest.raises(MissingExtraError):
        check_explanations(make_experiment(drawn, enabled=True))


def test_an_unreadable_mask_costs_only_the_maps(drawn: Path, prepared: PreparedData) -> None:
    table = prepared.manifest.table
    gone = prepared.manifest.with_table(
        table.with_columns(mask_path=pl.when(pl.col("mask_path").is_not_null()).then(pl.lit("gone.png")))
    )
    damaged = PreparedData(gone, prepared.report, "train", "val", "test")
    found, notes = run(make_experiment(drawn), damaged)
    assert found == ()
    assert [note.text for note in notes] == ["No maps of a: no such file.", "No maps of b: no such file."]
    with pytest.raises(CspineError, match="no such file"):
        run(make_experiment(drawn, enabled=True), damaged)


def test_chance_spreads_over_the_body_that_the_network_sees(prepared: PreparedData) -> None:
    predictor = make_predictors(make_experiment(prepared.manifest.root))["a"]
    item = prepared.manifest.read_row(0)
    ground = find_ground(item, predictor.recipe.locate(item))
    assert ground.shape == item.pixels.shape
    assert (item.pixels[ground] > 10).all()
