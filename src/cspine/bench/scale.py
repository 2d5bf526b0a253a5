"""How time and memory grow with the set: each stage on sets of rising size, each in a process of its own."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from cspine.bench.results import describe_run
from cspine.bench.scale_material import draw_predictions, write_labels, write_slices
from cspine.bench.scale_results import EVALUATE, MILLION, STAGES, Measurement, ScaleBench, StageRun
from cspine.core.errors import CspineError, InputError
from cspine.core.files import write_json
from cspine.core.progress import Silent, Watcher

SIZES = (1000, 3000, 10_000, 30_000, 100_000)
MILLION_STAGE = "million"
ALL_STAGES = (*STAGES, MILLION_STAGE)
SMALLEST, LARGEST = 60, 1_000_000

LONG_S = 60.0
"""What takes longer is run once, whatever the repeats."""

_NEEDS = {"audit": ("import",), "cache": ("import",), "load": ("import", "cache"), "predict": ("import",)}


def measure_scale(
    sizes: Sequence[int] = SIZES,
    stages: Sequence[str] = ALL_STAGES,
    *,
    size_px: int = 64,
    repeats: int = 3,
    output: Path | None = None,
    command: str = "",
    watcher: Watcher | None = None,
) -> ScaleBench:
    """Measure stages on sets of several sizes, the smallest first.

    Args:
        sizes: Slices of each set; a smaller set is the beginning of a larger one.
        stages: From `ALL_STAGES`; "million" is the evaluation of 1,000,000 predictions, once, whatever the sizes.
        size_px: Side of the slices.
        repeats: Runs of each stage and size; once where it takes longer than `LONG_S`.
        output: Written after every stage and size; where it is there already, what it holds is not measured again.
        command: For the record.
        watcher: Is told how far it is.

    Raises:
        InputError: no such stage, a size outside its range, or `output` is of another measurement.
        CspineError: a stage failed; with the last line that it left.
    """
    _check(sizes, stages)
    bench = ScaleBench(**describe_run(command).model_dump(), size_px=size_px)
    if output is not None:
        bench = _go_on(output, bench)
    jobs = [(stage, size) for size in sorted(set(sizes)) for stage in STAGES if stage in stages]
    if MILLION_STAGE in stages:
        jobs.append((EVALUATE, MILLION))
    left = [job for job in jobs if bench.find(*job) is None]
    watcher = watcher or Silent()
    with tempfile.TemporaryDirectory(prefix="cspine-scale-") as name:
        folder = Path(name)
        largest = max((size for stage, size in left if stage != EVALUATE), default=0)
        if largest:
            watcher.start("Writing slices", largest)
            write_slices(folder, largest, size_px, watcher.advance)
            watcher.finish(f"{largest:,} slices")
        for stage, size in left:
            watcher.start(f"{stage}, {size:,} slices", 0)
            measurement = _measure(stage, size, folder, size_px, repeats)
            watcher.finish(f"{measurement.wall_ms * size / 1000:.1f} s, {measurement.peak_mb:,.0f} MB")
            bench = bench.model_copy(update={"measured": (*bench.measured, measurement)})
            if output is not None:
                write_json(output, bench.model_dump(mode="json"))
    return bench


def _check(sizes: Sequence[int], stages: Sequence[str]) -> None:
    if unknown := [stage for stage in stages if stage not in ALL_STAGES]:
        raise InputError(f"no such stage: {unknown[0]}", fix=f"choose from {', '.join(ALL_STAGES)}")
    if wrong := [size for size in sizes if not SMALLEST <= size <= LARGEST or size == MILLION]:
        raise InputError(
            f"a set of {wrong[0]:,} slices is not measured", fix=f"give {SMALLEST} to {LARGEST - 1:,} slices"
        )


def _go_on(output: Path, fresh: ScaleBench) -> ScaleBench:
    """What an earlier run left in `output`; the fresh one where there is none."""
    if not output.exists():
        return fresh
    fix = "name another file with -o, or remove this one"
    try:
        earlier = ScaleBench.model_validate_json(output.read_bytes())
    except (OSError, ValidationError):
        raise InputError(
            "the file is there and holds no measurement of this kind", where=str(output), fix=fix
        ) from None
    if (earlier.machine, earlier.versions, earlier.size_px) != (fresh.machine, fresh.versions, fresh.size_px):
        raise InputError(
            "the file holds a measurement of another machine, other versions or another size of slices",
            where=str(output),
            fix=fix,
        )
    return earlier.model_copy(update={"command": fresh.command})


def _measure(stage: str, size: int, folder: Path, size_px: int, repeats: int) -> Measurement:
    """Make what a stage needs, then run it."""
    if stage == EVALUATE:
        draw_predictions(folder / f"predictions-{size}.parquet", size)
    elif not (folder / f"labels-{size}.csv").exists():
        write_labels(folder, size)
    for needed in _NEEDS.get(stage, ()):
        if not (folder / f"{needed}-{size}.done").exists():
            _run(needed, size, folder, size_px)
    runs = [_run(stage, size, folder, size_px)]
    while len(runs) < repeats and runs[0].wall_s <= LONG_S:
        runs.append(_run(stage, size, folder, size_px))
    return Measurement(stage=stage, slices=size, runs=tuple(runs))


def _run(stage: str, size: int, folder: Path, size_px: int) -> StageRun:
    if stage == "cache":
        shutil.rmtree(folder / "cache", ignore_errors=True)  # one that is there would only be opened
    asked = [stage, str(folder), str(size), str(size_px)]
    done = subprocess.run(
        [sys.executable, "-m", "cspine.bench.scale_stages", *asked], capture_output=True, text=True
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise CspineError(f"{stage} of {size:,} slices failed: {last[:300]}")
    (folder / f"{stage}-{size}.done").touch()
    return StageRun.model_validate(json.loads(done.stdout.splitlines()[-1]))
