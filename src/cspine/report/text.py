"""Numbers and names as tables and figures show them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

from cspine.core.estimates import Estimate
from cspine.core.types import plural

if TYPE_CHECKING:
    from cspine.auditing.findings import Finding, Severity

UNDEFINED = "\u2013"
"""Shown for what has no value: an en dash."""

MINUS = "\u2212"
"""A minus as wide as a digit, for tables."""


def format_count(number: int) -> str:
    """Thousands parted by narrow no-break spaces; four digits stay together, as SI style has it."""
    text = str(number) if abs(number) < 10_000 else f"{number:,}".replace(",", "\u202f")
    return text.replace("-", MINUS)


def format_value(value: float | None, digits: int = 3) -> str:
    """A number as tables and figures show it; `UNDEFINED` where there is none."""
    return UNDEFINED if value is None else f"{value:z.{digits}f}".replace("-", MINUS)


def format_interval(estimate: Estimate) -> str:
    """The two ends in brackets, or nothing where there is no interval at all."""
    if estimate.low is None and estimate.high is None:
        return ""
    return f"[{format_value(estimate.low)}, {format_value(estimate.high)}]"


def format_estimate(estimate: Estimate | None) -> str:
    """`0.975 [0.958, 0.990]`; `UNDEFINED` where it is undefined or was not computed."""
    if estimate is None:
        return UNDEFINED
    return f"{format_value(estimate.value)} {format_interval(estimate)}".strip()


def format_p(p: float | None) -> str:
    """`0.038`, or `< 0.001`; `UNDEFINED` where there is no test."""
    if p is None:
        return UNDEFINED
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def label_corruption(key: str) -> str:
    """A corruption's name for people; its key where this version does not know it."""
    from cspine.robustness.corruptions import CORRUPTIONS

    return CORRUPTIONS[key].label if key in CORRUPTIONS else key


def drop_controls(text: str) -> str:
    """Text without the characters that neither XML nor HTML may hold, each replaced by U+FFFD."""
    return re.sub("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "\ufffd", text)


def count_noun(number: int, noun: str) -> str:
    """Say "1 slice", "2 slices", "2 series" or "2 studies"."""
    return f"{number} {noun if number == 1 else plural(noun)}"


def shorten_text(text: str, length: int = 30) -> str:
    """Keeps a hostile or careless name from pushing everything else out of a figure."""
    text = " ".join(drop_controls(text).split())
    return text if len(text) <= length else text[: length - 1] + "…"


# Findings as readers meet them: those of one code together, each a line, with one line on what to do.


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
