"""`cspine audit` as a user runs it: exit codes, the JSON, the page, the repaired manifest."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

from cspine.audit.findings import AuditResult
from tests.audit.sets import make_phantom

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_phantom(tmp_path_factory.mktemp("command") / "phantom", patients=20)


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "cspine", "audit", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


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
