"""The report's tables as Markdown, read back by a parser of Markdown."""

from __future__ import annotations

from pathlib import Path

from markdown_it import MarkdownIt

from cspine.report.markdown import render_markdown
from cspine.report.report import write_report
from tests.report.builders import make_results


def read_tables(text: str) -> list[list[list[str]]]:
    """Tables of rows of cells, as a reader of Markdown sees them."""
    tables: list[list[list[str]]] = []
    inside = False
    for token in MarkdownIt().enable("table").parse(text):
        if token.type == "table_open":
            tables.append([])
        elif token.type == "tr_open":
            tables[-1].append([])
        elif token.type in ("td_open", "th_open"):
            inside = True
        elif token.type == "inline" and inside:
            tables[-1][-1].append(token.content)
            inside = False
    return tables


def test_the_comparison_has_a_column_a_model() -> None:
    results = make_results()
    comparison = read_tables(render_markdown(results))[0]
    names = [model.name for model in results.models] + [baseline.name for baseline in results.baselines]
    assert comparison[0] == ["", *names]
    assert {len(row) for row in comparison} == {len(names) + 1}


def test_a_number_is_the_one_that_the_results_hold() -> None:
    results = make_results()
    auroc = results.models[2].evaluation.metrics["auroc"]
    rows = {row[0]: row for row in read_tables(render_markdown(results))[0]}
    assert rows["AUROC"][3] == f"{auroc.value:.3f} [{auroc.low:.3f}, {auroc.high:.3f}]"


def test_what_is_undefined_has_a_footnote_that_says_why() -> None:
    text = render_markdown(make_results())
    rows = {row[0]: row for row in read_tables(text)[0]}
    assert rows["Precision (PPV)"][2] == "\u2013 (a)"
    assert "- (a) no slice was called fracture" in text


def test_a_name_with_bars_and_tags_breaks_no_table() -> None:
    results = make_results()
    model = results.models[0].model_copy(update={"name": "a|b <b>c</b>"})
    trained = read_tables(render_markdown(results.model_copy(update={"models": (model,)})))[2]
    assert trained[1][0] == "a|b &lt;b>c&lt;/b>"
    assert len(trained[1]) == len(trained[0]) == 7


def test_the_tables_lie_beside_the_report(tmp_path: Path) -> None:
    results = make_results()
    write_report(results, tmp_path / "out")
    assert (tmp_path / "out/tables.md").read_text(encoding="utf-8") == render_markdown(results)


def test_the_verdict_stands_before_the_tables() -> None:
    text = render_markdown(make_results())
    assert text.index("**Verdict: not evidence.**") < text.index("| AUROC |")


def test_the_verdict_has_its_reasons_and_no_remark() -> None:
    results = make_results()
    assert results.findings is not None
    lines = render_markdown(results).splitlines()
    first = lines.index("- **invalidates** (`no-better-than-a-baseline`): " + results.findings[0].text)
    assert lines[first + 2] == f"  - What to do: {results.findings[0].remedy}"
    assert not any("`copies`" in line for line in lines)
