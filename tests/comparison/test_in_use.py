"""A comparison's thresholds and calibrations: from the selection split, cached, stored beside the checkpoint."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cspine.comparison.compare import run_comparison
from cspine.comparison.prepare import prepare_data
from cspine.comparison.studies import CALIBRATED_FILE, check_use
from cspine.core.errors import ExperimentError
from cspine.core.predictions import read_predictions
from cspine.core.progress import Silent
from cspine.data.manifest import read_manifest
from cspine.experiment import Experiment
from cspine.inference.predictor import Predictor, label_logits
from cspine.metrics.calibration import choose_operating_point, fit_calibration
from cspine.metrics.intervals import IntervalOptions
from cspine.models.header import Calibration, read_header
from cspine.phantom.dataset import write_phantom
from cspine.phantom.patient import PhantomSettings
from cspine.report.report import read_results


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    settings = PhantomSettings(patients=14, slices_per_patient=6, size_px=48, field_of_view_mm=90, seed=2)
    return write_phantom(tmp_path_factory.mktemp("data") / "phantom", settings, workers=1)


def make_experiment(data: Path, splits: dict[str, str], **evaluation: Any) -> Experiment:
    return Experiment.model_validate(
        {
            "name": "tiny",
            "title": "Tiny",
            "seed": 3,
            "data": {"root": str(data)},
            "splits": splits,
            "preprocess": {"image_size_px": 32},
            "training": {"epochs": 1, "batch_size": 16},
            "evaluation": {"draws": 60, "audit": False, "baselines": False, **evaluation},
            "robustness": {"enabled": False},
            "models": {"small": {"backbone": "test_resnet", "weights": "none"}},
        }
    )


@pytest.fixture(scope="module")
def experiment(data: Path) -> Experiment:
    return make_experiment(data, {"selection": "val", "reported": "test"}, store_calibration=True)


@pytest.fixture(scope="module")
def run(experiment: Experiment, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    run_comparison(experiment, folder)
    return folder


def test_points_and_fits_come_from_selection_predictions(run: Path) -> None:
    (use,) = read_results(run).in_use
    selection = read_predictions(run / "models/small/predictions-val.parquet")
    assert (use.model, use.fitted_on, use.split) == ("small", "val", "test")
    assert use.points[0].point == choose_operating_point(selection, options=IntervalOptions(draws=60, seed=3))
    assert use.find_state("platt").fit == fit_calibration(selection, "platt")
    (size,) = read_results(run).sizes
    assert (size.unit, [one.metric for one in size.metrics]) == ("patient", ["accuracy", "auroc"])


def test_the_main_table_stays_uncalibrated(run: Path) -> None:
    (model,) = read_results(run).models
    reported = read_predictions(run / "models/small/predictions-test.parquet")
    truth, prob = reported["y_true"].to_numpy(), reported["prob"].to_numpy()
    assert model.evaluation.threshold == 0.5
    assert model.evaluation.metrics["brier"].value == pytest.approx(np.mean((prob - truth) ** 2))


def test_the_stored_calibration_changes_no_call(run: Path) -> None:
    (use,) = read_results(run).in_use
    folder = run / "models/small"
    header, fit = read_header(folder / CALIBRATED_FILE), use.find_state("platt").fit
    assert fit is not None
    assert header.calibration == Calibration(slope=fit.slope, intercept=fit.intercept)
    assert header.threshold == use.points[0].calibrated_threshold
    assert read_header(folder / "checkpoint.safetensors").calibration == Calibration()

    before = read_predictions(folder / "predictions-test.parquet")
    manifest = read_manifest(run / "manifest.parquet").select("test")
    predictor = Predictor.load(folder / CALIBRATED_FILE)
    logits = predictor.predict_slices([manifest.read_slice(name) for name in manifest.slice_ids])
    after = label_logits(manifest.table, manifest.slice_ids, logits, predictor, manifest)
    np.testing.assert_allclose(after["logit"], before["logit"], atol=1e-5)
    wanted = 1 / (1 + np.exp(-(fit.slope * before["logit"].to_numpy() + fit.intercept)))
    np.testing.assert_allclose(after["prob"], wanted, atol=1e-6)
    called = (after["prob"] >= header.threshold).to_list()
    assert called == (before["prob"] >= use.points[0].point.threshold).to_list()


def test_a_run_without_an_audit_has_a_verdict_that_says_so(run: Path) -> None:
    results = read_results(run)
    assert results.audit is None
    assert results.verdict == "limited"
    assert "not-audited" in {finding.code for finding in results.findings or ()}
    for page in ("report.html", "tables.md"):
        text = (run / page).read_text(encoding="utf-8")
        verdict = text.index("Verdict: limited")
        assert "The data were not audited." in text[verdict : verdict + 300]
    assert not (run / "audit.json").exists()


def test_resume_finds_every_prediction_valid_and_the_same_fits(run: Path, experiment: Experiment) -> None:
    files = sorted((run / "models/small").glob("*.parquet"))
    assert {"predictions-val.parquet", "predictions-test.parquet"} <= {path.name for path in files}
    before = [path.stat().st_mtime_ns for path in files], read_results(run).in_use
    stored = (run / "models/small" / CALIBRATED_FILE).read_bytes()
    run_comparison(experiment, run, resume=True)
    assert ([path.stat().st_mtime_ns for path in files], read_results(run).in_use) == before
    assert (run / "models/small" / CALIBRATED_FILE).read_bytes() == stored


def test_nothing_is_fitted_on_the_reported_split(data: Path, tmp_path: Path) -> None:
    run_comparison(make_experiment(data, {"selection": "val", "reported": "val"}), tmp_path / "run")
    (use,) = read_results(tmp_path / "run").in_use
    assert (use.fitted_on, use.points, use.used) == (None, (), None)
    page = (tmp_path / "run/report.html").read_text(encoding="utf-8")
    assert "would be fitted on the answers" in page


def test_a_carved_split_is_fitted_on(data: Path, tmp_path: Path) -> None:
    """Train and val only, as the paper has them: a part of train becomes val, and what was val is reported as test."""
    for split in ("train", "val"):
        shutil.copytree(data / split, tmp_path / "set" / split)
    run_comparison(make_experiment(tmp_path / "set", {"selection": "carve"}), tmp_path / "run")
    (use,) = read_results(tmp_path / "run").in_use
    assert (use.fitted_on, use.split, use.used, len(use.points)) == ("val", "test", "platt", 3)


def test_a_calibration_without_a_split_is_refused_early(data: Path) -> None:
    experiment = make_experiment(data, {"selection": "val", "reported": "val"}, store_calibration=True)
    with pytest.raises(ExperimentError, match="no calibration to store"):
        check_use(experiment, prepare_data(experiment, Silent()))


def test_no_point_keeps_the_threshold_of_the_comparison(data: Path, run: Path, tmp_path: Path) -> None:
    splits = {"selection": "val", "reported": "test"}
    experiment = make_experiment(data, splits, operating_points=[], store_calibration=True, threshold=0.4)
    run_comparison(experiment, tmp_path / "run")
    (use,) = read_results(tmp_path / "run").in_use
    fit = use.find_state(use.used).fit
    assert fit is not None
    assert use.predictive.threshold == 0.4
    moved = 1 / (1 + np.exp(-(fit.slope * np.log(0.4 / 0.6) + fit.intercept)))
    stored = read_header(tmp_path / "run/models/small" / CALIBRATED_FILE)
    assert stored.threshold == pytest.approx(moved)
