"""What an evaluation found, as frozen types; `cspine.reporting` stores and draws them."""

from __future__ import annotations

from collections.abc import Sequence

from cspine.evaluation.estimate import Estimate, FrozenModel


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
    """One model on one split. `metrics` maps each name in `evaluation.metrics.METRICS` to its estimate."""

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
    """A classifier that sees no anatomy worth the name, on the same split."""

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
    """Errors of one model under corruption, in terms of the first model's; see `evaluation.corruption_error`.

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
