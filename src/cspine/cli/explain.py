"""`cspine explain`: maps of what speaks for a fracture, in a set or in one series. Loads torch when it runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from cspine.cli.screen import Bars
from cspine.core.errors import InputError
from cspine.core.files import atomic_folder, refuse_to_replace, write_json, write_text
from cspine.ct.intake import IntakePolicy
from cspine.ct.series import read_series, recognise_format
from cspine.ct.volume import Volume
from cspine.data.layouts import MANIFEST_NAME, import_dataset
from cspine.data.manifest import Manifest, is_manifest

if TYPE_CHECKING:
    from cspine.explain.maps import Method
    from cspine.inference.predictor import Predictor

RESULT_FILE, PAGE_FILE = "explain.json", "explain.html"
SET_SLICES, SERIES_SLICES = 60, 8


def run_explain(
    source: Path,
    checkpoint: Path,
    output: Path,
    *,
    method: str,
    slices: int,
    split: str | None,
    threshold: float | None,
    seed: int,
    positive_class: str,
    negative_class: str,
) -> None:
    """Explain a set or a series into a new folder, and print what it comes to.

    Raises:
        InputError: no such method or source, or a split of a series.
        CheckpointError, OutputError: the checkpoint cannot be read, or the folder not written.
    """
    from cspine.explain.maps import METHODS
    from cspine.inference.predictor import Predictor

    chosen = next((name for name in METHODS if name == method), None)
    if chosen is None:
        raise InputError(
            f"no such method: {method}", where="--method", fix=f"choose one of {', '.join(METHODS)}"
        )
    refuse_to_replace(output, source, checkpoint)
    if not source.exists():
        raise InputError("no such file or folder", where=str(source), fix="name a set or a series")
    predictor = Predictor.load(checkpoint)
    manifest_path = source / MANIFEST_NAME if source.is_dir() else source
    settings: dict[str, Any] = {
        "method": chosen,
        "split": split,
        "threshold": predictor.header.threshold if threshold is None else threshold,
        "seed": seed,
    }
    with Bars() as bars, atomic_folder(output) as folder:
        if not is_manifest(manifest_path) and recognise_format(source) is not None:
            if split is not None:
                raise InputError("a series has no splits", where="--split", fix="leave --split out")
            settings["slices"] = slices or SERIES_SLICES
            words = _explain_series(source, predictor, folder, chosen, settings, bars)
        else:
            bars.start("Reading slices", 0)
            place = manifest_path if is_manifest(manifest_path) else source
            manifest, _ = import_dataset(
                place, positive_class=positive_class, negative_class=negative_class, progress=bars.advance
            )
            bars.finish(f"{len(manifest):,} slices")
            settings["slices"] = slices or SET_SLICES
            words = _explain_set(manifest, predictor, folder, chosen, settings, bars)
    console = Console()
    for line in (*words, f"written to {output}"):
        console.print(line, soft_wrap=True, highlight=False, markup=False)


def _explain_set(
    manifest: Manifest,
    predictor: Predictor,
    folder: Path,
    method: Method,
    settings: dict[str, Any],
    bars: Bars,
) -> list[str]:
    from cspine.comparison.explaining import ExplainOptions, explain_set
    from cspine.explain.drawing import draw_slice_picture
    from cspine.metrics.intervals import IntervalOptions
    from cspine.report.explanations import render_explanation_page

    found = explain_set(
        predictor,
        manifest,
        ExplainOptions(
            method, settings["slices"], settings["seed"], settings["threshold"], settings["split"]
        ),
        IntervalOptions(draws=1000, seed=settings["seed"]),
        bars,
    )
    names = [f"slices/{number:02d}.png" for number in range(1, len(found.views) + 1)]
    for name, view in zip(names, found.views, strict=True):
        draw_slice_picture(view, folder / name, method=found.result.words)
    command = _quote_command()
    write_text(folder / PAGE_FILE, render_explanation_page(found.result, command, names))
    content = found.result.model_dump(mode="json", exclude={"samples": {"__all__": {"picture_png"}}})
    write_json(folder / RESULT_FILE, _describe_run(predictor, settings, command) | {"explanation": content})
    return _list_words(found.result)


def _list_words(result: Any) -> list[str]:
    from cspine.report.text import format_estimate

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
    method: Method,
    settings: dict[str, Any],
    bars: Bars,
) -> list[str]:
    import numpy as np

    from cspine.comparison.artifacts import (
        STUDY_PICTURE,
        draw_key_slices,
        draw_study,
        explain_series,
        score_series,
    )

    predictor.recipe.check_domain("hu", str(source))
    bars.start("Reading the series", 0)
    volume = read_one_series(source)
    bars.finish(f"{len(volume):,} slices")
    bars.start("Predicting", 0)
    probs = score_series(predictor, volume)
    bars.finish(f"{len(volume):,} slices")
    key_slices = [int(index) for index in np.argsort(-probs, kind="stable")[: settings["slices"]]]
    found = explain_series(predictor, volume, probs, key_slices, method=method, watcher=bars)
    bars.start("Drawing", 0)
    top = key_slices[0]
    height_mm = volume.positions_mm[top] - volume.positions_mm[0]
    title = f"Highest probability of a fracture in a slice: {probs[top]:.3f}"
    lines = [
        f"Slice {top + 1} of {len(volume)}, {height_mm:.0f} mm above the lowest; "
        f"a slice is called a fracture from {settings['threshold']:g} on."
    ]
    if found.finding is not None:
        lines.append(f"The lines cross at the largest evidence, in slice {found.finding[0] + 1}.")
    draw_study(found, folder / STUDY_PICTURE, title=title, lines=lines)
    pictures = draw_key_slices(found, folder)
    bars.finish(f"{1 + len(pictures)} pictures")
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
    write_json(
        folder / RESULT_FILE, _describe_run(predictor, settings, _quote_command()) | {"series": content}
    )
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


def _quote_command() -> str:
    import sys

    from cspine.comparison.compare import quote_command

    return quote_command(sys.argv[1:])


def _describe_run(predictor: Predictor, settings: dict[str, Any], command: str) -> dict[str, Any]:
    from importlib.metadata import version

    from cspine.explain.maps import FEWEST_CELLS, OCCLUSION_GRID

    return {
        "command": command,
        "settings": {**settings, "fewest_cells": FEWEST_CELLS, "occlusion_grid": OCCLUSION_GRID},
        "model": predictor.header.spec.name,
        "checkpoint_hash": predictor.checkpoint_hash,
        "recipe": str(predictor.recipe),
        "versions": {name: version(name) for name in ("cspine", "torch", "timm", "captum")},
    }
