"""`cspine card` on the folder of a finished run, in a process that must not load torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from cspine.comparison.describe import complete_results
from cspine.core.files import compute_hash
from cspine.models.checkpoint import write_checkpoint
from cspine.models.classifier import build_classifier
from cspine.models.header import CheckpointHeader, ModelSpec
from cspine.preprocess import Recipe, Resize
from cspine.report.results import ComparisonResults
from tests.report.builders import make_results

LIGHTLY = (
    "import sys\n"
    "from cspine.cli import main\n"
    "try: main(sys.argv[1:])\n"
    "except SystemExit as stop: code = stop.code\n"
    "heavy = {'torch', 'timm', 'torchvision', 'lightning_fabric'} & set(sys.modules); assert not heavy, heavy\n"
    "sys.exit(code)"
)
SETTINGS = {"augment": {"enabled": False}}


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", LIGHTLY, "card", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def old_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run as an earlier version left it: results without findings, checkpoints or settings, which lie beside them."""
    folder = tmp_path_factory.mktemp("old") / "run"
    recipe = Recipe(steps=(Resize(height_px=32, width_px=40),))
    header = CheckpointHeader(
        spec=ModelSpec(name="small", backbone="test_resnet"),
        recipe=recipe,
        manifest_hash="m",
        weights="none",
        training={"class_weights": "none", "optimizer": "adam"},
    )
    path = folder / "models/MobileNetV2/checkpoint.safetensors"
    path.parent.mkdir(parents=True)
    found = write_checkpoint(path, build_classifier(header.spec, recipe.scale, seed=0), header)
    made = make_results()
    models = (made.models[0].model_copy(update={"checkpoint_hash": found}), *made.models[1:])
    run = made.run.model_copy(update={"hashes": {"experiment": compute_hash(SETTINGS)}})
    old = made.model_copy(update={"models": models, "run": run}).model_dump(mode="json")
    del old["findings"], old["run"]["settings"]
    for model in old["models"]:
        del model["checkpoint"]
    (folder / "results.json").write_text(json.dumps(old))
    (folder / "experiment.json").write_text(json.dumps(SETTINGS))
    return folder


def test_documents_elsewhere_leave_the_run_alone(old_run: Path, tmp_path: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in old_run.rglob("*")}
    result = run(old_run, "-o", tmp_path / "out")
    assert result.returncode == 0, result.stderr
    files = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.*")}
    names = ("MobileNetV2", "ResNet50", "ConvNeXt-Tiny")
    cards = {f"models/{name}/card.{kind}" for name in names for kind in ("md", "html")}
    assert files == {*cards, "checklists.md", "checklists.html"}
    assert result.stdout.split() == [
        str(tmp_path / "out" / name) for name in sorted(files, key=result.stdout.index)
    ]
    assert {path: path.stat().st_mtime_ns for path in old_run.rglob("*")} == before
    card = (tmp_path / "out/models/MobileNetV2/card.md").read_text(encoding="utf-8")
    assert "32×40 px" in card
    assert "No augmentation." in card
    assert "Nothing was done (no class weights, no resampling)." in card
    assert "see the experiment file" in (tmp_path / "out/models/ResNet50/card.md").read_text(encoding="utf-8")
    assert "report.html" not in (tmp_path / "out/checklists.html").read_text(encoding="utf-8")


def read(folder: Path) -> ComparisonResults:
    return ComparisonResults.model_validate_json((folder / "results.json").read_text())


def test_foreign_checkpoints_and_experiments_are_not_taken(old_run: Path) -> None:
    results = read(old_run)
    full = complete_results(results, old_run)
    assert full.models[0].checkpoint is not None
    assert full.run.settings == SETTINGS
    other = results.models[0].model_copy(update={"checkpoint_hash": "another"})
    run = results.run.model_copy(update={"hashes": {"experiment": "another"}})
    found = complete_results(results.model_copy(update={"models": (other,), "run": run}), old_run)
    assert found.models[0].checkpoint is None
    assert found.run.settings is None


@pytest.mark.parametrize(
    ("content", "words"),
    [(None, "no finished run"), ("{", "not the results of a comparison"), ("gone", "no such folder")],
)
def test_a_folder_that_is_no_run_is_one_message_and_exit_2(
    tmp_path: Path, content: str | None, words: str
) -> None:
    folder = tmp_path / "folder"
    if content != "gone":
        folder.mkdir()
    if content == "{":
        (folder / "results.json").write_text(content)
    result = run(folder, "-o", tmp_path / "out")
    assert result.returncode == 2
    assert words in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "out").exists()
