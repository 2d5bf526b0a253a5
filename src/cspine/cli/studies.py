"""`cspine predict`: scores of labelled slices as one table, or answers about studies in a folder."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl
import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cspine.cli.screen import Bars
from cspine.comparison.artifacts import evaluate_answers_pointing, read_pictures
from cspine.comparison.studies import FittedStudies, fit_studies
from cspine.core.answers import StudyAnswer
from cspine.core.errors import InputError, MissingExtraError
from cspine.core.estimates import EvaluationResult
from cspine.core.files import compute_hash, refuse_other_suffix, refuse_to_replace, write_text
from cspine.core.predictions import ORIGIN, SCHEMA
from cspine.ct.annotations import LabelTable, Segmentations, read_label_table, read_rsna_labels
from cspine.ct.importing import read_imported
from cspine.ct.intake import IntakePolicy, read_policy
from cspine.ct.series import CtSeries, Format, ReadOptions, read_series, recognise_format
from cspine.data.layouts import MANIFEST_NAME, Classes, import_dataset
from cspine.data.manifest import Manifest, is_manifest, read_manifest
from cspine.explain.maps import METHODS, Method
from cspine.inference.answers import Answered, AnswersFolder, choose_for_studies
from cspine.inference.engines import RuntimeName
from cspine.inference.predictor import Predictor
from cspine.inference.study import EarlyScorer, MakeExtras, StudyPredictor, answer_all
from cspine.metrics.evaluation import evaluate
from cspine.report.text import format_estimate, format_value

if TYPE_CHECKING:
    from cspine.dicom_out.source import Deidentify

PAGE_NAME, METRICS_NAME = "answers.html", "metrics.json"
_MOST_SHOWN = 40
_LEAST_OF_A_CLASS = 2
_COLOURS = {"fracture": "bold red", "no fracture": "green", "abstained": "yellow"}


@dataclass(frozen=True)
class Options:
    """What a prediction over studies may be told.

    Attributes:
        runtime: What runs the networks.
        policy, labels, segmentations: Files and a folder; None for none.
        split: Of imported sets, only this one; None is all.
        explain: How maps are made; None makes none.
        dicom_out: Write DICOM objects.
        deidentify: A file with the key by which their identity is replaced; None keeps it.
        resume: Go on with the folder.
        strict: Exit 1 where any series got no call.
        as_json: Print the answers as JSON.
    """

    runtime: RuntimeName = "auto"
    policy: Path | None = None
    labels: Path | None = None
    segmentations: Path | None = None
    split: str | None = None
    explain: str | None = None
    dicom_out: bool = False
    deidentify: Path | None = None
    resume: bool = False
    strict: bool = False
    as_json: bool = False


@dataclass(frozen=True)
class _Source:
    """One path that was named: a CT source of a format, or an imported set."""

    path: Path
    format: Format | None
    manifest: Path | None = None


def find_study_sources(paths: Sequence[Path], output: Path | None) -> list[_Source] | None:
    """What there is to answer about; None where the paths are slices to be scored into one table.

    Raises:
        InputError: a path does not exist, or the two kinds are mixed.
    """
    found = [_recognise(path, output) for path in paths]
    if not any(found):
        if output is not None and output.suffix.lower() != ".parquet":
            _refuse_no_studies(paths, output)
        return None
    for path, source in zip(paths, found, strict=True):
        if source is None:
            raise InputError(
                "these are no CT studies, and others of the paths are",
                where=str(path),
                fix="predict slices and studies by two commands",
            )
    return [source for source in found if source is not None]


def _refuse_no_studies(paths: Sequence[Path], output: Path) -> None:
    raise InputError(
        f"there are no CT studies here to be answered into the folder {output}",
        where=", ".join(map(str, paths)),
        fix="name a DICOM file, folder, DICOMDIR or zip, NIfTI or an imported set (not a damaged zip); or, to score "
        "slices, a table with -o predictions.parquet",
    )


def _recognise(path: Path, output: Path | None) -> _Source | None:
    if not path.exists():
        raise InputError("no such file or folder", where=str(path), fix="name a file or a folder")
    manifest = path / MANIFEST_NAME if path.is_dir() else path
    if is_manifest(manifest):
        wanted = output is not None and output.suffix.lower() != ".parquet"
        return _Source(path, None, manifest) if wanted else None
    source_format = recognise_format(path)
    return None if source_format is None else _Source(path, source_format)


def run_study_prediction(
    sources: Sequence[_Source], checkpoints: Sequence[Path], output: Path, options: Options
) -> int:
    """Answer, write the folder, print; returns the exit code.

    Raises:
        InputError: a source, checkpoint, option or the folder cannot be used.
        CheckpointError: a checkpoint cannot be read.
    """
    if options.split is not None and all(source.manifest is None for source in sources):
        raise InputError(
            "only an imported set has splits, and none is named", where="--split", fix="leave it out"
        )
    policy = IntakePolicy() if options.policy is None else read_policy(options.policy)
    labels = (
        None if options.labels is None else read_label_table(options.labels, Classes("fracture", "normal"))
    )
    segmentations = None if options.segmentations is None else Segmentations(options.segmentations)
    manifests = {
        source.path: _read_set(source.manifest, options.split)
        for source in sources
        if source.manifest is not None
    }
    method, deidentify = _check_extras(options)
    predictor = StudyPredictor([Predictor.load(path, runtime=options.runtime) for path in checkpoints])
    settings = {
        "checkpoints": list(predictor.checkpoint_hashes),
        "runtimes": [one.runtime.name for one in predictor.predictors],
        "policy": policy.model_dump(mode="json"),
        "sources": [str(source.path.absolute()) for source in sources],
        "split": options.split,
        "labels": None if labels is None else compute_hash([labels.key, labels.rows]),
        "segmentations": None if options.segmentations is None else str(options.segmentations.absolute()),
        "explain": method,
        "dicom_out": options.dicom_out,
        # Under another key one patient would get two identities.
        "deidentified": None if deidentify is None else deidentify.derive("settings").hex()[:16],
    }
    make_extras = None
    if method is not None or options.dicom_out:
        make_extras = _prepare_extras(output, predictor, method, options.dicom_out, deidentify, policy)
    folder = AnswersFolder.open(output, settings, resume=options.resume)

    before = folder.groups
    groups: dict[str, str] = {}
    taken: set[str] = set()
    met_again: list[str] = []

    def skip(key: str, patient_id: str | None) -> bool:
        # Not what is answered: of what is read ahead nothing is yet.
        if key in taken:
            met_again.append(key)
            return True
        taken.add(key)
        if key in before and patient_id:
            groups.setdefault(patient_id, before[key])
        return key in before

    def list_series(scorer: EarlyScorer) -> Iterator[CtSeries]:
        for source in sources:
            if source.format is None:
                yield from read_imported(manifests[source.path], str(source.path), skip)
            else:
                yield from read_series(
                    source.path,
                    source.format,
                    policy,
                    read_rsna_labels(source.path) if source.format == "rsna" else labels,
                    segmentations,
                    ReadOptions(skip=skip, on_begin=scorer.begin),
                )

    console = Console(stderr=True)
    if folder.done and not options.as_json:
        console.print(f"going on: {len(folder.done):,} series are answered", highlight=False)
    try:
        with Bars(quiet=options.as_json) as bars, EarlyScorer(predictor) as scorer:
            bars.start("Answering", 0)
            counts: Counter[str] = Counter()

            def show(item: CtSeries, answer: StudyAnswer) -> None:
                counts[answer.call] += 1
                note = ", ".join(f"{count} {call}" for call, count in counts.items())
                bars.advance(item.done, item.total, note)

            answer_all(list_series(scorer), scorer, folder, show, make_extras, groups)
            engines = dict.fromkeys(one.runtime.about for one in predictor.predictors)
            bars.finish(f"{len(folder.done):,} series; {'; '.join(engines)}")
    finally:
        # What is answered can be read, whatever came between.
        answered = folder.write_tables()
    for words in _list_losses(met_again, None if before else labels, segmentations):
        console.print(words, style="yellow", soft_wrap=True, highlight=False, markup=False)
    evaluation = evaluate_answers(answered)
    specs = [one.header.spec.name for one in predictor.predictors]
    names = {
        spec if specs.count(spec) == 1 else f"{spec} ({place})": path.name
        for place, (spec, path) in enumerate(zip(specs, checkpoints, strict=True), start=1)
    }
    _write_page(folder.path, answered, evaluation, names)
    if options.as_json:
        typer.echo((folder.path / "studies.json").read_text(encoding="utf-8").rstrip())
    else:
        show_answers(answered, evaluation, folder.path)
    return find_exit_code(answered, strict=options.strict)


def _list_losses(
    met_again: Sequence[str], labels: LabelTable | None, segmentations: Segmentations | None
) -> Iterator[str]:
    """What was named and came to nothing, in words."""
    if met_again:
        yield (
            f"{len(met_again):,} series were left out, for one of the same UID is answered: the files of a series "
            "belong into one of the paths"
        )
    if labels is not None and not labels.used:
        yield f"no {labels.key} of the table of labels is one of these studies: nothing is compared"
    if segmentations is not None and segmentations.unusable:
        count, first = len(segmentations.unusable), segmentations.unusable[0]
        yield f"{count:,} of the segmentations cannot be used, so these studies have no levels; the first: {first}"


def _prepare_extras(
    folder: Path,
    predictor: StudyPredictor,
    method: Method | None,
    dicom: bool,
    deidentify: Deidentify | None,
    policy: IntakePolicy,
) -> MakeExtras:
    # Here, for it needs packages that an answer alone does not.
    try:
        from cspine.comparison.artifacts import AnswerExtras
    except ImportError:
        raise MissingExtraError("DICOM output", "studies") from None
    return AnswerExtras(folder, predictor.predictors[0], method, dicom, deidentify, policy).make


def _check_extras(options: Options) -> tuple[Method | None, Deidentify | None]:
    method: Method | None = next((name for name in METHODS if name == options.explain), None)
    if options.explain is not None and method is None:
        raise InputError(
            f"no such method: {options.explain}", where="--explain", fix=f"choose one of {', '.join(METHODS)}"
        )
    if options.deidentify is None:
        return method, None
    if not options.dicom_out:
        raise InputError(
            "only DICOM objects have an identity to replace", where="--deidentify", fix="add --dicom-out"
        )
    from cspine.dicom_out.source import read_key

    return method, read_key(options.deidentify)


def _read_set(path: Path, split: str | None) -> Manifest:
    manifest = read_manifest(path)
    if manifest.table["series_uid"].null_count() == len(manifest):
        raise InputError(
            "no slice names the series that it belongs to: there are no studies to answer",
            where=str(path),
            fix="score the slices: -o predictions.parquet",
        )
    return manifest if split is None else manifest.select(split)


def find_exit_code(answered: Sequence[Answered], *, strict: bool) -> int:
    """0 where something was called; 1 where nothing was, or with `strict` where any series was not."""
    called = [one.answer.call != "abstained" for one in answered]
    return 0 if (all(called) if strict else any(called)) and called else 1


def evaluate_answers(answered: Sequence[Answered]) -> EvaluationResult | None:
    """Of the series that stand for studies, are scored and of known truth; None with fewer than two of a class."""
    first = choose_for_studies(answered)
    known = [
        one for one in answered if one.key in first and one.truth is not None and one.answer.prob is not None
    ]
    counts = Counter(one.truth for one in known)
    if min(counts[0], counts[1]) < _LEAST_OF_A_CLASS:
        return None
    rows: list[dict[str, Any]] = [
        {
            "slice_id": one.key,
            "patient_id": one.group,
            "study_uid": one.answer.intake.study_uid,
            "series_uid": one.key,
            "source_id": None,
            "split": None,
            "y_true": one.truth,
            "logit": one.answer.logit,
            "prob": one.answer.prob,
            **dict.fromkeys(ORIGIN, "+".join(one.answer.checkpoint_hashes)),
        }
        for one in known
    ]
    return evaluate(pl.DataFrame(rows, schema=SCHEMA), threshold=known[0].answer.threshold)


def _write_page(
    folder: Path,
    answered: list[Answered],
    evaluation: EvaluationResult | None,
    models: Mapping[str, str],
) -> None:
    # Here, for drawing needs memory that answering can use.
    from cspine.report.answers_page import AnswersPage, write_answers_page

    if evaluation is not None:
        evaluation = evaluation.model_copy(update={"model": " + ".join(models)})
        write_text(folder / METRICS_NAME, evaluation.model_dump_json(indent=2))
    write_answers_page(
        AnswersPage(
            answers=[one.answer for one in answered if one.answer.intake.slices_found],
            rows=[one.answer.intake for one in answered],
            models=models,
            truth={one.key: one.truth for one in answered if one.truth is not None},
            evaluation=evaluation,
            pointing=evaluate_answers_pointing(answered),
            pictures=read_pictures(folder, answered),
        ),
        folder / PAGE_NAME,
    )


def show_answers(answered: Sequence[Answered], evaluation: EvaluationResult | None, folder: Path) -> None:
    """One row a series, fractures first; then how good that is, where the truth is known. No patient is named."""
    from cspine.report.answers_page import shorten_uid

    counts: Counter[str] = Counter(one.answer.call for one in answered)
    listed = ", ".join(f"{counts[call]:,} {call}" for call in _COLOURS if counts[call])
    table = Table(title=f"answers: {listed}", title_justify="left", box=box.SIMPLE)
    table.add_column("study", no_wrap=True)
    table.add_column("slices", justify="right", no_wrap=True)
    table.add_column("intake", no_wrap=True)
    table.add_column("call", no_wrap=True)
    table.add_column("probability", justify="right", no_wrap=True)
    table.add_column("level", no_wrap=True)
    order = list(_COLOURS)
    ranked = sorted(answered, key=lambda one: (order.index(one.answer.call), -(one.answer.prob or 0)))
    for one in ranked[:_MOST_SHOWN]:
        answer = one.answer
        likeliest = max(answer.level_probs, key=lambda name: answer.level_probs[name], default="")
        table.add_row(
            escape(shorten_uid(answer.intake.study_uid or Path(answer.intake.source).name)),
            f"{len(answer.slice_ids):,}",
            answer.intake.decision,
            f"[{_COLOURS[answer.call]}]{answer.call}[/]",
            format_value(answer.prob),
            likeliest if answer.call == "fracture" else "",
        )
    console = Console()
    console.print(table)
    for one in ranked[:_MOST_SHOWN]:
        for reason in one.answer.abstentions:
            name = shorten_uid(one.answer.intake.study_uid or Path(one.answer.intake.source).name)
            words = f"no call for {name}: {reason.reason}: {reason.detail}"
            console.print(words, soft_wrap=True, highlight=False, markup=False)
    if len(ranked) > _MOST_SHOWN:
        console.print(f"and {len(ranked) - _MOST_SHOWN:,} more: see studies.csv")
    if evaluation is not None:
        for name in ("auroc", "recall", "specificity"):
            words = f"{name} over {evaluation.slices:,} studies: {format_estimate(evaluation.metrics[name])}"
            console.print(words, highlight=False)
    for path in (PAGE_NAME, "studies.csv", "slices.csv"):
        console.print(str(folder / path), soft_wrap=True, highlight=False, markup=False)
    console.print("Research software. Not for clinical use.", style="bold")


# `cspine fit-studies`: teaches a checkpoint to answer about studies.


def run_fit_studies(
    checkpoint: Path,
    source: Path,
    output: Path | None,
    *,
    train: str,
    selection: str,
    seed: int,
    as_json: bool,
) -> None:
    """Fit, write the checkpoint, print the rules that were tried. Errors as of `fit_studies`."""
    output = checkpoint if output is None else output
    refuse_other_suffix(output, ".safetensors", "a checkpoint")
    refuse_to_replace(output, source)
    with Bars(quiet=as_json) as bars:
        bars.start("Reading slices", 0)
        manifest, _ = import_dataset(source)
        bars.finish(f"{len(manifest):,} slices")
        found = fit_studies(
            checkpoint, manifest, output, train=train, selection=selection, seed=seed, watcher=bars
        )
    if as_json:
        typer.echo(json.dumps(found.as_dict(), indent=2))
    else:
        _show(found)


def _show(found: FittedStudies) -> None:
    rule = found.fit.aggregation
    table = Table(
        title="rules, on studies that they were not fitted on", title_justify="left", box=box.SIMPLE
    )
    table.add_column("rule", no_wrap=True)
    table.add_column("log loss")
    table.add_column("AUROC")
    for one in found.fit.rules:
        style = "bold" if one is found.fit.rules[0] else ""
        table.add_row(one.rule, format_estimate(one.log_loss), format_estimate(one.auroc), style=style)
    console = Console()
    console.print(table)
    farthest = max(found.distances.values())
    for words in (
        f"chosen: {rule}",
        f"why: {found.fit.reason}",
        f"threshold of a study's probability: {format_value(rule.threshold)}",
        f"distance from the training from which on no call is made: {format_value(found.distance_limit, 2)} "
        f"(farthest of {len(found.distances)} studies here: {format_value(farthest, 2)})",
        f"checkpoint: {found.checkpoint}",
    ):
        console.print(escape(words), soft_wrap=True, highlight=False)
