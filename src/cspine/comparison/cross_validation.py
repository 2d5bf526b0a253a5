"""Stage 4: every model trained on every division, and what the held-out predictions say together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl

from cspine.auditing.findings import AuditResult, Finding
from cspine.comparison.auditing import predict_baselines, score_models
from cspine.comparison.prepare import Division, Plan
from cspine.comparison.training import TrainedModel, check_training, predict_split, train_model
from cspine.core.estimates import EvaluationResult
from cspine.core.files import compute_hash
from cspine.core.progress import Watcher
from cspine.core.types import GROUP_NAMES, plural
from cspine.experiment import Experiment
from cspine.inference.predictor import Predictor
from cspine.metrics.evaluation import estimate_metrics
from cspine.metrics.intervals import IntervalOptions
from cspine.metrics.seeds import summarise_seeds
from cspine.report.results import FoldedResult, FoldScore, FoldSummary, Note, PooledResult

FOLDS_FOLDER = "folds"

Tables = dict[str, list[pl.DataFrame]]  # of a model or baseline: one table of predictions a repeat


@dataclass
class FoldedRun:
    """Predictions of all divisions.

    Attributes:
        models, baselines: Name -> held-out predictions, one table a repeat, pooled over its folds.
        words: Name -> description of each baseline.
        parts: (division, name, predictions) of every single training, baselines after models.
    """

    models: Tables = field(default_factory=dict)
    baselines: Tables = field(default_factory=dict)
    words: dict[str, str] = field(default_factory=dict)
    parts: list[tuple[Division, str, pl.DataFrame]] = field(default_factory=list)


def find_folder(folder: Path, plan: Plan, division: Division, name: str) -> Path:
    """Where a model's training on a division lives; that of the main one is where it is without folds."""
    if division is plan.main:
        return folder / "models" / name
    return folder / FOLDS_FOLDER / division.name / name


def check_folds(experiment: Experiment, plan: Plan, folder: Path, *, resume: bool) -> None:
    """Refuse before the first epoch what a later training would refuse; see `check_training`."""
    for division in plan.divisions:
        for name in experiment.models:
            place = find_folder(folder, plan, division, name)
            if place.exists():
                check_training(_seeded(experiment, division), name, division.prepared, place, resume=resume)


def _seeded(experiment: Experiment, division: Division) -> Experiment:
    return experiment.model_copy(update={"seed": division.seed})


def run_folds(
    experiment: Experiment,
    plan: Plan,
    main: Sequence[TrainedModel],
    folder: Path,
    cache_folder: Path,
    watcher: Watcher,
    *,
    resume: bool,
) -> FoldedRun:
    """Train and predict every model on every division, or read what is there.

    `main` are the models as trained on `plan.main`, in the order of the experiment.
    """
    run = FoldedRun()
    made: dict[tuple[str, int], list[pl.DataFrame]] = {}
    for number, division in enumerate(plan.divisions, start=1):
        seeded = _seeded(experiment, division)
        watcher.start(f"Fold {number} of {len(plan.divisions)}: {division.name or 'the set’s own splits'}", 0)
        watcher.finish(f"{len(division.prepared.table(division.prepared.train)):,} slices to learn from")
        for number_of_model, name in enumerate(experiment.models):
            if division is plan.main:
                trained = main[number_of_model]
            else:
                place = find_folder(folder, plan, division, name)
                trained = train_model(
                    seeded, name, division.prepared, place, cache_folder, watcher, resume=resume
                )
            table = predict_split(trained, Predictor.load(trained.checkpoint), division.prepared, watcher)
            run.parts.append((division, name, table))
            made.setdefault((name, division.repeat), []).append(table)
        if experiment.evaluation.baselines:
            for name, (words, table) in predict_baselines(division.prepared, main[0].cache).items():
                run.words[name] = words
                run.parts.append((division, name, table))
                made.setdefault((name, division.repeat), []).append(table)
    for (name, _), tables in made.items():
        target = run.models if name in experiment.models else run.baselines
        target.setdefault(name, []).append(pool_predictions(tables, plan.main.prepared.manifest.hash))
    return run


def pool_predictions(tables: Sequence[pl.DataFrame], manifest_hash: str) -> pl.DataFrame:
    """One table of what several trainings of one model said of the slices that each held out.

    The checkpoint that the rows name is the hash of all checkpoints.

    Args:
        tables: Predictions of one model with one recipe; no slice in two of them.
        manifest_hash: Of the set, whatever its division: repeats are so known to be of the same slices.
    """
    hashes = [table["checkpoint_hash"][0] for table in tables]
    checkpoint = hashes[0] if len(hashes) == 1 else compute_hash(hashes)
    return pl.concat(tables).with_columns(
        checkpoint_hash=pl.lit(checkpoint), manifest_hash=pl.lit(manifest_hash)
    )


def summarise_folds(
    run: FoldedRun,
    plan: Plan,
    given: Mapping[str, EvaluationResult],
    audit: AuditResult | None,
    threshold: float,
    options: IntervalOptions,
    scheme: str,
) -> FoldedResult | None:
    """What all divisions found; None without folds.

    Args:
        run, plan: The predictions, and of which divisions.
        given: The models on the set's own splits, where those are reported.
        audit: Its families tell whether a fold has copies on both sides.
    """
    if not plan.divisions:
        return None
    words = describe_scheme(plan, scheme)
    return FoldedResult(
        scheme=scheme,
        words=words,
        group=GROUP_NAMES[plan.column] if plan.column else None,
        folds=_summarise_each(run, plan, audit, threshold, options),
        seeds=tuple(
            summarise_seeds(tables, threshold=threshold, options=options)
            for tables in run.models.values()
            if len(tables) > 1
        ),
        # Folds are other divisions than the one that the rest of the report shows.
        beside=_summarise_beside(run, plan, given, threshold, options, words)
        if plan.given and plan.column is not None
        else None,
    )


def _summarise_beside(
    run: FoldedRun,
    plan: Plan,
    given: Mapping[str, EvaluationResult],
    threshold: float,
    options: IntervalOptions,
    words: str,
) -> PooledResult:
    scores = score_models(*pool_first(run), threshold, options)
    return PooledResult(
        models=tuple(scores.evaluations.values()),
        baselines=scores.baselines,
        pairs=scores.pairs,
        findings=(*find_falls(given, scores.evaluations, plan, words), *scores.findings),
    )


def list_reported(plan: Plan) -> pl.DataFrame:
    """The rows of a manifest whose predictions the report's tables show."""
    if plan.given:
        return plan.main.prepared.table(plan.main.prepared.reported)
    first = [division.prepared for division in plan.divisions if division.repeat == 0]
    return pl.concat([prepared.table(prepared.reported) for prepared in first])


def pool_first(run: FoldedRun) -> tuple[dict[str, pl.DataFrame], dict[str, tuple[str, pl.DataFrame]]]:
    """Held-out predictions of the first repeat: of each model, and of each baseline with its description."""
    models = {name: tables[0] for name, tables in run.models.items()}
    return models, {name: (run.words[name], tables[0]) for name, tables in run.baselines.items()}


def describe_scheme(plan: Plan, scheme: str) -> str:
    """What was done, in words."""
    group = GROUP_NAMES[plan.column] if plan.column else ""
    repeats = 1 + max((division.repeat for division in plan.divisions), default=0)
    count = len(plan.divisions) // repeats
    again = f", {repeats} seeds" if repeats > 1 else ""
    if scheme == "given":
        return f"the set's own splits{again}"
    if scheme == "leave-one-out":
        return f"leave one {group} out{again}"
    if scheme == "kfold":
        return f"{count} folds of whole {plural(group)}{again}"
    return f"whole {plural(group)} held out{again}"


def _summarise_each(
    run: FoldedRun, plan: Plan, audit: AuditResult | None, threshold: float, options: IntervalOptions
) -> tuple[FoldSummary, ...]:
    found = []
    for division in plan.divisions:
        prepared = division.prepared
        held_out = prepared.table(prepared.reported)
        positives = int(held_out["label"].sum())
        found.append(
            FoldSummary(
                name=division.name or f"seed{division.seed}",
                seed=division.seed,
                groups=division.groups,
                train_slices=len(prepared.table(prepared.train)),
                selection_slices=len(prepared.table(prepared.selection)),
                held_out_slices=len(held_out),
                positives=positives,
                larger_class=max(positives, len(held_out) - positives) / len(held_out),
                copied=None if audit is None else count_copied(division, audit.families),
                scores=tuple(
                    FoldScore(name=name, **estimate_metrics(table, ("accuracy", "auroc"), threshold, options))
                    for one, name, table in run.parts
                    if one is division
                ),
            )
        )
    return tuple(found)


def count_copied(division: Division, families: Sequence[Sequence[str]]) -> int:
    """Held-out slices of a division of which a copy, by pixels, stands where was learned or selected."""
    prepared = division.prepared
    family_of = {path: number for number, family in enumerate(families) for path in family}
    table = pl.concat(
        [prepared.table(one) for one in {prepared.train, prepared.selection, prepared.reported}]
    )
    numbered = table.with_columns(
        family=pl.col("path").replace_strict(family_of, default=None, return_dtype=pl.Int64),
        held_out=pl.col("split") == prepared.reported,
    ).drop_nulls("family")
    known = numbered.filter(~pl.col("held_out"))["family"].unique().implode()
    return int(numbered.filter(pl.col("held_out") & pl.col("family").is_in(known)).height)


def find_falls(
    given: Mapping[str, EvaluationResult], folded: Mapping[str, EvaluationResult], plan: Plan, words: str
) -> tuple[Finding, ...]:
    """A finding for each model whose numbers on the set's own split are not what unseen groups get.

    The claim is made where the whole interval over the folds lies below that of the given split, of AUROC, else of
    accuracy.
    """
    found = []
    for name, before in given.items():
        for metric, label in (("auroc", "AUROC"), ("accuracy", "accuracy")):
            one, other = before.metrics[metric], folded[name].metrics[metric]
            if one.low is None or other.high is None or other.high >= one.low:
                continue
            group = GROUP_NAMES[plan.column or "slice_id"]
            found.append(
                Finding(
                    code="falls-on-unseen-groups",
                    severity="invalidates",
                    text=f"The {before.split} split flatters {name}: its {label} is {one.value or 0:.3f} there, and "
                    f"{other.value or 0:.3f} [{other.low or 0:.3f}, {other.high:.3f}] on {plural(group)} that it did "
                    f"not learn from ({words}).",
                    evidence={
                        "model": name,
                        "metric": metric,
                        "given": one.value,
                        "folded": other.value,
                        "folded_high": other.high,
                    },
                )
            )
            break
    return tuple(found)


def note_pooling(plan: Plan, folded: FoldedResult | None) -> tuple[Note, ...]:
    """What a reader must know where the tables are pooled over folds."""
    if folded is None or plan.given:
        return ()
    return (
        Note(
            severity="info",
            text=f"All slices were predicted by models that did not learn from their {folded.group} "
            f"({folded.words}), and the tables pool them. Training curves, robustness and the audit's splits are those "
            f"of {plan.main.name}.",
        ),
    )
