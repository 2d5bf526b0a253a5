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
    from cspine.bench.training import measure_training
    from cspine.bench.training_results import write_training_table
    from cspine.cli.screen import Bars
    from cspine.comparison.compare import quote_command
    from cspine.core.files import refuse_to_replace, write_json
    from cspine.experiment import read_experiment

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


@bench_app.command("predict", epilog="Example: cspine bench predict resnet50 -o bench/predict.json")
def bench_predict(
    models: Annotated[
        list[str] | None,
        typer.Argument(help="Models of the zoo or timm backbones; the paper's three by default."),
    ] = None,
    size_px: Annotated[int, typer.Option(min=16, max=1024, help="Side of the slices.")] = 224,
    batch_size: Annotated[int, typer.Option(min=1, max=1024)] = 16,
    batches: Annotated[int, typer.Option(min=1, max=10_000, help="Batches a repeat.")] = 20,
    repeats: Annotated[int, typer.Option(min=1, max=1000, help="Rounds of all ways.")] = 5,
    singles: Annotated[int, typer.Option(min=1, max=10_000, help="Single slices, for the latency.")] = 50,
    starts: Annotated[int, typer.Option(min=1, max=100, help="Fresh processes, for the start-up time.")] = 3,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Also write JSON here.")] = None,
) -> None:
    """Prediction speed: torch, ONNX Runtime and OpenVINO in fp32, bf16 and int8, in turns; random weights."""
    from cspine.bench.prediction import measure_prediction
    from cspine.bench.prediction_results import write_prediction_table
    from cspine.cli.screen import Bars
    from cspine.comparison.compare import quote_command
    from cspine.core.files import write_json
    from cspine.models.header import ZOO

    with Bars() as bars:
        measured = measure_prediction(
            models or tuple(ZOO),
            size_px=size_px,
            batch_size=batch_size,
            batches=batches,
            repeats=repeats,
            singles=singles,
            starts=starts,
            command=quote_command(sys.argv[1:]),
            watcher=bars,
        )
    if output:
        write_json(output, measured.model_dump(mode="json"))
    typer.echo(write_prediction_table(measured))


@bench_app.command(
    "scale", epilog="Example: cspine bench scale --sizes 1000 --sizes 10000 -o bench/scale.json"
)
def bench_scale(
    sizes: Annotated[
        list[int] | None, typer.Option(help="Slices of a set; 1,000 to 100,000 by default.")
    ] = None,
    stages: Annotated[
        list[str] | None,
        typer.Option(help="import, audit, cache, load, predict, evaluate, million; all by default."),
    ] = None,
    size_px: Annotated[int, typer.Option(min=32, max=512, help="Side of the slices.")] = 64,
    repeats: Annotated[int, typer.Option(min=1, max=100, help="Runs of what takes up to a minute.")] = 3,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="Also write JSON here, as it comes; what is there is gone on with."
        ),
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Also draw a PNG.")] = None,
) -> None:
    """Growth with the set: time and peak memory of each stage on drawn sets, each in a process of its own."""
    from cspine.bench.scale import ALL_STAGES, SIZES, measure_scale
    from cspine.bench.scale_results import draw_scale, write_scale_table
    from cspine.cli.screen import Bars
    from cspine.comparison.compare import quote_command
    from cspine.core.files import refuse_other_suffix

    if plot:
        refuse_other_suffix(plot, ".png", "a plot of growth")
    with Bars() as bars:
        measured = measure_scale(
            sizes or SIZES,
            stages or ALL_STAGES,
            size_px=size_px,
            repeats=repeats,
            output=output,
            command=quote_command(sys.argv[1:]),
            watcher=bars,
        )
    if plot:
        draw_scale(measured, plot)
    typer.echo(write_scale_table(measured))
