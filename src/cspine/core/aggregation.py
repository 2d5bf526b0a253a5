"""From the logits of a study's slices to one answer about the study: rules that travel in a checkpoint.

Every rule rises with every slice's logit and depends on no order of the slices. A rule makes a score; the study's
logit is slope * score + intercept, fitted on validation studies (`metrics.study_level`).

    max               the highest logit
    top_k_mean        the mean of the k highest logits
    noisy_or          a study is broken unless every slice is whole, each on its own: P = 1 - prod(1 - p_i)
    order_statistics  a weighted sum of quantiles of the logits, no weight below zero
"""

from __future__ import annotations

from typing import Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, model_validator

from cspine.core.logistic import expit

Kind = Literal["max", "top_k_mean", "noisy_or", "order_statistics"]
Floats = npt.NDArray[np.float64]

QUANTILES = (1.0, 0.97, 0.93, 0.85, 0.7, 0.5)
"""What `order_statistics` weighs: of all slices of a study, so that its length and slice distance hardly matter."""

MOST_KEY_SLICES = 10
KEY_SLICE_LOGITS = 2.0
"""Slices within so much of the highest logit carry the answer, `MOST_KEY_SLICES` of them at most."""


class Aggregation(BaseModel):
    """One rule with its parameters and its own calibration.

    Attributes:
        kind: The rule.
        k: Of `top_k_mean`; a study with fewer slices is averaged over all.
        gain, offset: Of `noisy_or`: p_i = sigmoid(gain * logit_i + offset), gain above 0.
        reference_slices: Of `noisy_or`: the median number of slices of the studies that it was fitted on. The sum over
            slices is scaled to this number, or else a thinner slice distance alone would make a fracture likelier.
        weights: Of `order_statistics`, for each of `QUANTILES`, none below 0.
        slope, intercept: From the score to the study's logit.
        threshold: Of the study's probability; from it on the study is called a fracture.
        studies, positives: How many it was fitted on, and how many of them are broken; 0 where it was not fitted.
        fitted_on: The split and the manifest's hash, in words; empty where it was not fitted.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    kind: Kind = "max"
    k: int = Field(default=1, ge=1)
    gain: float = Field(default=1.0, gt=0)
    offset: float = 0.0
    reference_slices: float = Field(default=1.0, ge=1)
    weights: tuple[float, ...] = ()
    slope: float = Field(default=1.0, gt=0)
    intercept: float = 0.0
    threshold: float = Field(default=0.5, ge=0, le=1)
    studies: int = Field(default=0, ge=0)
    positives: int = Field(default=0, ge=0)
    fitted_on: str = ""

    @model_validator(mode="after")
    def _weights_fit(self) -> Self:
        wanted = len(QUANTILES) if self.kind == "order_statistics" else 0
        if len(self.weights) != wanted or any(weight < 0 for weight in self.weights):
            raise ValueError(f"{self.kind} has {wanted} weights, none below 0")
        return self

    def __str__(self) -> str:
        how = {
            "max": "the highest slice logit",
            "top_k_mean": f"the mean of the {self.k} highest slice logits",
            "noisy_or": "noisy-or over the slices",
            "order_statistics": "a weighted sum of quantiles of the slice logits",
        }[self.kind]
        if not self.studies:
            return f"{how}, not fitted"
        return f"{how}, fitted on {self.studies} studies ({self.positives} with a fracture; {self.fitted_on})"

    def score(self, logits: npt.ArrayLike) -> float:
        """The score of one study.

        Args:
            logits: (n,) log-odds of its slices, n at least 1, in any order.

        Raises:
            ValueError: there are none.
        """
        found = np.sort(np.asarray(logits, np.float64))[::-1]
        if not found.size:
            raise ValueError("a study without slices has no score")
        if self.kind == "max":
            return float(found[0])
        if self.kind == "top_k_mean":
            return float(found[: self.k].mean())
        if self.kind == "noisy_or":
            return score_noisy_or(found, self.gain, self.offset, self.reference_slices)
        return float(np.dot(self.weights, take_quantiles(found)))

    def find_logit(self, logits: npt.ArrayLike) -> float:
        """The study's log-odds of a fracture; arguments and errors as of `score`."""
        return self.slope * self.score(logits) + self.intercept

    def find_probability(self, logits: npt.ArrayLike) -> float:
        """The study's probability of a fracture, 0..1; arguments and errors as of `score`."""
        return float(expit(self.find_logit(logits)))

    def find_level_probabilities(
        self, logits: npt.ArrayLike, levels: tuple[str | None, ...]
    ) -> dict[str, float]:
        """What the study would be answered if one vertebra alone had spoken, for each that has slices.

        The slices of every other level then have the study's lowest logit. There is no calibration by level.

        Args:
            logits: (n,) as for `score`.
            levels: (n,) "C1" to "C7", or None where a slice shows none.
        """
        found = np.asarray(logits, np.float64)
        known = np.array([level or "" for level in levels])
        if len(known) != len(found):
            raise ValueError(f"{len(found)} slices need as many levels, not {len(known)}")
        return {
            str(level): self.find_probability(np.where(known == level, found, found.min()))
            for level in np.unique(known)
            if level
        }


UNFITTED = Aggregation()
"""What a checkpoint without one answers by: the highest logit as it is, which with many slices calls too much."""


def score_noisy_or(logits: Floats, gain: float, offset: float, reference_slices: float) -> float:
    """The logit of 1 - prod(1 - sigmoid(gain * logit + offset)), the product scaled to `reference_slices` slices.

    -log(1 - P) = reference_slices * mean(softplus(gain * logit + offset)) = s, so logit(P) = log(exp(s) - 1).
    """
    s = reference_slices * float(np.logaddexp(0.0, gain * logits + offset).mean())
    # log(exp(s) - 1) without overflow where s is large, and without loss where it is small.
    return s + float(np.log(-np.expm1(-s))) if s > 0 else -np.inf


def take_quantiles(logits: Floats) -> Floats:
    """`QUANTILES` of (n,) logits, interpolated linearly."""
    return np.asarray(np.quantile(logits, QUANTILES), np.float64)


def find_key_slices(logits: npt.ArrayLike) -> tuple[int, ...]:
    """Numbers of the slices that carry an answer, the strongest first.

    They are those within `KEY_SLICE_LOGITS` of the highest logit, `MOST_KEY_SLICES` at most; of equal ones the first.
    """
    found = np.asarray(logits, np.float64)
    if not found.size:
        return ()
    order = np.argsort(-found, kind="stable")[:MOST_KEY_SLICES]
    return tuple(int(index) for index in order if found[index] >= found.max() - KEY_SLICE_LOGITS)
