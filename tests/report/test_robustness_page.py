"""The page of robustness: whole, self-contained, and there only where robustness was measured."""

from __future__ import annotations

import base64
import re
from pathlib import Path

import pytest

from cspine.report.markdown import render_markdown
from cspine.report.report import write_report
from cspine.report.results import ComparisonResults
from cspine.report.robustness import ROBUSTNESS_FILE, tabulate_errors, tabulate_means, view_robustness
from tests.report.builders import make_results


@pytest.fixture(scope="module")
def results() -> ComparisonResults:
    # Without the rest, whose figures take most of the time.
    return make_results().model_copy(update={"in_use": (), "samples": (), "subgroups": ()})


@pytest.fixture(scope="module")
def folder(results: ComparisonResults, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("robust") / "report"
    write_report(results, folder)
    return folder


def test_the_page_has_curves_errors_pictures_and_gaps(folder: Path) -> None:
    html = (folder / ROBUSTNESS_FILE).read_text(encoding="utf-8")
    for words in ("Mean corruption error", "Quantum noise", "data:image/jpeg;base64,", "B10 (1)",
                  "not known to be millimetres", "400/1800 HU", "5: 0.02"):  # fmt: skip
        assert words in html
    for name in ("robustness-noise", "robustness_auroc-noise"):
        svg = (folder / "figures" / f"{name}.svg").read_text(encoding="utf-8").strip()
        assert base64.b64encode(svg.encode()).decode() in html
    ids = re.findall(r' id="([^"]+)"', html)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'(?:href|src)="([^"#]+)"', html)) <= {"report.html"} | {
        link for link in re.findall(r'src="([^"]+)"', html) if link.startswith("data:")
    }


def test_the_report_names_the_page_and_its_errors(folder: Path) -> None:
    html = (folder / "report.html").read_text(encoding="utf-8")
    assert 'href="robustness.html"' in html
    assert "Relative mCE" in html
    assert "makes no error under it at any severity: Window width." in html


def test_a_report_without_robustness_takes_the_page_away(results: ComparisonResults, tmp_path: Path) -> None:
    small = results.model_copy(update={"models": results.models[:1]})
    write_report(small, tmp_path)
    assert (tmp_path / ROBUSTNESS_FILE).exists()
    write_report(small.model_copy(update={"robustness": (), "robustness_details": None}), tmp_path)
    assert not (tmp_path / ROBUSTNESS_FILE).exists()
    assert "robustness.html" not in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_tables_hold_every_error_and_the_reason_of_each_gap(results: ComparisonResults) -> None:
    assert results.robustness_details is not None
    errors = results.robustness_details.errors
    assert errors is not None
    means = tabulate_means(errors)
    assert [row.label for _, rows in means.groups for row in rows] == [item.name for item in results.models]
    table = tabulate_errors(errors)
    gap = next(row for row in table.groups[0][1] if row.label == "Window width").cells[1]
    assert gap.mark
    assert errors.left_out["contrast"] in table.footnotes
    assert "## Mean corruption error" in render_markdown(results)
    assert view_robustness(results).missing[0][0] == "Slice thickness"
