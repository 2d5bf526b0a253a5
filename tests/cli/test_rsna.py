"""`cspine rsna-score` as a user meets it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cspine.cli.app import main
from cspine.data.tables import TARGETS


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as stop:
        main(["rsna-score", *arguments])
    return int(str(stop.value.code))


def test_a_submission_of_halves_scores_ln_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    labels, submission, output = (tmp_path / name for name in ("train.csv", "submission.csv", "score.json"))
    studies = range(12)
    labels.write_text(
        f"StudyInstanceUID,{','.join(TARGETS)}\n"
        + "".join(f"1.{n},{','.join(str((n + j) % 2) for j in range(8))}\n" for n in studies)
    )
    submission.write_text(
        "row_id,fractured\n" + "".join(f"1.{n}_{name},0.5\n" for n in studies for name in TARGETS)
    )
    assert run(str(submission), "--labels", str(labels), "-o", str(output), "--draws", "60") == 0
    assert "0.693" in capsys.readouterr().out
    score = json.loads(output.read_text())
    assert score["loss"]["value"] == pytest.approx(0.6931472)
    assert sorted(score["by_target"]) == sorted(TARGETS)

    submission.write_text("row_id,fractured\n1.0_C1,0.5\n")
    before = output.read_text()
    assert run(str(submission), "--labels", str(labels), "-o", str(output)) == 2
    assert "no row of C2" in capsys.readouterr().err
    assert output.read_text() == before
