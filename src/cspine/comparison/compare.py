"""The whole comparison: data, training, predictions, evaluation, robustness, report."""

from __future__ import annotations

import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import polars as pl

from cspine.auditing.findings import AuditResult, decide_verdict
from cspine.comparison.auditing import (
    audit_prepared,
    gather_findings,
    note_unit,
    predict_baselines,
    score_models,
    shorten_audit,
)
from cspine.comparison.cross_validation import (
    FoldedRun,
    check_folds,
    list_reported,
    note_pooling,
    pool_first,
    run_folds,
    summarise_folds,
)
from cspine.comparison.describe import EXPERIMENT_FILE
from cspine.comparison.explaining import check_explanations, explain_models
from cspine.comparison.prepare import Plan, check_evaluation, plan_divisions, summarise_data
from cspine.comparison.robustness import CorruptedRun, assess_robustness, predict_corrupted
from cspine.comparison.studies import SIZED, assess_models, check_use, compare_studies
from cspine.comparison.training import (
    TrainedModel,
    check_run_folder,
    check_training,
    choose_samples,
    describe_machine,
    describe_model,
    find_versions,
    predict_split,
    train_model,
)
from cspine.core.files import compute_hash, write_text
from cspine.core.progress import Silent, StageClock, Watcher
from cspine.data.manifest import write_manifest
from cspine.experiment import Experiment, read_experiment
from cspine.inference.predictor import Predictor
from cspine.metrics.clinical import ProbabilityUse
from cspine.metrics.effective_size import compute_effective_size
from cspine.metrics.evaluation import evaluate_subgroups
from cspine.metrics.intervals import IntervalOptions
from cspine.report.report import ShownResults, read_results, write_report
from cspine.report.results import (
    ComparisonResults,
    ModelExplanation,
    Note,
    RunManifest,
)


def compare(
    experiment: str | Path | Experiment,
    folder: str | Path,
    *,
    overrides: Sequence[str] = (),
    resume: bool = False,
    watcher: Watcher | None = None,
    command: str = "cspine.compare",
) -> ShownResults:
    """Train and compare the models of an experiment; `folder` then holds report.html, results.json and all else.

    Args:
        experiment: A TOML file, or what `read_experiment` gave.
        folder: Where everything goes.
        overrides: Of a file, "section.field=value" each.
        resume: Continue the run in `folder`; what is finished in it is not done again.
        watcher: Told about progress.
        command: For the record in the report.

    Raises:
        ExperimentError: the file is no experiment.
        InputError: `folder` holds a run and `resume` is false; the data cannot be used.
    """
    text = "" if isinstance(experiment, Experiment) else Path(experiment).read_text(encoding="utf-8")
    if not isinstance(experiment, Experiment):
        experiment = read_experiment(Path(experiment), overrides)
    run_comparison(
        experiment,
        Path(folder),
        resume=resume,
        command=command,
        watcher=watcher,
        experiment_toml=text,
    )
    return read_results(Path(folder))


def run_comparison(
    experiment: Experiment,
    folder: Path,
    *,
    resume: bool = False,
    cache_folder: Path | None = None,
    command: str = "",
    watcher: Watcher | None = None,
    experiment_toml: str = "",
) -> Path:
    """Do what `compare` does, and return the path of report.html.

    Args:
        experiment, folder, resume, command, watcher: As in `compare`.
        cache_folder: Where preprocessed slices are kept; None is `folder`/cache.
        experiment_toml: The experiment as text, for the record in the report.

    Raises:
        CspineError: as in `compare`; what was finished stays, and `resume` continues it.
    """
    clock, folder = StageClock(watcher or Silent()), Path(folder)
    cache_folder = cache_folder or folder / "cache"
    begun = _Begun(command, experiment_toml, (folder / "manifest.parquet").exists(), clock)
    check_run_folder(folder, EXPERIMENT_FILE, resume=resume)
    plan = plan_divisions(experiment, clock)
    prepared = plan.main.prepared
    check_evaluation(experiment, prepared)
    check_use(experiment, prepared)
    check_explanations(experiment)
    for name in experiment.models:
        check_training(experiment, name, prepared, folder / "models" / name, resume=resume)
    check_folds(experiment, plan, folder, resume=resume)
    write_text(folder / EXPERIMENT_FILE, experiment.model_dump_json(indent=2) + "\n")
    write_manifest(prepared.manifest, folder / "manifest.parquet")
    audit = audit_prepared(experiment, prepared, folder, clock) if experiment.evaluation.audit else None
    trained = [
        train_model(experiment, name, prepared, folder / "models" / name, cache_folder, clock, resume=resume)
        for name in experiment.models
    ]
    predictors = {item.name: Predictor.load(item.checkpoint) for item in trained}
    reported, selected = (
        {item.name: predict_split(item, predictors[item.name], prepared, clock, split) for item in trained}
        for split in (prepared.reported, prepared.selection)
    )
    options = make_options(experiment)
    answered = _Answered(
        trained=trained,
        predictors=predictors,
        reported=reported,
        selected=selected,
        in_use=assess_models(experiment, prepared, trained, reported, selected, options),
        corrupted=predict_corrupted(experiment, prepared, predictors, reported, folder / "robustness", clock),
        explanations=explain_models(experiment, prepared, predictors, options, folder, clock),
        folds=run_folds(experiment, plan, trained, folder, cache_folder, clock, resume=resume),
    )
    clock.start("Evaluating", 0)
    report = write_report(_evaluate(experiment, plan, audit, answered, begun), folder)
    clock.finish(f"{len(trained)} models")
    return report


def make_options(experiment: Experiment) -> IntervalOptions:
    """How an experiment wants its intervals."""
    settings = experiment.evaluation
    return IntervalOptions(settings.draws, experiment.seed, settings.level, settings.unit)


@dataclass(frozen=True)
class _Answered:
    """What all models left for the evaluation; `reported` and `selected` are predictions by model."""

    trained: Sequence[TrainedModel]
    predictors: dict[str, Predictor]
    reported: dict[str, pl.DataFrame]
    selected: dict[str, pl.DataFrame]
    in_use: tuple[ProbabilityUse, ...]
    corrupted: CorruptedRun | None
    explanations: tuple[tuple[ModelExplanation, ...], tuple[Note, ...]]
    folds: FoldedRun


@dataclass(frozen=True)
class _Begun:
    """How a run began."""

    command: str
    experiment_toml: str
    resumed: bool
    clock: StageClock
    started: datetime = field(default_factory=lambda: datetime.now(UTC))
    since: float = field(default_factory=time.perf_counter)

    def record(self, experiment: Experiment, hashes: dict[str, str]) -> RunManifest:
        return RunManifest(
            command=self.command,
            started=self.started.isoformat(timespec="seconds"),
            wall_s=round(time.perf_counter() - self.since, 1),
            stages_s={stage: round(seconds, 1) for stage, seconds in self.clock.seconds.items()},
            resumed=self.resumed,
            seed=experiment.seed,
            versions=find_versions(),
            machine=describe_machine(),
            hashes=hashes,
            experiment_toml=self.experiment_toml,
            settings=experiment.model_dump(mode="json"),
        )


def _evaluate(
    experiment: Experiment, plan: Plan, audit: AuditResult | None, answered: _Answered, begun: _Begun
) -> ComparisonResults:
    settings, options, prepared = experiment.evaluation, make_options(experiment), plan.main.prepared
    tables = answered.reported
    guesses: dict[str, tuple[str, pl.DataFrame]] = {}
    if not plan.given:
        tables, guesses = pool_first(answered.folds)
    elif settings.baselines:
        guesses = predict_baselines(prepared, answered.trained[0].cache)
    scores = score_models(tables, guesses, settings.threshold, options)
    folded = summarise_folds(
        answered.folds, plan, scores.evaluations, audit, settings.threshold, options, settings.folds.scheme
    )
    findings = gather_findings(folded, scores, audit, experiment, prepared)
    robustness, details = assess_robustness(experiment, answered.corrupted, options)
    explanations, unexplained = answered.explanations
    return ComparisonResults(
        name=experiment.name,
        title=experiment.title,
        description=experiment.description,
        selection_split=prepared.selection,
        reported_split=prepared.reported if plan.given or folded is None else folded.words,
        data=summarise_data(prepared),
        verdict=decide_verdict(findings),
        findings=findings,
        notes=(*note_unit(tables, settings.unit), *note_pooling(plan, folded), *unexplained),
        audit=shorten_audit(audit) if audit else None,
        models=tuple(
            describe_model(item, answered.predictors[item.name], scores.evaluations[item.name])
            for item in answered.trained
        ),
        baselines=scores.baselines,
        pairs=scores.pairs,
        in_use=answered.in_use,
        sizes=tuple(
            compute_effective_size(table, SIZED, settings.threshold, options) for table in tables.values()
        ),
        robustness=robustness,
        robustness_details=details,
        subgroups=evaluate_subgroups(
            tables.values(), list_reported(plan), threshold=settings.threshold, options=options
        ),
        folded=folded,
        explanations=explanations,
        studies=compare_studies(prepared, tables, answered.selected, options) if plan.given else (),
        samples=tuple(
            sample
            for item in answered.trained
            for sample in choose_samples(tables[item.name], item, experiment)
        ),
        run=begun.record(
            experiment,
            {
                "manifest": prepared.manifest.hash,
                "experiment": compute_hash(experiment.model_dump(mode="json")),
                **{f"checkpoint {name}": one.checkpoint_hash for name, one in answered.predictors.items()},
            },
        ),
    )


def quote_command(arguments: list[str]) -> str:
    """The command line as one would type it."""
    return shlex.join(["cspine", *arguments])
