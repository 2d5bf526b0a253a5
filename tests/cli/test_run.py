"""What the terminal shows of a finished comparison."""

from __future__ import annotations

from pathlib import Path

import pytest

from cspine.auditing.findings import list_reasons
from cspine.cli.run import show_result
from cspine.core.estimates import BaselineResult
from tests.report.builders import make_evaluation, make_results


def test_many_baselines_leave_the_numbers_room(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    baselines = tuple(
        BaselineResult(name=name, description="", evaluation=make_evaluation(name, separation, 7))
        for name, separation in (
            ("pixels", 0.2),
            ("strongest", 0.9),
            ("size", 0.1),
            ("mean", 0.3),
            ("place", 0.0),
        )
    )
    results = make_results().model_copy(update={"baselines": baselines})
    show_result(results, tmp_path)
    shown = capsys.readouterr().out
    table = shown[: shown.index("intervals over")]
    assert "…" not in table
    assert "strongest" in table
    assert "place" not in table
    auroc = results.models[2].evaluation.metrics["auroc"]
    assert f"{auroc.value:.3f} [{auroc.low:.3f}, {auroc.high:.3f}]" in table


def test_the_verdict_stands_with_reasons_and_remedies(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = make_results()
    assert results.findings is not None
    show_result(results, tmp_path)
    shown = " ".join(capsys.readouterr().out.split())
    shown = shown[shown.index("verdict: not evidence.") :]
    reasons = list_reasons(results.findings)
    places = [shown.index(f"{one.severity} {one.text}") for one in reasons]
    assert places == sorted(places)
    assert all(one.remedy in shown for one in reasons)
    assert "distinct slices" not in shown
