"""`cspine fit-studies`: teaches a checkpoint to answer about studies."""

from __future__ import annotations

import json
from pathlib import Path

import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cspine.cli.screen import Bars
from cspine.comparison.studies import FittedStudies, fit_studies
from cspine.data.layouts import import_dataset
from cspine.files import refuse_other_suffix, refuse_to_replace
from cspine.reporting.text import format_estimate, format_value


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
