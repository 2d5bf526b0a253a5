"""What an audit says: findings with stable codes, a verdict that follows from them, and the effective size.

`cspine audit --json` prints one `AuditResult`; docs/audit.md says when each code is found, docs/verdict.md what to do.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal, Self

from pydantic import Field, JsonValue, field_validator, model_validator

from cspine.audit.codes import CODES, Severity
from cspine.evaluation.estimate import Estimate, FrozenModel

__all__ = [
    "SCHEMA_VERSION",
    "VERDICT_WORDS",
    "AuditResult",
    "Baseline",
    "Change",
    "EffectiveSize",
    "Finding",
    "MetadataScore",
    "Severity",
    "Verdict",
    "decide_verdict",
    "list_reasons",
    "sort_findings",
]

SCHEMA_VERSION = 1

Verdict = Literal["sound", "limited", "not evidence"]

VERDICT_WORDS: dict[Verdict, str] = {
    "sound": "Nothing was found that would make a comparison on this split misleading.",
    "limited": "A comparison on this split says less than its table shows.",
    "not evidence": "A comparison on this split is no evidence that a model finds fractures.",
}


def _find_remedy(known: dict[str, Any]) -> str:
    return CODES[known["code"]].remedy if "code" in known else ""


class Finding(FrozenModel):
    """One thing that is wrong, or worth knowing, with what shows it.

    Attributes:
        code: Stable and documented, such as "copies-across-splits": one of `CODES`.
        severity: "invalidates": numbers on this split are not what a fresh patient would get. "warning": they say less
            than they seem to. "info": no harm by itself.
        text: One sentence for people.
        remedy: What to do, in one sentence: that of the code, also where a file of an earlier version has none.
        evidence: The numbers behind it.
        files: Paths as in the manifest, all that are concerned.
    """

    code: str
    severity: Severity
    text: str
    remedy: str = Field(default_factory=_find_remedy)
    evidence: dict[str, JsonValue] = Field(default_factory=dict)
    files: tuple[str, ...] = ()

    @field_validator("code")
    @classmethod
    def _is_known(cls, code: str) -> str:
        if code not in CODES:
            raise ValueError(f"{code!r} has no remedy: give it a place in cspine.audit.codes")
        return code

    @model_validator(mode="after")
    def _is_as_bad_as_it_can_be(self) -> Self:
        if self.severity not in CODES[self.code].severities:
            raise ValueError(f"{self.code} cannot be of severity {self.severity!r}: see cspine.audit.codes")
        return self


class Baseline(FrozenModel):
    """A classifier that sees no anatomy worth the name.

    Attributes:
        name, description: For people.
        protocol: On what it was scored: "train to val", or "leave one series out".
        slices, positives: What it was scored on.
        accuracy, auroc: Each with its interval over independent units.
        larger_class: The accuracy of always saying the more frequent class.
    """

    name: str
    description: str
    protocol: str
    slices: int
    positives: int
    accuracy: Estimate
    auroc: Estimate
    larger_class: float


class MetadataScore(FrozenModel):
    """How well one property of the files, not of the anatomy, tells the class. `auroc` is at least 0.5 by direction."""

    name: str
    direction: str
    auroc: Estimate


class EffectiveSize(FrozenModel):
    """How much there is to learn from: files are not slices, slices are not patients.

    `patients` is None where ids are unknown. `naive` and `clustered` are the interval of an accuracy of 0.95 on the
    reported split, with every file taken for a case of its own, and with the independent units that there are.
    """

    files: int
    distinct_slices: int
    series: int | None
    patients: int | None
    by_split: dict[str, dict[str, int | None]]
    reported_split: str | None
    naive: Estimate | None
    clustered: Estimate | None


class Change(FrozenModel):
    """What `--fix` did with one file: it was "dropped", or its `source_id` "merged" or "regrouped"."""

    path: str
    change: Literal["dropped", "merged", "regrouped"]
    reason: str


class AuditResult(FrozenModel):
    """All that `cspine audit` found. `changes` is None unless a repaired manifest was asked for."""

    schema_version: int = SCHEMA_VERSION
    verdict: Verdict
    findings: tuple[Finding, ...]
    families: tuple[tuple[str, ...], ...]
    baselines: tuple[Baseline, ...]
    metadata: tuple[MetadataScore, ...]
    effective_n: EffectiveSize
    manifest_hash: str
    changes: tuple[Change, ...] | None = None


def decide_verdict(findings: Iterable[Finding]) -> Verdict:
    """The verdict that follows from findings: the worst severity decides."""
    severities = {finding.severity for finding in findings}
    if "invalidates" in severities:
        return "not evidence"
    return "limited" if "warning" in severities else "sound"


def sort_findings(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """The worst first, those of one code together, otherwise as they were found."""
    findings = tuple(findings)
    severity: dict[Severity, int] = {"invalidates": 0, "warning": 1, "info": 2}
    codes = list(dict.fromkeys(finding.code for finding in findings))
    return tuple(sorted(findings, key=lambda one: (severity[one.severity], codes.index(one.code))))


def list_reasons(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """What the verdict follows from: all that is more than a remark, in the order given."""
    return tuple(finding for finding in findings if finding.severity != "info")
