"""Comparisons over several divisions, on a set whose published split leaks: every series has pictures of its own."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import polars as pl
import pytest

from cspine.comparison.compare import run_comparison
from cspine.comparison.cross_validation import count_copied, describe_scheme, pool_predictions
from cspine.comparison.prepare import Plan, plan_divisions
from cspine.core.errors import ExperimentError, InputError
from cspine.core.progress import Silent
from cspine.experiment import Experiment, read_experiment
from cspine.report.report import read_results
from cspine.report.results import ComparisonResults
from tests.metrics.builders import make_table

SERIES, SLICES = 3, 16


@pytest.fixture(scope="module")
def memorised(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """In each of three series every class has one random picture, shown again and again with noise; train and val share
    them. What a network learns there, it knows by heart. The fractures of a series look most like the normal slices of
    the series before it, so that what was learned misleads on a series that was left out, whatever the machine."""
    root = tmp_path_factory.mktemp("memorised")
    rng = np.random.default_rng(5)
    rows = []
    shared = rng.uniform(0, 255, (SERIES, 4, 4))
    for series in range(SERIES):
        for label in ("fracture", "normal"):
            other = shared[(series + (label == "normal")) % SERIES]
            own = 0.6 * other + 0.4 * rng.uniform(0, 255, (4, 4))
            picture = cv2.resize(own, (32, 32), interpolation=cv2.INTER_NEAREST)
            for number in range(SLICES):
                path = f"{series}-{label}-{number}.png"
                noisy = np.clip(picture + rng.normal(0, 12, (32, 32)), 0, 255).astype(np.uint8)
                cv2.imwrite(str(root / path), noisy)
                split = "val" if number < 5 else "train"
                rows.append({"path": path, "label": label, "series_uid": f"secret-{series}", "split": split})
    pl.DataFrame(rows).write_csv(root / "labels.csv")
    return root


def make_experiment(root: Path, *, epochs: int = 25, **folds: object) -> Experiment:
    return Experiment.model_validate(
        {
            "name": "t",
            "title": "T",
            "seed": 3,
            "data": {"root": str(root / "labels.csv")},
            "splits": {"selection": "val", "reported": "val"},
            "preprocess": {"image_size_px": 32, "equalise": {"method": "none"}},
            "augment": {"enabled": False},
            "training": {"epochs": epochs, "batch_size": 8, "learning_rate": 3e-3, "schedule": "constant"},
            "evaluation": {"draws": 100, "folds": {"by": "series_uid", **folds}},
            "robustness": {"enabled": False},
            "samples": 1,
            "models": {"small": {"backbone": "test_resnet", "weights": "none"}},
        }
    )


def plan(root: Path, **folds: object) -> Plan:
    return plan_divisions(make_experiment(root, **folds), Silent())


@pytest.fixture(scope="module")
def beside(memorised: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("beside") / "run"
    run_comparison(make_experiment(memorised, scheme="leave-one-out"), folder)
    return folder


def find_auroc(results: ComparisonResults) -> tuple[float, float]:
    """Of the model on the given split, and over the folds."""
    assert results.folded is not None
    assert results.folded.beside is not None
    values = [
        one.metrics["auroc"].value for one in (results.models[0].evaluation, results.folded.beside.models[0])
    ]
    assert None not in values
    return values[0] or 0.0, values[1] or 0.0


def test_memorised_series_fall_when_they_are_left_out(beside: Path) -> None:
    results = read_results(beside)
    given, folded = find_auroc(results)
    assert given > 0.95
    assert folded < 0.5
    assert results.verdict == "not evidence"
    assert results.findings is not None
    first = results.findings[0]
    assert first.code == "falls-on-unseen-groups"
    assert first.text.startswith("The val split flatters small: its ")


def test_the_record_says_where_the_time_went(beside: Path) -> None:
    run = read_results(beside).run
    assert {"Reading slices", "Preprocessing", "Training small", "Evaluating"} <= set(run.stages_s)
    assert 0 < sum(run.stages_s.values()) <= run.wall_s + 0.1 * len(run.stages_s)
    assert "Where the time went" in (beside / "report.html").read_text()


def test_the_report_shows_both_splits_side_by_side(beside: Path) -> None:
    html, tables = (beside / "report.html").read_text(), (beside / "tables.md").read_text()
    for text in (html, tables):
        assert "Leave one series out" in text
        assert "Given split (val)" in text
        assert "leave-out-3" in text


def test_each_fold_says_what_it_learned_from_and_held_out(beside: Path) -> None:
    folded = read_results(beside).folded
    assert folded is not None
    assert [(fold.held_out_slices, fold.positives, fold.larger_class) for fold in folded.folds] == [
        (2 * SLICES, SLICES, 0.5)
    ] * SERIES
    assert all(fold.train_slices + fold.selection_slices == 4 * SLICES for fold in folded.folds)
    assert folded.seeds == ()


def test_no_group_is_named_for_it_may_be_a_patient(beside: Path) -> None:
    assert "secret-" not in json.dumps(read_results(beside).model_dump(mode="json")["folded"])


def test_going_on_with_a_finished_run_changes_no_number(beside: Path, memorised: Path) -> None:
    before = read_results(beside)
    run_comparison(make_experiment(memorised, scheme="leave-one-out"), beside, resume=True)
    after = read_results(beside)
    assert after.folded == before.folded
    assert after.models == before.models


def test_another_seed_does_not_go_on_with_the_folds_of_this_one(beside: Path, memorised: Path) -> None:
    other = make_experiment(memorised, scheme="leave-one-out").model_copy(update={"seed": 4})
    with pytest.raises(InputError):
        run_comparison(other, beside, resume=True)


def test_folds_alone_pool_every_slice_once(memorised: Path, tmp_path: Path) -> None:
    run_comparison(
        make_experiment(memorised, epochs=1, scheme="kfold", folds=3, given=False, repeats=2), tmp_path
    )
    results = read_results(tmp_path)
    evaluation = results.models[0].evaluation
    assert (evaluation.slices, evaluation.positives) == (SERIES * SLICES * 2, SERIES * SLICES)
    assert results.reported_split == "3 folds of whole series, 2 seeds"
    assert results.folded is not None
    assert results.folded.beside is None
    (seeds,) = results.folded.seeds
    assert seeds.seeds == 2
    auroc = next(one for one in seeds.metrics if one.metric == "auroc")
    assert auroc.values[0] == pytest.approx(evaluation.metrics["auroc"].value)
    assert any("the tables pool them" in note.text for note in results.notes)
    assert "Between seeds (sd)" in (tmp_path / "report.html").read_text()


def test_the_given_split_repeated_gives_a_spread_of_seeds(memorised: Path, tmp_path: Path) -> None:
    run_comparison(make_experiment(memorised, epochs=1, scheme="given", repeats=2), tmp_path)
    results = read_results(tmp_path)
    assert results.folded is not None
    assert results.folded.beside is None
    (seeds,) = results.folded.seeds
    (first,) = (one for one in seeds.metrics if one.metric == "auroc")
    assert first.values[0] == pytest.approx(results.models[0].evaluation.metrics["auroc"].value)
    assert sorted(path.name for path in (tmp_path / "folds").iterdir()) == ["seed4"]


@pytest.mark.parametrize(
    ("folds", "words", "count"),
    [
        ({"scheme": "leave-one-out"}, "leave one series out", 3),
        ({"scheme": "kfold", "folds": 2}, "2 folds of whole series", 2),
        ({"scheme": "holdout", "test_fraction": 0.3, "by": "slice_id"}, "whole slices held out", 1),
        ({"scheme": "leave-one-out", "repeats": 2}, "leave one series out, 2 seeds", 6),
        ({"scheme": "given", "repeats": 3}, "the set's own splits, 3 seeds", 3),
    ],
)
def test_a_scheme_is_said_in_words(memorised: Path, folds: dict[str, object], words: str, count: int) -> None:
    planned = plan(memorised, **folds)
    assert describe_scheme(planned, str(folds["scheme"])) == words
    assert len(planned.divisions) == count


def test_no_series_is_on_two_sides_of_a_fold(memorised: Path) -> None:
    for division in plan(memorised, scheme="leave-one-out").divisions:
        series = {
            split: set(division.prepared.table(split)["series_uid"]) for split in ("train", "val", "test")
        }
        assert not series["test"] & (series["train"] | series["val"])


def test_a_set_without_splits_is_not_reported_on_any(memorised: Path, tmp_path: Path) -> None:
    root = shutil.copytree(memorised, tmp_path / "set")
    pl.read_csv(root / "labels.csv").drop("split").write_csv(root / "labels.csv")
    planned = plan(root, scheme="leave-one-out")
    assert not planned.given
    assert planned.main is planned.divisions[0]


def test_more_folds_than_groups_are_refused_with_the_counts(memorised: Path) -> None:
    with pytest.raises(InputError, match="3 series cannot be divided into 4 folds"):
        plan(memorised, scheme="kfold", folds=4)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("evaluation.folds.scheme=given", "set repeats to 2 or more"),
        ("evaluation.folds={scheme='given', repeats=2, given=false}", "exclude each other"),
        ("evaluation.folds.scheme=some", "folds.scheme"),
        ("evaluation.folds.fold=3", "unknown key"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(override: str, words: str) -> None:
    path = Path(__file__).parents[2] / "experiments" / "demo.toml"
    with pytest.raises(ExperimentError, match=words):
        read_experiment(path, [override])


def test_pooled_predictions_name_their_checkpoints_by_one_hash() -> None:
    y = np.array([0, 1])
    first = make_table(y, np.array([-1.0, 1.0]), np.array([0, 1]))
    second = first.with_columns(
        slice_id=pl.col("slice_id") + "x", checkpoint_hash=pl.lit("other"), manifest_hash=pl.lit("m2")
    )
    pooled = pool_predictions([first, second], "m")
    assert pooled.height == 4
    assert pooled["checkpoint_hash"].n_unique() == 1
    assert pooled["checkpoint_hash"][0] not in ("other", first["checkpoint_hash"][0])
    assert set(pooled["manifest_hash"]) == {"m"}
    assert pool_predictions([first], "m")["checkpoint_hash"][0] == first["checkpoint_hash"][0]


def test_copies_on_both_sides_of_a_fold_are_counted(memorised: Path) -> None:
    division = plan(memorised, scheme="leave-one-out").divisions[0]
    held_out = division.prepared.table("test")["path"].to_list()
    learned = division.prepared.table("train")["path"].to_list()
    families = [[held_out[0], held_out[1], learned[0]], [held_out[2], held_out[3]], [learned[1], learned[2]]]
    assert count_copied(division, families) == 2
    assert count_copied(division, []) == 0
