"""Models beside baselines on the same slices: metrics, the baseline to beat, models in pairs, and what follows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import polars as pl

from cspine.audit.findings import AuditResult, Finding, sort_findings
from cspine.comparison.auditing import evaluate_baselines, find_without_audit, judge_models
from cspine.comparison.prepare import PreparedData
from cspine.evaluation.evaluate import evaluate
from cspine.evaluation.paired import ModelComparison, compare_models
from cspine.evaluation.results import BaselineResult, EvaluationResult, choose_strongest
from cspine.experiment import Experiment
from cspine.reporting.folded import FoldedResult


@dataclass(frozen=True)
class Scores:
    """What the predictions of all models on one split say.

    Attributes:
        evaluations: Name of a model -> its metrics.
        baselines: What sees no anatomy, with the same metrics.
        pairs: The models and the strongest baseline in pairs; None where there is nothing to compare.
        findings: Models that are not shown to be better than that baseline.
    """

    evaluations: dict[str, EvaluationResult]
    baselines: tuple[BaselineResult, ...]
    pairs: ModelComparison | None
    findings: tuple[Finding, ...]


def score_models(
    models: Mapping[str, pl.DataFrame],
    guesses: Mapping[str, tuple[str, pl.DataFrame]],
    options: dict[str, Any],
) -> Scores:
    """Evaluate models and baselines and compare them in pairs.

    Args:
        models: Name -> predictions, all of the same slices.
        guesses: Name -> (description, predictions) of each baseline.
        options: Of `evaluate`.
    """
    baselines = evaluate_baselines(guesses, options)
    bar = choose_strongest(baselines)
    compared = [*models.values(), *([guesses[bar.name][1]] if bar else [])]
    pairs = (
        compare_models(
            compared,
            **{key: options[key] for key in ("draws", "seed", "level", "by")},
            thresholds=options["threshold"],
        )
        if len(compared) > 1
        else None
    )
    return Scores(
        {name: evaluate(table, **options) for name, table in models.items()},
        baselines,
        pairs,
        judge_models(pairs, bar.name if bar else None),
    )


def gather_findings(
    folded: FoldedResult | None,
    scores: Scores,
    audit: AuditResult | None,
    experiment: Experiment,
    prepared: PreparedData,
) -> tuple[Finding, ...]:
    """All that the verdict of a comparison follows from, sorted, without lists of files (`audit.json` has them).

    Args:
        folded: What the folds found.
        scores: Of the reported split.
        audit: None where nobody looked, which is a finding too.
        experiment: What was asked for.
        prepared: The data with the roles of its splits.
    """
    found = (
        *(folded.beside.findings if folded and folded.beside else ()),
        *scores.findings,
        *(audit.findings if audit else find_without_audit(experiment, prepared)),
    )
    return tuple(finding.model_copy(update={"files": ()}) for finding in sort_findings(found))
