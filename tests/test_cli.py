"""The command line as a user meets it, on real files; in a process of its own where that may matter."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import polars as pl
import pytest

import cspine
from cspine.core.predictions import read_predictions
from cspine.metrics.scores import METRICS
from cspine.phantom.dataset import write_phantom
from cspine.phantom.patient import PhantomSettings
from cspine.report.report import read_results
from tests.commands import Finished, run_apart, run_here

HEAVY = (
    "torch", "timm", "torchvision", "lightning_fabric", "onnxruntime", "openvino", "polars", "numpy", "cv2", "PIL",
    "scipy", "sklearn", "matplotlib", "pydicom", "nibabel", "jinja2",
    "cspine.core.files", "cspine.cli.screen", "cspine.experiment",
)  # fmt: skip
"""What no help needs; the time of `cspine --help` is the import of the rest."""

EXPERIMENT = """\
# A test.
name = "tiny"
title = "Tiny"
seed = 3
[splits]
selection = "val"
reported = "test"
[preprocess]
image_size_px = 32
[training]
epochs = 2
batch_size = 16
[evaluation]
draws = 60
[robustness]
corruptions = ["noise", "blur"]
severities = [1, 5]
draws = 40
[explanations]
max_slices = 2
[models.small]
backbone = "test_resnet"
weights = "none"
[models.other]
backbone = "test_efficientnet"
head = "dense_sigmoid"
weights = "none"
"""


def assert_refused(result: Finished, *words: str) -> None:
    assert result.returncode == 2, result.stdout + result.stderr
    assert "Traceback" not in result.stderr
    for word in words:
        assert word in result.stderr


@pytest.fixture(scope="module")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    settings = PhantomSettings(patients=14, slices_per_patient=6, size_px=48, field_of_view_mm=90, seed=2)
    return write_phantom(tmp_path_factory.mktemp("data") / "phantom", settings, workers=1)


@pytest.fixture(scope="module")
def compared(phantom: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compared")
    (folder / "tiny.toml").write_text(EXPERIMENT)
    result = run_here("compare", "tiny.toml", "--set", f"data.root={phantom}", "-o", "run", cwd=folder)
    assert result.returncode == 0, result.stderr
    assert "report.html" in result.stdout
    return folder


@pytest.mark.parametrize(
    "command",
    [
        "",
        "demo",
        "import",
        "contact-sheet",
        "phantom",
        "train",
        "predict",
        "fit-studies",
        "evaluate",
        "compare",
        "claims",
        "card",
        "info",
    ],
)
def test_help_names_an_example_and_loads_nothing_heavy(command: str, tmp_path: Path) -> None:
    code = (
        "import sys; from cspine.cli import main\n"
        f"try: main({[*command.split(), '--help']!r})\n"
        "except SystemExit as stop: code = stop.code\n"
        "assert code == 0, code\n"
        f"heavy = {set(HEAVY)!r} & set(sys.modules); assert not heavy, heavy\n"
        f"if not {command!r}: assert 'pydantic' not in sys.modules  # Typer's, for the options of a command"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 0, result.stderr
    assert "Example: cspine" in result.stdout


def test_the_version_is_that_of_the_package() -> None:
    result = run_here("--version")
    assert (result.returncode, result.stdout) == (0, f"cspine {cspine.__version__}\n")


@pytest.mark.parametrize("arguments", [["info"], ["info", "models"]])
def test_info_loads_no_torch(arguments: list[str], tmp_path: Path) -> None:
    code = (
        "import sys; from cspine.cli import main\n"
        f"try: main({arguments!r})\n"
        "except SystemExit as stop: assert stop.code == 0\n"
        "assert 'torch' not in sys.modules and 'timm' not in sys.modules"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 0, result.stderr
    assert ("2,226,434" in result.stdout) == ("models" in arguments)


def test_compare_reports_every_metric_of_every_model(compared: Path) -> None:
    results = read_results(compared / "run")
    assert [model.name for model in results.models] == ["small", "other"]
    for model in results.models:
        assert set(model.evaluation.metrics) == set(METRICS)
        assert model.evaluation.positive_class == "fracture"
        assert model.evaluation.unit == "patient"
        assert len(model.history) == 2
    names = {baseline.name for baseline in results.baselines}
    assert {"nearest neighbour", "logistic regression", "mean intensity", "file metadata"} <= names
    assert results.verdict in ("sound", "limited", "not evidence")
    assert results.audit is not None
    written = {path.relative_to(compared / "run").as_posix() for path in (compared / "run").rglob("*.*")}
    assert written >= {"audit.json", "audit.html", "checklists.html", "checklists.md"}
    assert written >= {
        f"models/{model}/card.{kind}" for model in ("small", "other") for kind in ("md", "html")
    }
    card = (compared / "run/models/small/card.md").read_text()
    assert "Input: one slice of 32×32 px." in card
    assert "Random rotation up to 15.0 degrees" in card
    assert {(p.model, p.corruption, p.severity) for p in results.robustness} == {
        (model, kind, severity)
        for model in ("small", "other")
        for kind in ("noise", "blur")
        for severity in (0, 1, 5)
    }
    page = (compared / "run/report.html").read_text()
    assert "small" in page
    assert "Not for clinical use" in page


def test_a_used_folder_is_refused_and_resume_moves_no_number(compared: Path, phantom: Path) -> None:
    before = json.loads((compared / "run/results.json").read_text())
    arguments = ["compare", "tiny.toml", "--set", f"data.root={phantom}", "-o", "run"]
    assert_refused(run_here(*arguments, cwd=compared), "not empty", "--resume")
    assert run_apart(*arguments, "--resume", cwd=compared).returncode == 0
    after = json.loads((compared / "run/results.json").read_text())
    before.pop("run"), after.pop("run")
    assert before == after


def test_resume_with_other_settings_is_refused(compared: Path, phantom: Path) -> None:
    other = ["--set", "training.learning_rate=0.5", "--set", f"data.root={phantom}"]
    result = run_here("compare", "tiny.toml", *other, "-o", "run", "--resume", cwd=compared)
    assert_refused(result, "other settings")


def test_a_refusal_in_a_process_of_its_own_is_one_message(tmp_path: Path) -> None:
    assert_refused(run_apart("compare", "missing.toml", "-o", "r", cwd=tmp_path), "missing.toml")


def test_predict_and_evaluate_repeat_the_comparison(compared: Path, phantom: Path) -> None:
    checkpoint = str(compared / "run/models/small/checkpoint.safetensors")
    result = run_here(
        "predict", str(phantom), "-c", checkpoint, "--split", "test", "-o", "p.parquet", cwd=compared
    )
    assert result.returncode == 0, result.stderr
    mine = read_predictions(compared / "p.parquet")
    theirs = read_predictions(compared / "run/models/small/predictions-test.parquet")
    assert mine["slice_id"].equals(theirs["slice_id"])
    np.testing.assert_allclose(mine["logit"], theirs["logit"], atol=1e-5)

    arguments = ["evaluate", "p.parquet", "--draws", "60", "--seed", "3", "-o", "m.json"]
    result = run_here(*arguments, cwd=compared)
    assert result.returncode == 0, result.stderr
    assert "positive class: fracture" in result.stdout
    found = json.loads((compared / "m.json").read_text())[0]["metrics"]["auroc"]["value"]
    wanted = read_results(compared / "run").models[0].evaluation.metrics["auroc"].value
    assert found == pytest.approx(wanted, abs=1e-9)


def test_train_can_be_interrupted_and_resumed(compared: Path, phantom: Path) -> None:
    arguments = ["train", "tiny.toml", "-m", "small", "--set", f"data.root={phantom}", "-o", "one"]
    assert run_here(*arguments, cwd=compared).returncode == 0
    assert (compared / "one/checkpoint.safetensors").exists()
    assert pl.read_parquet(compared / "one/history.parquet").height == 2
    assert_refused(run_here(*arguments, cwd=compared), "--resume")
    assert run_here(*arguments, "--resume", cwd=compared).returncode == 0


def test_contact_sheet_is_one_picture_with_a_row_a_slice(compared: Path, phantom: Path) -> None:
    result = run_here(
        "contact-sheet",
        "tiny.toml",
        "--set",
        f"data.root={phantom}",
        "--count",
        "3",
        "-o",
        "s.png",
        cwd=compared,
    )
    assert result.returncode == 0, result.stderr
    sheet = cv2.imread(str(compared / "s.png"))
    assert sheet is not None
    assert sheet.shape[1] > sheet.shape[0] > 300


def test_a_contact_sheet_of_corruptions_has_a_row_each(compared: Path, phantom: Path) -> None:
    arguments = [
        "contact-sheet",
        "tiny.toml",
        "--corruptions",
        "--set",
        f"data.root={phantom}",
        "-o",
        "c.png",
    ]
    kinds = 'robustness.corruptions=["noise","thickness","jpeg"]'
    result = run_here(*arguments, "--set", kinds, cwd=compared)
    assert result.returncode == 0, result.stderr
    assert "not applicable: thickness" in result.stdout
    sheet = cv2.imread(str(compared / "c.png"))
    assert sheet is not None
    assert sheet.shape[:2] == (2 * (22 + 160 + 30), 6 * 168 + 8)


def test_a_contact_sheet_of_another_kind_than_png_is_refused(compared: Path) -> None:
    assert_refused(run_here("contact-sheet", "tiny.toml", "-o", "sheet.jpg", cwd=compared), "ends in .png")
    assert not (compared / "sheet.jpg").exists()


def test_import_prints_counts_and_json(phantom: Path, tmp_path: Path) -> None:
    result = run_apart("import", str(phantom), "-o", "m.parquet", "--json", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["slices"] == pl.read_parquet(tmp_path / "m.parquet").height == 84
    assert "84 slices" in run_here("import", str(phantom), "-o", "m.parquet", cwd=tmp_path).stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["import", "missing"], ["missing"]),
        (["compare", "missing.toml", "-o", "r"], ["missing.toml"]),
        (["compare", "bad.toml", "-o", "r"], ["not TOML"]),
        (["compare", "tiny.toml", "-o", "r"], ["data.root"]),
        (
            ["compare", "tiny.toml", "--set", "training.epohcs=3", "-o", "r"],
            ["training.epohcs", "unknown key"],
        ),
        (["compare", "tiny.toml", "--set", "nonsense", "-o", "r"], ["no override"]),
        (["train", "tiny.toml", "-m", "vgg", "-o", "r"], ["vgg", "small"]),
        (["predict", ".", "-c", "missing.safetensors"], ["no such checkpoint"]),
        (["predict", ".", "-c", "zero.safetensors"], ["damaged"]),
        (["evaluate", "missing.parquet"], ["missing.parquet"]),
        (["evaluate", "zero.safetensors"], ["zero.safetensors"]),
        (["phantom", "p", "--patients", "1"], ["patients"]),
        (["compare", "tiny.toml", "--unknown", "-o", "r"], ["--unknown"]),
        (["evaluate", "missing.parquet", "--draws", "1000000000000"], ["draws"]),
        (["import", "tiny.toml", "-o", "tiny.toml"], ["replace its own source"]),
    ],
)
def test_bad_input_is_one_message_and_leaves_nothing(
    arguments: list[str], words: list[str], tmp_path: Path
) -> None:
    (tmp_path / "tiny.toml").write_text(EXPERIMENT)
    (tmp_path / "bad.toml").write_text("name = ")
    (tmp_path / "zero.safetensors").touch()
    before = sorted(tmp_path.rglob("*"))
    assert_refused(run_here(*arguments, cwd=tmp_path), *words)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("models.other.weights=missing.safetensors", ["no such weights file", "models.other"]),
        ("models.other.backbone=resnet49", ["no architecture", "models.other"]),
        ('robustness.corruptions=["nosie"]', ["nosie"]),
        ("robustness.severities=[9]", ["severity 9"]),
        ("robustness.severities=[1,1]", ["named twice"]),
        ("evaluation.unit=foo", ["foo"]),
        ("evaluation.level=0.999", ["draws"]),
        ("splits.group_by=foo", ["splits.group_by"]),
        ("splits.reported=train", ["learned from"]),
        ("splits.selection=train", ["learned from"]),
    ],
)
def test_late_failures_are_refused_before_the_first_epoch(
    phantom: Path, tmp_path: Path, setting: str, words: list[str]
) -> None:
    (tmp_path / "tiny.toml").write_text(EXPERIMENT)
    result = run_here(
        "compare", "tiny.toml", "--set", f"data.root={phantom}", "--set", setting, "-o", "r", cwd=tmp_path
    )
    assert_refused(result, *words)
    assert not (tmp_path / "r").exists()


def test_a_refused_run_leaves_the_record_of_the_finished_one(compared: Path, phantom: Path) -> None:
    files = [compared / "run" / name for name in ("manifest.parquet", "experiment.json", "results.json")]
    before = [path.read_bytes() for path in files]
    other = ["--set", "seed=9", "--set", f"data.root={phantom}"]
    assert_refused(
        run_here("compare", "tiny.toml", *other, "-o", "run", "--resume", cwd=compared), "other settings"
    )
    assert [path.read_bytes() for path in files] == before


def test_the_demo_deletes_nothing_that_it_did_not_make(compared: Path, tmp_path: Path) -> None:
    shutil.copytree(compared / "run", tmp_path / "d" / "run")
    for arguments in (["demo", "-o", "d"], ["demo", "-o", "d", "--fresh"]):
        assert_refused(run_here(*arguments, cwd=tmp_path), "did not make")
    assert (tmp_path / "d/run/report.html").exists()


def test_unreadable_files_are_reported_and_said_by_predict(
    compared: Path, phantom: Path, tmp_path: Path
) -> None:
    data = shutil.copytree(phantom, tmp_path / "data")
    broken = sorted((data / "test/fracture").iterdir())[0]
    broken.write_bytes(b"")
    (tmp_path / "tiny.toml").write_text(EXPERIMENT)
    result = run_here("compare", "tiny.toml", "--set", "data.root=data", "-o", "run", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    found = read_results(tmp_path / "run").findings or ()
    (unreadable,) = (one for one in found if one.code == "unreadable")
    assert "1 image could not be read and is left out" in unreadable.text
    assert broken.name in unreadable.text
    checkpoint = str(compared / "run/models/small/checkpoint.safetensors")
    result = run_here("predict", "data", "-c", checkpoint, "-o", "p.parquet", cwd=tmp_path)
    assert broken.name in result.stdout
    assert "train split" in run_here("evaluate", "p.parquet", "--draws", "60", cwd=tmp_path).stderr


def test_an_interrupted_comparison_says_how_to_go_on(phantom: Path, tmp_path: Path) -> None:
    (tmp_path / "tiny.toml").write_text(EXPERIMENT)
    long = ["--set", "training.epochs=900", "--set", f"data.root={phantom}"]
    process = subprocess.Popen(
        [sys.executable, "-m", "cspine", "compare", "tiny.toml", *long, "-o", "r"],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    state = tmp_path / "r/models/small/state.pt"
    deadline = time.monotonic() + 120
    while not state.exists() and time.monotonic() < deadline:
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "--resume" in errors
    assert "Traceback" not in errors
