"""Experiment files: what they may say, what is said about mistakes, and `--set`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from cspine.core.errors import ExperimentError, InputError
from cspine.experiment import AugmentSettings, Experiment, PreprocessSettings, read_experiment
from cspine.metrics.clinical import DEFAULT_CALIBRATION, DEFAULT_RULES
from cspine.models.header import HeadKind
from cspine.preprocess import Equalise, Scale, Window

EXPERIMENTS = Path(__file__).parents[1] / "experiments"
SHIPPED = sorted(set(EXPERIMENTS.glob("*.toml")) - set(EXPERIMENTS.glob("claims-*.toml")))

SMALL = """
name = "small"
title = "A small one"
[training]
epochs = 3
[models.resnet50]
weights = "none"
[models.mine]
backbone = "test_resnet"
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "small.toml"
    path.write_text(SMALL)
    return path


def refuse(path: Path, addition: str = "", *overrides: str) -> str:
    path.write_text(SMALL + addition)
    with pytest.raises(InputError) as caught:
        read_experiment(path, overrides)
    text = str(caught.value)
    assert "pydantic.dev" not in text
    assert caught.value.where
    return text


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_experiment_validates(path: Path) -> None:
    experiment = read_experiment(path)
    assert experiment.name == path.stem
    for name in experiment.models:
        experiment.find_training(name)
        experiment.make_recipe(Scale())


def test_the_paper_experiment_is_the_papers() -> None:
    experiment = read_experiment(next(path for path in SHIPPED if path.stem == "paper"))
    assert list(experiment.models) == ["mobilenetv2", "resnet50", "convnext_tiny"]
    assert experiment.preprocess.equalise.method == "global"
    assert experiment.preprocess.image_size_px == 224
    assert (experiment.training.optimizer, experiment.training.schedule) == ("adam", "plateau")


@pytest.mark.parametrize(
    ("addition", "key"),
    [
        ("[trainig]\nepochs = 1", "trainig"),
        ("[splits]\nvalidation = 'val'", "splits.validation"),
        ("[preprocess.window]\nwidth = 3", "preprocess.window.width"),
        ("[models.b]\nweigths = 'none'", "models.b.weigths"),
        ("[models.b.training]\nepoch = 3", "models.b.training.epoch"),
    ],
)
def test_an_unknown_key_is_named(path: Path, addition: str, key: str) -> None:
    assert f"{key}: unknown key" in refuse(path, addition)


@pytest.mark.parametrize(
    ("addition", "key"),
    [
        ("[models.b.training]\nepochs = 0", "models.b.training.epochs"),
        ('[models."b c"]', "models.name"),
        ("[augment]\nscale_min = 2.0", "scale_min is above scale_max"),
        ("[preprocess.window]\ncenter_hu = nan", "preprocess.window.center_hu"),
        ("[evaluation]\noperating_points = [{rule = 'best'}]", "evaluation.operating_points.0.rule"),
        ("[evaluation]\noperating_points = [{rule = 'youden', target = 0.9}]", "youden has no target"),
        ("[evaluation]\noperating_points = [{rule = 'fpr'}]", "sensitivity and fpr need one"),
        ("[evaluation]\noperating_points = [{rule = 'youden'}, {rule = 'youden'}]", "names a rule twice"),
        ("[evaluation]\ncalibration = 'isotonic'", "evaluation.calibration"),
        ("[training]\n", "not TOML"),
    ],
)
def test_a_bad_value_is_named(path: Path, addition: str, key: str) -> None:
    assert key in refuse(path, addition)


def test_a_bad_override_of_a_model_is_an_experiment_error(path: Path) -> None:
    with pytest.raises(ExperimentError, match=r"models\.mine\.training\.epoch: unknown key"):
        read_experiment(path, ["models.mine.training.epoch=3"])


def test_a_backbone_with_a_tag_is_refused_with_the_way_to_say_it(path: Path) -> None:
    text = refuse(path, "[models.b]\nbackbone = 'resnet50.a1_in1k'")
    assert "models.b.backbone" in text
    assert 'weights = "timm:resnet50.a1_in1k"' in text


@pytest.mark.parametrize(
    ("override", "find", "wanted"),
    [
        ("training.epochs=7", lambda e: e.training.epochs, 7),
        ("training.learning_rate = 2e-4", lambda e: e.training.learning_rate, 2e-4),
        ("augment.enabled=false", lambda e: e.augment.enabled, False),
        ("models.resnet50.weights=pretrained", lambda e: e.models["resnet50"].weights, "pretrained"),
        ('models.mine.weights="none"', lambda e: e.models["mine"].weights, "none"),
        ("models.mine.weights=../w/a.safetensors", lambda e: e.models["mine"].weights, "../w/a.safetensors"),
        ("models.mine.training.epochs=2", lambda e: e.find_training("mine").epochs, 2),
        ("models.mine.head=dense_sigmoid", lambda e: e.find_spec("mine").head, HeadKind.DENSE_SIGMOID),
        ("models.new.backbone=test_convnext", lambda e: e.find_spec("new").backbone, "test_convnext"),
        ("data.root=/data/a b=c", lambda e: e.data.root, "/data/a b=c"),
        ("data.root=", lambda e: e.data.root, ""),
        ("title=Another one", lambda e: e.title, "Another one"),
        ("preprocess.equalise.method=clahe", lambda e: e.preprocess.equalise, Equalise(method="clahe")),
        ("preprocess.window={width_hu=90}", lambda e: e.preprocess.window, Window(width_hu=90)),
        ("robustness.severities=[1, 3]", lambda e: e.robustness.severities, (1, 3)),
    ],
)
def test_set_overrides_any_field(path: Path, override: str, find: Any, wanted: Any) -> None:
    found = find(read_experiment(path, [override]))
    assert found == wanted
    assert type(found) is type(wanted)


def test_the_defaults_of_the_evaluation_are_those_of_its_library(path: Path) -> None:
    settings = read_experiment(path).evaluation
    assert tuple((point.rule, point.target) for point in settings.operating_points) == DEFAULT_RULES
    assert settings.calibration == DEFAULT_CALIBRATION


def test_overrides_apply_in_order(path: Path) -> None:
    assert read_experiment(path, ["training.epochs=7", "training.epochs=8"]).training.epochs == 8


@pytest.mark.parametrize("override", ["training.epochs", "=3", "training..epochs=3", "name.sub=3"])
def test_a_bad_override_is_refused(path: Path, override: str) -> None:
    assert "--set" in refuse(path, "", override)


@pytest.mark.parametrize("override", ["training.epoch=3", "training.epochs=many", "training=3", "seed=-1"])
def test_an_override_that_does_not_validate_names_its_key(path: Path, override: str) -> None:
    assert override.split("=")[0] in refuse(path, "", override)


def test_a_missing_or_binary_file_is_an_experiment_error(tmp_path: Path) -> None:
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    for name in ("missing.toml", ".", "binary.toml"):
        with pytest.raises(ExperimentError) as caught:
            read_experiment(tmp_path / name)
        assert caught.value.where == str(tmp_path / name)


def test_an_experiment_needs_a_model(tmp_path: Path) -> None:
    path = tmp_path / "e.toml"
    path.write_text('name = "a"\ntitle = "b"\n[models]')
    with pytest.raises(ExperimentError, match="models"):
        read_experiment(path)


def test_a_models_settings_override_the_common_ones(path: Path) -> None:
    path.write_text(SMALL + "training = { batch_size = 4, precision = 'bf16' }\n")
    experiment = read_experiment(path, ["training.optimizer=sgd"])
    mine, other = experiment.find_training("mine"), experiment.find_training("resnet50")
    assert (mine.epochs, mine.batch_size, mine.precision, mine.optimizer) == (3, 4, "bf16", "sgd")
    assert (other.epochs, other.batch_size, other.precision, other.optimizer) == (3, 16, "fp32", "sgd")


def test_the_zoo_fills_in_what_a_model_leaves_out(path: Path) -> None:
    experiment = read_experiment(path, ["models.convnext_tiny={}"])
    assert experiment.find_spec("convnext_tiny").head is HeadKind.DENSE_SIGMOID
    assert experiment.find_spec("resnet50").backbone == "resnet50"
    assert experiment.find_spec("mine").head is HeadKind.SOFTMAX


def test_the_recipe_takes_the_scaling_of_the_weights(path: Path) -> None:
    scale = Scale(mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.2))
    window = "preprocess.window={center_hu=40}"
    recipe = read_experiment(path, [window, "preprocess.image_size_px=48"]).make_recipe(scale)
    assert recipe.scale == scale
    assert recipe.size_px == (48, 48)
    assert recipe.domain == "hu"
    assert read_experiment(path, ["preprocess.scale=unit"]).make_recipe(scale).scale == Scale()


def test_settings_are_frozen_and_ranges_ordered(path: Path) -> None:
    with pytest.raises(ValidationError, match="frozen"):
        read_experiment(path).seed = 3  # type: ignore[misc]
    with pytest.raises(ValidationError, match="above"):
        AugmentSettings(scale_min=1.2, scale_max=1.1)
    assert PreprocessSettings().scale == "auto"
    assert Experiment.model_config["extra"] == "forbid"
