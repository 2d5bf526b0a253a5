"""`cspine claims` as a user meets it: exit codes, one message, one JSON object."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cspine.cli.app import main

PAPER = Path(__file__).parents[2] / "experiments/claims-paper.toml"
TOTALS = ("--positives", "200", "--negatives", "200")


def run(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: str
) -> tuple[int, str, str]:
    """Run within this process: exit code, output, errors."""
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as stop:
        main(["claims", *arguments])
    out, err = capsys.readouterr()
    return int(str(stop.value.code)), out, err


def test_the_papers_table_is_refuted_without_torch(tmp_path: Path) -> None:
    code = (
        "import sys; from cspine.cli import main\n"
        f"try: main(['claims', {str(PAPER)!r}])\n"
        "except SystemExit as stop: code = stop.code\n"
        "assert 'torch' not in sys.modules and 'polars' not in sys.modules\n"
        "sys.exit(code)"
    )
    environment = {**os.environ, "COLUMNS": "120", "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert result.returncode == 1, result.stderr
    assert not result.stderr
    for words in (
        "MobileNet: impossible",
        "with accuracy 97.50, precision lies in [0.9524, 1.0000]; the table says 0.49",
        "ResNet: impossible",
        "accuracy 97.45 is not k/400",
        "ConvNeXt: impossible",
        "4 of 4 rows fit no confusion matrix",
        "Means over folds",
    ):
        assert words in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 120


def test_a_possible_table_exits_with_0_and_shows_matrices(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    values = ("--accuracy", "84.00", "--recall", "0.84", "--mcc", "0.68", "--averaging", "binary")
    code, out, _ = run(capsys, monkeypatch, *TOTALS, *values, "--positive-class", "fracture")
    assert code == 0
    assert "possible" in out
    assert "TP 167  FP 31  FN 33  TN 169" in out
    assert "does not show that they are right" in out


def test_one_reading_may_fit_where_others_do_not(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    values = ("--accuracy", "0.81", "--recall", "0.73", "--precision", "0.73", "--limit", "2")
    code, out, _ = run(capsys, monkeypatch, "--total", "100", *values)
    assert code == 0
    assert "which fit, or why none does" in out
    assert "1..99 fracture, 1..99 normal, 100 in all" in out
    assert "..." in out
    assert "the table says 0.73" in out


def test_a_file_of_one_row_and_settings_from_the_command_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "t.toml"
    path.write_text('total = 8\n[[rows]]\nname = "[red]"\naccuracy = 0.62\n')
    assert run(capsys, monkeypatch, str(path))[0] == 0  # 5/8 = 0.625, cut off
    code, out, _ = run(capsys, monkeypatch, str(path), "--rounding", "half-up")
    assert code == 1
    assert "[red]: impossible" in out
    assert "rounding: half-up" in out


def test_json_has_every_matrix_and_refutation(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, out, _ = run(capsys, monkeypatch, str(PAPER), "--json")
    found = json.loads(out)
    assert code == 1
    assert found["possible"] is False
    row = found["rows"][0]
    assert row["name"] == "MobileNet"
    assert row["positives"] == [200, 200]
    assert row["values"][0] == {
        "metric": "accuracy", "printed": "97.50", "percent": True,
        "low": "0.97495", "low_included": True, "high": "0.9751", "high_included": False,
    }  # fmt: skip
    refutation = row["readings"][0]["refutations"][0]
    assert refutation["metrics"] == ["accuracy", "precision"]
    assert refutation["lowest"]["matrix"] == {"tp": 200, "fp": 10, "fn": 0, "tn": 190}

    code, out, _ = run(capsys, monkeypatch, *TOTALS, "--accuracy", "97.50", "--json")
    reading = json.loads(out)["rows"][0]["readings"][0]
    assert code == 0
    assert reading["count"] == len(reading["matrices"]) == 11  # 10 errors, in either class 0 to 10
    _, out, _ = run(capsys, monkeypatch, *TOTALS, "--accuracy", "97.50", "--json", "--limit", "4")
    reading = json.loads(out)["rows"][0]["readings"][0]
    assert (reading["count"], len(reading["matrices"])) == (11, 4)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["missing.toml"], ["missing.toml", "no such file"]),
        (["bad.toml"], ["not TOML"]),
        (["unknown.toml"], ["rows.1.acuracy", "is accuracy meant?"]),
        (["named.toml"], ["rows.1.sensitivity", "recall"]),
        (["folds.toml"], ["folds", "mean over folds"]),
        (["typed.toml"], ["rows.1.f1"]),
        (["many.toml"], ["and 2 more"]),
        (["value.toml"], ["first, b", "-0.5", "negative"]),
        (["value.toml", "--total", "9"], ["not from both"]),
        ([], ["totals are missing"]),
        ([*TOTALS], ["no value"]),
        (["--accuracy", "0.9"], ["totals are missing"]),
        ([*TOTALS, "--accuracy", "-0.9"], ["negative"]),
        ([*TOTALS, "--accuracy", "1.2"], ["1.2%"]),
        ([*TOTALS, "--accuracy", "97.5", "--scale", "fraction"], ["beyond 1"]),
        ([*TOTALS, "--accuracy", "ninety"], ["no number"]),
        ([*TOTALS, "--accuracy", "0.9", "--rounding", "up"], ["rounding", "half-even"]),
        ([*TOTALS, "--accuracy", "0.9", "--limit", "0"], ["--limit"]),
        (["--total", "100000", "--accuracy", "0.9"], ["too many"]),
    ],
)
def test_bad_input_is_one_message_and_exits_with_2(
    arguments: list[str],
    words: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    files = {
        "bad": "total = ",
        "unknown": "total = 9\n[[rows]]\nacuracy = 0.9",
        "named": "total = 9\n[[rows]]\nsensitivity = 0.9",
        "folds": "total = 9\nfolds = 5\n[[rows]]\naccuracy = 0.9",
        "typed": "total = 9\n[[rows]]\nf1 = [1, 2]",
        "many": "total = 9\na = 1\nb = 1\nc = 1\nd = 1\ne = 1\nf = 1\n[[rows]]\nf1 = 1",
        "value": 'total = 9\n[[rows]]\nname = "first, b"\naccuracy = -0.5',
    }
    for name, text in files.items():
        (tmp_path / f"{name}.toml").write_text(text)
    monkeypatch.chdir(tmp_path)
    code, out, err = run(capsys, monkeypatch, *arguments)
    assert code == 2
    assert not out
    assert "Traceback" not in err
    for word in words:
        assert word in err
