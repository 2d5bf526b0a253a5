"""A checkpoint as the results hold it, and results of earlier versions completed from their folder. No torch here."""

from __future__ import annotations

import json
from pathlib import Path

from pydantic import JsonValue

from cspine.core.errors import CheckpointError, InputError
from cspine.core.files import compute_hash
from cspine.models.header import CheckpointHeader, hash_checkpoint, read_header
from cspine.report.checklists import write_documents
from cspine.report.report import REPORT_FILE, RESULTS_FILE, read_results
from cspine.report.results import CheckpointFacts, ComparisonResults, ModelResult

CHECKPOINT_FILE = "checkpoint.safetensors"
EXPERIMENT_FILE = "experiment.json"


def describe_header(header: CheckpointHeader) -> CheckpointFacts:
    """What a checkpoint says of itself, as plain values."""
    height_px, width_px = header.recipe.size_px
    return CheckpointFacts(
        height_px=height_px,
        width_px=width_px,
        slices=max(1, len(header.recipe.offsets_mm)),
        channels=header.recipe.channels,
        labels=header.labels,
        threshold=header.threshold,
        slope=header.calibration.slope,
        intercept=header.calibration.intercept,
        training=header.training,
        manifest_hash=header.manifest_hash,
        versions=header.versions,
    )


def complete_results(results: ComparisonResults, folder: Path) -> ComparisonResults:
    """Results of an earlier version with what their folder still knows: checkpoints and settings.

    Only what is sure to be of these results is taken: a checkpoint or an experiment with another hash is left out.
    """
    models = tuple(_complete_model(model, folder) for model in results.models)
    run = results.run
    if run.settings is None:
        run = run.model_copy(update={"settings": _read_settings(folder, run.hashes.get("experiment"))})
    return results.model_copy(update={"models": models, "run": run})


def _complete_model(model: ModelResult, folder: Path) -> ModelResult:
    if model.checkpoint is not None:
        return model
    path = folder / "models" / model.name / CHECKPOINT_FILE
    try:
        header = read_header(path)
        same = hash_checkpoint(path) == model.checkpoint_hash
    except (CheckpointError, OSError, ValueError):  # a name that is no path is a ValueError
        return model
    return model.model_copy(update={"checkpoint": describe_header(header)}) if same else model


def _read_settings(folder: Path, wanted: str | None) -> dict[str, JsonValue] | None:
    try:
        settings = json.loads((folder / EXPERIMENT_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return settings if isinstance(settings, dict) and compute_hash(settings) == wanted else None


def write_run_documents(run: Path, output: Path | None = None) -> tuple[Path, ...]:
    """Write model cards and reporting checklists of a finished run; into the run itself unless told.

    Raises:
        InputError: the folder is no finished run, or its results cannot be read.
        OutputError: the output cannot be written.
    """
    if not (run / RESULTS_FILE).is_file():
        what = (
            f"this is no finished run: it has no {RESULTS_FILE}"
            if run.exists()
            else "there is no such folder"
        )
        raise InputError(what, where=str(run), fix="name the folder that `cspine compare` wrote")
    results = complete_results(read_results(run), run)
    output = run if output is None else output
    linked = output.exists() and output.samefile(run) and (run / REPORT_FILE).is_file()
    return write_documents(results, output, REPORT_FILE if linked else None)
