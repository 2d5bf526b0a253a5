"""What `cspine compare`, `demo`, `train`, `contact-sheet` and `info models --diagrams` do; loads torch."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from cspine.auditing.findings import VERDICT_WORDS, list_reasons
from cspine.cli.screen import Bars, say, show_evaluations, show_findings, show_stages
from cspine.comparison.compare import compare, quote_command
from cspine.comparison.demo import run_demo
from cspine.comparison.sheets import write_contact_sheet, write_corruption_sheet, write_diagrams
from cspine.comparison.training import train_one
from cspine.core.estimates import choose_strongest
from cspine.experiment import read_experiment
from cspine.report.report import REPORT_FILE
from cspine.report.results import ComparisonResults
from cspine.report.text import format_estimate


def run_compare(path: Path, overrides: Sequence[str], output: Path, resume: bool) -> None:
    """`cspine compare`."""
    with Bars() as bars:
        command = quote_command(sys.argv[1:])
        results = compare(path, output, overrides=overrides, resume=resume, watcher=bars, command=command)
    show_result(results, output)


def run_demo_command(output: Path, overrides: Sequence[str], fresh: bool) -> None:
    """`cspine demo`."""
    with Bars() as bars:
        command = quote_command(sys.argv[1:])
        results = run_demo(output, overrides, fresh=fresh, watcher=bars, command=command)
    show_result(results, output / "run")


def show_result(results: ComparisonResults, folder: Path) -> None:
    """Metrics, the time of each stage, and the verdict with its reasons."""
    # A terminal is too narrow for all baselines: the one to beat stands beside the models, the report has the others.
    bar = choose_strongest(results.baselines)
    show_evaluations(
        [model.evaluation for model in results.models]
        + [baseline.evaluation for baseline in results.baselines if baseline is bar]
    )
    console = Console()
    for one in results.studies:
        found = one.evaluation
        auroc = format_estimate(found.metrics["auroc"])
        say(f"{one.model}: AUROC {auroc} over {found.slices} studies, by {one.fit.aggregation}")
    show_stages(results.run.stages_s, results.run.wall_s)
    if results.verdict:
        audited = "" if results.audit else " The data were not audited."
        console.print(
            f"verdict: {results.verdict}. {VERDICT_WORDS[results.verdict]}{audited}", soft_wrap=True
        )
    show_findings(console, list_reasons(results.findings or ()))
    for note in results.notes:
        console.print(f"{note.severity}: {note.text}", style="yellow", highlight=False, markup=False)
    say(f"report: {(folder / REPORT_FILE).resolve()}")


def run_training(path: Path, model: str, overrides: Sequence[str], output: Path, resume: bool) -> None:
    """`cspine train`."""
    experiment = read_experiment(path, overrides)
    with Bars() as bars:
        trained = train_one(experiment, model, output, bars, resume=resume)
    say(f"checkpoint: {trained.checkpoint}")


def draw_sheet(path: Path, overrides: Sequence[str], output: Path, count: int, *, corruptions: bool) -> None:
    """`cspine contact-sheet`."""
    experiment = read_experiment(path, overrides)
    missing: dict[str, str] = {}
    with Bars() as bars:
        if corruptions:
            missing = write_corruption_sheet(experiment, output, bars)
        else:
            write_contact_sheet(experiment, output, count, bars)
    for kind, reason in missing.items():
        say(f"not applicable: {kind}: {reason}", style="yellow")
    say(f"contact sheet: {output}")


def draw_diagrams(folder: Path) -> None:
    """`cspine info models --diagrams`."""
    for path in write_diagrams(folder):
        say(f"drawn: {path}")
