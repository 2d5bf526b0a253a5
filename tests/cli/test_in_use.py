"""`cspine evaluate --calibrate-on`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cspine.cli.app import main
from cspine.core.predictions import write_predictions
from cspine.metrics.clinical import ProbabilityUse, assess_use
from cspine.metrics.intervals import IntervalOptions
from tests.metrics.builders import make_clustered_table

TEST = make_clustered_table(2, split="test")
VAL = make_clustered_table(1, split="val")


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    return int(stop.value.code or 0)


@pytest.fixture
def tables(tmp_path: Path) -> tuple[Path, Path]:
    return write_predictions(TEST, tmp_path / "test.parquet"), write_predictions(
        VAL, tmp_path / "val.parquet"
    )


def test_metrics_json_has_what_validation_chose(
    tables: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    test, val = tables
    output = tmp_path / "metrics.json"
    assert run("evaluate", test, "--calibrate-on", val, "--draws", 60, "-o", output) == 0
    (row,) = json.loads(output.read_text(encoding="utf-8"))
    assert ProbabilityUse.model_validate(row["in_use"]) == assess_use(
        TEST, VAL, options=IntervalOptions(draws=60)
    )
    shown = capsys.readouterr().out
    assert "chosen and fitted on val, shown on test" in shown
    assert "ECE Platt" in shown


def test_without_validation_predictions_nothing_is_added(tables: tuple[Path, Path], tmp_path: Path) -> None:
    assert run("evaluate", tables[0], "--draws", 60, "-o", tmp_path / "metrics.json") == 0
    assert "in_use" not in json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8"))[0]


def test_what_cannot_be_calibrated_on_is_refused(
    tables: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    test, val = tables
    other = write_predictions(
        make_clustered_table(1, split="val", checkpoint="o"), tmp_path / "other.parquet"
    )
    for chosen, what in (
        ([test], "would be reported"),
        ([other], "not one table for each checkpoint"),
        ([val, val], "not one table for each checkpoint"),
        ([tmp_path / "none.parquet"], "no such file"),
    ):
        flags = [word for path in chosen for word in ("--calibrate-on", path)]
        assert run("evaluate", test, "--draws", 60, *flags) == 2
        assert what in capsys.readouterr().err
    assert run("evaluate", test, other, "--draws", 60, "--calibrate-on", other) == 2
    assert "none of the predictions to calibrate on" in capsys.readouterr().err
