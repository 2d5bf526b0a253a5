"""`cspine predict`, `explain` and `export`: what a trained model is asked; loaded when a command runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast, get_args

import typer

from cspine.core.errors import InputError

if TYPE_CHECKING:
    from cspine.answering import FractureModel
    from cspine.data.manifest import Manifest
    from cspine.explain.maps import Method
    from cspine.inference.engines import ExportFormat, ExportPrecision, RuntimeName
    from cspine.inference.gate import GateResult

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
        bool, typer.Option("--resume", help="Studies: continue with the answers in the folder.")
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
    from cspine.cli.screen import Bars, say
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
    for path, reason in report.unreadable:
        say(f"unreadable, left out: {path}: {reason}", style="yellow")
    say(f"predictions: {output}")


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
    import sys

    from cspine.cli.screen import Bars, say
    from cspine.comparison.compare import quote_command
    from cspine.comparison.explain_folder import write_explanations
    from cspine.comparison.explaining import ExplainOptions

    options = ExplainOptions(cast("Method", method), slices, seed, threshold, split)
    with Bars() as bars:
        words = write_explanations(
            source, checkpoint, output, options, (positive_class, negative_class), bars,
            quote_command(sys.argv[1:]),
        )  # fmt: skip
    for line in (*words, f"written to {output}"):
        say(line)


def export(
    checkpoint: Annotated[Path, typer.Argument(metavar="MODEL", help="A checkpoint (.safetensors).")],
    to: Annotated[str, typer.Option("--to", help="onnx or openvino.")],
    precision: Annotated[str, typer.Option(help="fp32; with openvino also bf16 and int8.")] = "fp32",
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="The file; beside the checkpoint by default. Its name ends in the format."
        ),
    ] = None,
    calibrate_on: Annotated[
        Path | None,
        typer.Option(metavar="MANIFEST", help="int8: its train split gives the ranges of activations."),
    ] = None,
    check_on: Annotated[
        Path | None,
        typer.Option(
            metavar="MANIFEST",
            help="Slices that the export is held to; else those of --calibrate-on, else a drawn phantom (fp32 only).",
        ),
    ] = None,
    check_split: Annotated[
        str | None, typer.Option(help="Of --check-on: val, else test, unless named.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the draws of slices.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print what the gate found as JSON.")] = False,
) -> None:
    """Turn a checkpoint into one file that other engines run; exit 1, and no file, where it would answer otherwise."""
    from cspine.inference.engines import FORMATS, ExportPrecision

    for value, allowed, option in (
        (to, FORMATS, "--to"),
        (precision, get_args(ExportPrecision), "--precision"),
    ):
        if value not in allowed:
            raise InputError(
                f"no such choice: {value}", where=option, fix=f"choose one of {', '.join(allowed)}"
            )
    _export(
        checkpoint,
        cast("ExportFormat", to),
        cast("ExportPrecision", precision),
        output or name_output(checkpoint, to, precision),
        (calibrate_on, check_on),
        check_split,
        seed,
        as_json,
    )


def name_output(checkpoint: Path, to: str, precision: str) -> Path:
    """`checkpoint.onnx`, or `checkpoint-int8.openvino`."""
    mark = "" if precision == "fp32" else f"-{precision}"
    return checkpoint.with_name(f"{checkpoint.stem}{mark}.{to}")


def _export(
    checkpoint: Path,
    to: ExportFormat,
    precision: ExportPrecision,
    output: Path,
    manifests: tuple[Path | None, Path | None],
    check_split: str | None,
    seed: int,
    as_json: bool,
) -> None:
    from cspine.cli.screen import Bars
    from cspine.core.files import refuse_other_suffix, refuse_to_replace
    from cspine.inference.export import ExportPlan, export_checkpoint
    from cspine.inference.gate import GateResult
    from cspine.models.checkpoint import load_checkpoint
    from cspine.models.header import hash_checkpoint

    refuse_to_replace(output, checkpoint, *(path for path in manifests if path))
    refuse_other_suffix(output, f".{to}", f"an export to {to}")
    loaded = load_checkpoint(checkpoint)
    with Bars() as bars:
        calibrate_on, check_on = (_read_manifest(path) if path else None for path in manifests)
        plan = ExportPlan(to, precision, check_on, check_split, calibrate_on, seed)
        bars.start(f"Exporting {loaded.header.spec.name}", 0)
        record = export_checkpoint(loaded, plan, output)
        bars.finish(f"{to}, {precision}")
    results = [GateResult.model_validate(result) for result in record.gate]
    if as_json:
        found = {
            "output": str(output),
            "hash": hash_checkpoint(output),
            "source_hash": record.source_hash,
            "format": to,
            "precision": precision,
            "gate": [result.model_dump(mode="json") for result in results],
        }
        typer.echo(json.dumps(found, indent=2))
        return
    for result in results:
        typer.echo(describe_result(result))
    typer.echo(f"exported: {output}")


def _read_manifest(path: Path) -> Manifest:
    from cspine.data.layouts import import_dataset

    return import_dataset(path)[0]


def describe_result(result: GateResult) -> str:
    """What the gate found on one engine, in a sentence."""
    from cspine.report.text import format_estimate

    noise = f" and {result.random} of noise" if result.random else ""
    words = (
        f"gate passed: {result.engine}: {result.origin}{noise}; logits differ by up to {result.logit:.2g}, "
        f"{result.changed} decisions changed"
    )
    if result.auroc_torch and result.auroc and result.auroc_difference:
        words += (
            f"; AUROC {format_estimate(result.auroc)} after {format_estimate(result.auroc_torch)}, difference "
            + (
                format_estimate(result.auroc_difference)
                if result.auroc_difference.low is not None
                else "none in any rank"
            )
        )
    if result.distance is not None:
        words += f"; distances from the training slices changed by {result.distance:.1%} in the median"
    return words
