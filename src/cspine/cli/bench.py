"""`cspine bench`: how fast is it on this machine?"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

bench_app = typer.Typer(
    no_args_is_help=True, help="How fast is it on this machine? Ratios, measured side by side."
)


@bench_app.callback()
def bench() -> None:
    """How fast is it on this machine? Ratios, measured side by side."""


@bench_app.command(
    "train",
    epilog="Example: cspine bench train experiments/paper.toml --set data.root=kaggle/ -o bench/train.json",
)
def bench_train(
    experiment: Annotated[Path, typer.Argument(help="Experiment file; its models are measured.")],
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override a field, such as training.batch_size=32."),
    ] = None,
    batches: Annotated[int, typer.Option(min=3, max=10_000, help="Batches a repeat.")] = 20,
    repeats: Annotated[int, typer.Option(min=1, max=1000, help="Rounds of all three ways.")] = 5,
    epochs: Annotated[
        int, typer.Option(min=0, max=1000, help="Also compare the accuracy after so many epochs; takes long.")
    ] = 0,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Also write JSON here.")] = None,
) -> None:
    """Training speed: the network alone, cspine's pipeline, and the plain torchvision way, in turns."""
    from cspine.bench.results import write_training_table
    from cspine.bench.training import measure_training
    from cspine.cli.screen import Bars
    from cspine.comparison.compare import quote_command
    from cspine.experiment import read_experiment
    from cspine.files import refuse_to_replace, write_json

    if output:
        refuse_to_replace(output, experiment)
    settings = read_experiment(experiment, overrides or ())
    with Bars() as bars:
        measured = measure_training(
            settings,
            batches=batches,
            repeats=repeats,
            epochs=epochs,
            command=quote_command(sys.argv[1:]),
            watcher=bars,
        )
    if output:
        write_json(output, measured.model_dump(mode="json"))
    typer.echo(write_training_table(measured))
