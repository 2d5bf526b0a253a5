"""A number with its uncertainty: the only form in which a metric leaves this package."""

from __future__ import annotations

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
