"""Training speed measured on a small drawn set: what is measured, and that each way trains the same network."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from cspine.bench.results import Rates, format_spread
from cspine.bench.training import PlainTraining, _Case, measure_training, take_slices
from cspine.bench.training_results import CEILING, PIPELINE, PLAIN, TrainingSpeed
from cspine.cli.app import main
from cspine.comparison.prepare import prepare_data
from cspine.core.errors import InputError
from cspine.core.progress import Silent
from cspine.experiment import Experiment
from cspine.models.weights import load_weights
from cspine.phantom.dataset import write_phantom
from cspine.phantom.patient import PhantomSettings

BATCHES, SIZE = 3, 4


@pytest.fixture(autouse=True)
def no_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers forked from a test process of xdist under coverage exit with 1 when they are done."""
    monkeypatch.setattr("cspine.bench.training.WORKERS", 0)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bench") / "phantom"
    write_phantom(
        folder, PhantomSettings(patients=12, slices_per_patient=6, size_px=32, field_of_view_mm=64.0, seed=2)
    )
    return folder


def make_experiment(root: Path) -> Experiment:
    return Experiment.model_validate(
        {
            "name": "t",
            "title": "T",
            "seed": 3,
            "data": {"root": str(root)},
            "preprocess": {"image_size_px": 32},
            "training": {"epochs": 9, "batch_size": SIZE},
            "models": {"small": {"backbone": "test_resnet", "weights": "none"}},
        }
    )


def test_every_way_is_measured_once_a_repeat_and_the_accuracies_stand_beside(root: Path) -> None:
    measured = measure_training(make_experiment(root), batches=BATCHES, repeats=2, epochs=1, command="c")
    (speed,) = measured.models
    assert {way: len(rates.slices_per_s) for way, rates in speed.rates.items()} == {
        CEILING: 2,
        PIPELINE: 2,
        PLAIN: 2,
    }
    assert all(rate > 0 for rates in speed.rates.values() for rate in rates.slices_per_s)
    selection = len(prepare_data(make_experiment(root), Silent()).table("val"))
    assert {way: (value.method, value.n) for way, value in speed.accuracy.items()} == {
        PIPELINE: ("Wilson", selection),
        PLAIN: ("Wilson", selection),
    }


def test_a_ratio_is_taken_within_its_repeat() -> None:
    rates = {PIPELINE: (9.0, 90.0), CEILING: (10.0, 100.0), PLAIN: (3.0, 45.0)}
    speed = TrainingSpeed(
        model="m",
        precision="fp32",
        why="",
        rates={way: Rates(slices_per_s=rate) for way, rate in rates.items()},
    )
    assert speed.ratios(CEILING) == pytest.approx((0.9, 0.9))
    assert speed.ratios(PLAIN) == pytest.approx((3.0, 2.0))
    assert format_spread(speed.ratios(PLAIN)) == "2.5 (2 to 3)"


def test_the_slices_are_half_of_each_class_and_the_other_splits_stay(root: Path) -> None:
    prepared = prepare_data(make_experiment(root), Silent())
    few = take_slices(prepared, 7)
    assert sorted(few.table(few.train)["label"]) == [0, 0, 0, 1, 1, 1, 1]
    assert few.table(few.selection).equals(prepared.table(prepared.selection))


def test_more_batches_than_slices_are_refused_with_the_counts(root: Path) -> None:
    with pytest.raises(InputError, match="normal and fracture slices of the 4000 that are needed"):
        measure_training(make_experiment(root), batches=1000, repeats=1)


def test_the_plain_way_reads_every_slice_with_its_own_class(root: Path, tmp_path: Path) -> None:
    experiment = make_experiment(root)
    prepared = prepare_data(experiment, Silent())
    loaded = load_weights("none", experiment.find_spec("small"))
    plain = PlainTraining(_Case(experiment, "small", loaded, prepared, tmp_path / "small"))
    batches = plain.load(prepared.train, augment=False)
    classes = torch.cat([classes for _, classes in batches])
    labels = prepared.table(prepared.train)["label"].to_list()
    assert plain.fracture_class == 0  # by name, fracture before normal
    assert int((classes == plain.fracture_class).sum()) == sum(labels)
    assert plain.count_right(batches)[1] == len(labels)


def test_the_command_prints_a_table_and_writes_what_it_measured(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "e.toml"
    lines = ['name = "t"', 'title = "T"', "[preprocess]", "image_size_px = 32", "[models.small]"]
    path.write_text("\n".join([*lines, 'backbone = "test_resnet"', 'weights = "none"', ""]))
    output = tmp_path / "train.json"
    arguments = ["bench", "train", str(path), "--set", f"data.root={root}", "--set", "training.batch_size=4"]
    with pytest.raises(SystemExit) as stop:
        main([*arguments, "--batches", "3", "--repeats", "1", "-o", str(output)])
    assert stop.value.code == 0
    assert "| small | fp32, 4 |" in capsys.readouterr().out
    written = json.loads(output.read_text())
    assert written["batches"] == 3
    assert set(written["models"][0]["rates"]) == {CEILING, PIPELINE, PLAIN}


def test_a_spread_of_thousands_is_written_without_an_exponent():
    assert format_spread([910.2, 1170.4, 999.7]) == "1,000 (910 to 1,170)"
    assert format_spread([0.00753]) == "0.00753 (0.00753 to 0.00753)"
