"""Models compared pair by pair on the same cases: which differences are shown, and which are not.

The words of a comparison follow from one test alone: the clustered permutation test (`permutation`), with Holm's
correction (Holm 1979, Scand J Statist 6:65) over everything that the words speak of, that is all pairs and all metrics
of the call. DeLong's and McNemar's tests stand beside it, each corrected over the pairs; they ask the same questions
again, so they are no further hypotheses, and where they take slices as independent their names say so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np
import numpy.typing as npt
import polars as pl
from scipy import stats

from cspine.errors import InputError, PredictionsError
from cspine.evaluation.delong import compare_areas
from cspine.evaluation.differences import subtract_estimates
from cspine.evaluation.estimate import Estimate, FrozenModel, HypothesisTest
from cspine.evaluation.evaluate import arrange_table, index_units, name_splits, sort_labelled
from cspine.evaluation.intervals import bootstrap, check_options
from cspine.evaluation.metrics import METRICS, Cases, Integers
from cspine.evaluation.permutation import permute_units
from cspine.evaluation.resampling import leave_out_units

COMPARED = ("auroc", "accuracy")
"""Metrics that models are compared by unless told."""

NO_DIFFERENCE = "no difference shown"
"""The words where a test does not reject; not that the models are equal."""

_SAME_COLUMNS = (
    "slice_id",
    "y_true",
    "split",
    "patient_id",
    "study_uid",
    "series_uid",
    "source_id",
    "manifest_hash",
)


class PairedMetric(FrozenModel):
    """One metric of two models on the same cases.

    Attributes:
        metric: Key of `METRICS`.
        first, second: Each model's estimate.
        difference: first - second, with its interval (`subtract_estimates`). That is of this difference alone, not
            corrected for the others, so it and the test may disagree; the words then say so.
        test: The clustered permutation test, with Holm's correction over the family of the comparison.
        better: Name of the model that the test shows to be better; None where it shows no difference.
        words: What may be said, in words.
    """

    metric: str
    first: Estimate
    second: Estimate
    difference: Estimate
    test: HypothesisTest
    better: str | None
    words: str


class PairComparison(FrozenModel):
    """Two models. `others` are further tests: DeLong on AUROC, by units and by slices, and exact McNemar."""

    first: str
    second: str
    metrics: tuple[PairedMetric, ...]
    others: tuple[HypothesisTest, ...]


class ModelComparison(FrozenModel):
    """All pairs of models on the same cases.

    Attributes:
        split, slices, unit, units: What the cases are.
        level: Nominal coverage of intervals; 1 - level is the family-wise error of the words.
        family: How many tests Holm's correction is over, and of what.
        pairs: In the order in which the models were given.
    """

    split: str
    slices: int
    unit: str
    units: int
    level: float
    family: str
    pairs: tuple[PairComparison, ...]


def compare_models(
    tables: Sequence[pl.DataFrame],
    metrics: Sequence[str] = COMPARED,
    *,
    thresholds: float | Mapping[str, float] = 0.5,
    by: str = "auto",
    draws: int = 2000,
    swaps: int = 9999,
    seed: int = 0,
    level: float = 0.95,
) -> ModelComparison:
    """Compare every pair of models on the same cases.

    Args:
        tables: Predictions, one table a model, of the same slices in any order.
        metrics: From `PERMUTABLE`.
        thresholds: One for all, or one a model's name.
        by: See `choose_unit`.
        draws: See `bootstrap`, for each model's own intervals.
        swaps: Of the permutation test.
        seed, level: See `bootstrap`.

    Raises:
        PredictionsError: fewer than two models, a name twice, or tables that do not hold the same slices with the
            same labels, splits, units and manifest.
        InputError: an option outside its range, or a model without a threshold.
    """
    check_options(draws, seed, level)
    sorted_tables = join_tables(tables)
    units, unit = index_units(sorted_tables[0], by)
    models = [_Model(table, _find_threshold(thresholds, table), by) for table in sorted_tables]
    for model in models:
        model.estimates = bootstrap(
            model.cases, unit=unit, draws=draws, seed=seed, level=level, names=tuple(metrics)
        )
    pairs = [_compare(a, b, metrics, units, unit, swaps=swaps, seed=seed) for a, b in combinations(models, 2)]
    first = sorted_tables[0]
    return ModelComparison(
        split=name_splits(first),
        slices=first.height,
        unit=unit,
        units=int(units.max()) + 1,
        level=level,
        family=f"{len(pairs) * len(metrics)} tests: {len(pairs)} pairs of models in {_name_metrics(metrics)}",
        pairs=tuple(_correct(pairs, level)),
    )


def join_tables(tables: Sequence[pl.DataFrame]) -> list[pl.DataFrame]:
    """Check that predictions are of the same cases, and sort each by `slice_id`.

    Raises:
        PredictionsError: see `compare_models`.
    """
    if len(tables) < 2:
        raise PredictionsError(
            "a comparison needs at least two models", fix="give predictions of another model"
        )
    found = [sort_labelled(table) for table in tables]
    names = [str(table["model"][0]) for table in found]
    if len(set(names)) < len(names):
        raise PredictionsError(
            f"two of the models have the same name: {', '.join(names)}", fix="name each once"
        )
    for name, table in zip(names[1:], found[1:], strict=True):
        check_same_cases(found[0], table, f"{names[0]} and {name}")
    return found


def check_same_cases(first: pl.DataFrame, second: pl.DataFrame, where: str) -> None:
    """Raise `PredictionsError` unless both sorted tables hold the same slices, said of in the same way."""
    for column in _SAME_COLUMNS:
        if not first[column].equals(second[column], null_equal=True):
            what = "are of different slices" if column == "slice_id" else f"differ in {column}"
            raise PredictionsError(
                f"the predictions {what}: they cannot be compared pair by pair",
                where=where,
                fix="predict the same manifest and split with both models",
            )


def _name_metrics(metrics: Sequence[str]) -> str:
    labels = (METRICS[name].label for name in metrics)
    return " and ".join(label if label.isupper() else label.lower() for label in labels)


def correct_holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm's step-down correction; tests without a p stay so and do not count."""
    known = sorted((p, place) for place, p in enumerate(p_values) if p is not None)
    corrected: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, place) in enumerate(known):
        largest = max(largest, min(1.0, p * (len(known) - rank)))
        corrected[place] = largest
    return corrected


def run_mcnemar(first_right: npt.NDArray[np.bool_], second_right: npt.NDArray[np.bool_]) -> HypothesisTest:
    """Exact McNemar test (binomial on the discordant slices); it takes every slice as independent.

    Args:
        first_right, second_right: (n,) whether each model called each slice rightly.
    """
    first_only = int(np.count_nonzero(first_right & ~second_right))
    second_only = int(np.count_nonzero(second_right & ~first_right))
    discordant = first_only + second_only
    p = float(stats.binomtest(first_only, discordant).pvalue) if discordant else 1.0
    name = f"exact McNemar, slices as independent ({first_only} right by the first alone, {second_only} by the second)"
    return HypothesisTest(name=name, p=p)


class _Model:
    """One model's sorted predictions, arranged."""

    def __init__(self, table: pl.DataFrame, threshold: float, by: str) -> None:
        self.name, self.threshold = str(table["model"][0]), threshold
        self.y, self.prob = table["y_true"].to_numpy(), table["prob"].to_numpy()
        self.cases: Cases = arrange_table(table, threshold=threshold, by=by)[0]
        self.right = (self.prob >= threshold) == (self.y == 1)
        self.estimates: dict[str, Estimate] = {}


def _find_threshold(thresholds: float | Mapping[str, float], table: pl.DataFrame) -> float:
    if not isinstance(thresholds, Mapping):
        return thresholds
    name = str(table["model"][0])
    if name not in thresholds:
        raise InputError(f"no threshold for {name}", fix="give one for every model")
    return thresholds[name]


def _compare(
    a: _Model,
    b: _Model,
    metrics: Sequence[str],
    units: Integers,
    unit: str,
    *,
    swaps: int,
    seed: int,
) -> PairComparison:
    """One pair, before Holm's correction: no words yet."""
    chosen = {metric: METRICS[metric] for metric in metrics}
    left_out = leave_out_units(a.cases, chosen), leave_out_units(b.cases, chosen)
    found = []
    for metric in metrics:
        test = permute_units(
            metric, a.y, a.prob, b.prob, units, unit=unit, thresholds=(a.threshold, b.threshold),
            draws=swaps, seed=seed,
        )  # fmt: skip
        first, second = a.estimates[metric], b.estimates[metric]
        found.append(
            PairedMetric(
                metric=metric,
                first=first,
                second=second,
                difference=subtract_estimates(first, second, left_out[0][metric], left_out[1][metric]),
                test=test,
                better=None,
                words="",
            )
        )
    others = [run_mcnemar(a.right, b.right)]
    if a.y.min() < a.y.max():
        clustered = int(units.max()) + 1 < units.size
        others = [
            *([compare_areas(a.y, a.prob, b.prob, units)] if clustered else []),
            compare_areas(a.y, a.prob, b.prob),
            *others,
        ]
    return PairComparison(first=a.name, second=b.name, metrics=tuple(found), others=tuple(others))


def _correct(pairs: Sequence[PairComparison], level: float) -> list[PairComparison]:
    """Holm's correction: the metrics' tests over all pairs and metrics, each further test over the pairs."""
    corrected = iter(correct_holm([found.test.p for pair in pairs for found in pair.metrics]))
    further = [correct_holm([pair.others[i].p for pair in pairs]) for i in range(len(pairs[0].others))]
    result = []
    for place, pair in enumerate(pairs):
        metrics = tuple(_put_in_words(pair, found, next(corrected), level) for found in pair.metrics)
        others = tuple(
            test.model_copy(update={"p_holm": further[i][place]}) for i, test in enumerate(pair.others)
        )
        result.append(pair.model_copy(update={"metrics": metrics, "others": others}))
    return result


def _put_in_words(
    pair: PairComparison, found: PairedMetric, p_holm: float | None, level: float
) -> PairedMetric:
    test = found.test.model_copy(update={"p_holm": p_holm})
    better, words = None, f"{NO_DIFFERENCE}: {test.reason}" if p_holm is None else NO_DIFFERENCE
    if p_holm is not None and p_holm <= 1 - level and found.test.statistic:
        first_better = (found.test.statistic > 0) == METRICS[found.metric].higher_is_better
        better = pair.first if first_better else pair.second
        words = f"{better} is better"
    low, high = found.difference.low, found.difference.high
    if p_holm is not None and low is not None and high is not None and (low <= 0 <= high) != (better is None):
        words += f", though the interval of the difference {'excludes' if better is None else 'includes'} 0"
    return found.model_copy(update={"test": test, "better": better, "words": words})
