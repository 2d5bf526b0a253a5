"""Studies: fitting the rule that makes one answer out of slices, and predictions of studies to be evaluated.

A rule is chosen by cross-validation over whole patients: for each kind the log loss of studies that it was not fitted
on. What is fitted is small, at most seven numbers held near a plain start by a penalty: validation studies are few.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import polars as pl
from scipy.optimize import minimize
from scipy.special import expit

from cspine.core.aggregation import QUANTILES, UNFITTED, Aggregation, Kind, score_noisy_or, take_quantiles
from cspine.core.errors import PredictionsError
from cspine.core.estimates import Estimate, EvaluationResult, FrozenModel
from cspine.core.predictions import ORIGIN, SCHEMA, check_predictions
from cspine.metrics.evaluation import estimate_metrics, evaluate_table
from cspine.metrics.intervals import DEFAULT_OPTIONS, IntervalOptions

Floats = npt.NDArray[np.float64]

KINDS: tuple[Kind, ...] = ("max", "top_k_mean", "noisy_or", "order_statistics")
TOP_K = (2, 3, 5, 8)
FOLDS = 5
LEAST_STUDIES = 4
"""Of either class; with fewer nothing is fitted."""
LEAST_SLICES = 3
"""Of the median series; with fewer, a study is hardly more than a slice."""
LEAST_FOR_ORDER_STATISTICS = 15
"""Of either class; with fewer, rules of two or three numbers are all that is tried."""
_PENALTY = 0.05
_METRICS = ("log_loss", "auroc")


@dataclass(frozen=True)
class StudySlices:
    """One study, or one series of it, with a label.

    Attributes:
        key: What it is called by.
        group: What stays together in cross-validation and in intervals: the patient, else the study.
        label: 1 where it is broken, else 0.
        logits: (n,) of its slices.
    """

    key: str
    group: str
    label: int
    logits: Floats


class RuleResult(FrozenModel):
    """How one rule did on validation studies that it was not fitted on."""

    rule: str
    log_loss: Estimate
    auroc: Estimate


class StudyFit(FrozenModel):
    """What a fit came to.

    Attributes:
        aggregation: The chosen rule, fitted on all validation studies.
        rules: All that were tried, the chosen one first.
        reason: Why this one, in words.
    """

    aggregation: Aggregation
    rules: tuple[RuleResult, ...]
    reason: str


class StudyResult(FrozenModel):
    """One model's answers about the studies of the reported split.

    Attributes:
        model: Its name.
        fit: The rule, fitted on the selection split.
        evaluation: Of studies, at the rule's own threshold; its `slices` are studies.
    """

    model: str
    fit: StudyFit
    evaluation: EvaluationResult


def gather_studies(predictions: pl.DataFrame, labels: dict[str, int] | None = None) -> list[StudySlices]:
    """Put the slices of a table of predictions together into series.

    Args:
        predictions: Of one model; rows without a series are left out.
        labels: Series UID to 1 or 0 where more is known than the slices say. Without it a series with a broken slice
            is broken, and one whose slices are all labelled and whole is whole; others are left out.

    Raises:
        PredictionsError: no row names a series.
    """
    check_predictions(predictions)
    rows = predictions.filter(pl.col("series_uid").is_not_null()).sort("slice_id")
    if rows.is_empty():
        raise PredictionsError(
            "no slice names the series that it belongs to: there are no studies to answer",
            fix="import CT studies, or give the table of labels a column series_uid",
        )
    studies = []
    for (series,), part in rows.group_by("series_uid", maintain_order=True):
        label = (labels or {}).get(str(series), _label(part))
        if label is None:
            continue
        group = part["patient_id"][0] or part["study_uid"][0] or str(series)
        studies.append(StudySlices(str(series), group, label, part["logit"].to_numpy()))
    return sorted(studies, key=lambda study: study.key)


def _label(part: pl.DataFrame) -> int | None:
    if (part["y_true"] == 1).any():
        return 1
    return None if part["y_true"].null_count() else 0


def predict_studies(
    predictions: pl.DataFrame, aggregation: Aggregation, labels: dict[str, int] | None = None
) -> pl.DataFrame:
    """Predictions of series as a table of `predictions.SCHEMA`, so that whatever evaluates slices evaluates studies.

    `slice_id` is the series UID. Arguments and errors as of `gather_studies`; series without a label are left out.
    """
    known = {study.key: study for study in gather_studies(predictions, labels)}
    logits = {key: aggregation.find_logit(study.logits) for key, study in known.items()}
    return (
        predictions.filter(pl.col("series_uid").is_in(list(known)))
        .sort("slice_id")
        .unique("series_uid", keep="first", maintain_order=True)
        .with_columns(
            slice_id=pl.col("series_uid"),
            source_id=pl.lit(None, pl.String),
            y_true=pl.col("series_uid").replace_strict(
                {key: study.label for key, study in known.items()}, return_dtype=pl.Int8
            ),
            logit=pl.col("series_uid").replace_strict(logits, return_dtype=pl.Float64),
        )
        .with_columns(prob=pl.col("logit").map_batches(lambda part: pl.Series(expit(part.to_numpy()))))
        .select(*SCHEMA)
        .sort("slice_id")
    )


def fit_aggregation(
    studies: Sequence[StudySlices], fitted_on: str, options: IntervalOptions = DEFAULT_OPTIONS
) -> StudyFit:
    """Choose and fit a rule on validation studies.

    Args:
        studies: Of `gather_studies`, none of which the network was trained on.
        fitted_on: Goes into the rule: which split of which manifest.
        options: Of the intervals; the seed is also that of the folds.

    Raises:
        PredictionsError: there are fewer than `LEAST_STUDIES` studies of a class.
    """
    labels = np.array([study.label for study in studies])
    fewest = int(min((labels == 1).sum(), (labels == 0).sum())) if len(labels) else 0
    if fewest < LEAST_STUDIES:
        raise PredictionsError(
            f"a rule for studies is fitted on at least {LEAST_STUDIES} with and {LEAST_STUDIES} without a fracture; "
            f"there are {int((labels == 1).sum())} and {int((labels == 0).sum())}",
            where=fitted_on,
            fix="name a larger split, or leave the highest slice to stand for the study",
        )
    folds = _divide(studies, options.seed)
    candidates = _list_candidates(fewest)
    held_out = {name: _score_held_out(studies, folds, fit) for name, fit in candidates.items()}
    rules = {
        name: RuleResult(rule=name, **_measure(studies, logits, options)) for name, logits in held_out.items()
    }
    # Of rules that cannot be told apart the simplest, which stands first, is taken.
    best = min(rules, key=lambda name: (round(_value(rules[name].log_loss), 3), list(candidates).index(name)))
    rule = candidates[best](studies).model_copy(
        update={
            "threshold": _choose_threshold(labels, expit(held_out[best])),
            "studies": len(studies),
            "positives": int(labels.sum()),
            "fitted_on": fitted_on,
        }
    )
    ordered = sorted(rules.values(), key=lambda one: (one.rule != best, _value(one.log_loss)))
    reason = f"lowest log loss over {len(set(folds.tolist()))} folds of whole patients, in which no study was fitted on"
    return StudyFit(aggregation=rule, rules=tuple(ordered), reason=reason)


def assess_studies(
    selected: pl.DataFrame,
    reported: pl.DataFrame,
    options: IntervalOptions = DEFAULT_OPTIONS,
    labels: dict[str, int] | None = None,
) -> StudyResult | None:
    """Fit a rule on one model's selection predictions and evaluate it on the reported ones.

    Returns:
        None where there is nothing to assess: slices without a series, fewer than `LEAST_SLICES` slices in most series,
        fewer than `LEAST_STUDIES` studies of a class to fit on, or one class alone to report.
    """
    if not all(has_studies(table) for table in (selected, reported)):
        return None
    studies, known = gather_studies(selected, labels), gather_studies(reported, labels)
    counts = Counter(study.label for study in studies)
    if min(counts[0], counts[1]) < LEAST_STUDIES or len({study.label for study in known}) < 2:
        return None
    splits = "+".join(sorted(split or "none" for split in selected["split"].unique()))
    fit = fit_aggregation(studies, f"split {splits}", options)
    rule = fit.aggregation
    answered = predict_studies(reported, rule, labels)
    evaluation = evaluate_table(answered, rule.threshold, replace(options, unit="auto"))
    return StudyResult(model=evaluation.model, fit=fit, evaluation=evaluation)


def has_studies(predictions: pl.DataFrame) -> bool:
    """Whether slices name their series, and most series have at least `LEAST_SLICES`."""
    series = predictions["series_uid"]
    if series.null_count() == len(series):
        return False
    return bool(np.median(series.drop_nulls().value_counts()["count"].to_numpy()) >= LEAST_SLICES)


Fit = Callable[[Sequence[StudySlices]], Aggregation]


def _list_candidates(fewest: int) -> dict[str, Fit]:
    candidates: dict[str, Fit] = {"max": lambda studies: _calibrate(UNFITTED, studies)}
    for k in TOP_K:
        rule = Aggregation(kind="top_k_mean", k=k)
        candidates[f"top_k_mean, k = {k}"] = lambda studies, rule=rule: _calibrate(rule, studies)  # type: ignore[misc]
    candidates["noisy_or"] = _fit_noisy_or
    if fewest >= LEAST_FOR_ORDER_STATISTICS:
        candidates["order_statistics"] = _fit_order_statistics
    return candidates


def _calibrate(rule: Aggregation, studies: Sequence[StudySlices]) -> Aggregation:
    """Slope and intercept of a rule that has nothing else to fit, by penalised logistic regression."""
    scores = np.array([rule.score(study.logits) for study in studies])
    centre, spread = float(np.median(scores)), float(scores.std()) or 1.0
    scaled = (scores - centre) / spread
    slope, intercept = _minimise(
        lambda p: p[0] * scaled + p[1], studies, np.array([1.0, 0.0]), [(1e-3, None), (None, None)]
    )
    return rule.model_copy(
        update={"slope": float(slope / spread), "intercept": float(intercept - slope * centre / spread)}
    )


def _fit_noisy_or(studies: Sequence[StudySlices]) -> Aggregation:
    reference = float(np.median([len(study.logits) for study in studies]))
    start = np.array([1.0, -float(np.log(reference))])

    def find_logits(p: Floats) -> Floats:
        return np.array([score_noisy_or(study.logits, p[0], p[1], reference) for study in studies])

    gain, offset = _minimise(find_logits, studies, start, [(1e-3, None), (None, None)])
    return Aggregation(kind="noisy_or", gain=float(gain), offset=float(offset), reference_slices=reference)


def _fit_order_statistics(studies: Sequence[StudySlices]) -> Aggregation:
    quantiles = np.array([take_quantiles(study.logits) for study in studies])
    centre, spread = np.median(quantiles, axis=0), quantiles.std(axis=0) + 1e-9
    scaled = (quantiles - centre) / spread
    start = np.append(np.full(len(QUANTILES), 1.0 / len(QUANTILES)), 0.0)
    bounds = [(0.0, None)] * len(QUANTILES) + [(None, None)]
    found = _minimise(lambda p: scaled @ p[:-1] + p[-1], studies, start, bounds)
    weights = found[:-1] / spread
    return Aggregation(
        kind="order_statistics",
        weights=tuple(float(weight) for weight in weights),
        intercept=float(found[-1] - weights @ centre),
    )


def _minimise(
    find_logits: Callable[[Floats], Floats],
    studies: Sequence[StudySlices],
    start: Floats,
    bounds: Sequence[tuple[float | None, float | None]],
) -> Floats:
    """Least mean log loss plus a penalty on how far the parameters lie from their start."""
    labels = np.array([study.label for study in studies], np.float64)

    def lose(p: Floats) -> float:
        logits = find_logits(p)
        loss = np.logaddexp(0.0, logits) - labels * logits
        return float(loss.mean() + _PENALTY / len(labels) * ((p - start) ** 2).sum())

    return np.asarray(minimize(lose, start, bounds=bounds, method="L-BFGS-B").x, np.float64)


def _divide(studies: Sequence[StudySlices], seed: int) -> npt.NDArray[np.int64]:
    """(studies,) The fold of each: groups stay whole, and both classes are spread as evenly as that allows."""
    groups: dict[str, list[int]] = {}
    for index, study in enumerate(studies):
        groups.setdefault(study.group, []).append(index)
    rng = np.random.default_rng(seed)
    names = [list(groups)[place] for place in rng.permutation(len(groups))]
    folds = np.zeros(len(studies), np.int64)
    for broken in (True, False):
        chosen = [name for name in names if any(studies[index].label for index in groups[name]) is broken]
        for place, name in enumerate(chosen):
            folds[groups[name]] = place % min(FOLDS, len(groups))
    return folds


def _score_held_out(studies: Sequence[StudySlices], folds: npt.NDArray[np.int64], fit: Fit) -> Floats:
    logits = np.empty(len(studies))
    for fold in np.unique(folds):
        rule = fit([study for study, place in zip(studies, folds, strict=True) if place != fold])
        for index in np.flatnonzero(folds == fold).tolist():
            logits[index] = rule.find_logit(studies[index].logits)
    return logits


def _measure(studies: Sequence[StudySlices], logits: Floats, options: IntervalOptions) -> dict[str, Estimate]:
    table = pl.DataFrame(
        {
            "slice_id": [study.key for study in studies],
            "patient_id": [study.group for study in studies],
            "study_uid": None,
            "series_uid": [study.key for study in studies],
            "source_id": None,
            "split": None,
            "y_true": [study.label for study in studies],
            "logit": logits,
            "prob": expit(logits),
            **dict.fromkeys(ORIGIN, "fit"),
        },
        schema=SCHEMA,
    )
    return estimate_metrics(table, _METRICS, options=IntervalOptions(options.draws, options.seed))


def _value(estimate: Estimate) -> float:
    return np.inf if estimate.value is None else estimate.value


def _choose_threshold(labels: npt.NDArray[np.int64], probs: Floats) -> float:
    """Where sensitivity + specificity is largest over studies that were not fitted on; the middle of the gap."""
    levels = np.unique(probs)
    cuts = np.concatenate([[levels[0]], (levels[1:] + levels[:-1]) / 2])
    youden = [(probs[labels == 1] >= cut).mean() + (probs[labels == 0] < cut).mean() for cut in cuts]
    best = np.flatnonzero(np.isclose(youden, max(youden)))
    return float(cuts[best[len(best) // 2]])
