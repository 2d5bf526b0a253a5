"""The tables of a comparison over several divisions: beside the given split, fold by fold, seed by seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cspine.evaluation.metrics import METRICS
from cspine.evaluation.results import BaselineResult, EvaluationResult, choose_strongest
from cspine.reporting.folded import FoldedResult
from cspine.reporting.results import ComparisonResults
from cspine.reporting.tables import Cell, Row, Table
from cspine.reporting.text import UNDEFINED, format_count, format_value

MAIN = ("auroc", "accuracy")
FURTHER = ("balanced_accuracy", "recall", "specificity", "mcc", "auprc", "brier")


def tabulate_beside(results: ComparisonResults, metrics: Sequence[str]) -> Table | None:
    """A group a metric, a row a model or baseline, and two columns: the set's own split and the folds."""
    folded = results.folded
    if folded is None or folded.beside is None:
        return None
    table = Table((f"Given split ({results.reported_split})", folded.words.capitalize()))
    before = _by_name([model.evaluation for model in results.models], results.baselines)
    after = _by_name(folded.beside.models, folded.beside.baselines)
    for metric in metrics:
        rows = [
            Row(
                name,
                tuple(
                    table.fill(side[name].metrics.get(metric)) if name in side else Cell(UNDEFINED)
                    for side in (before, after)
                ),
            )
            for name in {**before, **after}
        ]
        table.groups.append((METRICS[metric].label, rows))
    return table


def _by_name(
    models: Sequence[EvaluationResult], baselines: Sequence[BaselineResult]
) -> Mapping[str, EvaluationResult]:
    return {one.model: one for one in (*models, *(baseline.evaluation for baseline in baselines))}


def tabulate_folds(results: ComparisonResults, folded: FoldedResult) -> Table:
    """A group a metric, a row a fold; what was held out, then a column a model, and one for the strongest baseline."""
    baselines = folded.beside.baselines if folded.beside else results.baselines
    bar = choose_strongest(baselines)
    names = [*(model.name for model in results.models), *([bar.name] if bar else [])]
    table = Table(("Learned from", "Held out", "of them fracture", "Larger class", *names))
    for metric in MAIN:
        rows = []
        for fold in folded.folds:
            scores = {score.name: getattr(score, metric) for score in fold.scores}
            counts = (fold.train_slices, fold.held_out_slices, fold.positives)
            cells = [Cell(format_count(count)) for count in counts]
            cells.append(Cell(format_value(fold.larger_class)))
            rows.append(Row(fold.name, (*cells, *(table.fill(scores.get(name)) for name in names))))
        table.groups.append((METRICS[metric].label, rows))
    return table


def tabulate_seeds(folded: FoldedResult) -> Table | None:
    """A group a metric, a row a model: each seed's value, their mean over other cases, and the two spreads."""
    if not folded.seeds:
        return None
    count = max(summary.seeds for summary in folded.seeds)
    columns = tuple(f"Seed {number}" for number in range(1, count + 1))
    table = Table((*columns, "Mean", "Between seeds (sd)", "Sampling (se)", "Any seed, other cases"))
    for metric in dict.fromkeys(spread.metric for one in folded.seeds for spread in one.metrics):
        rows = []
        for summary in folded.seeds:
            spread = next(one for one in summary.metrics if one.metric == metric)
            rows.append(
                Row(
                    summary.model,
                    (
                        *(Cell(format_value(value)) for value in spread.values),
                        table.fill(spread.mean),
                        table.fill(spread.between_sd),
                        Cell(format_value(spread.sampling_se)),
                        table.fill(spread.combined),
                    ),
                )
            )
        table.groups.append((METRICS[metric].label, rows))
    return table


def describe_copies(folded: FoldedResult) -> str:
    """Whether what is held out has copies among what was learned from, in words."""
    known = [fold for fold in folded.folds if fold.copied is not None]
    if not known:
        return "No audit looked for copies between the sides of a fold."
    leaking = [fold for fold in known if fold.copied]
    if not leaking:
        return "No slice held out has a copy, by its pixels, among those learned from or selected on."
    parts = ", ".join(f"{fold.copied:,} in {fold.name}" for fold in leaking)
    return f"Slices held out that have a copy among those learned from or selected on: {parts}."
