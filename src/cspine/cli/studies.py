"""What `cspine predict` prints of studies; and `cspine fit-studies`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cspine.answering import PAGE_NAME, FractureModel, StudyOptions, list_calls
from cspine.cli.screen import Bars, say
from cspine.core.answers import StudyAnswer
from cspine.core.files import refuse_other_suffix, refuse_to_replace
from cspine.inference.answers import StudyAnswers
from cspine.report.text import format_estimate, format_value

if TYPE_CHECKING:
    from cspine.comparison.studies import FittedStudies

_MOST_SHOWN = 40
_COLOURS = {"fracture": "bold red", "no fracture": "green", "abstained": "yellow"}


def run_study_prediction(
    model: FractureModel,
    paths: Sequence[Path],
    output: Path,
    options: StudyOptions,
    *,
    strict: bool,
    as_json: bool,
) -> int:
    """Answer, write the folder, print; returns the exit code. Errors as of `FractureModel.predict`."""
    with Bars(quiet=as_json) as bars:
        answers = model.predict(paths, output, options, bars)
    console = Console(stderr=True)
    for words in answers.notes:
        console.print(words, style="yellow", soft_wrap=True, highlight=False, markup=False)
    if as_json:
        typer.echo((output / "studies.json").read_text(encoding="utf-8").rstrip())
    else:
        show_answers(answers, output)
    return find_exit_code(answers, strict=strict)


def find_exit_code(answers: Sequence[StudyAnswer], *, strict: bool) -> int:
    """0 where something was called; 1 where nothing was, or with `strict` where any series was not."""
    called = [answer.call != "abstained" for answer in answers]
    return 0 if (all(called) if strict else any(called)) and called else 1


def show_answers(answers: StudyAnswers, folder: Path) -> None:
    """One row a series, fractures first; then how good that is, where the truth is known. No patient is named."""
    from cspine.report.answers_page import shorten_uid

    counts = list_calls(answers)
    listed = ", ".join(f"{counts[call]:,} {call}" for call in _COLOURS if counts[call])
    table = Table(title=f"answers: {listed}", title_justify="left", box=box.SIMPLE)
    for name in ("study", "slices", "intake", "call", "probability", "level"):
        table.add_column(name, no_wrap=True, justify="right" if name in ("slices", "probability") else "left")
    order = list(_COLOURS)
    ranked = sorted(answers, key=lambda one: (order.index(one.call), -(one.prob or 0)))
    for answer in ranked[:_MOST_SHOWN]:
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
    for answer in ranked[:_MOST_SHOWN]:
        for reason in answer.abstentions:
            name = shorten_uid(answer.intake.study_uid or Path(answer.intake.source).name)
            words = f"no call for {name}: {reason.reason}: {reason.detail}"
            say(words)
    if len(ranked) > _MOST_SHOWN:
        console.print(f"and {len(ranked) - _MOST_SHOWN:,} more: see studies.csv")
    evaluation = answers.evaluation
    if evaluation is not None:
        for name in ("auroc", "recall", "specificity"):
            words = f"{name} over {evaluation.slices:,} studies: {format_estimate(evaluation.metrics[name])}"
            console.print(words, highlight=False)
    for path in (PAGE_NAME, "studies.csv", "slices.csv"):
        say(str(folder / path))
    console.print("Research software. Not for clinical use.", style="bold")


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
    from cspine.comparison.studies import fit_studies
    from cspine.data.layouts import import_dataset

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
        say(words)
