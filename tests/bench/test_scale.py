"""Growth with the set: ratios of the costs of a slice, results that are gone on with, sets without copies."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cspine.auditing.copies import find_copies
from cspine.bench import scale
from cspine.bench.scale_material import write_labels, write_slices
from cspine.bench.scale_results import (
    EVALUATE,
    MILLION,
    Measurement,
    ScaleBench,
    StageRun,
    write_scale_table,
)
from cspine.bench.scale_stages import run_stage
from cspine.data.layouts import import_dataset
from tests.commands import run_here


def make_run(wall_s: float, cpu_s: float, peak_mb: float = 200) -> StageRun:
    return StageRun(
        wall_s=wall_s,
        cpu_s=cpu_s,
        start_bytes=0,
        peak_bytes=int(peak_mb * 1e6),
        private_bytes=int(peak_mb * 5e5),
    )


def make_bench(*measured: Measurement) -> ScaleBench:
    return ScaleBench(command="c", machine="m", versions={}, size_px=64, measured=measured)


def test_growth_is_the_cost_of_a_slice_in_the_largest_set_over_that_in_the_smallest() -> None:
    table = write_scale_table(
        make_bench(
            Measurement(stage="audit", slices=1000, runs=(make_run(1, 2), make_run(3, 4), make_run(2, 3))),
            Measurement(stage="audit", slices=2000, runs=(make_run(4, 5),)),
            Measurement(stage="audit", slices=11_000, runs=(make_run(33, 36.3, 1200),)),
            Measurement(stage=EVALUATE, slices=MILLION, runs=(make_run(61, 100, 900),)),
        )
    )
    assert "| audit | 1,000 | 3 | 2 | 3 | 2 | 200 | 100 |" in table
    # 3 ms over 2 ms; 3.3 ms of CPU over 3 and over 2.5; 500 MB more for 10,000 slices more.
    assert "| audit | 1,000 to 11,000 | 1.50 | 1.10 | 1.32 | 50 | not reached |" in table
    assert "61.0 s (100.0 s of CPU), peak 900 MB. Goal: at most 60 s, not reached." in table


def test_every_stage_leaves_what_the_next_needs_and_the_set_has_no_copies(tmp_path: Path) -> None:
    write_slices(tmp_path, 70, 48)
    labels = write_labels(tmp_path, 60)
    for stage in ("import", "cache", "load", "predict"):
        run = run_stage(stage, tmp_path, 60, 48)
        assert run.wall_s > 0
        assert run.peak_bytes is None or run.peak_bytes > 0
    manifest, _ = import_dataset(labels)
    assert len(manifest) == 60
    assert manifest.table["patient_id"].n_unique() == 6
    assert find_copies(manifest).distinct == 60
    audited = run_stage("audit", tmp_path, 60, 48)
    assert {"Measuring", "read", "compare"} <= set(audited.parts_cpu_s)


def test_what_an_earlier_run_left_is_not_measured_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def run(stage: str, size: int, folder: Path, size_px: int) -> StageRun:
        asked.append((stage, size))
        return make_run(1, 1)

    monkeypatch.setattr(scale, "_run", run)
    monkeypatch.setattr(scale, "LONG_S", 0.5)
    output = tmp_path / "s.json"
    arguments = ["bench", "scale", "--sizes", "100", "--stages", "evaluate", "-o", output]
    assert run_here(*arguments).returncode == 0
    done = run_here(*arguments, "--sizes", "60", "--plot", tmp_path / "s.png")
    assert done.returncode == 0, done.stderr
    assert asked == [("evaluate", 100), ("evaluate", 60)]
    assert [one["slices"] for one in json.loads(output.read_text())["measured"]] == [100, 60]
    assert (tmp_path / "s.png").read_bytes().startswith(b"\x89PNG")
    refused = run_here(*arguments, "--size-px", "96")
    assert refused.returncode == 2
    assert "another size of slices" in refused.stderr


def test_unknown_stages_and_sizes_are_refused() -> None:
    assert "no such stage: evaluation" in run_here("bench", "scale", "--stages", "evaluation").stderr
    assert run_here("bench", "scale", "--sizes", "5").returncode == 2
