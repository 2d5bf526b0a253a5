"""What a model says of a study: the one object that tables, pictures and DICOM outputs are made from."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from cspine.ct.intake import IntakeRow

Call = Literal["fracture", "no fracture", "abstained"]


class Abstention(StrEnum):
    """Stable names of why no call is made. Scores, where there are some, are given all the same."""

    INTAKE_REFUSED = "intake-refused"
    UNFIT_RECIPE = "unfit-recipe"
    OUT_OF_DISTRIBUTION = "out-of-distribution"


@dataclass(frozen=True)
class AbstentionReason:
    """One reason, and the figures of this study in words; names no patient."""

    reason: Abstention
    detail: str


@dataclass(frozen=True)
class StudyAnswer:
    """The answer about one series of a study.

    Attributes:
        intake: How the series was read; its ids are those of the answer.
        slice_ids: (n,) As `Volume.slice_id`, from feet to head; empty where intake refused the series.
        positions_mm: (n,) Along the normal, growing.
        logits: (n,) log-odds of `fracture` of each slice, the mean of the models' where there are several.
        probs: (n,) Calibrated, 0..1.
        levels: (n,) "C1" to "C7" where a segmentation says so, else None; empty without a segmentation.
        logit, prob: Of the study: aggregated, and calibrated; None where nothing could be scored.
        threshold: Of `prob`; a call is `fracture` from it on.
        carrying: Numbers of the slices that carry the answer, the strongest first.
        level_probs: "C1" to "C7" to the probability that this vertebra is broken; empty without a segmentation.
        abstentions: Why no call is made; empty where one is.
        distance, distance_limit: How far the study lies from what the model was trained on, and from where on the model
            abstains; None where the checkpoint holds no such check.
        aggregation: How slices became a study, in words.
        checkpoint_hashes: Of the models that answered.
    """

    intake: IntakeRow
    slice_ids: tuple[str, ...]
    positions_mm: npt.NDArray[np.float64]
    logits: npt.NDArray[np.float64]
    probs: npt.NDArray[np.float64]
    levels: tuple[str | None, ...]
    logit: float | None
    prob: float | None
    threshold: float
    carrying: tuple[int, ...]
    level_probs: dict[str, float]
    abstentions: tuple[AbstentionReason, ...]
    distance: float | None
    distance_limit: float | None
    aggregation: str
    checkpoint_hashes: tuple[str, ...]

    @property
    def call(self) -> Call:
        """What the answer comes to."""
        if self.abstentions or self.prob is None:
            return "abstained"
        return "fracture" if self.prob >= self.threshold else "no fracture"

    def as_dict(self) -> dict[str, Any]:
        """JSON-able: the study's answer without its slices; ids of the study, none of the patient."""
        return {
            "call": self.call,
            "prob": self.prob,
            "logit": self.logit,
            "threshold": self.threshold,
            "carrying": [self.slice_ids[index] for index in self.carrying],
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
