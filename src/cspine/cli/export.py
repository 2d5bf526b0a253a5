"""`cspine export`: a checkpoint as ONNX or for OpenVINO, if it still answers the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast, get_args

import typer

from cspine.core.errors import InputError

if TYPE_CHECKING:
    from cspine.data.manifest import Manifest
    from cspine.inference.engines import ExportFormat, ExportPrecision
    from cspine.inference.gate import GateResult


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
    _run(
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


def _run(
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
        calibrate_on, check_on = (_read(path) if path else None for path in manifests)
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


def _read(path: Path) -> Manifest:
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
