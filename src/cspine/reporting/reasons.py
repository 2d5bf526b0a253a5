"""Findings as readers meet them: those of one code together, each a line, with one line on what to do."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby

from cspine.audit.findings import Finding, Severity

SEVERITY_WORDS: dict[Severity, str] = {
    "invalidates": "Invalidates",
    "warning": "Warning",
    "info": "Remark",
}


@dataclass(frozen=True, slots=True)
class Reason:
    """Findings of one code and severity, and what to do about them."""

    code: str
    severity: Severity
    texts: tuple[str, ...]
    remedy: str

    @property
    def count(self) -> int:
        """How many findings these are."""
        return len(self.texts)


def group_findings(findings: Iterable[Finding]) -> tuple[Reason, ...]:
    """Findings that follow each other and share code, severity and remedy as one reason; the order stays."""
    return tuple(
        Reason(code, severity, tuple(finding.text for finding in group), remedy)
        for (code, severity, remedy), group in groupby(
            findings, key=lambda finding: (finding.code, finding.severity, finding.remedy)
        )
    )


def list_remarks(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Findings that change nothing in the verdict."""
    return tuple(finding for finding in findings if finding.severity == "info")
