"""Every code that a finding can have: how bad it can be, and what to do about it. The one place for both.

A finding with a code that is not here cannot be made. docs/verdict.md shows this table to readers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self

from pydantic import Field, JsonValue, field_validator, model_validator

from cspine.core.estimates import Estimate, FrozenModel

Severity = Literal["invalidates", "warning", "info"]


@dataclass(frozen=True)
class Code:
    """What is known of a code before it is found.

    Attributes:
        severities: Those that a finding of this code can have, the worst first.
        remedy: What to do, in one sentence.
    """

    severities: tuple[Severity, ...]
    remedy: str


_SPLIT_BY_GROUP = "divide the set anew by whole groups: `cspine split MANIFEST -o FOLDER`."
_FIX = "`cspine audit MANIFEST --fix REPAIRED.parquet`"
_LOOK = "Look at the files in audit.html; mend them, or drop them from the set."

CODES: Mapping[str, Code] = {
    "patient-across-splits": Code(
        ("invalidates",), f"Keep each patient in one split: {_SPLIT_BY_GROUP.replace('groups', 'patients')}"
    ),
    "study-across-splits": Code(("invalidates",), f"Keep each study in one split: {_SPLIT_BY_GROUP}"),
    "series-across-splits": Code(("invalidates",), f"Keep each series in one split: {_SPLIT_BY_GROUP}"),
    "source-slice-across-splits": Code(
        ("invalidates",),
        f"Keep a source slice and what was made from it on one side: {_FIX}, then compare on that.",
    ),
    "copies-across-splits": Code(
        ("invalidates",),
        f"Keep the copies of a slice on one side: {_FIX}, then compare on that.",
    ),
    "file-across-splits": Code(
        ("invalidates",),
        f"Keep each file on one side: {_FIX}, then compare on that.",
    ),
    "neighbours-across-splits": Code(
        ("invalidates",), f"Keep neighbouring slices on one side: {_SPLIT_BY_GROUP}"
    ),
    "selection-on-reported": Code(
        ("invalidates",),
        'Select on slices that are not reported: set splits.selection to "carve", or to another split of the set.',
    ),
    "several-runs": Code(
        ("warning",),
        "Name the run that counts before its score is seen, choose it on the selection split, or report the mean and "
        "spread of all.",
    ),
    "falls-on-unseen-groups": Code(
        ("invalidates",), "Report the numbers of the folds, and those of the given split only beside them."
    ),
    "no-better-than-a-baseline": Code(
        ("invalidates",),
        "Claim no ability to see fractures from these numbers: train longer or on more patients, or test on a split "
        "that the baseline cannot solve.",
    ),
    "label-conflict": Code(
        ("invalidates",),
        f"Have the labels of these slices read again, or drop them: {_FIX}.",
    ),
    "shortcut": Code(
        ("invalidates", "warning"),
        "Find out what the baseline sees (scanner, window, place in the series) and take it out of the set, or show "
        "that the models beat it clearly on other data.",
    ),
    "metadata-predicts-class": Code(
        ("invalidates", "warning"),
        "Make both classes alike in this property (same source, export and processing), or test on data "
        "where they are.",
    ),
    "unknown-patients": Code(
        ("warning",),
        "Add patient_id to the table of labels; until then, call nothing an estimate for unseen patients.",
    ),
    "not-audited": Code(
        ("warning",), "Audit what is compared: set evaluation.audit to true and run it again."
    ),
    "copies": Code(
        ("warning", "info"),
        f"Count distinct slices, not files; {_FIX} gives copies one source_id.",
    ),
    "unreadable": Code(
        ("warning",), "Get these files again or drop them, and report how many were left out and why."
    ),
    "blank": Code(("warning",), f"Drop them: {_FIX}."),
    "saturated": Code(("warning",), "Export these slices again, with a window that holds the bone."),
    "inverted": Code(("warning",), "Look at the files in audit.html, and turn their grey values over if so."),
    "burnt-in-text": Code(
        ("warning",),
        "Look whether the text names a person; blank it or drop the files, before training and before passing on.",
    ),
    "border": Code(("warning",), "Crop the frames, or see that both classes have them equally often."),
    "colour": Code(("warning",), "Export these slices in grey, without overlays."),
    "odd-shape": Code(("warning",), _LOOK),
    "unlike-the-set": Code(("warning",), _LOOK),
    "class-imbalance": Code(
        ("warning", "info"),
        "Read sensitivity, specificity and AUROC, not accuracy; a split without one class cannot be reported at all.",
    ),
    "size-imbalance": Code(
        ("info",), "Read the intervals: a small split, or one that is mostly one patient, says little."
    ),
    "odd-size": Code(("info",), "See whether the sizes go with the class (metadata, in audit.html)."),
    "odd-depth": Code(
        ("info",), "See whether the pixel formats go with the class (metadata, in audit.html)."
    ),
    "held-out-baseline": Code(("info",), "Compare the models with it, on whole groups held out likewise."),
}


# What an audit says: findings with stable codes, a verdict that follows from them, and the effective size.
#
# `cspine audit --json` prints one `AuditResult`; docs/audit.md says when each code is found, docs/verdict.md what to
# do.


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
            raise ValueError(f"{code!r} has no remedy: give it a place in cspine.auditing.findings")
        return code

    @model_validator(mode="after")
    def _is_as_bad_as_it_can_be(self) -> Self:
        if self.severity not in CODES[self.code].severities:
            raise ValueError(
                f"{self.code} cannot be of severity {self.severity!r}: see cspine.auditing.findings"
            )
        return self


class Baseline(FrozenModel):
    """A classifier that sees no anatomical detail.

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
