"""`cspine audit` as a user runs it: exit codes, the JSON, the page, the repaired manifest."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import polars as pl
import pytest

from cspine.auditing.findings import AuditResult
from cspine.core.files import write_json, write_text
from cspine.data.layouts import import_dataset
from cspine.data.manifest import write_manifest
from cspine.experiment import Experiment
from tests.auditing.sets import make_phantom
from tests.commands import Finished, run_here
from tests.report.builders import make_results, make_uses

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_phantom(tmp_path_factory.mktemp("command") / "phantom", patients=20)


def run(*arguments: object) -> Finished:
    return run_here("audit", *arguments)


def leak(folder: Path) -> str:
    """Put a copy of a test slice into train; returns its path."""
    labels = pl.read_csv(folder / "labels.csv", infer_schema=False)
    row = labels.filter(pl.col("split") == "test").row(0, named=True)
    shutil.copy(folder / row["path"], folder / "leak.png")
    row |= {"path": "leak.png", "split": "train", "mask_path": None}
    if "slice_id" in row:
        row["slice_id"] = "leak"
    extra = pl.DataFrame({name: [row[name]] for name in labels.columns}, schema=labels.schema)
    pl.concat([labels, extra]).write_csv(folder / "labels.csv")
    return str(row["path"])


def test_a_sound_set_exits_0_and_the_json_keeps_its_schema(phantom: Path) -> None:
    result = run(phantom, "--json")
    assert result.returncode == 0, result.stderr
    found = AuditResult.model_validate_json(result.stdout)
    assert found.verdict in ("sound", "limited")
    assert json.loads(result.stdout)["changes"] is None


def test_the_documented_schema_is_that_of_what_is_printed() -> None:
    documented = json.loads((DOCS / "audit.schema.json").read_text(encoding="utf-8"))
    assert documented == AuditResult.model_json_schema(mode="serialization"), (
        "write docs/audit.schema.json again"
    )
    page = (DOCS / "audit.md").read_text(encoding="utf-8")
    for key in documented["properties"]:
        assert f"| `{key}` |" in page


def test_a_leak_exits_1_shows_both_copies_and_is_repaired(phantom: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(phantom, tmp_path / "set"))
    leaked = leak(folder)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    page, fixed = tmp_path / "audit.html", tmp_path / "fixed.parquet"
    result = run(folder, "-o", page, "--fix", fixed)
    assert result.returncode == 1, result.stderr
    assert "copies-across-splits" in result.stdout
    assert f"dropped {leaked}" in " ".join(result.stdout.split())
    html = page.read_text(encoding="utf-8")
    assert leaked in html
    assert "http://" not in html
    assert "https://" not in html
    changes = pl.read_csv(tmp_path / "fixed.changes.csv")
    assert changes.filter(pl.col("path") == "leak.png")["change"].to_list() == ["dropped"]
    assert {path.name for path in tmp_path.iterdir()} == {
        "set",
        "audit.html",
        "fixed.parquet",
        "fixed.changes.csv",
    }
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    again = run(fixed, "--json", "--fix", tmp_path / "again.parquet")
    assert again.returncode == 0
    assert json.loads(again.stdout)["changes"] == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("nowhere",), "nowhere"),
        (("{set}", "-o", "page.pdf"), "ends in .html"),
        (("{set}/labels.csv", "--fix", "{set}/labels.csv"), "would replace its own source"),
        (("{set}", "--json", "--fix", "{set}/fixed.csv"), "ends in .parquet"),
    ],
)
def test_bad_input_is_one_message_and_exit_2(
    phantom: Path, arguments: tuple[str, ...], words: str, tmp_path: Path
) -> None:
    result = run(*(text.format(set=phantom) for text in arguments))
    assert result.returncode == 2
    assert words in " ".join(result.stderr.split())
    assert "Traceback" not in result.stderr
    assert result.stdout == ""


def make_run(folder: Path, phantom: Path, **changes: object) -> Path:
    """A finished run on the phantom, as `cspine compare` leaves one."""
    write_json(folder / "results.json", make_results().model_copy(update=changes).model_dump(mode="json"))
    write_manifest(import_dataset(phantom)[0], folder / "manifest.parquet")
    models = {"a": {"backbone": "resnet18", "weights": "none"}}
    experiment = Experiment.model_validate({"name": "t", "title": "T", "models": models})
    write_text(folder / "experiment.json", experiment.model_dump_json())
    return folder


def list_selection(folder: Path) -> list[tuple[str, object]]:
    result = run(folder, "--json")
    assert result.returncode in (0, 1), result.stderr
    findings = json.loads(result.stdout)["findings"]
    codes = ("selection-on-reported", "several-runs")
    return [(one["code"], one["evidence"].get("chosen")) for one in findings if one["code"] in codes]


def test_choices_on_the_reported_split_are_read_from_the_run(phantom: Path, tmp_path: Path) -> None:
    watched = ["early stopping", "the learning rate's schedule", "the choice of the best epoch"]
    leaking = make_run(tmp_path / "leaking", phantom, selection_split="val", reported_split="val")
    assert list_selection(leaking) == [("selection-on-reported", watched)]
    sound = make_run(tmp_path / "sound", phantom, selection_split="val", reported_split="test")
    assert list_selection(sound) == []


def test_thresholds_fitted_on_the_reported_split_are_found(phantom: Path, tmp_path: Path) -> None:
    results = make_results()
    uses, _ = make_uses(("MobileNetV2",), fitted=True)
    leak = [
        one.model_copy(update={"point": one.point.model_copy(update={"split": "test"})})
        for one in uses[0].points
    ]
    folder = make_run(
        tmp_path / "run",
        phantom,
        selection_split="val",
        reported_split="test",
        in_use=(uses[0].model_copy(update={"points": tuple(leak)}),),
        models=(results.models[0], results.models[0].model_copy(update={"name": "again"})),
    )
    assert list_selection(folder) == [
        ("selection-on-reported", ["the threshold of MobileNetV2"]),
        ("several-runs", None),
    ]


def test_a_run_of_folds_is_audited_by_its_first_splits(phantom: Path, tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", phantom, selection_split="val", reported_split="leave one series out")
    result = run(folder, "--json")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["effective_n"]["reported_split"] == "test"


def test_a_run_whose_experiment_is_none_is_one_message(phantom: Path, tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", phantom)
    (folder / "experiment.json").write_text("{}", encoding="utf-8")
    result = run(folder)
    assert result.returncode == 2
    assert "no experiment of cspine" in result.stderr


def test_an_unwritable_table_of_changes_leaves_no_manifest(phantom: Path, tmp_path: Path) -> None:
    (tmp_path / "fixed.changes.csv").mkdir()
    result = run(phantom, "--fix", tmp_path / "fixed.parquet")
    assert result.returncode == 2
    assert "fixed.changes.csv" in " ".join(result.stderr.split())
    assert [path.name for path in tmp_path.iterdir()] == ["fixed.changes.csv"]


def test_the_table_of_changes_does_not_replace_the_source(phantom: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(phantom, tmp_path / "set"))
    source = folder / "labels.changes.csv"
    (folder / "labels.csv").rename(source)
    before = source.read_bytes()
    result = run(source, "--fix", folder / "labels.parquet")
    assert result.returncode == 2
    assert "would replace its own source" in " ".join(result.stderr.split())
    assert source.read_bytes() == before
    assert not (folder / "labels.parquet").exists()
