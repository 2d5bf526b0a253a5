"""Tables of benchmarks: goals are reached where medians are, prose stays, the page is what results make of it."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from cspine.bench.prediction_results import ONNX_RUNTIME, OPENVINO, OPENVINO_INT8, PLAIN_TORCH, TORCH
from cspine.bench.results import Rates
from cspine.bench.training_results import CEILING, PIPELINE, PLAIN, TrainingBench, TrainingSpeed
from cspine.core.errors import InputError
from cspine.metrics.intervals import estimate_wilson

ROOT = Path(__file__).parents[2]
HEAD: dict[str, Any] = {"command": "c", "machine": "m", "versions": {"python": "3"}}


@pytest.fixture(scope="module")
def tables() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "benchmarks")
        yield importlib.import_module("_tables")


def make_page(tables: ModuleType) -> str:
    parts = [f"Prose of {name}.\n\n<!-- {name}: x -->\n<!-- end -->\n" for name in (*tables.PARTS, "goals")]
    return "\n".join([*parts, "The last word.\n"])


def make_frozen(model: str, whole: list[float], frozen: list[float]) -> dict[str, Any]:
    row = {"model": model, "epoch_s": whole, "frozen_epoch_s": frozen, "features_s": whole}
    return {**HEAD, "slices": 4, "size_px": 8, "models": [row]}


def test_a_goal_is_reached_where_the_median_of_the_repeats_reaches_it(tables: ModuleType) -> None:
    assert tables.Goal("g", 0.3, (0.2, 0.3, 9.0), at_most=True, unit=" s").row() == [
        "g",
        "at most 0.3 s",
        "0.3 (0.2 to 9) s",
        "reached",
    ]
    assert tables.Goal("g", 2.0, (1.0, 1.9, 9.0)).row()[2:] == ["1.9 (1 to 9)", "**not reached**"]
    assert tables.Goal("g", 2.0).row()[2:] == ["", "not measured"]


def test_training_is_held_against_its_ceiling_and_the_plain_way_in_rate_and_accuracy(
    tables: ModuleType,
) -> None:
    rates = {CEILING: (10.0, 20.0), PIPELINE: (9.0, 19.0), PLAIN: (6.0, 10.0)}
    speed = TrainingSpeed(
        model="resnet50",
        precision="bf16",
        why="",
        rates={way: Rates(slices_per_s=found) for way, found in rates.items()},
        accuracy={PIPELINE: estimate_wilson(70, 100), PLAIN: estimate_wilson(80, 100)},
        epochs=3,
    )
    bench = TrainingBench(
        **HEAD, size_px=(8, 8), batch_size={"resnet50": 16}, batches=2, models=(speed,)
    ).model_dump(mode="json")
    goals = {goal.what: goal.row()[1:] for goal in tables.list_training_goals([bench])}
    assert goals["training, resnet50, b/a"] == ["at least 0.95", "0.925 (0.9 to 0.95)", "**not reached**"]
    assert goals["training, resnet50, b/c"] == ["at least 1.5", "1.7 (1.5 to 1.9)", "reached"]
    assert goals["training, convnext_tiny, b/c"] == ["at least 2", "", "not measured"]
    (accuracy,) = (row for what, row in goals.items() if "accuracy" in what)
    assert accuracy == ["at least 0.711", "0.7", "**not reached**"]  # Wilson's lower end of 80 of 100
    assert "| resnet50 | bf16, 16 |" in tables.PARTS["train"].write(bench)


def test_the_best_engine_is_not_int8_and_ratios_are_taken_within_repeats(tables: ModuleType) -> None:
    rates = {
        PLAIN_TORCH: (5.0, 10.0),
        TORCH: (10.0, 20.0),
        ONNX_RUNTIME: (20.0, 20.0),
        OPENVINO: (40.0, 30.0),
        OPENVINO_INT8: (99.0, 99.0),
    }
    ways = {
        way: {"about": "", "rates": {"slices_per_s": found}, "latency_ms": (1.0,), "start_up_s": (1.0,)}
        for way, found in rates.items()
    }
    model = {"model": "resnet50", "ways": ways}
    data = {**HEAD, "size_px": (8, 8), "batch_size": 16, "batches": 2, "models": [model]}
    goals = {goal.what: tuple(goal.values) for goal in tables.list_prediction_goals([data])}
    assert goals[f"prediction, resnet50, {OPENVINO} over {ONNX_RUNTIME}"] == (2.0, 1.5)
    assert goals[f"prediction, resnet50, {OPENVINO} over {TORCH}"] == (4.0, 1.5)
    assert goals[f"prediction, resnet50, {OPENVINO} over {PLAIN_TORCH}"] == (8.0, 3.0)


def make_scale(sizes: Mapping[int, Sequence[float]], private_bytes: int | None) -> dict[str, Any]:
    """Seconds of the audit by size of the set, and private memory of a slice."""
    measured = [
        {
            "stage": "audit",
            "slices": slices,
            "runs": [
                {
                    "wall_s": s,
                    "cpu_s": s,
                    "start_bytes": None,
                    "peak_bytes": 10**9,
                    "private_bytes": private_bytes and private_bytes * slices,
                }
                for s in seconds
            ],
        }
        for slices, seconds in sizes.items()
    ]
    return {**HEAD, "size_px": 64, "measured": measured}


def test_the_cost_of_a_slice_is_compared_between_the_smallest_and_the_largest_set(tables: ModuleType) -> None:
    data = make_scale({100: [1.0, 3.0], 10: [0.1, 0.3], 1000: [30.0]}, 9000)
    evaluation = {**data["measured"][2], "stage": "evaluate", "slices": 1_000_000}
    growth, memory, large = [
        goal
        for goal in tables.list_scale_goals([{**data, "measured": [*data["measured"], evaluation]}])
        if len(goal.values)
    ]
    assert growth.what == "scale, audit, a slice of 1,000 over one of 10"
    assert growth.values == pytest.approx((1.5,))  # 30 ms a slice of 1,000, 20 ms a slice of 10
    assert memory.row()[:3] == ["scale, audit, memory of a further slice", "at most 0.1 kB", "9 kB"]
    assert growth.row()[-1] == memory.row()[-1] == "not measured up to 100,000"
    assert large.values == [30.0]
    assert "| audit | 1,000 | 1 | 30 | 30 | 30 | 1,000 | 9 |" in tables.PARTS["scale"].write(data)


def test_sizes_of_several_files_are_one_measurement(tables: ModuleType) -> None:
    small, large = make_scale({1000: [1.0]}, 9000), make_scale({100_000: [110.0]}, 9000)
    rows = [goal.row() for goal in tables.list_scale_goals([small, large])]
    assert [row[-1] for row in rows if "audit" in row[0]] == ["reached", "**not reached**"]


def test_memory_that_the_system_does_not_tell_is_not_called_constant(tables: ModuleType) -> None:
    unknown, known = make_scale({1000: [1.0]}, None), make_scale({100_000: [110.0]}, 9000)
    for results in ([make_scale({1000: [1.0], 100_000: [110.0]}, None)], [unknown, known], [known]):
        rows = {goal.what: goal.row() for goal in tables.list_scale_goals(results)}
        assert rows["scale, audit, memory of a further slice"][2:] == ["", "not measured"]
    assert "| audit | 1,000 | 1 | 1 | 1 | 1 | 1,000 |   |" in tables.PARTS["scale"].write(unknown)


def test_a_number_that_stands_alone_has_no_exponent(tables: ModuleType) -> None:
    assert tables.Goal("g", 2000, [1175.3]).row() == ["g", "at least 2,000", "1,175", "**not reached**"]


def test_of_a_study_the_share_of_the_network_counts_and_only_of_300_slices(tables: ModuleType) -> None:
    times = {"headers_s": [1.0], "read_s": [2.0], "prepare_s": [1.0], "network_s": [9.0], "answer_s": [10.0]}
    answers = [
        {"slices": slices, "kind": "raw", "model": model, "engine": "e", **times}
        for slices, model in ((300, "resnet50"), (300, "mobilenetv2"), (60, "convnext_tiny"))
    ]
    preparing = [{"recipe": "window", "ms_a_slice": [0.5, 0.7]}]
    data = {"command": "c", "machine": "m", "answers": answers, "memory": [], "preparing": preparing}
    goals = {goal.what: goal.row()[2:] for goal in tables.list_study_goals([data])}
    assert goals["study of 300 slices, raw, resnet50, network / answer"] == ["0.9", "reached"]
    assert goals["study of 300 slices, raw, mobilenetv2, files to answer"] == ["10 s", "**not reached**"]
    assert goals["study of 300 slices, raw, convnext_tiny, network / answer"][1] == "not measured"
    assert goals["a slice on one core, window"] == ["0.6 (0.5 to 0.7) ms", "reached"]
    assert tables.PARTS["study"].write(data).startswith("`c`\n\nm. Medians")


def test_start_is_told_beyond_an_empty_python_and_the_demo_by_stage_with_the_rest(tables: ModuleType) -> None:
    seconds = {"python -c pass": [0.1, 0.2], "cspine --help": [0.4, 0.4]}
    assert "| `cspine --help` | 0.4 (0.4 to 0.4) | 0.25 (0.2 to 0.3) |" in tables.write_start_table(
        {**HEAD, "seconds": seconds}
    )
    demo = tables.write_demo_table({**HEAD, "wall_s": 200.0, "stages_s": {"training": 150.0, "audit": 20.0}})
    assert "| training | 150.0 | 75% |\n| audit | 20.0 | 10% |" in demo
    assert "| start, phantom, report | 30.0 | 15% |\n| **all of it** | **200.0** |" in demo


def test_tables_come_between_the_marks_prose_stays_and_twice_is_as_once(tables: ModuleType) -> None:
    page = make_page(tables)
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in tables.PARTS}
    results["frozen"] = [make_frozen("resnet50", [50.0, 30.0], [2.0, 1.0])]
    once = tables.fill_page(page, results)
    assert tables.fill_page(once, results) == once
    assert [line for line in once.splitlines() if line.startswith(("Prose", "The last"))] == [
        line for line in page.splitlines() if line.startswith(("Prose", "The last"))
    ]
    assert "| resnet50 | 40 (30 to 50) | 1.5 (1 to 2) | 27.5 (25 to 30) | 40 (30 to 50) |" in once
    goal = "| frozen backbone, resnet50, an epoch over one after the first | at least 20 | 27.5 (25 to 30) | reached |"
    assert goal in once
    assert once.count("Not measured yet.") == len(tables.PARTS) - 1


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda page: page.replace("<!-- frozen: x -->", ""), "0 parts are marked `<!-- frozen"),
        (lambda page: page + page, "2 parts are marked"),
    ],
)
def test_a_part_that_is_not_marked_once_is_refused(tables: ModuleType, spoil: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        tables.fill_page(spoil(make_page(tables)), {name: [] for name in tables.PARTS})


def test_results_of_another_script_are_refused_and_the_page_stays(
    tables: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.md"
    page.write_text(make_page(tables))
    (tmp_path / "start-2.json").write_text(json.dumps(make_frozen("m", [1.0], [1.0])))
    assert tables.main([str(tmp_path), str(page)]) == 2
    assert "not results of benchmarks/start.py" in capsys.readouterr().err
    assert page.read_text() == make_page(tables)


def test_the_page_in_the_documents_is_what_the_results_make_of_it(tables: ModuleType) -> None:
    page = (ROOT / "docs/benchmarks.md").read_text(encoding="utf-8")
    results = tables.read_results(ROOT / "benchmarks/results")
    assert tables.fill_page(page, results) == page, (
        "run python benchmarks/_tables.py benchmarks/results docs/benchmarks.md"
    )
