"""Every code that a finding can have: how bad it can be, and what to do about it. The one place for both.

A finding with a code that is not here cannot be made. docs/verdict.md shows this table to readers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

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
