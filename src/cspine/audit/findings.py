"""What an audit says: findings with stable codes, a verdict that follows from them, and the effective size.

`cspine audit --json` prints one `AuditResult`; docs/audit.md lists the codes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

from pydantic import Field, JsonValue

from cspine.evaluation.estimate import Estimate, FrozenModel

SCHEMA_VERSION = 1

Severity = Literal["invalidates", "warning", "info"]
Verdict = Literal["sound", "limited", "not evidence"]

VERDICT_WORDS: dict[Verdict, str] = {
    "sound": "Nothing was found that would make a comparison on this split misleading.",
    "limited": "A comparison on this split says less than its table shows.",
    "not evidence": "A comparison on this split is no evidence that a model finds fractures.",
}


class Finding(FrozenModel):
    """One thing that is wrong, or worth knowing, with what shows it.

    Attributes:
        code: Stable and documented, such as "copies-across-splits".
        severity: "invalidates": numbers on this split are not what a fresh patient would get. "warning": they say less
            than they seem to. "info": no harm by itself.
        text: One sentence for people.
        evidence: The numbers behind it.
        files: Paths as in the manifest, all that are concerned.
    """

    code: str
    severity: Severity
    text: str
    evidence: dict[str, JsonValue] = Field(default_factory=dict)
    files: tuple[str, ...] = ()


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


def sort_findings(findings: Sequence[Finding]) -> tuple[Finding, ...]:
    """The worst first, otherwise as they were found."""
    order: dict[Severity, int] = {"invalidates": 0, "warning": 1, "info": 2}
    return tuple(sorted(findings, key=lambda finding: order[finding.severity]))
