"""From the files of a CT study to its answer: time beside that of the network alone, where it goes, and memory.

    python benchmarks/study.py --repeats 5 -o study.json

Series of 512x512 pixels made from a drawn neck, answered in a process of their own by networks of random weights:
slices in threes 2 mm apart, 120 mm about the body, 224x224 pixels, on OpenVINO where it is installed, in bf16 where the
processor has it. In turns: files to answer; reading them; preparing the slices; the network alone on slices that are
prepared. Peak memory is the resident set of the whole command `cspine predict`.
"""

from __future__ import annotations

import contextlib
import io
import json
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from _measure import (
    MODELS,
    divide,
    format_spread,
    make_parser,
    make_study_recipe,
    run_apart,
    save,
    show,
    time_in_turns,
    write_model,
    write_series,
)

from cspine.core.machine import read_memory

KINDS = {"raw": ("explicit", False), "jpeg-2000": ("jpeg-2000", False), "multi-frame": ("explicit", True)}
PARTS = ("answer", "read", "prepare", "network")


def time_answers(series: Path, checkpoint: Path, repeats: int) -> dict[str, list[float]]:
    """Seconds of the answer and of its parts, each by itself, after a first round."""
    from cspine.ct.intake import IntakePolicy
    from cspine.ct.series import ReadOptions, read_series
    from cspine.inference.engines import has_bf16, import_openvino, is_installed
    from cspine.inference.predictor import Predictor, prepare_batches
    from cspine.inference.study import EarlyScorer, StudyPredictor

    if is_installed("openvino"):
        precision = "bf16" if has_bf16(import_openvino().Core()) else "fp32"
        predictor = Predictor.load(checkpoint, runtime="openvino", precision=precision)
    else:
        predictor = Predictor.load(checkpoint, device="cpu")
    predictor.batch_size = 16
    studies, recipe = StudyPredictor([predictor]), predictor.recipe
    [item] = read_series(series, "dicom", IntakePolicy())
    assert item.slices is not None
    read = partial(item.slices.slice, offsets_mm=recipe.offsets_mm)
    count = len(item.slices.slice_ids)
    pixels = np.concatenate(list(prepare_batches(recipe, 16, count, read)))

    def answer() -> None:
        with EarlyScorer(studies) as scorer:
            [one] = read_series(series, "dicom", IntakePolicy(), options=ReadOptions(on_begin=scorer.begin))
            scorer.answer(one)

    def clock(work: Callable[[], object]) -> float:
        began = time.perf_counter()
        work()
        return time.perf_counter() - began

    works: dict[str, Callable[[], object]] = {
        "answer": answer,
        "read": lambda: list(read_series(series, "dicom", IntakePolicy())),
        "prepare": lambda: list(prepare_batches(recipe, 16, count, read)),
        "network": lambda: predictor.predict_features(pixels),
    }
    runs = {part: partial(clock, works[part]) for part in PARTS}
    found = time_in_turns(runs, repeats + 1)
    return {part: values[1:] for part, values in found.items()}


def measure_memory(series: Path, checkpoint: Path) -> dict[str, float]:
    """The greatest resident set of the whole command in this process, in GB, and its seconds."""
    from cspine.cli.app import main as run_command

    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as output, contextlib.redirect_stdout(io.StringIO()):
        try:
            run_command(["predict", str(series), "-c", str(checkpoint), "-o", f"{output}/a", "--json"])
        except SystemExit as stop:
            if stop.code:
                raise
    return {"command_s": time.perf_counter() - began, "peak_gb": (read_memory("VmHWM") or 0) / 1e9}


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--series", nargs="+", default=["300:raw", "300:jpeg-2000"], help="slices:kind")
    parser.add_argument("--long", nargs="*", default=["1000:raw", "1000:multi-frame"], help="for memory only")
    parser.add_argument("--job", nargs=3, help="(for a process of its own)")
    options = parser.parse_args()
    if options.job:
        job, series, model = options.job[0], Path(options.job[1]), Path(options.job[2])
        found = (
            time_answers(series, model, options.repeats) if job == "answer" else measure_memory(series, model)
        )
        print(json.dumps(found))
        return
    rows, memory, figures = [], [], []
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        recipe = make_study_recipe()
        models = {one: write_model(one, place / f"{one}.safetensors", recipe) for one in options.models}
        for asked in (*options.series, *options.long):
            count, kind = asked.split(":")
            series = write_series(place / asked.replace(":", "-"), int(count), *KINDS[kind])
            repeats = ("--repeats", str(options.repeats))
            first = models[options.models[0]]
            peak = run_apart(__file__, "--job", "memory", str(series), str(first))
            memory.append(
                (asked, options.models[0], f"{peak['peak_gb']:.2f} GB", f"{peak['command_s']:.1f} s")
            )
            for model, path in models.items() if asked in options.series else ():
                times: dict[str, Any] = run_apart(
                    __file__, "--job", "answer", str(series), str(path), *repeats
                )
                ratio = format_spread(divide(times["network"], times["answer"]))
                rows.append((asked, model, *(format_spread(times[part]) for part in PARTS), ratio))
                figures.append({"series": asked, "model": model, **times})
    show(("series", "model", *(f"{part}, s" for part in PARTS), "network / answer"), rows)
    show(("series", "model, by torch", "peak", "whole command, once"), memory)
    save(options.output, {"answers": figures, "memory": memory})


if __name__ == "__main__":
    main()
