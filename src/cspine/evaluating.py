"""`cspine.evaluate` and `cspine.assess_calibration`: scores in any form to metrics, differences and calibration."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np
import numpy.typing as npt
import polars as pl

from cspine.core.errors import InputError
from cspine.core.estimates import EvaluationResult
from cspine.core.html import show_table
from cspine.core.predictions import SCHEMA, compute_sigmoid, read_predictions
from cspine.metrics.clinical import ProbabilityUse, assess_use
from cspine.metrics.evaluation import evaluate_table
from cspine.metrics.intervals import IntervalOptions
from cspine.metrics.paired import ModelComparison, compare_models

Scores = Literal["probability", "logit"]
_SURE = float(np.finfo(np.float64).eps)
_CLASSES = {"fracture": 1, "normal": 0}
_HTML_METRICS = ("accuracy", "precision", "recall", "specificity", "f1", "auroc", "auprc", "brier")


class Evaluation(EvaluationResult):
    """Every metric of one model with its interval; `metrics` by name, or by index: `found["auroc"]`."""

    def __getitem__(self, metric: str) -> Any:
        return self.metrics[metric]

    def __repr__(self) -> str:
        auroc = self.metrics["auroc"]
        value = "undefined" if auroc.value is None else f"{auroc.value:.3f}"
        return f"Evaluation({self.model}: {self.slices:,} cases, {self.units:,} {self.unit}s, AUROC {value})"

    def to_frame(self) -> pl.DataFrame:
        """Return one row a metric: metric, value, low, high, method, unit, n, level, reason."""
        rows = [{"metric": name, **estimate.model_dump()} for name, estimate in self.metrics.items()]
        return pl.DataFrame(rows, infer_schema_length=None)

    def _repr_html_(self) -> str:
        return _render([self])


@dataclass(frozen=True, repr=False)
class Comparison(Mapping[str, Evaluation]):
    """Several models on the same cases: each by its name, and every pair.

    Attributes:
        evaluations: In the order given.
        pairs: Differences (first minus second) with intervals, permutation tests and Holm's correction.
    """

    evaluations: tuple[Evaluation, ...]
    pairs: ModelComparison

    def __getitem__(self, model: str) -> Evaluation:
        return {one.model: one for one in self.evaluations}[model]

    def __iter__(self) -> Iterator[str]:
        return iter(one.model for one in self.evaluations)

    def __len__(self) -> int:
        return len(self.evaluations)

    def __repr__(self) -> str:
        return f"Comparison({', '.join(self)}: {self.pairs.slices:,} cases, {self.pairs.units:,} {self.pairs.unit}s)"

    def to_frame(self) -> pl.DataFrame:
        """Return one row a model and metric, as of `Evaluation.to_frame`."""
        return pl.concat(
            [one.to_frame().select(pl.lit(one.model).alias("model"), pl.all()) for one in self.evaluations]
        )

    def to_differences(self) -> pl.DataFrame:
        """Return one row a pair and metric: first, second, metric, value, low, high, p, p_holm, words."""
        rows = [
            {
                "first": pair.first,
                "second": pair.second,
                "metric": one.metric,
                "value": one.difference.value,
                "low": one.difference.low,
                "high": one.difference.high,
                "p": one.test.p,
                "p_holm": one.test.p_holm,
                "words": one.words,
            }
            for pair in self.pairs.pairs
            for one in pair.metrics
        ]
        return pl.DataFrame(rows, infer_schema_length=None)

    def _repr_html_(self) -> str:
        differences = self.to_differences()
        return _render(self.evaluations) + show_table(differences.columns, differences.iter_rows())


@overload
def evaluate(
    y_true: object,
    y_score: Mapping[str, Any],
    groups: object = ...,
    threshold: float = ...,
    *,
    scores: Scores = ...,
    draws: int = ...,
    seed: int = ...,
    level: float = ...,
) -> Comparison: ...
@overload
def evaluate(
    y_true: object,
    y_score: npt.ArrayLike | None = ...,
    groups: object = ...,
    threshold: float = ...,
    *,
    scores: Scores = ...,
    draws: int = ...,
    seed: int = ...,
    level: float = ...,
) -> Evaluation: ...
def evaluate(
    y_true: Any,
    y_score: Any = None,
    groups: Any = None,
    threshold: float = 0.5,
    *,
    scores: Scores = "probability",
    draws: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> Evaluation | Comparison:
    """Evaluate scores, with an interval on every metric.

    Args:
        y_true: (n,) labels, 1 or "fracture" is the positive class, 0 or "normal" the other: array, list, Polars or
            pandas series. Or, alone, a table of predictions as `cspine predict` writes it: a data frame, or its path.
        y_score: (n,) probabilities of fracture, 0..1; or a mapping of each model's name to its scores, which also gives
            paired differences with Holm's correction.
        groups: (n,) the patient of each case, over whom intervals are made; None takes every case as independent. For a
            table of predictions the name of a column, such as "patient_id".
        threshold: A probability >= threshold is called fracture; 0..1.
        scores: "logit" where `y_score` are log-odds of fracture.
        draws, seed, level: Of the intervals: times that groups are drawn again, its seed, and nominal coverage.

    Raises:
        InputError: lengths differ, a label is neither class, or a score is outside its range.
        PredictionsError: a table of predictions breaks its schema.
    """
    options = IntervalOptions(draws, seed, level)
    if y_score is None:
        by = options if groups is None else replace(options, unit=str(groups))
        return _finish(evaluate_table(_read_table(y_true), threshold, by))
    labels = _read_labels(y_true)
    named = dict(y_score) if isinstance(y_score, Mapping) else {"model": y_score}
    tables = [_make_table(name, labels, values, groups, scores) for name, values in named.items()]
    found = tuple(_finish(evaluate_table(table, threshold, options)) for table in tables)
    if not isinstance(y_score, Mapping):
        return found[0]
    return Comparison(found, compare_models(tables, thresholds=threshold, options=options))


def assess_calibration(
    reported: Any,
    selection: Any = None,
    threshold: float = 0.5,
    *,
    scores: Scores = "probability",
    draws: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> ProbabilityUse:
    """Choose thresholds and fit calibrations on one set of cases, and show what they come to on another.

    Args:
        reported: What is shown: (y_true, y_score) or (y_true, y_score, groups) as of `evaluate`; or a table of
            predictions, or its path.
        selection: What thresholds and calibrations come from, likewise, by the same model; None chooses and fits
            nothing.
        threshold: Of the predictive values where no threshold is chosen; 0..1.
        scores, draws, seed, level: As of `evaluate`.

    Returns:
        Operating points, reliability with ECE and Brier parts before and after each calibration, predictive values over
        prevalences, and the decision curve.

    Raises:
        InputError: as of `evaluate`.
        PredictionsError: one class only, the same cases twice, or a selection by another checkpoint.
    """
    options = IntervalOptions(draws, seed, level)
    fitted_on = None if selection is None else _read_cases(selection, "selection", scores)
    return assess_use(_read_cases(reported, "reported", scores), fitted_on, threshold, options)


def _read_cases(source: Any, split: str, scores: Scores) -> pl.DataFrame:
    """A table of predictions as it is; arrays as one whose split is called `split`."""
    if not isinstance(source, tuple):
        return _read_table(source)
    if len(source) not in (2, 3):
        raise InputError(
            f"there are {len(source)} parts",
            where=split,
            fix="give (y_true, y_score) or (y_true, y_score, groups)",
        )
    y_true, y_score, *groups = source
    table = _make_table("model", _read_labels(y_true), y_score, groups[0] if groups else None, scores)
    return table.with_columns(split=pl.lit(split))


def _finish(result: EvaluationResult) -> Evaluation:
    return Evaluation.model_construct(**dict(result))


def _read_table(source: Any) -> pl.DataFrame:
    if isinstance(source, str | Path):
        return read_predictions(Path(source))
    if isinstance(source, pl.DataFrame):
        return source
    if type(source).__module__.startswith("pandas."):
        return pl.from_pandas(source).cast(SCHEMA)  # type: ignore[arg-type]
    raise InputError(
        "there are no scores, and this is no table of predictions",
        where="y_true",
        fix="give y_true and y_score, or a table that `cspine predict` wrote",
    )


def _to_array(values: Any, name: str) -> npt.NDArray[Any]:
    array = np.asarray(values.to_numpy() if hasattr(values, "to_numpy") else values)
    if array.ndim != 1:
        fix = "give the column of the fracture class" if array.ndim == 2 else "give one value a case"
        raise InputError(f"the values have the shape {array.shape}", where=name, fix=fix)
    if not array.size:
        raise InputError("there are no values", where=name, fix="give one value a case")
    return array


def _read_labels(y_true: Any) -> npt.NDArray[np.int8]:
    array = _to_array(y_true, "y_true")
    if array.dtype.kind in "OUS":
        array = np.array([_CLASSES.get(value, value) for value in array.tolist()], dtype=object)
    wrong = [value for value in dict.fromkeys(array.tolist()) if value not in (0, 1)]
    if wrong:
        raise InputError(
            f"{wrong[0]!r} is neither of the two classes",
            where="y_true",
            fix='give 1 or "fracture", and 0 or "normal", for every case',
        )
    return array.astype(np.int8)


def _read_scores(name: str, values: Any, count: int, scores: Scores) -> npt.NDArray[np.float64]:
    """(n,) log-odds; a probability of 0 or 1 has none, and is taken as far as the numbers reach."""
    where = f"y_score of {name}"
    array = _to_array(values, where)
    if len(array) != count:
        raise InputError(
            f"there are {len(array):,} scores and {count:,} labels", where=where, fix="give one score a case"
        )
    try:
        found = array.astype(np.float64)
    except (TypeError, ValueError):
        raise InputError("a score is not a number", where=where, fix="give numbers") from None
    if not np.isfinite(found).all():
        raise InputError("a score is not a finite number", where=where, fix="leave such cases out, knowingly")
    if scores == "logit":
        return found
    if scores != "probability":
        raise InputError(f"no such scores: {scores}", where="scores", fix='give "probability" or "logit"')
    if found.min() < 0 or found.max() > 1:
        raise InputError(
            f"scores run from {found.min():.3g} to {found.max():.3g}, and a probability from 0 to 1",
            where=where,
            fix='give probabilities, or scores="logit" for log-odds',
        )
    inside = found.clip(_SURE, 1 - _SURE)
    return np.asarray(np.log(inside) - np.log1p(-inside))


def _read_groups(groups: Any, count: int) -> list[str]:
    found = _to_array(groups, "groups").tolist()
    if len(found) != count:
        raise InputError(
            f"there are {len(found):,} groups and {count:,} labels", where="groups", fix="give one a case"
        )
    # A missing value must not become one large patient of all cases without a name; NaN differs from itself.
    if missing := sum(one is None or one != one for one in found):
        raise InputError(
            f"{missing:,} cases have no group", where="groups", fix="name the patient of every case"
        )
    return [str(one) for one in found]


def _make_table(
    name: str, labels: npt.NDArray[np.int8], values: Any, groups: Any, scores: Scores
) -> pl.DataFrame:
    """Arrays as a table of predictions, whose ids and hashes say nothing."""
    count = len(labels)
    logits = _read_scores(name, values, count, scores)
    probs = compute_sigmoid(logits) if scores == "logit" else _to_array(values, name).astype(np.float64)
    owners = [None] * count if groups is None else _read_groups(groups, count)
    columns: dict[str, Any] = {
        **dict.fromkeys(SCHEMA, None),
        "slice_id": [f"{number:09d}" for number in range(count)],
        "patient_id": owners,
        "y_true": labels,
        "logit": logits,
        "prob": probs,
    }
    fixed = {"model": name, "checkpoint_hash": "none", "recipe_hash": "none", "manifest_hash": "none"}
    return pl.DataFrame({**columns, **fixed}, schema=SCHEMA)


def _render(evaluations: tuple[Evaluation, ...] | list[Evaluation]) -> str:
    """Main metrics beside each other, and the ROC and precision-recall curves."""
    from cspine.report.figures import Entry, choose_look, draw_precision_recalls, draw_rocs
    from cspine.report.text import format_estimate

    rows = [(name, *(format_estimate(one.metrics[name]) for one in evaluations)) for name in _HTML_METRICS]
    entries = [
        Entry(one.model, f"model-{place}", choose_look(place), one) for place, one in enumerate(evaluations)
    ]
    figures = (draw_rocs(entries, "roc"), draw_precision_recalls(entries, "precision-recall"))
    table = show_table(("metric", *(one.model for one in evaluations)), rows)
    return table + "".join(one.embed() for one in figures)
