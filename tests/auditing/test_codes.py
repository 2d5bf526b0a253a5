"""Every code that the product can raise has a remedy, and the documents say the same as the code."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import ValidationError

import cspine
from cspine.auditing.anomalies import _RULES
from cspine.auditing.findings import CODES, Finding, list_reasons, sort_findings
from cspine.auditing.leaks import _SHARED

SOURCE = Path(cspine.__file__).parent
DOCS = Path(__file__).parents[2] / "docs"


def list_raised() -> Iterator[str]:
    """Every code that stands in a call of `Finding`, and those of the two tables that findings are made from."""
    yield from (rule.code for rule in _RULES)
    yield from (code for code, _, _ in _SHARED.values())
    for path in (*SOURCE.glob("audit/*.py"), *SOURCE.glob("comparison/*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Finding":
                for keyword in node.keywords:
                    if keyword.arg == "code" and isinstance(keyword.value, ast.Constant):
                        yield str(keyword.value.value)


def read_table(name: str) -> dict[str, tuple[str, str]]:
    """Code -> the other two cells of its row, of a table in docs/ whose first cells are codes."""
    rows: dict[str, tuple[str, str]] = {}
    for line in (DOCS / name).read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| `") and len(cells) == 3:
            for code in re.findall("`([^`]+)`", cells[0]):
                rows[code] = (cells[1], cells[2])
    return rows


def test_codes_and_remedies_match_one_to_one() -> None:
    written = "\n".join(
        path.read_text(encoding="utf-8") for path in SOURCE.rglob("*.py") if path.name != "codes.py"
    )
    assert set(list_raised()) <= set(CODES)
    assert {code for code in CODES if f'"{code}"' not in written} == set()


@pytest.mark.parametrize("code", CODES)
def test_a_remedy_is_one_sentence_that_begins_with_what_to_do(code: str) -> None:
    remedy = CODES[code].remedy
    assert remedy[0].isupper()
    assert remedy.endswith(".")
    assert "\n" not in remedy
    finding = Finding(code=code, severity=CODES[code].severities[0], text="Something.")
    assert finding.remedy == remedy


def test_a_code_without_a_remedy_cannot_be_raised() -> None:
    with pytest.raises(ValidationError, match="has no remedy"):
        Finding(code="nonsense", severity="info", text="Something.")


def test_a_remark_cannot_be_made_to_invalidate() -> None:
    with pytest.raises(ValidationError, match="cannot be of severity"):
        Finding(code="odd-size", severity="invalidates", text="Something.")


def test_an_earlier_finding_gets_its_remedy_when_read() -> None:
    old = '{"code": "blank", "severity": "warning", "text": "2 slices.", "evidence": {}, "files": []}'
    assert Finding.model_validate_json(old).remedy == CODES["blank"].remedy


def test_the_worst_come_first_and_those_of_one_code_together() -> None:
    def make(code: str, severity: str, text: str) -> Finding:
        return Finding.model_validate({"code": code, "severity": severity, "text": text})

    found = [
        make("copies", "info", "1"),
        make("patient-across-splits", "invalidates", "2"),
        make("file-across-splits", "invalidates", "3"),
        make("blank", "warning", "4"),
        make("patient-across-splits", "invalidates", "5"),
    ]
    ordered = sort_findings(found)
    assert [one.text for one in ordered] == ["2", "5", "3", "4", "1"]
    assert [one.text for one in list_reasons(ordered)] == ["2", "5", "3", "4"]


def test_the_page_on_verdicts_lists_every_code() -> None:
    wanted = {code: (", ".join(entry.severities), entry.remedy) for code, entry in CODES.items()}
    assert read_table("verdict.md") == wanted


def test_the_page_on_the_audit_explains_every_code() -> None:
    of_a_comparison = {"not-audited", "no-better-than-a-baseline", "falls-on-unseen-groups"}
    assert set(read_table("audit.md")) == set(CODES) - of_a_comparison
