"""What a measurement of growth leaves, as JSON, as Markdown and as a picture; loads no torch."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, NullFormatter
from pydantic import BaseModel, ConfigDict

from cspine.bench.results import RunHead
from cspine.core.files import atomic_file
from cspine.report.figures import add_axes, choose_look, open_figure
from cspine.report.markdown import render_rows

EVALUATE = "evaluate"
STAGES = {
    "import": "labels table to manifest: every file decoded and hashed",
    "audit": "the whole audit, without its page",
    "cache": "every slice decoded and preprocessed into the cache",
    "load": "one epoch's batches with augmentation, without a network",
    "predict": "files to a table of predictions; a stub stands in the place of the network",
    EVALUATE: "all metrics with intervals by clustered bootstrap",
}
DRAWS = 2000
MILLION = 1_000_000
MILLION_GOAL_S = 60.0
GOAL = 1.2
MEMORY_GOAL_KB = 0.1
"""What a further slice may take: 10 MB for 100,000, so that memory has a bound that does not hang on the set."""

_WIDTH, _HEIGHT = 7.2, 3.4
_DPI = 150


class StageRun(BaseModel):
    """One run of a stage in a fresh process.

    Attributes:
        wall_s, cpu_s: Of the work alone, without imports.
        start_bytes: Resident before it: the interpreter and its packages.
        peak_bytes: Greatest resident set, pages of mapped files included.
        private_bytes: Greatest memory that no file stands behind, by samples.
        parts_cpu_s: CPU seconds of named parts, where the stage tells them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    wall_s: float
    cpu_s: float
    start_bytes: int | None
    peak_bytes: int | None
    private_bytes: int | None
    parts_cpu_s: dict[str, float] = {}


class Measurement(BaseModel):
    """All runs of one stage at one size."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    stage: str
    slices: int
    runs: tuple[StageRun, ...]

    @property
    def wall_ms(self) -> float:
        """Milliseconds a slice, the median."""
        return 1000 * float(np.median([run.wall_s for run in self.runs])) / self.slices

    @property
    def cpu_ms(self) -> float:
        """CPU milliseconds a slice, the median."""
        return 1000 * float(np.median([run.cpu_s for run in self.runs])) / self.slices

    @property
    def peak_mb(self) -> float:
        """1e6 bytes, the greatest."""
        return max(run.peak_bytes or 0 for run in self.runs) / 1e6

    @property
    def private_mb(self) -> float | None:
        """1e6 bytes, the greatest; None where the system did not tell."""
        known = [run.private_bytes for run in self.runs if run.private_bytes is not None]
        return max(known) / 1e6 if len(known) == len(self.runs) else None


class ScaleBench(RunHead):
    """All of `cspine bench scale`; `measured` is in the order of measuring."""

    size_px: int
    measured: tuple[Measurement, ...] = ()

    def find(self, stage: str, slices: int) -> Measurement | None:
        """What was measured of a stage at a size."""
        return next((one for one in self.measured if (one.stage, one.slices) == (stage, slices)), None)

    def list_stage(self, stage: str) -> list[Measurement]:
        """A stage's measurements by rising size, without the million predictions."""
        found = [one for one in self.measured if one.stage == stage and one.slices != MILLION]
        return sorted(found, key=lambda one: one.slices)

    def list_stages(self) -> list[str]:
        """Stages that have been measured, in the order of the work."""
        return [stage for stage in STAGES if self.list_stage(stage)]


def find_growth_kb(first: Measurement, last: Measurement) -> float | None:
    """Private memory that a further slice takes; None where it is not known of both."""
    if first.private_mb is None or last.private_mb is None:
        return None
    return 1000 * (last.private_mb - first.private_mb) / (last.slices - first.slices)


def write_scale_table(bench: ScaleBench) -> str:
    """The measurement as Markdown: every stage and size, how each stage grows, and the million predictions."""
    how = (
        f"{bench.size_px}x{bench.size_px} px PNG slices, ten a patient; each stage in a "
        "process of its own, without its imports; files are in the system's cache. Medians of the runs, the greatest "
        f"memory. Private memory is what no file stands behind. Evaluation: {DRAWS:,} draws over patients."
    )
    rows = [_row(one) for stage in bench.list_stages() for one in bench.list_stage(stage)]
    growth = [
        _growth_row(stage, found)
        for stage in bench.list_stages()
        if len(found := bench.list_stage(stage)) > 1
    ]
    parts = [bench.write(how), render_rows(_HEAD, rows)]
    if growth:
        parts.append(render_rows(_GROWTH_HEAD, growth))
    if million := bench.find(EVALUATE, MILLION):
        parts.append(_describe_million(million))
    return "\n\n".join([*parts, *_describe_stages(bench.list_stages())]) + "\n"


_HEAD = (
    "stage",
    "slices",
    "runs",
    "time a slice, ms",
    "CPU a slice, ms",
    "whole, s",
    "peak memory, MB",
    "of it private, MB",
)
_GROWTH_HEAD = (
    "stage",
    "from, to",
    "time a slice, last / first",
    "CPU a slice, last / first",
    "CPU a slice, last / one before",
    "memory, kB a further slice",
    f"time, last / first: at most {GOAL}",
)


def _row(one: Measurement) -> list[str]:
    return [
        one.stage,
        f"{one.slices:,}",
        str(len(one.runs)),
        f"{one.wall_ms:.3g}",
        f"{one.cpu_ms:.3g}",
        f"{one.wall_ms * one.slices / 1000:.3g}",
        f"{one.peak_mb:,.0f}",
        "" if one.private_mb is None else f"{one.private_mb:,.0f}",
    ]


def _growth_row(stage: str, found: list[Measurement]) -> list[str]:
    first, before, last = found[0], found[-2], found[-1]
    further_kb = find_growth_kb(first, last)
    ratio = last.wall_ms / first.wall_ms
    return [
        stage,
        f"{first.slices:,} to {last.slices:,}",
        f"{ratio:.2f}",
        f"{last.cpu_ms / first.cpu_ms:.2f}",
        f"{last.cpu_ms / before.cpu_ms:.2f}",
        "" if further_kb is None else f"{further_kb:.2g}",
        "reached" if ratio <= GOAL else "not reached",
    ]


def _describe_million(million: Measurement) -> str:
    seconds = million.wall_ms * million.slices / 1000
    verdict = "reached" if seconds <= MILLION_GOAL_S else "not reached"
    return (
        f"Evaluation of {MILLION:,} predictions with {DRAWS:,} draws over 100,000 patients: {seconds:.1f} s "
        f"({million.cpu_ms * million.slices / 1000:.1f} s of CPU), peak {million.peak_mb:,.0f} MB. Goal: at most "
        f"{MILLION_GOAL_S:g} s, {verdict}."
    )


def _describe_stages(stages: Iterable[str]) -> list[str]:
    return ["\n".join(f"- {stage}: {STAGES[stage]}" for stage in stages)]


def draw_scale(bench: ScaleBench, path: Path) -> Path:
    """CPU time a slice and peak memory over the size, a line a stage, as a PNG."""
    with open_figure(_WIDTH, _HEIGHT) as figure:
        panels = [add_axes(figure, left, 0.5, 2.55, 2.45) for left in (0.55, 3.6)]
        for place, stage in enumerate(bench.list_stages()):
            found = bench.list_stage(stage)
            sizes = [one.slices for one in found]
            look = choose_look(place)
            memory = [np.nan if one.private_mb is None else one.private_mb for one in found]
            for panel, values in zip(panels, ([one.cpu_ms for one in found], memory), strict=True):
                panel.plot(
                    sizes, values, color=look.colour, marker=look.marker, linestyle=look.line, label=stage
                )
        _finish(panels[0], "CPU a slice, ms")
        panels[0].set_yscale("log")
        _finish(panels[1], "peak of private memory, MB")
        panels[1].set_ylim(bottom=0)
        panels[1].legend(loc="upper left", bbox_to_anchor=(1.03, 1.0))
        for axis in (axis for panel in panels for axis in (panel.xaxis, panel.yaxis)):
            # Powers would need math text.
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
            axis.set_minor_formatter(NullFormatter())
        with atomic_file(path) as staged:
            figure.savefig(staged, format="png", dpi=_DPI)
    return path


def _finish(axes: Axes, title: str) -> None:
    axes.set(xscale="log", xlabel="slices")
    axes.set_title(title, fontsize=9, loc="left")
