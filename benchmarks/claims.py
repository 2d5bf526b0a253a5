"""How long does it take to refute the paper's table, beside mlscorecheck on the same rows?

    python benchmarks/claims.py --repeats 5

cspine tries every reading of a row (averaging, positive class) and writes the proof; mlscorecheck is asked once a row,
for the binary reading with fracture positive. Both run in turn in one process; the least of the repeats counts, as the
rest is what else the machine was doing.
"""

from __future__ import annotations

import argparse
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mlscorecheck.check.binary import check_1_testset_no_kfold

from cspine.claims.check import check_table
from cspine.claims.table import Row, read_table

PAPER = Path(__file__).parents[1] / "experiments/claims-paper.toml"
THEIRS = {"accuracy": "acc", "precision": "ppv", "recall": "sens", "f1": "f1"}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    logging.getLogger("mlscorecheck").disabled = True
    table = read_table(PAPER)
    questions = [arrange_row(row) for row in table.rows]
    methods: dict[str, Callable[[], object]] = {
        "cspine, every reading": lambda: check_table(table),
        "mlscorecheck, one reading": lambda: [check_1_testset_no_kfold(**question) for question in questions],
    }
    best = dict.fromkeys(methods, float("inf"))
    for _ in range(repeats):
        for name, method in methods.items():
            start = time.perf_counter()
            method()
            best[name] = min(best[name], time.perf_counter() - start)
    ours, other = best.values()
    for name, seconds in best.items():
        print(f"{name:28} {seconds:7.3f} s for {len(table.rows)} rows")
    print(f"{'ratio':28} {ours / other:7.2f}")


def arrange_row(row: Row) -> dict[str, Any]:
    """A row as mlscorecheck takes it: the sizes of the classes, fractions, and half of what prints alike."""
    return {
        "testset": {"p": row.sizes.positives[0], "n": row.sizes.negatives[0]},
        "scores": {
            THEIRS[value.metric]: float(value.text) / (100 if value.percent else 1) for value in row.values
        },
        "eps": {
            THEIRS[value.metric]: float(value.interval.high - value.interval.low) / 2 for value in row.values
        },
        "prefilter_by_pairs": False,
    }


if __name__ == "__main__":
    main()
