"""Time and memory of every stage as the set grows, and the evaluation of a million predictions.

    python benchmarks/scale.py --sizes 1000 10000 100000 -o scale.json

Drawn slices of 64x64 pixels, ten a patient, no two alike; each stage runs in a process of its own, without its imports.
import: a table of labels to a manifest, every file decoded and hashed. audit: without its page. cache: every slice
decoded and preprocessed. load: one epoch's batches with augmentation, no network. predict: by MobileNetV2 of random
weights. evaluate: all metrics with intervals, 2,000 draws over patients.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import polars as pl
from _measure import make_parser, run_apart, save, show, write_model

from cspine.core.files import write_text
from cspine.core.machine import read_memory
from cspine.core.predictions import SCHEMA, compute_sigmoid, write_predictions
from cspine.phantom.patient import PhantomSettings, make_patient
from cspine.phantom.scanner import sample_slices, to_display8
from cspine.preprocess import Equalise, Recipe, Resize

STAGES = ("import", "audit", "cache", "load", "evaluate")
SIZE_PX, A_PATIENT, DRAWN_PATIENTS, MILLION, BATCH_SIZE = 64, 10, 60, 1_000_000, 32


def write_slices(folder: Path, count: int) -> None:
    """PNG files and their table of labels; drawn patients are bent and get noise of their own, so none is a copy."""
    settings = PhantomSettings(
        patients=DRAWN_PATIENTS, slices_per_patient=A_PATIENT, size_px=SIZE_PX, fracture_fraction=0.8
    )
    drawn = {}
    across, down = np.meshgrid(*[np.arange(SIZE_PX, dtype=np.float32)] * 2)
    rows = []
    for number in range(-(-count // A_PATIENT)):
        rng, name, model = np.random.default_rng((0, number)), f"p{number:06d}", number % DRAWN_PATIENTS
        if model not in drawn:
            patient = make_patient(model, settings)
            drawn[model] = patient.split, list(sample_slices(patient, settings))
        split, slices = drawn[model]
        (folder / name).mkdir()
        knots = rng.normal(0, 0.03 * SIZE_PX, (2, 4, 4)).astype(np.float32)
        bend = [cv2.resize(part, (SIZE_PX, SIZE_PX), interpolation=cv2.INTER_CUBIC) for part in knots]
        for index, one in enumerate(slices):
            moved = cv2.remap(to_display8(one.hu), across + bend[0], down + bend[1], cv2.INTER_LINEAR)
            noisy = moved + 8 * rng.standard_normal(moved.shape, np.float32)
            path = f"{name}/{index:02d}.png"
            cv2.imwrite(str(folder / path), np.clip(np.rint(noisy), 0, 255).astype(np.uint8))
            rows.append({"path": path, "label": one.label, "patient_id": name, "split": split})
    write_text(folder / "labels.csv", pl.DataFrame(rows[:count]).write_csv())


def draw_predictions(path: Path, count: int) -> None:
    """Predictions of slices whose patients differ as well as the slices."""
    rng = np.random.default_rng((1, count))
    patient = np.arange(count) // A_PATIENT
    y_true = rng.random(count) < 0.3
    logit = (
        np.where(y_true, 1.5, -1.5) + rng.normal(0, 1, patient[-1] + 1)[patient] + rng.normal(0, 1.5, count)
    )
    columns = {
        "slice_id": [f"{number:08d}" for number in range(count)],
        "patient_id": patient.astype(str),
        "y_true": y_true.astype(np.int8),
        "logit": logit,
        "prob": compute_sigmoid(logit),
    }
    table = pl.DataFrame(columns).with_columns(
        *(pl.lit(None, pl.String).alias(name) for name in ("study_uid", "series_uid", "source_id")),
        pl.lit("test").alias("split"),
        *(pl.lit(name).alias(name) for name in ("model", "checkpoint_hash", "recipe_hash", "manifest_hash")),
    )
    write_predictions(table.select(*SCHEMA), path)


def prepare_stage(stage: str, folder: Path) -> Callable[[], object]:
    """What is to be timed; everything that it needs is imported and opened here."""
    from cspine.auditing.audit import audit_manifest
    from cspine.core.predictions import read_predictions
    from cspine.data.cache import open_cache
    from cspine.data.layouts import import_dataset
    from cspine.data.manifest import read_manifest, write_manifest
    from cspine.metrics.evaluation import evaluate_table

    path = folder / "manifest.parquet"
    recipe = Recipe(steps=(Equalise(), Resize(height_px=SIZE_PX, width_px=SIZE_PX)))
    if stage == "import":
        return lambda: write_manifest(import_dataset(folder / "labels.csv")[0], path)
    if stage == "audit":
        return lambda: audit_manifest(read_manifest(path))
    if stage == "cache":
        return lambda: open_cache(read_manifest(path), recipe, folder / "cache")
    if stage == "load":
        return lambda: load_epoch(path, recipe)
    if stage == "predict":
        return prepare_prediction(folder, recipe)
    return lambda: evaluate_table(read_predictions(folder / "predictions.parquet"))


def load_epoch(path: Path, recipe: Recipe) -> None:
    """One epoch's batches with augmentation."""
    import torch

    from cspine.data.cache import open_cache
    from cspine.data.manifest import read_manifest
    from cspine.experiment import AugmentSettings
    from cspine.training.batches import Source, make_cases, stream_pixels

    manifest = read_manifest(path)
    cache = open_cache(manifest, recipe, path.parent / "cache")
    cases = make_cases(manifest.table, cache)
    source = Source(cases, cases.labels, stream_pixels(cache, cases, torch.device("cpu")), 1.0)
    for plan in source.plan_epoch(BATCH_SIZE, AugmentSettings(), torch.Generator().manual_seed(0)):
        source.read(plan)


def prepare_prediction(folder: Path, recipe: Recipe) -> Callable[[], object]:
    """Files to logits."""
    from cspine.data.manifest import read_manifest
    from cspine.inference.predictor import Predictor

    predictor = Predictor.load(write_model("mobilenetv2", folder / "model.safetensors", recipe), device="cpu")
    manifest = read_manifest(folder / "manifest.parquet")
    ids = manifest.slice_ids
    return lambda: predictor.score_read(len(ids), lambda index: manifest.read_slice(ids[index]))


def run_stage(stage: str, folder: Path) -> dict[str, float]:
    """Seconds of the wall clock and of the CPU, and the greatest resident set in MB."""
    work = prepare_stage(stage, folder)
    began, cpu = time.perf_counter(), time.process_time()
    work()
    wall_s, cpu_s = time.perf_counter() - began, time.process_time() - cpu
    return {"wall_s": wall_s, "cpu_s": cpu_s, "peak_mb": (read_memory("VmHWM") or 0) / 1e6}


def main() -> None:
    parser = make_parser(__doc__, repeats=1)
    parser.add_argument("--sizes", nargs="+", type=int, default=[1000, 3000, 10_000])
    parser.add_argument("--stages", nargs="+", default=list(STAGES), choices=(*STAGES, "predict", "million"))
    parser.add_argument("--run", nargs=2, help="(for a process of its own)")
    options = parser.parse_args()
    if options.run:
        print(json.dumps(run_stage(options.run[0], Path(options.run[1]))))
        return
    figures = []
    million = [("evaluate", MILLION)] if "million" in options.stages else []
    jobs = [(stage, size) for size in sorted(options.sizes) for stage in options.stages if stage != "million"]
    with tempfile.TemporaryDirectory() as name:
        for stage, size in (*jobs, *million):
            folder = Path(name) / str(size)
            if not folder.exists():
                folder.mkdir()
                draw_predictions(folder / "predictions.parquet", size)
                if size != MILLION:
                    write_slices(folder, size)
            for _ in range(options.repeats):
                figures.append(
                    {"stage": stage, "slices": size, **run_apart(__file__, "--run", stage, str(folder))}
                )
    rows = [
        (
            one["stage"],
            f"{one['slices']:,}",
            *(f"{1000 * one[clock] / one['slices']:.3g}" for clock in ("wall_s", "cpu_s")),
            f"{one['wall_s']:.3g}",
            f"{one['peak_mb']:,.0f}",
        )
        for one in figures
    ]
    show(("stage", "slices", "ms a slice", "CPU ms a slice", "s", "peak MB"), rows)
    save(options.output, {"stages": figures})


if __name__ == "__main__":
    main()
