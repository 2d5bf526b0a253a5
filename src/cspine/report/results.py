"""What training and testing on several divisions of a set found; a part of `ComparisonResults`."""

from __future__ import annotations

from typing import Literal

import polars as pl
from pydantic import Field, JsonValue

from cspine.auditing.findings import AuditResult, Finding, Verdict
from cspine.core.estimates import (
    BaselineResult,
    Confusion,
    CorruptionErrors,
    Curve,
    Estimate,
    EvaluationResult,
    FrozenModel,
    RobustnessPoint,
    SubgroupResult,
)
from cspine.explain.pointing import PointingResult, SanityResult
from cspine.metrics.clinical import ProbabilityUse
from cspine.metrics.effective_size import EffectiveSize
from cspine.metrics.paired import ModelComparison
from cspine.metrics.seeds import SeedSummary
from cspine.metrics.study_level import StudyResult


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


# What a comparison found, as one typed object: what `results.json` holds and all that the report reads.


__all__ = [
    "SCHEMA_VERSION",
    "BaselineResult",
    "CheckpointFacts",
    "ComparisonResults",
    "Confusion",
    "CorruptionErrors",
    "CorruptionStrip",
    "Curve",
    "DataSummary",
    "Epoch",
    "Estimate",
    "EvaluationResult",
    "ExplainedSlice",
    "ModelExplanation",
    "ModelResult",
    "Note",
    "RobustnessPoint",
    "RobustnessResult",
    "RunManifest",
    "Sample",
    "SplitSummary",
    "SubgroupResult",
]

SCHEMA_VERSION = 1


class Epoch(FrozenModel):
    """One row of a training history. Losses are mean binary cross-entropies; accuracies are fractions.

    `val_loss` is None where it was not finite: such an epoch is never the best, and the training went on.
    """

    epoch: int
    train_loss: float
    train_accuracy: float
    val_loss: float | None
    val_accuracy: float
    learning_rate: float
    seconds: float
    slices_per_s: float


class CheckpointFacts(FrozenModel):
    """What a checkpoint says of itself, as plain values.

    Attributes:
        height_px, width_px: Of a slice as the network sees it.
        slices, channels: How many neighbouring slices it sees, the middle one among them, and as how many channels that
            differ (windows and neighbours).
        labels: Output to class; "1" is the positive one.
        threshold: prob >= threshold is a call; prob = sigmoid(slope * logit + intercept).
        training: Settings, seed and best epoch; for the record.
        manifest_hash: Of the set that it was trained on.
        versions: Of the packages that made it.
    """

    height_px: int
    width_px: int
    slices: int = 1
    channels: int = 1
    labels: dict[str, str]
    threshold: float
    slope: float
    intercept: float
    training: dict[str, bool | int | float | str | None]
    manifest_hash: str
    versions: dict[str, str]


class ModelResult(FrozenModel):
    """One trained model and how it did. `checkpoint` is None in the results of a version that did not keep it."""

    name: str
    backbone: str
    head: str
    weights: str
    parameters: int
    flops: int
    recipe: str
    checkpoint_hash: str
    precision: str
    precision_why: str = ""
    best_epoch: int
    stopped_early: bool
    train_s: float
    history: tuple[Epoch, ...]
    evaluation: EvaluationResult
    checkpoint: CheckpointFacts | None = None


class Sample(FrozenModel):
    """A slice to show, as the network saw it. `pixels_png` is a base64 PNG; `outcome` is tp, fp, fn or tn."""

    model: str
    slice_id: str
    outcome: Literal["tp", "fp", "fn", "tn"]
    prob: float
    pixels_png: str


class ExplainedSlice(FrozenModel):
    """A slice with its map over it.

    Attributes:
        slice_id, prob: As in the predictions.
        hit: Whether the peak lies inside the mask or boxes; None where there are none.
        picture_png: Base64 PNG: the slice, its map and the outline of what is known.
    """

    slice_id: str
    prob: float
    hit: bool | None
    picture_png: str


class ModelExplanation(FrozenModel):
    """Where one model looks.

    Attributes:
        model, checkpoint_hash: Whose maps.
        method: "gradcam" or "occlusion".
        words: The method and what it was set to.
        cell_mm: Side of what one value of a map stands for, in the slice; None where the spacing is unknown.
        split: Where the slices are from.
        seed: Of the draw of slices.
        pointing: Of all slices with a fracture whose place is known; `pointing_called` of those that the model calls
            fracture at `threshold`. None where there are none, and `why_none` says why.
        sanity: Whether the maps depend on what was learned.
        samples: The first of the draw.
    """

    model: str
    checkpoint_hash: str
    method: str
    words: str
    cell_mm: float | None
    split: str
    seed: int
    threshold: float
    pointing: PointingResult | None
    pointing_called: PointingResult | None
    why_none: str | None
    sanity: SanityResult | None
    samples: tuple[ExplainedSlice, ...]


class SplitSummary(FrozenModel):
    """Counts of one split. `patients` is None where ids are unknown."""

    split: str
    fracture: int
    normal: int
    patients: int | None
    series: int | None
    source_slices: int | None


class DataSummary(FrozenModel):
    """What went in."""

    root: str
    slices: int
    splits: tuple[SplitSummary, ...]
    sizes: dict[str, int]
    modes: dict[str, int]
    notes: tuple[str, ...]


class Note(FrozenModel):
    """Something that a reader must know before believing the numbers and that is no finding; shown below these."""

    severity: Literal["info", "warning"]
    text: str


class RunManifest(FrozenModel):
    """How to get these numbers again.

    Attributes:
        wall_s: Of the last call alone where the run was `resumed`.
        stages_s: By stage, of the same call; what lies between stages is in none of them.
        settings: The whole experiment with its overrides; None in the results of a version that did not keep it.
    """

    command: str
    started: str
    wall_s: float
    stages_s: dict[str, float] = Field(default_factory=dict)
    resumed: bool = False
    seed: int
    versions: dict[str, str]
    machine: dict[str, str]
    hashes: dict[str, str]
    experiment_toml: str
    settings: dict[str, JsonValue] | None = None


class CorruptionStrip(FrozenModel):
    """A slice at severities 0 to 5 of one corruption, side by side: a base64 JPEG."""

    corruption: str
    jpeg: str


class RobustnessResult(FrozenModel):
    """What stands beside the robustness curves.

    Attributes:
        slices, positives: How many slices the curves are of.
        errors: Corruption errors against the first model.
        not_applicable: Corruption -> why these slices cannot show it.
        center_hu, width_hu, field_of_view_mm: What grey levels and pixels were taken to mean.
        slice_id: Of the slice in `strips`.
        strips: What each corruption looks like.
    """

    slices: int
    positives: int
    errors: CorruptionErrors | None
    not_applicable: dict[str, str]
    center_hu: float
    width_hu: float
    field_of_view_mm: float
    slice_id: str
    strips: tuple[CorruptionStrip, ...]


class ComparisonResults(FrozenModel):
    """Everything that `cspine compare` found.

    Attributes:
        verdict: Follows from `findings`: the worst severity decides.
        findings: Of the folds, the models and the audit; the worst first, without the lists of files, which stand in
            `audit.json`. None in the results of a version that did not keep them: there, `notes` has their texts.
    """

    schema_version: int = SCHEMA_VERSION
    name: str
    title: str
    description: str
    selection_split: str
    reported_split: str
    data: DataSummary
    verdict: Verdict | None = None
    findings: tuple[Finding, ...] | None = None
    notes: tuple[Note, ...]
    audit: AuditResult | None = None
    models: tuple[ModelResult, ...]
    baselines: tuple[BaselineResult, ...]
    pairs: ModelComparison | None = None
    in_use: tuple[ProbabilityUse, ...] = ()
    sizes: tuple[EffectiveSize, ...] = ()
    robustness: tuple[RobustnessPoint, ...]
    robustness_details: RobustnessResult | None = None
    subgroups: tuple[SubgroupResult, ...] = ()
    folded: FoldedResult | None = None
    samples: tuple[Sample, ...]
    explanations: tuple[ModelExplanation, ...] = ()
    studies: tuple[StudyResult, ...] = ()
    run: RunManifest

    def __repr__(self) -> str:
        models = ", ".join(model.name for model in self.models)
        return f"ComparisonResults({self.name}: {models}; verdict: {self.verdict})"

    def to_frame(self) -> pl.DataFrame:
        """Return one row a model, or baseline, and metric: name, metric, value, low, high, method, unit, n, reason."""
        found = [(one.name, one.evaluation) for one in self.models]
        found += [(one.name, one.evaluation) for one in self.baselines]
        rows = [
            {"name": name, "metric": metric, **estimate.model_dump()}
            for name, evaluation in found
            for metric, estimate in evaluation.metrics.items()
        ]
        return pl.DataFrame(rows, infer_schema_length=None)
