"""From the files of a CT study to its answer: time beside that of the network alone, where it goes, and memory.

    python benchmarks/study.py --repeats 5 -o study.json --picture study.png

Writes series of 512x512 pixels, made from a drawn neck, to a temporary folder, and answers about each in a process of
its own, by networks of random weights: slices in threes 2 mm apart, 120 mm about the body, 224x224 pixels. The engine
is OpenVINO where it is installed, in bf16 where the processor has it, else torch. In turns: from the files to the
answer; reading them; preparing the slices; the network alone on slices that are prepared. Peak memory is the resident
set of the command `cspine predict`, its page included. The files are in the system's cache, as after copying them.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cspine.core.machine import read_memory

if TYPE_CHECKING:
    from cspine.inference.predictor import Predictor
    from cspine.preprocess import Recipe

SIZE_PX, SPAN_MM, NOISE_HU, INPUT_PX, BATCH_SIZE = 512, 150.0, 5.0, 224, 16
KINDS = {
    "raw": ("explicit", False),
    "jpeg-2000": ("jpeg-2000", False),
    "multi-frame": ("explicit", True),
}
MODELS = ("mobilenetv2", "resnet50", "convnext_tiny")
TIMED = ("300:raw", "300:jpeg-2000")
LONG = ("1000:raw", "1000:multi-frame")
STAGES = {"headers": "#9ecae1", "pixels": "#4292c6", "preparing": "#fdae6b", "network": "#74c476"}


def write_series(folder: Path, slices: int, kind: str) -> None:
    """A drawn neck, enlarged to 512 x 512 pixels and cut into as many slices, each with noise of its own."""
    import cv2

    from cspine.ct.volume import grid_origins
    from cspine.phantom.dicom import PLAIN, make_objects, write_objects
    from cspine.phantom.patient import PhantomSettings, make_patient
    from cspine.phantom.series import scan_patient

    encoding, multi_frame = KINDS[kind]
    habit = replace(PLAIN, encoding=encoding, multi_frame=multi_frame)
    patient = make_patient(0, PhantomSettings(patients=6, size_px=128, seed=0))
    drawn = scan_patient(patient, (3.0, 1.5, 1.5)).volume
    rng = np.random.default_rng(0)
    hu = np.empty((slices, SIZE_PX, SIZE_PX), np.int16)
    for index in range(slices):
        picture = drawn.hu[index * len(drawn) // slices].astype(np.float32)
        enlarged = cv2.resize(picture, (SIZE_PX, SIZE_PX), interpolation=cv2.INTER_LINEAR)
        noise = rng.normal(0, NOISE_HU, enlarged.shape)
        hu[index] = np.clip(np.rint(enlarged + noise), -1024, 3071)
    step_mm = SPAN_MM / (slices - 1)
    pixel_mm = drawn.spacing_mm[1] * drawn.hu.shape[1] / SIZE_PX
    volume = replace(
        drawn,
        hu=hu,
        spacing_mm=(step_mm, pixel_mm, pixel_mm),
        origins_mm=grid_origins(drawn.origin_mm, drawn.direction[0], step_mm, slices),
    )
    write_objects(folder, make_objects(volume, habit), habit)


def find_peak_bytes() -> int:
    """The greatest resident set of this process."""
    if (peak_bytes := read_memory("VmHWM")) is None:
        raise SystemExit("this system does not tell the greatest resident set")
    return peak_bytes


def make_recipe(*, threes: bool) -> Recipe:
    """A bone window at 224x224: of a slice alone, or of three slices about the body."""
    from cspine.preprocess import CropBody, Neighbours, Recipe, Resize, Window

    about = (Neighbours(count=3, distance_mm=2.0), CropBody(field_of_view_mm=120)) if threes else ()
    return Recipe(steps=(*about, Window(), Resize(height_px=INPUT_PX, width_px=INPUT_PX)))


def write_model(name: str, path: Path) -> None:
    """A checkpoint of random weights."""
    from cspine.models.checkpoint import write_checkpoint
    from cspine.models.classifier import build_classifier
    from cspine.models.header import CheckpointHeader, resolve_spec

    spec, recipe = resolve_spec(name), make_recipe(threes=True)
    header = CheckpointHeader(spec=spec, recipe=recipe, manifest_hash="none", weights="none")
    write_checkpoint(path, build_classifier(spec, recipe.scale, seed=0), header)


def load(checkpoint: Path) -> Predictor:
    """On the fastest engine that is installed."""
    from cspine.inference.engines import has_bf16, import_openvino, is_installed
    from cspine.inference.predictor import Predictor

    if not is_installed("openvino"):
        predictor = Predictor.load(checkpoint, device="cpu")
    else:
        fast = has_bf16(import_openvino().Core())
        predictor = Predictor.load(checkpoint, runtime="openvino", precision="bf16" if fast else "fp32")
    predictor.batch_size = BATCH_SIZE
    return predictor


def time_answers(folder: Path, checkpoint: Path, repeats: int) -> dict[str, Any]:
    """In a process of its own: files to answer, reading, preparing and the network, in turns after a first round."""
    from cspine.ct.dicom import scan_dicom
    from cspine.ct.intake import IntakePolicy
    from cspine.ct.series import read_series
    from cspine.inference.predictor import prepare_batches
    from cspine.inference.study import EarlyScorer, StudyPredictor

    predictor = load(checkpoint)
    studies, recipe = StudyPredictor([predictor]), predictor.recipe
    found: dict[str, list[float]] = {
        name: [] for name in ("answer_s", "headers_s", "read_s", "prepare_s", "network_s")
    }
    for number in range(repeats + 1):
        times = {}
        began = time.perf_counter()
        with EarlyScorer(studies) as scorer:
            [item] = read_series(folder, "dicom", IntakePolicy(), on_begin=scorer.begin)
            scorer.answer(item)
        times["answer_s"] = time.perf_counter() - began
        began = time.perf_counter()
        [item] = read_series(folder, "dicom", IntakePolicy())
        times["read_s"] = time.perf_counter() - began
        assert item.slices is not None
        slices = item.slices
        began = time.perf_counter()
        scan_dicom(folder)
        times["headers_s"] = time.perf_counter() - began
        began = time.perf_counter()
        read = partial(slices.read, offsets_mm=recipe.offsets_mm)
        batches = list(prepare_batches(recipe, BATCH_SIZE, len(slices.slice_ids), read))
        times["prepare_s"] = time.perf_counter() - began
        pixels = np.concatenate(batches)
        began = time.perf_counter()
        predictor.predict_features(pixels)
        times["network_s"] = time.perf_counter() - began
        if number:
            for name, value in times.items():
                found[name].append(value)
    return {"engine": predictor.runtime.about, **found}


def time_preparing(folder: Path, repeats: int) -> list[dict[str, Any]]:
    """Milliseconds of one slice on one core, of a slice alone and of three slices about the body."""
    import cv2

    from cspine.ct.intake import IntakePolicy
    from cspine.ct.series import read_series

    [item] = read_series(folder, "dicom", IntakePolicy())
    assert item.slices is not None
    count, found = len(item.slices.slice_ids), []
    cv2.setNumThreads(1)
    for recipe in (make_recipe(threes=False), make_recipe(threes=True)):
        values = []
        for _ in range(repeats + 1):
            began = time.perf_counter()
            for index in range(count):
                recipe.apply(item.slices.read(index, recipe.offsets_mm))
            values.append(1000 * (time.perf_counter() - began) / count)
        found.append({"recipe": " > ".join(map(str, recipe.steps)), "ms_a_slice": values[1:]})
    return found


def measure_memory(folder: Path, checkpoint: Path) -> dict[str, Any]:
    """In a process of its own: the greatest resident set of the whole command, and its seconds, once."""
    from cspine.cli.app import main

    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as output:
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                main(["predict", str(folder), "-c", str(checkpoint), "-o", f"{output}/answers", "--json"])
        except SystemExit as stop:
            if stop.code:
                raise
    return {"command_s": time.perf_counter() - began, "peak_bytes": find_peak_bytes()}


def run_apart(job: str, folder: Path, checkpoint: Path, repeats: int) -> Any:
    """What a job prints that has a process to itself."""
    asked = ["--job", job, "--folder", str(folder), "--model", str(checkpoint), "--repeats", str(repeats)]
    child = subprocess.run([sys.executable, __file__, *asked], check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(child.stdout.splitlines()[-1])


def measure(models: list[str], timed: list[str], long: list[str], repeats: int) -> dict[str, Any]:
    """All of it; lines on the error stream say how far it is."""
    measured: dict[str, Any] = {"answers": [], "memory": [], "preparing": []}
    with tempfile.TemporaryDirectory() as place:
        checkpoints = {name: Path(place) / f"{name}.safetensors" for name in models}
        for name, path in checkpoints.items():
            write_model(name, path)
        for series in (*timed, *long):
            count, kind = series.split(":")
            with tempfile.TemporaryDirectory() as folder:
                write_series(Path(folder), int(count), kind)
                about = {"slices": int(count), "kind": kind}
                first = next(iter(checkpoints))
                peak = run_apart("memory", Path(folder), checkpoints[first], 1)
                measured["memory"].append({**about, "model": first, **peak})
                if series in long:
                    continue
                for name, path in checkpoints.items():
                    times = run_apart("answer", Path(folder), path, repeats)
                    measured["answers"].append({**about, "model": name, **times})
                    median = {key: f"{np.median(times[key]):.2f}" for key in ("answer_s", "network_s")}
                    print(f"{count} x {kind}, {name}: {median}", file=sys.stderr, flush=True)
                if kind == "raw":
                    measured["preparing"] = run_apart("prepare", Path(folder), path, repeats)
    return measured


def list_parts(one: dict[str, Any]) -> dict[str, float]:
    """Median seconds of what an answer consists of, each measured by itself."""
    median = {name: float(np.median(one[f"{name}_s"])) for name in ("headers", "read", "prepare", "network")}
    parts = median["headers"], median["read"] - median["headers"], median["prepare"], median["network"]
    return dict(zip(STAGES, parts, strict=True))


def draw_profile(answers: list[dict[str, Any]], path: Path) -> None:
    """Bars of what an answer consists of, each measured by itself, and a mark at the time from files to answer."""
    from matplotlib.figure import Figure

    from cspine.core.files import atomic_file

    figure = Figure(figsize=(9, 0.6 * len(answers) + 1.4), layout="constrained")
    axes = figure.subplots()
    for place, one in enumerate(answers):
        left = 0.0
        for name, width in list_parts(one).items():
            axes.barh(place, width, left=left, color=STAGES[name], label=name if place == 0 else None)
            left += width
        total = float(np.median(one["answer_s"]))
        label = "files to answer" if place == 0 else None
        axes.plot([total, total], [place - 0.45, place + 0.45], color="black", linewidth=2, label=label)
    axes.set_yticks(
        range(len(answers)), [f"{one['model']}\n{one['slices']} slices, {one['kind']}" for one in answers]
    )
    axes.invert_yaxis()
    axes.set_xlabel("seconds, medians; each part measured by itself")
    figure.legend(loc="outside upper center", ncols=len(STAGES) + 1, frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    with atomic_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)


def write_table(measured: dict[str, Any]) -> str:
    """The measurement as Markdown."""
    from cspine.bench.results import format_spread
    from cspine.report.markdown import render_rows

    head = ("series", "model", "files to answer, s", *(f"{name}, s" for name in STAGES), "network / answer")
    rows = [
        [
            f"{one['slices']} x {one['kind']}",
            one["model"],
            format_spread(one["answer_s"]),
            *(f"{seconds:.3g}" for seconds in list_parts(one).values()),
            format_spread([a / b for a, b in zip(one["network_s"], one["answer_s"], strict=True)]),
        ]
        for one in measured["answers"]
    ]
    preparing = [(one["recipe"], format_spread(one["ms_a_slice"])) for one in measured["preparing"]]
    memory = [
        (
            f"{one['slices']} x {one['kind']}",
            one["model"],
            f"{one['peak_bytes'] / 1e9:.2f}",
            f"{one['command_s']:.1f}",
        )
        for one in measured["memory"]
    ]
    return "\n\n".join(
        [
            "; ".join(dict.fromkeys(f"{one['model']}: {one['engine']}" for one in measured["answers"])),
            render_rows(head, rows),
            render_rows(("pixel steps", "ms a slice on one core"), preparing),
            render_rows(("series", "model, by torch", "peak, GB", "whole command, s, once"), memory),
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument(
        "--series", nargs="+", default=list(TIMED), help=f"slices:kind, of {', '.join(KINDS)}"
    )
    parser.add_argument("--long", nargs="*", default=list(LONG), help="the same, for memory only")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("-o", "--output", type=Path, help="also write JSON here")
    parser.add_argument("--picture", type=Path, help="also draw where the time goes")
    for name in ("--job", "--folder", "--model"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.job:
        folder, checkpoint = Path(options.folder), Path(options.model)
        jobs = {
            "answer": lambda: time_answers(folder, checkpoint, options.repeats),
            "prepare": lambda: time_preparing(folder, options.repeats),
            "memory": lambda: measure_memory(folder, checkpoint),
        }
        print(json.dumps(jobs[options.job]()))
        return
    from cspine.bench.results import describe_run

    command = f"python benchmarks/study.py --repeats {options.repeats}"
    for name, default in (("models", list(MODELS)), ("series", list(TIMED)), ("long", list(LONG))):
        if getattr(options, name) != default:
            command += " ".join([f" --{name}", *getattr(options, name)])
    head = describe_run(command)
    measured = measure(options.models, options.series, options.long, options.repeats)
    measured |= head.model_dump(mode="json")
    if options.output:
        from cspine.core.files import write_json

        write_json(options.output, measured)
    if options.picture:
        draw_profile(measured["answers"], options.picture)
    print(f"{head.write()}\n\n{write_table(measured)}")


if __name__ == "__main__":
    main()
