"""What training and testing on several divisions of a set found; a part of `ComparisonResults`."""

from __future__ import annotations

from cspine.audit.findings import Finding
from cspine.evaluation.estimate import Estimate, FrozenModel
from cspine.evaluation.paired import ModelComparison
from cspine.evaluation.results import BaselineResult, EvaluationResult
from cspine.evaluation.seeds import SeedSummary


class FoldScore(FrozenModel):
    """One model or baseline on what one fold holds out."""

    name: str
    accuracy: Estimate
    auroc: Estimate


class FoldSummary(FrozenModel):
    """One division: what was learned from, and how it went on what was held out.

    Attributes:
        name: Such as "leave-out-2"; groups are counted and never named, for a name may be a patient's.
        seed: Of this division and its trainings.
        groups: How many groups are held out; None where the splits are the set's own.
        train_slices, selection_slices, held_out_slices: Labelled files.
        positives: Fractures among those held out.
        larger_class: Accuracy of always saying the larger class of what is held out.
        copied: Slices held out of which a copy, found by the audit from pixels, was learned from; None without audit.
        scores: Models, then baselines.
    """

    name: str
    seed: int
    groups: int | None
    train_slices: int
    selection_slices: int
    held_out_slices: int
    positives: int
    larger_class: float
    copied: int | None
    scores: tuple[FoldScore, ...]


class PooledResult(FrozenModel):
    """Held-out predictions of the first repeat, pooled over its folds: another split than that of the report's tables.

    Attributes:
        models, baselines: Each with the same metrics and intervals as on that split.
        pairs: The models and the strongest baseline on these.
        findings: What follows from these numbers.
    """

    models: tuple[EvaluationResult, ...]
    baselines: tuple[BaselineResult, ...]
    pairs: ModelComparison | None
    findings: tuple[Finding, ...]


class FoldedResult(FrozenModel):
    """All divisions.

    Attributes:
        scheme: As in the experiment.
        words: What was done, such as "leave one series out".
        group: What one group is called; None where the splits are the set's own.
        folds: In order, all repeats.
        seeds: With repeats: the spread between them apart from sampling, a summary a model.
        beside: Their numbers, where those of the report's tables are of the set's own splits; else None.
    """

    scheme: str
    words: str
    group: str | None
    folds: tuple[FoldSummary, ...]
    seeds: tuple[SeedSummary, ...]
    beside: PooledResult | None
