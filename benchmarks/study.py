"""Memory and time of one study: `cspine predict` on long series, and the network alone beside it.

    python benchmarks/study.py checkpoint.safetensors --repeats 3 -o study.json

Writes series of 512x512 pixels, made from a drawn neck, to a temporary folder, and answers about each in a process of
its own. Peak memory is the resident set of `cspine predict`, its page included. Times are taken afterwards in the same
process, in turns: from the files to the answer, and the network alone on the same slices. The files are in the system's
cache then, as after copying them.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

SIZE_PX, SPAN_MM, NOISE_HU = 512, 150.0, 5.0
KINDS = {
    "raw": ("explicit", False),
    "jpeg-2000": ("jpeg-2000", False),
    "multi-frame": ("explicit", True),
}
DEFAULT = ("300:raw", "300:jpeg-2000", "1000:raw", "1000:multi-frame")


def write_series(folder: Path, slices: int, kind: str) -> None:
    """A drawn neck, enlarged to 512 x 512 pixels and cut into as many slices, each with noise of its own."""
    import cv2

    from cspine.data.phantom import PhantomSettings, make_patient
    from cspine.studies.dicom_objects import make_objects, write_objects
    from cspine.studies.phantom_dicom import scan_patient
    from cspine.studies.phantom_habits import PLAIN
    from cspine.studies.volume import grid_origins

    encoding, multi_frame = KINDS[kind]
    habit = replace(PLAIN, encoding=encoding, multi_frame=multi_frame)
    patient = make_patient(0, PhantomSettings(patients=6, size_px=128, seed=0))
    [drawn] = scan_patient(patient, (3.0, 1.5, 1.5)).parts
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
    """The greatest resident set of this process; unlike getrusage's, it knows nothing of the one that started it."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    found = re.search(r"^VmHWM:\s*(\d+) kB$", status, re.MULTILINE)
    if found is None:
        raise SystemExit("this system does not tell the greatest resident set")
    return int(found.group(1)) * 1024


def answer(folder: Path, checkpoint: Path, output: Path, repeats: int) -> dict[str, Any]:
    """In a process of its own: predict as the command does, then time what it consists of."""
    from cspine.cli import main

    began = time.perf_counter()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            main(["predict", str(folder), "-c", str(checkpoint), "-o", str(output), "--json"])
    except SystemExit as stop:
        if stop.code:
            raise
    command_s, peak_bytes = time.perf_counter() - began, find_peak_bytes()

    from cspine.inference.predictor import Predictor
    from cspine.inference.study import StudyPredictor, prepare_batches
    from cspine.studies.intake import IntakePolicy
    from cspine.studies.series import read_series

    predictor = Predictor.load(checkpoint)
    studies = StudyPredictor([predictor])
    answer_s, read_s, network_s = [], [], []
    for _ in range(repeats):
        began = time.perf_counter()
        [item] = read_series(folder, "dicom", IntakePolicy())
        read_s.append(time.perf_counter() - began)
        studies.answer(item.slices, item.intake, item.levels)
        answer_s.append(time.perf_counter() - began)
        assert item.slices is not None
        batches = list(prepare_batches(predictor, item.slices))
        began = time.perf_counter()
        for pixels in batches:
            predictor.predict_features(pixels)
        network_s.append(time.perf_counter() - began)
    return {
        "peak_bytes": peak_bytes,
        "command_s": command_s,
        "answer_s": answer_s,
        "read_s": read_s,
        "network_s": network_s,
    }


def write_table(measured: list[dict[str, Any]], command: str) -> str:
    """The measurement as Markdown."""
    from cspine.bench.results import describe_processor, format_spread
    from cspine.reporting.markdown import render_rows

    head = (
        "series",
        "peak, GB",
        "whole command, s",
        "files to answer, s",
        "of it reading, s",
        "network alone, s",
        "answer / network",
    )
    rows = [
        [
            f"{one['slices']} x {one['kind']}",
            f"{one['peak_bytes'] / 1e9:.2f}",
            f"{one['command_s']:.1f}",
            *(format_spread(one[name]) for name in ("answer_s", "read_s", "network_s")),
            format_spread([a / b for a, b in zip(one["answer_s"], one["network_s"], strict=True)]),
        ]
        for one in measured
    ]
    how = f"{describe_processor()}. Medians, with the least and the greatest in brackets; the command once."
    return "\n\n".join([f"`{command}`", how, render_rows(head, rows)]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", nargs="?", type=Path)
    parser.add_argument("--series", nargs="+", default=DEFAULT, help=f"slices:kind, of {', '.join(KINDS)}")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("-o", "--output", type=Path, help="also write JSON here")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.checkpoint is None:
        print("needs the checkpoint of a model for slices in Hounsfield units: see the head of this file")
        return
    if options.folder:
        with tempfile.TemporaryDirectory() as output:
            result = answer(options.folder, options.checkpoint, Path(output) / "answers", options.repeats)
        print(json.dumps(result))
        return
    measured = []
    for series in options.series:
        count, kind = series.split(":")
        with tempfile.TemporaryDirectory() as name:
            write_series(Path(name), int(count), kind)
            asked = [str(options.checkpoint), "--folder", name, "--repeats", str(options.repeats)]
            child = subprocess.run(
                [sys.executable, __file__, *asked], check=True, stdout=subprocess.PIPE, text=True
            )
        measured.append({"slices": int(count), "kind": kind, **json.loads(child.stdout.splitlines()[-1])})
    command = f"python benchmarks/study.py {options.checkpoint.name} --repeats {options.repeats}"
    if tuple(options.series) != DEFAULT:
        command += f" --series {' '.join(options.series)}"
    if options.output:
        from cspine.files import write_json

        write_json(options.output, {"command": command, "measured": measured})
    print(write_table(measured, command))


if __name__ == "__main__":
    main()
