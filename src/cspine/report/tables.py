"""What the report's tables hold: rows of estimates as text, with the footnotes that explain gaps."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence

from cspine.core.estimates import (
    BaselineResult,
    Estimate,
    EvaluationResult,
    RobustnessPoint,
    SubgroupResult,
    choose_strongest,
)
from cspine.metrics.paired import ModelComparison
from cspine.metrics.scores import METRICS
from cspine.metrics.study_level import StudyResult
from cspine.report.figures import Entry, choose_look
from cspine.report.page import Cell, Row, Table, format_duration
from cspine.report.results import ComparisonResults, FoldedResult, ModelResult
from cspine.report.text import (
    UNDEFINED,
    count_noun,
    format_count,
    format_p,
    format_value,
    label_corruption,
)
from cspine.robustness.corruptions import CORRUPTIONS

# What each metric is, in counts or words; the paper's equation number comes from the registry.
_DEFINITIONS: Mapping[str, str] = {
    "accuracy": "(TP + TN) / (TP + TN + FP + FN)",
    "precision": "TP / (TP + FP)",
    "recall": "TP / (TP + FN)",
    "specificity": "TN / (TN + FP)",
    "f1": "2 \u00d7 precision \u00d7 recall / (precision + recall)",
    "fpr": "FP / (TN + FP)",
    "npv": "TN / (TN + FN)",
    "mcc": "Matthews correlation: "
    "(TP \u00d7 TN \u2212 FP \u00d7 FN) / √((TP + FP)(TP + FN)(TN + FP)(TN + FN))",
    "balanced_accuracy": "(recall + specificity) / 2",
    "auroc": "area under the ROC curve: how often a fracture scores higher than a normal slice",
    "auprc": "average precision: step integral of the precision-recall curve",
    "brier": "mean squared difference of probability and truth",
    "log_loss": "mean negative log-likelihood of the truth, natural logarithm",
}


def tabulate_comparison(entries: Sequence[Entry]) -> Table:
    """Metrics as rows, models and baselines as columns; then the counts they were made of."""
    table = Table(tuple(entry.name for entry in entries))
    names = list(dict.fromkeys(key for entry in entries for key in entry.evaluation.metrics))
    known = [key for key in METRICS if key in names]
    groups = (
        ("Calls at the threshold", [key for key in known if not _needs_no_threshold(key)]),
        ("Ranking, whatever the threshold", [key for key in known if METRICS[key].ranking]),
        ("Probabilities", [key for key in known if _needs_no_threshold(key) and not METRICS[key].ranking]),
        ("Other", [key for key in names if key not in METRICS]),
    )
    for title, keys in groups:
        rows = [
            Row(
                METRICS[key].label if key in METRICS else key,
                tuple(table.fill(entry.evaluation.metrics.get(key)) for entry in entries),
                METRICS[key].equation if key in METRICS else None,
                key in METRICS and not METRICS[key].higher_is_better,
            )
            for key in keys
        ]
        if rows:
            table.groups.append((title, rows))
    table.groups.append(("Counts", _list_counts(entries)))
    return table


def _needs_no_threshold(key: str) -> bool:
    return METRICS[key].ranking or key in ("brier", "log_loss")


def _list_counts(entries: Sequence[Entry]) -> list[Row]:
    results = [entry.evaluation for entry in entries]
    columns: dict[str, Iterable[str]] = {
        "True positives": (format_count(r.confusion.tp) for r in results),
        "False negatives": (format_count(r.confusion.fn) for r in results),
        "False positives": (format_count(r.confusion.fp) for r in results),
        "True negatives": (format_count(r.confusion.tn) for r in results),
        "Slices": (format_count(r.slices) for r in results),
        "of them positive": (format_count(r.positives) for r in results),
        **_list_units(results),
        "Threshold": (format_value(r.threshold) for r in results),
    }
    return [Row(label, tuple(Cell(text) for text in texts)) for label, texts in columns.items()]


def _list_units(results: Sequence[EvaluationResult]) -> dict[str, Iterable[str]]:
    """What was resampled: named in the row's label where it is the same for all, in the cells where not."""
    units = {result.unit for result in results}
    if len(units) == 1:
        return {f"Independent units ({units.pop()})": (format_count(r.units) for r in results)}
    return {"Independent units": (f"{format_count(r.units)} ({r.unit})" for r in results)}


def list_definitions(entries: Sequence[Entry]) -> list[tuple[str, int | None, str]]:
    """Label, equation number in the paper and definition of every metric shown."""
    shown = {key for entry in entries for key in entry.evaluation.metrics}
    return [
        (metric.label, metric.equation, _DEFINITIONS[key])
        for key, metric in METRICS.items()
        if key in shown and key in _DEFINITIONS
    ]


Interval = tuple[str, float, str, int]  # method, level, unit, n


def _collect_intervals(entries: Sequence[Entry]) -> dict[Interval, dict[str, list[str]]]:
    """How intervals were made -> metric -> the models for which they were made so."""
    found: dict[Interval, dict[str, list[str]]] = {}
    for entry in entries:
        for key, estimate in entry.evaluation.metrics.items():
            made = (estimate.method, estimate.level, estimate.unit, estimate.n)
            label = METRICS[key].label if key in METRICS else key
            found.setdefault(made, {}).setdefault(label, []).append(entry.name)
    return found


def find_usual_interval(entries: Sequence[Entry]) -> Interval | None:
    """The way in which most intervals were made, for the caption."""
    found = _collect_intervals(entries)
    return max(found, key=lambda made: sum(map(len, found[made].values())), default=None)


def list_intervals(entries: Sequence[Entry]) -> list[tuple[Interval, str]]:
    """Every way in which intervals were made, and for which metrics (of which models, where not of all)."""
    rows = []
    for made, metrics in _collect_intervals(entries).items():
        parts = [
            label if len(names) == len(entries) else f"{label} ({', '.join(names)})"
            for label, names in metrics.items()
        ]
        rows.append((made, "; ".join(parts)))
    return rows


def tabulate_robustness(
    points: Sequence[RobustnessPoint], pick: Callable[[RobustnessPoint], Estimate]
) -> Table:
    """Severities as columns, one group a corruption, one row a model."""
    severities = sorted({point.severity for point in points})
    table = Table(tuple(str(severity) for severity in severities))
    by_place = {(point.corruption, point.model, point.severity): point for point in points}
    models = list(dict.fromkeys(point.model for point in points))
    for corruption in dict.fromkeys(point.corruption for point in points):
        rows = []
        for model in models:
            found = [by_place.get((corruption, model, severity)) for severity in severities]
            rows.append(Row(model, tuple(table.fill(pick(point) if point else None) for point in found)))
        table.groups.append((label_corruption(corruption), rows))
    return table


def tabulate_subgroups(subgroups: Sequence[SubgroupResult]) -> Table:
    """Models as columns; a group of rows for recall, and one for specificity, by each property of the slices."""
    table = Table(tuple(dict.fromkeys(part.model for part in subgroups)))
    places = {(part.column, part.value, part.model): part for part in subgroups}
    for column in dict.fromkeys(part.column for part in subgroups):
        values = list(dict.fromkeys(part.value for part in subgroups if part.column == column))
        for metric, positive in (("recall", True), ("specificity", False)):
            rows = []
            for value in values:
                parts = [places.get((column, value, model)) for model in table.columns]
                first = next(part for part in parts if part)
                count = first.positives if positive else first.slices - first.positives
                if count:
                    cells = tuple(table.fill(getattr(part, metric) if part else None) for part in parts)
                    rows.append(Row(f"{value} ({count_noun(count, 'slice')})", cells))
            if rows:
                name = column.replace("_", " ")
                table.groups.append((f"{METRICS[metric].label} by {name}", rows))
    return table


def tabulate_pairs(pairs: ModelComparison) -> Table:
    """Pairs of models as rows: of each metric the words, the difference with its interval, p after Holm, both values.

    The words come first: on a narrow screen they are what is seen without scrolling.
    """
    shown = "What is shown"
    table = Table((shown, "Difference", "p (Holm)", "First", "Second"), prose=(shown,))
    for metric in dict.fromkeys(one.metric for pair in pairs.pairs for one in pair.metrics):
        rows = []
        for pair in pairs.pairs:
            found = next(one for one in pair.metrics if one.metric == metric)
            rows.append(
                Row(
                    f"{pair.first} and {pair.second}",
                    (
                        Cell(found.words),
                        table.fill(found.difference),
                        Cell(format_p(found.test.p_holm)),
                        table.fill(found.first),
                        table.fill(found.second),
                    ),
                )
            )
        table.groups.append((METRICS[metric].label, rows))
    return table


def list_other_tests(pairs: ModelComparison) -> list[tuple[str, str, str, str]]:
    """Pair, test, p, p after Holm of every further test."""
    return [
        (f"{pair.first} and {pair.second}", test.name, format_p(test.p), format_p(test.p_holm))
        for pair in pairs.pairs
        for test in pair.others
    ]


def list_severities(points: Sequence[RobustnessPoint]) -> list[str]:
    """What severities 1 to 5 are, for the corruptions that this version knows."""
    lines = []
    for key in dict.fromkeys(point.corruption for point in points):
        if key in CORRUPTIONS:
            kind = CORRUPTIONS[key]
            values = ", ".join(f"{value:g}" for value in kind.values)
            lines.append(f"{kind.label}: {kind.parameter} {values} {kind.unit}")
    return lines


def list_facts(model: ModelResult) -> list[tuple[str, str]]:
    """What a reader needs to know of a model besides its metrics."""
    speed = statistics.median(row.slices_per_s for row in model.history) if model.history else None
    end = "stopped early" if model.stopped_early else "ran to the end"
    return [
        ("Backbone", model.backbone),
        ("Head", model.head),
        ("Weights at start", model.weights),
        ("Parameters", format_count(model.parameters)),
        ("FLOPs a slice", f"{format_count(model.flops)} ({model.flops / 1e9:.2f} G)"),
        ("Precision of arithmetic", ": ".join(filter(None, (model.precision, model.precision_why)))),
        ("Epochs", f"{len(model.history)}, {end}"),
        ("Best epoch", str(model.best_epoch)),
        ("Training time", format_duration(model.train_s)),
        ("Training speed", UNDEFINED if speed is None else f"{speed:.1f} slices/s (median)"),
        ("Recipe", model.recipe),
        ("Checkpoint", model.checkpoint_hash),
    ]


# The tables of a comparison over several divisions: beside the given split, fold by fold, seed by seed.


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


# Tables of studies: how models do on them, and the rules that made studies out of slices.


def tabulate_study_metrics(entries: Sequence[Entry]) -> Table:
    """As a comparison's table; its cases are studies."""
    table = tabulate_comparison(entries)
    table.groups = [
        (
            title,
            [
                Row("Studies", row.cells)
                if row.label == "Slices"
                else Row(row.label, row.cells, row.equation)
                for row in rows
            ],
        )
        for title, rows in table.groups
    ]
    return table


def list_study_entries(studies: Sequence[StudyResult]) -> list[Entry]:
    """Models in their order, in the looks that they have in the comparison."""
    return [
        Entry(one.model, f"studies-{place}", choose_look(place), one.evaluation)
        for place, one in enumerate(studies)
    ]


def tabulate_rules(studies: Sequence[StudyResult]) -> Table:
    """Every rule that was tried, for each model: log loss and AUROC on studies that it was not fitted on."""
    table = Table(("Log loss", "AUROC"))
    for one in studies:
        rows = [
            Row(rule.rule.replace("_", " "), (table.fill(rule.log_loss), table.fill(rule.auroc)))
            for rule in one.fit.rules
        ]
        table.groups.append((one.model, rows))
    return table


# What all pages share: templates that escape every value, and the filters they use.
