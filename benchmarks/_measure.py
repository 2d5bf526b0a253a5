"""What the benchmarks share: ways timed in turn, ratios with their spread, tables, and things to measure."""

from __future__ import annotations

import argparse
import json
import platform
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from cspine.core.files import write_json
from cspine.core.machine import count_cpus
from cspine.preprocess import CropBody, Neighbours, Recipe, Resize, Window

PACKAGES = ("torch", "onnxruntime", "openvino", "timm")
MODELS = ("mobilenetv2", "resnet50", "convnext_tiny")


def make_parser(doc: str, repeats: int = 5) -> argparse.ArgumentParser:
    """The options that every script has."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=repeats)
    parser.add_argument("-o", "--output", type=Path, help="also write JSON here")
    return parser


def time_in_turns(ways: Mapping[str, Callable[[], float]], repeats: int) -> dict[str, list[float]]:
    """Run every way once, and again, so that a busy minute strikes all of them; each gives its own figure."""
    found: dict[str, list[float]] = {way: [] for way in ways}
    for number in range(repeats):
        for way, run in ways.items():
            found[way].append(run())
        print(f"round {number + 1} of {repeats}", file=sys.stderr, flush=True)
    return found


def divide(first: Sequence[float], second: Sequence[float]) -> list[float]:
    """Ratios within a round."""
    return [one / other for one, other in zip(first, second, strict=True)]


def format_spread(values: Sequence[float], digits: int = 3) -> str:
    """The median, and the least and the greatest in brackets."""
    low, middle, high = (
        f"{value:,.0f}" if abs(value) >= 10**digits - 0.5 else f"{value:.{digits}g}"
        for value in np.quantile(values, (0, 0.5, 1))
    )
    return f"{middle} ({low} to {high})"


def describe_machine() -> str:
    """Processor, CPUs, bf16 and versions; no name of the machine."""
    info = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    name = re.search(r"^model name\s*:\s*(.+)$", info, re.MULTILINE)
    kind = next((one for one in ("amx_bf16", "avx512_bf16", "avx512f", "avx2") if one in info), "")
    versions = [f"python {platform.python_version()}"]
    for package in PACKAGES:
        try:
            versions.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    processor = name.group(1) if name else platform.machine()
    return f"{processor}, {count_cpus()} CPUs, {kind}; {', '.join(versions)}"


def show(head: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a Markdown table with the command and the machine before it."""
    print(
        f"\n`python {' '.join(sys.argv)}`\n\n{describe_machine()}. Medians, with the least and the greatest.\n"
    )
    for cells in (head, ["---"] * len(head), *rows):
        print(f"| {' | '.join(str(cell) for cell in cells)} |")


def save(path: Path | None, content: Mapping[str, Any]) -> None:
    """Write the figures as JSON, where that was asked for."""
    if path is not None:
        write_json(path, {"command": sys.argv, "machine": describe_machine(), **content})


def time_process(arguments: Sequence[str]) -> float:
    """Seconds of one fresh Python that has to succeed."""
    started = time.perf_counter()
    subprocess.run([sys.executable, *arguments], stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - started


def run_apart(script: str, *arguments: str) -> Any:
    """The JSON that a script prints last in a process of its own."""
    child = subprocess.run(
        [sys.executable, script, *arguments], check=True, stdout=subprocess.PIPE, text=True
    )
    return json.loads(child.stdout.splitlines()[-1])


def make_study_recipe(*, threes: bool = True) -> Recipe:
    """A bone window at 224x224: of three slices about the body, or of a slice alone."""
    about = (Neighbours(count=3, distance_mm=2.0), CropBody(field_of_view_mm=120)) if threes else ()
    return Recipe(steps=(*about, Window(), Resize(height_px=224, width_px=224)))


def write_model(name: str, path: Path, recipe: Recipe) -> Path:
    """A checkpoint of random weights."""
    from cspine.models.checkpoint import write_checkpoint
    from cspine.models.classifier import build_classifier
    from cspine.models.header import CheckpointHeader, resolve_spec

    spec = resolve_spec(name)
    header = CheckpointHeader(spec=spec, recipe=recipe, manifest_hash="none", weights="none")
    write_checkpoint(path, build_classifier(spec, recipe.scale, seed=0), header)
    return path


def write_exported(checkpoint: Path, path: Path, to: str, precision: str = "fp32") -> Path:
    """The checkpoint for another engine. It passes no gate: only its speed is asked, so int8 learns from noise."""
    from cspine.inference.engines import ExportRecord
    from cspine.inference.export import prepare_writer
    from cspine.models.checkpoint import load_checkpoint

    loaded = load_checkpoint(checkpoint)
    shape = loaded.header.recipe.shape

    class Noise:
        slice_ids = tuple(str(number) for number in range(8))

        def read_one(self, slice_id: str) -> np.ndarray:
            return np.random.default_rng(int(slice_id)).integers(0, 256, shape, dtype=np.uint8)

    record = ExportRecord(
        header=loaded.header,
        source_hash=loaded.hash,
        format=to,
        precision=precision,
        features=loaded.model.find_width(),
    )
    prepare_writer(loaded, to, precision, Noise())(path, record)
    return path


def write_series(folder: Path, slices: int, encoding: str = "explicit", multi_frame: bool = False) -> Path:
    """A drawn neck of 150 mm, enlarged to 512x512 pixels and cut into as many slices, each with its own noise."""
    import cv2

    from cspine.ct.volume import grid_origins
    from cspine.phantom.dicom import PLAIN, make_objects, write_objects
    from cspine.phantom.patient import PhantomSettings, make_patient
    from cspine.phantom.series import scan_patient

    habit = replace(PLAIN, encoding=encoding, multi_frame=multi_frame)
    drawn = scan_patient(make_patient(0, PhantomSettings(patients=6, size_px=128)), (3.0, 1.5, 1.5)).volume
    rng, size_px = np.random.default_rng(0), 512
    hu = np.empty((slices, size_px, size_px), np.int16)
    for index in range(slices):
        picture = drawn.hu[index * len(drawn) // slices].astype(np.float32)
        enlarged = cv2.resize(picture, (size_px, size_px), interpolation=cv2.INTER_LINEAR)
        hu[index] = np.clip(np.rint(enlarged + rng.normal(0, 5.0, enlarged.shape)), -1024, 3071)
    step_mm, pixel_mm = 150.0 / (slices - 1), drawn.spacing_mm[1] * drawn.hu.shape[1] / size_px
    origins_mm = grid_origins(drawn.origin_mm, drawn.direction[0], step_mm, slices)
    volume = replace(drawn, hu=hu, spacing_mm=(step_mm, pixel_mm, pixel_mm), origins_mm=origins_mm)
    write_objects(folder, make_objects(volume, habit), habit)
    return folder
