"""Answers about studies: how a series was read, and what a model says about it."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict


class Action(StrEnum):
    """What intake does about a reason."""

    REFUSE = "refuse"
    CORRECT = "correct"
    WARN = "warn"


class Reason(StrEnum):
    """Stable names of what intake may find; a name is never reused for something else."""

    NOT_DICOM = "not-dicom"
    DAMAGED_FILE = "damaged-file"
    MISSING_FILE = "missing-file"
    NOT_CT = "not-ct"
    LOCALIZER = "localizer"
    DERIVED_IMAGE = "derived-image"
    CONTRADICTORY_IDS = "contradictory-ids"
    CONTRADICTORY_SIZES = "contradictory-sizes"
    MISSING_POSITION = "missing-position"
    MISSING_SPACING = "missing-spacing"
    MIXED_ORIENTATION = "mixed-orientation"
    NOT_AXIAL = "not-axial"
    TURNED = "turned"
    SEVERAL_ACQUISITIONS = "several-acquisitions"
    DUPLICATE_POSITIONS = "duplicate-positions"
    GANTRY_TILT = "gantry-tilt"
    SHIFTED_SLICES = "shifted-slices"
    MISSING_SLICES = "missing-slices"
    UNEVEN_SPACING = "uneven-spacing"
    TOO_FEW_SLICES = "too-few-slices"
    NO_CERVICAL_EXTENT = "no-cervical-extent"
    MISSING_RESCALE = "missing-rescale"
    NOT_HU = "not-hu"
    IMPLAUSIBLE_HU = "implausible-hu"
    CLIPPED_HU = "clipped-hu"
    LOSSY_COMPRESSION = "lossy-compression"
    UNDECODABLE = "undecodable"
    UNUSABLE_NIFTI = "unusable-nifti"


class IntakeFinding(BaseModel):
    """One reason found in one series, what was done about it, and the figures."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    reason: Reason
    action: Action
    detail: str


Decision = Literal["taken", "corrected", "refused", "noted"]


class IntakeRow(BaseModel):
    """Intake's record of one series, or of a file that belongs to none.

    Attributes:
        source: Path of the first file of the series.
        format: "dicom", "nifti" or "imported".
        study_uid, series_uid, patient_id: None if the source does not say.
        modality: As the source names it.
        files: Number of files of the series.
        slices_found: Slices, or frames, in the source.
        slices: In the volume; 0 if refused.
        size_px: (rows, columns) of the volume; None if refused.
        spacing_mm: (slice, row, column), if known.
        extent_mm: Along the body axis, if known.
        encoding: Names of the transfer syntaxes, or the file's type.
        findings: In the order of checking; after a refusal only what could still be checked.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: str
    format: str
    study_uid: str | None = None
    series_uid: str | None = None
    patient_id: str | None = None
    modality: str | None = None
    files: int = 1
    slices_found: int = 0
    slices: int = 0
    size_px: tuple[int, int] | None = None
    spacing_mm: tuple[float, float, float] | None = None
    extent_mm: float | None = None
    encoding: tuple[str, ...] = ()
    findings: tuple[IntakeFinding, ...] = ()

    @property
    def decision(self) -> Decision:
        """Whether the series was refused, corrected or taken; `noted` is a warning about files without slices."""
        actions = {finding.action for finding in self.findings}
        if Action.REFUSE in actions:
            return "refused"
        if not self.slices_found:
            return "noted"
        return "corrected" if Action.CORRECT in actions else "taken"

    def as_dict(self) -> dict[str, Any]:
        """Return JSON-able values with the decision and without the patient's id."""
        return {"decision": self.decision, **self.model_dump(mode="json", exclude={"patient_id"})}


Call = Literal["fracture", "no fracture", "abstained"]


class Abstention(StrEnum):
    """Stable names of why no call is made; scores are given all the same if there are any."""

    INTAKE_REFUSED = "intake-refused"
    UNFIT_RECIPE = "unfit-recipe"
    OUT_OF_DISTRIBUTION = "out-of-distribution"


@dataclass(frozen=True)
class AbstentionReason:
    """One reason with this study's figures in words; names no patient."""

    reason: Abstention
    detail: str


def _no_values() -> npt.NDArray[np.float64]:
    return np.empty(0)


@dataclass(frozen=True, kw_only=True)
class StudyAnswer:
    """The answer about one series of a study; by default one without scores.

    Attributes:
        intake: How the series was read; its ids are those of the answer.
        slice_ids: (n,) As `Volume.slice_id`, from feet to head; empty if intake refused the series.
        positions_mm: (n,) Along the normal, increasing.
        logits: (n,) Log-odds of `fracture` of each slice; with several models their mean.
        probs: (n,) Calibrated, 0..1.
        levels: (n,) "C1" to "C7", or None outside the cervical spine; empty without a segmentation.
        logit, prob: Of the study, aggregated and calibrated; None if nothing could be scored.
        threshold: The call is `fracture` if `prob` reaches it.
        key_slices: Numbers of the slices that carry the answer, strongest first.
        level_probs: "C1" to "C7" to the probability that this vertebra is fractured; empty without a segmentation.
        abstentions: Why no call is made; empty if one is.
        distance, distance_limit: Distance of the study from the training data, and the largest one at which the model
            makes a call; None if the checkpoint has no such check.
        aggregation: How slices are combined into a study, in words.
        checkpoint_hashes: Of the models that answered.
    """

    intake: IntakeRow
    threshold: float
    aggregation: str
    checkpoint_hashes: tuple[str, ...]
    slice_ids: tuple[str, ...] = ()
    positions_mm: npt.NDArray[np.float64] = field(default_factory=_no_values)
    logits: npt.NDArray[np.float64] = field(default_factory=_no_values)
    probs: npt.NDArray[np.float64] = field(default_factory=_no_values)
    levels: tuple[str | None, ...] = ()
    logit: float | None = None
    prob: float | None = None
    key_slices: tuple[int, ...] = ()
    level_probs: dict[str, float] = field(default_factory=dict)
    abstentions: tuple[AbstentionReason, ...] = ()
    distance: float | None = None
    distance_limit: float | None = None

    @property
    def call(self) -> Call:
        """The decision at the threshold, or `abstained`."""
        if self.abstentions or self.prob is None:
            return "abstained"
        return "fracture" if self.prob >= self.threshold else "no fracture"

    def as_dict(self) -> dict[str, Any]:
        """Return the study's answer as JSON-able values: no slices, and no id of the patient."""
        return {
            "call": self.call,
            "prob": self.prob,
            "logit": self.logit,
            "threshold": self.threshold,
            "carrying": [self.slice_ids[index] for index in self.key_slices],
            "level_probs": self.level_probs,
            "abstentions": [{"reason": str(one.reason), "detail": one.detail} for one in self.abstentions],
            "distance": self.distance,
            "distance_limit": self.distance_limit,
            "aggregation": self.aggregation,
            "checkpoint_hashes": list(self.checkpoint_hashes),
            "slices": len(self.slice_ids),
            "source": self.intake.source,
            "study_uid": self.intake.study_uid,
            "series_uid": self.intake.series_uid,
            "decision": self.intake.decision,
            "intake": [finding.model_dump(mode="json") for finding in self.intake.findings],
        }
