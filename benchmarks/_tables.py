"""Writes what the benchmarks found into docs/benchmarks.md: tables, and whether each goal is reached.

    python benchmarks/_tables.py benchmarks/results docs/benchmarks.md

The folder holds the JSON files that the scripts beside this one write with `-o`: `train.json`, and `train-*.json` for
further runs of the same script. A part of the page between `<!-- train: ... -->` and `<!-- end -->` is replaced; what
stands outside such marks is prose, and stays. Nothing between them is typed by hand.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from study import write_table as write_study_table

from cspine.bench.prediction_results import (
    ONNX_RUNTIME,
    OPENVINO_INT8,
    PLAIN_TORCH,
    TORCH,
    PredictionBench,
    PredictionSpeed,
    write_prediction_table,
)
from cspine.bench.results import RunHead, divide_pairs, format_number, format_spread
from cspine.bench.scale_results import (
    DRAWS,
    EVALUATE,
    GOAL,
    MEMORY_GOAL_KB,
    MILLION,
    MILLION_GOAL_S,
    STAGES,
    ScaleBench,
    find_growth_kb,
    write_scale_table,
)
from cspine.bench.training_results import CEILING, PIPELINE, PLAIN, TrainingBench, write_training_table
from cspine.core.errors import CspineError, InputError
from cspine.core.files import atomic_file
from cspine.report.markdown import render_rows

Result = Mapping[str, Any]

MODELS = {"mobilenetv2": 2.0, "resnet50": 1.5, "convnext_tiny": 2.0}
"""How many times faster than the plain way each is to train."""

CEILING_SHARE, FROZEN_RATIO, OVER_ONNX_RUNTIME, OVER_TORCH = 0.95, 20.0, 1.8, 2.0
STUDY_SLICES, STUDY_S, STUDY_SHARE, STEPS_MS = 300, 2.0, 0.8, 1.0
GROWTH, EVALUATION_S = GOAL, MILLION_GOAL_S
HELP_S, DEMO_S = 0.3, 300.0
SCALE = (1_000, 100_000)
"""Slices of the smallest and of the largest set between which the cost of one should not grow."""

NOT_MEASURED = "not measured"
HOW = "Medians, with the least and the greatest in brackets."


@dataclass(frozen=True)
class Goal:
    """What was to be reached, and the values that say whether it was: their median counts, where there are several.

    `short` says what was left out of the measurement, so that nothing is reached by it.
    """

    what: str
    limit: float
    values: Sequence[float] = ()
    at_most: bool = False
    unit: str = ""
    short: str = ""

    def row(self) -> list[str]:
        """A row of the table of goals."""
        wanted = f"{'at most' if self.at_most else 'at least'} {format_number(self.limit)}{self.unit}"
        if not len(self.values):
            return [self.what, wanted, "", NOT_MEASURED]
        middle = float(np.median(self.values))
        reached = middle <= self.limit if self.at_most else middle >= self.limit
        found = format_spread(self.values) if len(self.values) > 1 else format_number(middle)
        return [
            self.what,
            wanted,
            found + self.unit,
            self.short or ("reached" if reached else "**not reached**"),
        ]


def list_training_goals(results: Sequence[Result]) -> Iterable[Goal]:
    """b/a and b/c of each of the paper's models, of the first result that has it; and every accuracy."""
    found = [speed for data in results for speed in TrainingBench.model_validate(data).models]
    speeds = {speed.model: speed for speed in reversed(found)}
    for model, faster in MODELS.items():
        speed = speeds.get(model)
        for below, name, limit in ((CEILING, "b/a", CEILING_SHARE), (PLAIN, "b/c", faster)):
            yield Goal(f"training, {model}, {name}", limit, speed.ratios(below) if speed else ())
    for speed in found:
        ours, plain = speed.accuracy.get(PIPELINE), speed.accuracy.get(PLAIN)
        if ours and plain and ours.value is not None and plain.low is not None:
            what = f"training, {speed.model}, accuracy after {speed.epochs} epochs, beside the low end of the plain way"
            yield Goal(what, round(plain.low, 3), (round(ours.value, 3),))


def write_frozen_table(data: Result) -> str:
    """The measurement of `frozen.py` as Markdown."""
    rows = [
        [
            one["model"],
            *(format_spread(one[name]) for name in ("epoch_s", "frozen_epoch_s")),
            format_spread(divide_pairs(one["epoch_s"], one["frozen_epoch_s"])),
            format_spread(one["features_s"]),
        ]
        for one in data["models"]
    ]
    columns = ("model", "an epoch, s", "frozen, an epoch after the first, s", "ratio", "features once, s")
    how = f"{data['slices']} slices of {data['size_px']}x{data['size_px']} px; {_count(data['models'][0]['epoch_s'])}"
    return _join(data, f"{how}. {HOW}", render_rows(columns, rows))


def list_frozen_goals(results: Sequence[Result]) -> Iterable[Goal]:
    """How much faster an epoch of the head alone is."""
    found = {one["model"]: one for data in results for one in data["models"]}
    for model in MODELS:
        one = found.get(model)
        ratios = divide_pairs(one["epoch_s"], one["frozen_epoch_s"]) if one else ()
        yield Goal(f"frozen backbone, {model}, an epoch over one after the first", FROZEN_RATIO, ratios)


def list_prediction_goals(results: Sequence[Result]) -> Iterable[Goal]:
    """The best engine without int8, whose answers only its gate can admit, over ONNX Runtime and torch."""
    speeds = {speed.model: speed for data in results for speed in PredictionBench.model_validate(data).models}
    for model in MODELS:
        speed = speeds.get(model)
        best = find_best(speed) if speed else "best engine"
        for below, limit in (
            (ONNX_RUNTIME, OVER_ONNX_RUNTIME),
            (PLAIN_TORCH, OVER_TORCH),
            (TORCH, OVER_TORCH),
        ):
            known = speed is not None and below in speed.ways
            values = speed.ratios(best, below) if speed and known else ()
            yield Goal(f"prediction, {model}, {best} over {below}", limit, values)


def find_best(speed: PredictionSpeed) -> str:
    """The way with the greatest median rate that is not int8."""
    return max(
        (way for way in speed.ways if way != OPENVINO_INT8), key=lambda way: speed.ways[way].rates.median
    )


def write_start_table(data: Result) -> str:
    """The measurement of `start.py` as Markdown."""
    seconds: Mapping[str, Sequence[float]] = data["seconds"]
    empty = next(iter(seconds.values()))
    rows = [
        [f"`{way}`", format_spread(found), format_spread(np.subtract(found, empty).tolist())]
        for way, found in seconds.items()
    ]
    how = f"Fresh processes, {_count(empty)}. {HOW}"
    return _join(data, how, render_rows(("process", "s", "beyond an empty Python, s"), rows))


def list_start_goals(results: Sequence[Result]) -> Iterable[Goal]:
    """`cspine --help`."""
    values = [value for data in results for value in data["seconds"]["cspine --help"]]
    yield Goal("`cspine --help`", HELP_S, values, at_most=True, unit=" s")


def write_demo_table(data: Result) -> str:
    """The measurement of `demo.py` as Markdown."""
    stages: Mapping[str, float] = data["stages_s"]
    rest = data["wall_s"] - sum(stages.values())
    all_of_them = {**stages, "start, phantom, report": rest}
    rows = [
        [stage, f"{seconds:.1f}", f"{seconds / data['wall_s']:.0%}"] for stage, seconds in all_of_them.items()
    ]
    rows.append(["**all of it**", f"**{data['wall_s']:.1f}**", ""])
    return _join(data, "One run.", render_rows(("stage", "s", "share"), rows))


def list_demo_goals(results: Sequence[Result]) -> Iterable[Goal]:
    """The whole demo."""
    yield Goal("`make demo`", DEMO_S, [data["wall_s"] for data in results], at_most=True, unit=" s")


def list_study_goals(results: Sequence[Result]) -> Iterable[Goal]:
    """300 slices of 512x512: seconds for the small model, the network's share for the large ones; pixel steps."""
    found = {
        (one["model"], one["kind"]): one
        for data in results
        for one in data["answers"]
        if one["slices"] == STUDY_SLICES
    }
    for kind in ("raw", "jpeg-2000"):
        seconds = found.get(("mobilenetv2", kind), {}).get("answer_s", ())
        what = f"study of {STUDY_SLICES} slices, {kind}"
        yield Goal(f"{what}, mobilenetv2, files to answer", STUDY_S, seconds, at_most=True, unit=" s")
        for model in ("resnet50", "convnext_tiny"):
            one = found.get((model, kind))
            shares = divide_pairs(one["network_s"], one["answer_s"]) if one else ()
            yield Goal(f"{what}, {model}, network / answer", STUDY_SHARE, shares)
    steps = {one["recipe"]: one["ms_a_slice"] for data in results for one in data["preparing"]}
    for recipe, milliseconds in (steps or {"preprocessing": ()}).items():
        yield Goal(f"a slice on one core, {recipe}", STEPS_MS, milliseconds, at_most=True, unit=" ms")


def list_scale_goals(results: Sequence[Result]) -> Iterable[Goal]:
    """How much the cost of a slice grows from the smallest set to the largest, and the memory; the large evaluation."""
    benches = [ScaleBench.model_validate(data) for data in results]
    memory = []
    for stage in STAGES:
        found = {one.slices: one for bench in benches for one in bench.list_stage(stage)}
        first, last = (found[min(found)], found[max(found)]) if found else (None, None)
        sizes = (first.slices, last.slices) if first and last else SCALE
        short = "" if sizes[0] <= SCALE[0] and sizes[1] >= SCALE[1] else f"not measured up to {SCALE[1]:,}"
        growth = (last.wall_ms / first.wall_ms,) if first and last else ()
        what = f"scale, {stage}, a slice of {sizes[1]:,} over one of {sizes[0]:,}"
        yield Goal(what, GROWTH, growth, at_most=True, short=short)
        further_kb = find_growth_kb(first, last) if first and last and sizes[0] < sizes[1] else None
        what = f"scale, {stage}, memory of a further slice"
        known = () if further_kb is None else (further_kb,)
        memory.append(Goal(what, MEMORY_GOAL_KB, known, at_most=True, unit=" kB", short=short))
    yield from memory
    large = [found for bench in benches if (found := bench.find(EVALUATE, MILLION))]
    seconds = [run.wall_s for one in large for run in one.runs]
    what = f"evaluation of {MILLION:,} predictions, {DRAWS:,} draws"
    yield Goal(what, EVALUATION_S, seconds, at_most=True, unit=" s")


@dataclass(frozen=True)
class Part:
    """What stands for one script: its tables, and its goals from all of its results together."""

    write: Callable[[Result], str]
    list_goals: Callable[[Sequence[Result]], Iterable[Goal]]


PARTS = {
    "train": Part(lambda data: write_training_table(TrainingBench.model_validate(data)), list_training_goals),
    "frozen": Part(write_frozen_table, list_frozen_goals),
    "predict": Part(
        lambda data: write_prediction_table(PredictionBench.model_validate(data)), list_prediction_goals
    ),
    "study": Part(lambda data: _join(data, HOW, write_study_table(data)), list_study_goals),
    "scale": Part(lambda data: write_scale_table(ScaleBench.model_validate(data)), list_scale_goals),
    "start": Part(write_start_table, list_start_goals),
    "demo": Part(write_demo_table, list_demo_goals),
}
GOALS = "goals"


def _join(data: Result, how: str, table: str) -> str:
    head = RunHead(**{name: data[name] for name in RunHead.model_fields if name in data})
    return f"{head.write(how)}\n\n{table.rstrip()}\n"


def _count(values: Sequence[float]) -> str:
    return f"{len(values)} repeats in turns"


def read_results(folder: Path) -> dict[str, list[Result]]:
    """The results of each script, `NAME.json` and `NAME-*.json`, in the order of their names."""
    return {
        name: [
            json.loads(path.read_text(encoding="utf-8"))
            for path in (folder / f"{name}.json", *sorted(folder.glob(f"{name}-*.json")))
            if path.exists()
        ]
        for name in PARTS
    }


def fill_page(page: str, results: Mapping[str, Sequence[Result]]) -> str:
    """The page with each marked part made anew.

    Raises:
        InputError: a part is marked twice, not at all, has no end, or has results that are not its script's.
    """
    columns = ("goal", "wanted", "found", "result")
    rows = []
    for name, part in PARTS.items():
        try:
            rows += [goal.row() for goal in part.list_goals(results[name])]
            tables = "\n".join(part.write(data) for data in results[name])
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"these are not results of benchmarks/{name}.py: {error!r}",
                where=f"{name}*.json",
                fix="run the script again",
            ) from error
        page = replace_part(page, name, tables or f"{NOT_MEASURED.capitalize()} yet.\n")
    return replace_part(page, GOALS, render_rows(columns, rows) + "\n")


def replace_part(page: str, name: str, text: str) -> str:
    """The page with another text between the marks of `name`."""
    marked = re.compile(rf"(<!-- {name}: [^\n]*-->\n)((?:(?!<!-- ).*\n)*)(<!-- end -->)")
    page, count = marked.subn(lambda found: f"{found[1]}\n{text}\n{found[3]}", page)
    if count != 1:
        raise InputError(
            f"{count} parts are marked `<!-- {name}: ... -->` to `<!-- end -->`",
            where="the page",
            fix="mark one",
        )
    return page


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("results", type=Path)
    parser.add_argument("page", type=Path)
    options = parser.parse_args(arguments)
    try:
        page = fill_page(options.page.read_text(encoding="utf-8"), read_results(options.results))
        with atomic_file(options.page) as path:
            path.write_text(page, encoding="utf-8")
    except CspineError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
