"""A number with its uncertainty: the only form in which a metric leaves this package."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class FrozenModel(BaseModel):
    """Base of every stored result: immutable, no unknown keys, no NaN or infinity (undefined is None)."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Estimate(FrozenModel):
    """A metric with its interval.

    Attributes:
        value: The point estimate, or None where the metric is undefined (never 0 or -1 in its place).
        low, high: Ends of the interval; None where there is none. One end alone may be None: an interval that
            is open on that side.
        method: How the interval was made, such as "percentile bootstrap, 2000 draws".
        unit: What was resampled: "patient", "source slice" or "slice".
        n: How many such units there are.
        level: Nominal coverage.
        reason: Why value, low or high is None; None where all are given.
    """

    value: float | None
    low: float | None
    high: float | None
    method: str
    unit: str
    n: int = Field(ge=0)
    level: float = Field(default=0.95, gt=0, lt=1)
    reason: str | None = None

    @model_validator(mode="after")
    def _explain_what_is_missing(self) -> Self:
        missing = self.value is None or self.low is None or self.high is None
        if missing != (self.reason is not None):
            raise ValueError(
                "an estimate has a reason exactly when its value or an end of its interval is None"
            )
        return self

    def as_dict(self) -> dict[str, Any]:
        """JSON-able form; keys are the attribute names."""
        return self.model_dump()


class HypothesisTest(FrozenModel):
    """A two-sided test of one hypothesis.

    Attributes:
        name: Which test, and what it takes as independent.
        statistic: None for a test that has none but its p.
        p: None where it cannot be had.
        p_holm: p with Holm's correction over the family that it was tested in; None outside a family.
        reason: Why p is None; None where it is given.
    """

    name: str
    statistic: float | None = None
    p: float | None = Field(ge=0, le=1)
    p_holm: float | None = Field(default=None, ge=0, le=1)
    reason: str | None = None


# Results of an evaluation; a comparison stores them, reports draw them.


class Confusion(FrozenModel):
    """Counts; positive is `fracture`."""

    tp: int
    fp: int
    fn: int
    tn: int


class Curve(FrozenModel):
    """Points of a curve, in order.

    ROC: x = FPR, y = sensitivity. Precision-recall: x = recall, y = precision.

    `thresholds[i]` is the probability from which slices were called fracture at point i; None where no slice
    was. A curve that is undefined (one class only) has no points.
    """

    x: tuple[float, ...]
    y: tuple[float, ...]
    thresholds: tuple[float | None, ...]


class EvaluationResult(FrozenModel):
    """One model on one split. `metrics` maps each name in `metrics.scores.METRICS` to its estimate."""

    model: str
    split: str
    positive_class: str
    threshold: float
    slices: int
    positives: int
    unit: str
    units: int
    confusion: Confusion
    metrics: dict[str, Estimate]
    roc: Curve
    precision_recall: Curve


class BaselineResult(FrozenModel):
    """A classifier without access to anatomy, on the same split."""

    name: str
    description: str
    evaluation: EvaluationResult


def choose_strongest(baselines: Sequence[BaselineResult]) -> BaselineResult | None:
    """The baseline with the largest AUROC: a model has to beat it. Chosen on the reported split, against the model."""
    known = [
        (value, one) for one in baselines if (value := one.evaluation.metrics["auroc"].value) is not None
    ]
    return max(known, key=lambda pair: pair[0])[1] if known else None


class RobustnessPoint(FrozenModel):
    """One model on one corruption at one severity (0 = the clean slices)."""

    model: str
    corruption: str
    severity: int
    accuracy: Estimate
    auroc: Estimate


class CorruptionError(FrozenModel):
    """Errors of one model under corruption, in terms of the first model's; see `robustness.curves`.

    Attributes:
        corruption: Its name, or "mean" for the mean over corruptions (mCE).
        error: CE: sum of the error rates at all severities, over the first model's sum.
        relative: Relative CE: the same, of what each error rate exceeds that of the clean slices by.
    """

    model: str
    corruption: str
    error: Estimate
    relative: Estimate


class CorruptionErrors(FrozenModel):
    """Corruption errors of all models against the first, on the same slices.

    Attributes:
        reference: The first model.
        rows: Sorted by model; of each the mean first, then every corruption.
        left_out, relative_left_out: Corruption -> why it is not in the means (of CE, and of relative CE).
    """

    reference: str
    rows: tuple[CorruptionError, ...]
    left_out: dict[str, str]
    relative_left_out: dict[str, str]


class SubgroupResult(FrozenModel):
    """One model on the slices of the reported split whose `column` is `value`."""

    model: str
    column: str
    value: str
    slices: int
    positives: int
    recall: Estimate
    specificity: Estimate
