"""The command `cspine explain`; what it does is loaded when it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def explain(
    source: Annotated[
        Path,
        typer.Argument(help="An imported set, manifest or folder of pictures; or a DICOM or NIfTI series."),
    ],
    checkpoint: Annotated[Path, typer.Option("--checkpoint", "-c", help="A checkpoint of cspine.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="A new folder.")],
    method: Annotated[
        str, typer.Option(help="occlusion (points better, slow) or gradcam (quick).")
    ] = "occlusion",
    slices: Annotated[
        int,
        typer.Option(
            min=0,
            max=10_000,
            help="At most so many slices; 0 is 60 of a set, 8 of a series.",
        ),
    ] = 0,
    split: Annotated[str | None, typer.Option(help="Of a set only this split.")] = None,
    threshold: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="prob >= this is a fracture; the checkpoint's unless told."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the draw of slices.")] = 0,
    positive_class: Annotated[str, typer.Option(help="Name of the class that is the fracture.")] = "fracture",
    negative_class: Annotated[str, typer.Option(help="Name of the other class.")] = "normal",
) -> None:
    """Show where a model looks, and how well that points at fractures whose place is known."""
    from cspine.cli.explain import run_explain

    run_explain(
        source,
        checkpoint,
        output,
        method=method,
        slices=slices,
        split=split,
        threshold=threshold,
        seed=seed,
        positive_class=positive_class,
        negative_class=negative_class,
    )
