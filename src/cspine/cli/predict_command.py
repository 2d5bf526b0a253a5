"""The command `cspine predict`; what it does is loaded when it runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cspine.core.errors import InputError

if TYPE_CHECKING:
    from cspine.answering import FractureModel
    from cspine.inference.engines import RuntimeName

_TABLES_OF_OTHERS = (".csv", ".tsv", ".json", ".html", ".xlsx")
PositiveClass = Annotated[
    str, typer.Option("--positive-class", help="Name of the class that is the fracture.")
]
NegativeClass = Annotated[str, typer.Option("--negative-class", help="Name of the other class.")]


def predict(
    source: Annotated[
        list[Path],
        typer.Argument(
            help="CT studies: DICOM (file, folder, DICOMDIR, zip), NIfTI, the RSNA 2022 folder, an imported set; one "
            "or many. Or slices: a manifest, a labels table, a folder of class folders."
        ),
    ],
    checkpoint: Annotated[
        list[Path],
        typer.Option(
            "--checkpoint",
            "-c",
            help="A checkpoint of cspine, or an export of one; several answer by their mean.",
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="Studies: a folder (answers). Slices: a table (predictions.parquet).",
        ),
    ] = None,
    runtime: Annotated[
        str,
        typer.Option(
            "--runtime",
            help="What runs the networks: torch, onnx, openvino; auto: torch for a checkpoint, else the fastest.",
        ),
    ] = "auto",
    split: Annotated[str | None, typer.Option(help="Only this split of a set.")] = None,
    policy: Annotated[
        Path | None,
        typer.Option("--policy", help="Studies: what intake refuses, corrects or warns of (TOML)."),
    ] = None,
    labels: Annotated[
        Path | None,
        typer.Option("--labels", help="Studies: a table of what is known of them, to compare with."),
    ] = None,
    segmentations: Annotated[
        Path | None,
        typer.Option(
            "--segmentations",
            help="Studies: a folder of segmented vertebrae, <UID>.nii.gz or TotalSegmentator's.",
        ),
    ] = None,
    explain: Annotated[
        str | None,
        typer.Option(
            "--explain",
            metavar="METHOD",
            help="Studies: draw and score where the model looks, by gradcam or occlusion.",
        ),
    ] = None,
    dicom_out: Annotated[
        bool,
        typer.Option(
            "--dicom-out", help="Studies: write a structured report, overlays and heat maps as DICOM objects."
        ),
    ] = False,
    deidentify: Annotated[
        Path | None,
        typer.Option(
            "--deidentify",
            metavar="KEYFILE",
            help="Of DICOM objects: replace the patient's identity by a secret key.",
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Studies: go on with the answers in the folder.")
    ] = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="Studies: exit 1 where any series got no call.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Studies: print the answers as JSON.")] = False,
    positive_class: PositiveClass = "fracture",
    negative_class: NegativeClass = "normal",
) -> None:
    """Score slices, or answer about studies: call, probability, levels, and why no call is made.

    Exit code over studies: 0 where at least one was called, 1 where none was (with --strict: where any was not).
    """
    from cspine.core.machine import share_heap
    from cspine.inference.engines import read_any_header

    share_heap()  # before numpy and others start threads
    if output is not None and output.suffix.lower() in _TABLES_OF_OTHERS:
        from cspine.core.files import refuse_other_suffix

        refuse_other_suffix(output, ".parquet", "a table of predictions")
    for path in checkpoint:  # before anything heavy is loaded
        read_any_header(path)
    from cspine.answering import StudyOptions, find_study_sources, load

    table = output is None or output.suffix.lower() == ".parquet"
    if find_study_sources(source, sets=not table) is not None:
        from cspine.cli.studies import run_study_prediction

        options = StudyOptions(policy, labels, segmentations, split, explain, dicom_out, deidentify, resume)
        model = load(*checkpoint, runtime=_check_runtime(runtime))
        place = output or Path("answers")
        raise typer.Exit(run_study_prediction(model, source, place, options, strict=strict, as_json=as_json))
    if not table:
        raise InputError(
            f"there are no CT studies here to be answered into the folder {output}",
            where=", ".join(map(str, source)),
            fix="name a DICOM file, folder, DICOMDIR or zip, NIfTI or an imported set (not a damaged zip); or, to "
            "score slices, a table with -o predictions.parquet",
        )
    given = (
        ("--policy", policy),
        ("--labels", labels),
        ("--segmentations", segmentations),
        ("--explain", explain),
        ("--dicom-out", dicom_out),
        ("--deidentify", deidentify),
        ("--resume", resume),
        ("--strict", strict),
        ("--json", as_json),
    )
    for name, value in given:
        if value:
            raise InputError(
                "these are slices to be scored into one table, which has no use for it",
                where=name,
                fix="leave it out",
            )
    if len(source) > 1:
        raise InputError("slices are scored one set at a time", where=str(source[1]), fix="name one set")
    from cspine.core.files import refuse_to_replace

    refuse_to_replace(output or Path("predictions.parquet"), source[0], *checkpoint)
    _predict_slices(
        load(*checkpoint, runtime=_check_runtime(runtime)),
        source[0],
        output or Path("predictions.parquet"),
        split,
        (positive_class, negative_class),
    )


def _predict_slices(
    model: FractureModel, source: Path, output: Path, split: str | None, classes: tuple[str, str]
) -> None:
    from rich.console import Console

    from cspine.cli.screen import Bars
    from cspine.core.files import refuse_other_suffix
    from cspine.core.predictions import write_predictions
    from cspine.data.layouts import import_dataset

    refuse_other_suffix(output, ".parquet", "a table of predictions")
    with Bars() as bars:
        bars.start("Reading slices", 0)
        manifest, report = import_dataset(source, positive_class=classes[0], negative_class=classes[1])
        bars.finish(f"{len(manifest):,} slices")
        table = model.predict_slices(manifest, split, bars)
    write_predictions(table, output)
    console = Console()
    for path, reason in report.unreadable:
        words = f"unreadable, left out: {path}: {reason}"
        console.print(words, style="yellow", soft_wrap=True, highlight=False, markup=False)
    console.print(f"predictions: {output}", soft_wrap=True, highlight=False, markup=False)


def _check_runtime(name: str) -> RuntimeName:
    from cspine.inference.engines import RUNTIMES

    for known in RUNTIMES:
        if known == name:
            return known
    raise InputError(
        f"no such runtime: {name}", where="--runtime", fix=f"choose one of {', '.join(RUNTIMES)}"
    )


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
