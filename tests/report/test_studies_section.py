"""The report's section on studies, and the same tables as Markdown."""

from __future__ import annotations

from pathlib import Path

from cspine.metrics.intervals import IntervalOptions
from cspine.metrics.study_level import assess_studies
from cspine.report.markdown import render_markdown
from cspine.report.report import write_report
from tests.metrics.test_study_level import make_studies, make_table
from tests.report.builders import make_results


def test_the_report_has_studies_with_their_rules(tmp_path: Path) -> None:
    table = make_table(make_studies(24, shift=5.0, width=4))
    found = assess_studies(table, table, options=IntervalOptions(draws=60))
    assert found is not None
    results = make_results()
    page = write_report(results.model_copy(update={"studies": (found,)}), tmp_path).read_text()
    section = page[page.index('id="studies"') :]
    assert "On the 24 studies of" in section
    assert str(found.fit.aggregation) in section
    assert ">Studies<" in section
    assert "order statistics" not in section  # too few studies to try it
    assert "noisy or" in section
    markdown = render_markdown(results.model_copy(update={"studies": (found,)}))
    assert "## Studies" in markdown
    assert "## Studies" not in render_markdown(results)
