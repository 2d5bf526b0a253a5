"""Corrupted predictions: made once, read again, made anew where anything that they depend on has changed."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from cspine.comparison.compare import run_comparison
from cspine.comparison.prepare import prepare_data
from cspine.comparison.robustness import (
    CorruptedRun,
    assess_robustness,
    choose_robustness_slices,
    make_corruptor,
    predict_corrupted,
)
from cspine.core.predictions import read_predictions
from cspine.core.progress import Silent
from cspine.experiment import Experiment
from cspine.inference.predictor import Predictor
from cspine.metrics.intervals import IntervalOptions
from cspine.phantom.dataset import write_phantom
from cspine.phantom.patient import PhantomSettings
from cspine.report.report import read_results


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    settings = PhantomSettings(patients=14, slices_per_patient=6, size_px=48, field_of_view_mm=90, seed=2)
    return write_phantom(tmp_path_factory.mktemp("data") / "phantom", settings, workers=1)


def make_experiment(data: Path, **robustness: Any) -> Experiment:
    settings = {
        "corruptions": ["ring", "thickness", "jpeg"],
        "severities": [1, 5],
        "draws": 60,
        "max_slices": 12,
    }
    return Experiment.model_validate(
        {
            "name": "tiny",
            "title": "Tiny",
            "seed": robustness.pop("seed", 3),
            "data": {"root": str(data)},
            "splits": {"selection": "val", "reported": "test"},
            "preprocess": {"image_size_px": 32},
            "training": {"epochs": 1, "batch_size": 16},
            "evaluation": {"draws": 60, "audit": False, "baselines": False},
            "robustness": {**settings, **robustness},
            "models": {"small": {"backbone": "test_resnet", "weights": "none"}},
        }
    )


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    run_comparison(make_experiment(data), folder)
    return folder


class Counting(Predictor):
    """A predictor that says how often it was asked."""

    asked = 0

    def predict_pixels(self, *arguments: Any, **options: Any) -> np.ndarray:
        self.asked += 1
        return super().predict_pixels(*arguments, **options)


def predict(run: Path, experiment: Experiment) -> tuple[int, CorruptedRun]:
    """Predict the points in the folder of a run; how often a model was asked, and what came out."""
    predictor = Counting.load(run / "models/small/checkpoint.safetensors")
    prepared = prepare_data(experiment, Silent())
    clean = {"small": read_predictions(run / "models/small/predictions-test.parquet")}
    found = predict_corrupted(experiment, prepared, {"small": predictor}, clean, run / "robustness", Silent())
    assert found is not None
    assert isinstance(predictor, Counting)
    return predictor.asked, found


def test_a_second_run_reads_what_the_first_one_made(run: Path, data: Path) -> None:
    asked, found = predict(run, make_experiment(data))
    assert asked == 0
    first = read_results(run)
    points, details = assess_robustness(make_experiment(data), found, IntervalOptions(seed=3))
    assert points == first.robustness
    assert details == first.robustness_details


def test_what_has_changed_is_made_anew_and_the_rest_is_read(run: Path, data: Path) -> None:
    assert predict(run, make_experiment(data, corruptions=["ring", "window"]))[0] == 2  # the window's two
    assert predict(run, make_experiment(data, severities=[1, 2]))[0] == 2  # severity 2 of rings and JPEG
    for changes in (
        {"seed": 4},
        {"max_slices": 10},
        {"window": {"width_hu": 2000.0}},
        {"field_of_view_mm": 90},
    ):
        assert predict(run, make_experiment(data, corruptions=["ring"], **changes))[0] == 2


def test_what_a_set_cannot_show_is_left_out_with_the_reason(run: Path) -> None:
    results = read_results(run)
    assert {point.corruption for point in results.robustness} == {"ring", "jpeg"}
    assert results.robustness_details is not None
    assert list(results.robustness_details.not_applicable) == ["thickness"]
    assert "no neighbour within 5 mm" in results.robustness_details.not_applicable["thickness"]
    assert [strip.corruption for strip in results.robustness_details.strips] == ["ring", "jpeg"]
    assert (results.robustness_details.slices, results.robustness_details.errors is None) == (12, False)
    assert "no neighbour within 5 mm" in (run / "robustness.html").read_text()


def test_thicker_slices_are_made_of_a_dense_series(data: Path, tmp_path: Path) -> None:
    shutil.copytree(data, tmp_path / "set")
    rows = pl.read_csv(data / "labels.csv")
    first = rows.filter(pl.col("split") == "test")["series_uid"][0]
    inside = pl.col("series_uid") == first
    moved = pl.when(inside).then(pl.int_range(pl.len()).over("series_uid").cast(pl.Float64))
    rows.with_columns(
        position=moved.otherwise("position"),
    ).write_csv(tmp_path / "set/labels.csv")
    experiment = make_experiment(tmp_path / "set")
    prepared = prepare_data(experiment, Silent())
    table = prepared.table("test").filter(pl.col("series_uid") == first).sort("position")
    ids = table["slice_id"].to_list()
    corruptor = make_corruptor(experiment.robustness, prepared.manifest, ids, 0)
    assert corruptor.explain_missing(["thickness"]) == {}
    read = [np.asarray(prepared.manifest.read_slice(one).pixels, float) for one in ids[1:4]]
    thick = corruptor.read(ids[2], "thickness", 1).pixels
    assert np.abs(thick - np.mean(read, axis=0)).max() <= 0.5 + 1e-3


def test_a_part_of_the_split_keeps_both_classes(data: Path) -> None:
    experiment = make_experiment(data, max_slices=2)
    prepared = prepare_data(experiment, Silent())
    table = choose_robustness_slices(experiment.robustness, prepared, 0)
    assert sorted(table["label"].to_list()) == [0, 1]
