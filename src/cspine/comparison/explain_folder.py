"""`explain` of a set or of one series: a folder of pictures, a page and the scores of its maps."""

from __future__ import annotations

from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from cspine.comparison.artifacts import (
    STUDY_PICTURE,
    draw_key_slices,
    draw_study,
    explain_series,
    score_series,
)
from cspine.comparison.explaining import SET_SLICES, ExplainOptions, explain_set
from cspine.core.errors import InputError
from cspine.core.files import atomic_folder, refuse_to_replace, write_json, write_text
from cspine.core.progress import Silent, Watcher
from cspine.ct.intake import IntakePolicy
from cspine.ct.series import read_series, recognise_format
from cspine.ct.volume import Volume
from cspine.data.layouts import MANIFEST_NAME, import_dataset
from cspine.data.manifest import Manifest, is_manifest
from cspine.explain.drawing import draw_slice_picture
from cspine.explain.maps import FEWEST_CELLS, METHODS, OCCLUSION_GRID
from cspine.inference.predictor import Predictor
from cspine.metrics.intervals import IntervalOptions
from cspine.report.explanations import render_explanation_page
from cspine.report.results import ModelExplanation
from cspine.report.text import format_estimate

RESULT_FILE, PAGE_FILE = "explain.json", "explain.html"
SERIES_SLICES = 8


def write_explanations(
    source: Path,
    checkpoint: Path,
    output: Path,
    options: ExplainOptions,
    classes: tuple[str, str] = ("fracture", "normal"),
    watcher: Watcher | None = None,
    command: str = "",
) -> list[str]:
    """Explain a set or a series into a new folder.

    Args:
        source: An imported set, manifest or folder of pictures; or a DICOM or NIfTI series.
        checkpoint: Whose network is explained.
        output: A new folder.
        options: What is explained, and how.
        classes: Names of the positive and the negative class.
        watcher: Told about progress.
        command: For the record in the page.

    Returns:
        What it comes to, a line each.

    Raises:
        InputError: no such method or source, or a split of a series.
        CheckpointError, OutputError: the checkpoint cannot be read, or the folder not written.
    """
    watcher = watcher or Silent()
    if options.method not in METHODS:
        raise InputError(
            f"no such method: {options.method}", where="--method", fix=f"choose one of {', '.join(METHODS)}"
        )
    refuse_to_replace(output, source, checkpoint)
    if not source.exists():
        raise InputError("no such file or folder", where=str(source), fix="name a set or a series")
    predictor = Predictor.load(checkpoint)
    path = source / MANIFEST_NAME if source.is_dir() else source
    in_series = not is_manifest(path) and recognise_format(source) is not None
    threshold = predictor.header.threshold if options.threshold is None else options.threshold
    count = options.count or (SERIES_SLICES if in_series else SET_SLICES)
    options = replace(options, threshold=threshold, count=count)
    with atomic_folder(output) as folder:
        if in_series:
            return _explain_series(source, predictor, folder, options, watcher, command)
        watcher.start("Reading slices", 0)
        manifest, _ = import_dataset(
            path if is_manifest(path) else source,
            positive_class=classes[0],
            negative_class=classes[1],
            progress=watcher.advance,
        )
        watcher.finish(f"{len(manifest):,} slices")
        return _explain_set(manifest, predictor, folder, options, watcher, command)


def _explain_set(
    manifest: Manifest,
    predictor: Predictor,
    folder: Path,
    wanted: ExplainOptions,
    watcher: Watcher,
    command: str,
) -> list[str]:
    found = explain_set(predictor, manifest, wanted, IntervalOptions(draws=1000, seed=wanted.seed), watcher)
    names = [f"slices/{number:02d}.png" for number in range(1, len(found.views) + 1)]
    for name, view in zip(names, found.views, strict=True):
        draw_slice_picture(view, folder / name, method=found.result.words)
    write_text(folder / PAGE_FILE, render_explanation_page(found.result, command, names))
    content = found.result.model_dump(mode="json", exclude={"samples": {"__all__": {"picture_png"}}})
    write_json(folder / RESULT_FILE, _describe_run(predictor, wanted, command) | {"explanation": content})
    return _list_words(found.result)


def _list_words(result: ModelExplanation) -> list[str]:
    lines = [f"no pointing scores: {result.why_none}"] if result.why_none else []
    if result.pointing is not None:
        lines.append(
            f"{result.pointing.slices:,} slices of {result.pointing.units:,} {result.pointing.unit}s"
        )
        for one in result.pointing.measures:
            beside = f"chance {one.chance.value:.3f}, middle of the body {one.centre.value:.3f}"
            lines.append(f"{one.label}: {format_estimate(one.found)} ({beside})")
    if result.sanity is not None:
        lines.append(f"sanity check {result.sanity.words} (it {result.sanity.rule})")
    return lines


def _explain_series(
    source: Path,
    predictor: Predictor,
    folder: Path,
    wanted: ExplainOptions,
    watcher: Watcher,
    command: str,
) -> list[str]:
    if wanted.split is not None:
        raise InputError("a series has no splits", where="--split", fix="leave --split out")
    predictor.recipe.check_domain("hu", str(source))
    watcher.start("Reading the series", 0)
    volume = read_one_series(source)
    watcher.finish(f"{len(volume):,} slices")
    watcher.start("Predicting", 0)
    probs = score_series(predictor, volume)
    watcher.finish(f"{len(volume):,} slices")
    key_slices = [int(index) for index in np.argsort(-probs, kind="stable")[: wanted.count]]
    found = explain_series(predictor, volume, probs, key_slices, method=wanted.method, watcher=watcher)
    watcher.start("Drawing", 0)
    top = key_slices[0]
    height_mm = volume.positions_mm[top] - volume.positions_mm[0]
    title = f"Highest probability of a fracture in a slice: {probs[top]:.3f}"
    lines = [
        f"Slice {top + 1} of {len(volume)}, {height_mm:.0f} mm above the lowest; "
        f"a slice is called a fracture from {wanted.threshold:g} on."
    ]
    if found.finding is not None:
        lines.append(f"The lines cross at the largest evidence, in slice {found.finding[0] + 1}.")
    draw_study(found, folder / STUDY_PICTURE, title=title, lines=lines)
    pictures = draw_key_slices(found, folder)
    watcher.finish(f"{1 + len(pictures)} pictures")
    rows = [
        {
            "slice": index + 1,
            "slice_id": volume.slice_id(index),
            "position_mm": float(volume.positions_mm[index]),
            "prob": float(probs[index]),
            "largest_evidence": float(found.heats[index].max()),
        }
        for index in key_slices
    ]
    content = {
        "series_uid": volume.series_uid,
        "slices": len(volume),
        "words": found.words,
        "unit": found.unit,
        "explained": rows,
        "finding": None
        if found.finding is None
        else {
            "slice": found.finding[0] + 1,
            "row_px": found.finding[1],
            "column_px": found.finding[2],
            "position_mm": volume.find_point_mm(*found.finding),
        },
    }
    write_json(folder / RESULT_FILE, _describe_run(predictor, wanted, command) | {"series": content})
    return [title]


def read_one_series(source: Path) -> Volume:
    """The only series of a source that intake takes.

    Raises:
        InputError: intake refuses all of it, or there are several.
    """
    source_format = recognise_format(source)
    assert source_format is not None
    volume: Volume | None = None
    reasons: list[str] = []
    for series in read_series(source, source_format, IntakePolicy()):
        if series.volume is None:
            reasons += [str(one.reason) for one in series.intake.findings if one.action == "refuse"]
        elif volume is not None:
            raise InputError(
                "there are several series", where=str(source), fix="name the file or folder of one of them"
            )
        else:
            volume = series.volume
    if volume is None:
        listed = ", ".join(dict.fromkeys(reasons)) or "none is there"
        raise InputError(
            f"no series can be taken: {listed}",
            where=str(source),
            fix="see docs/intake.md for what the reasons mean",
        )
    return volume


def _describe_run(predictor: Predictor, wanted: ExplainOptions, command: str) -> dict[str, Any]:
    return {
        "command": command,
        "settings": {
            "method": wanted.method,
            "split": wanted.split,
            "threshold": wanted.threshold,
            "seed": wanted.seed,
            "slices": wanted.count,
            "fewest_cells": FEWEST_CELLS,
            "occlusion_grid": OCCLUSION_GRID,
        },
        "model": predictor.header.spec.name,
        "checkpoint_hash": predictor.checkpoint_hash,
        "recipe": str(predictor.recipe),
        "versions": {name: version(name) for name in ("cspine", "torch", "timm", "captum")},
    }
