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

from mlscorecheck.check.binary import check_1_testset_no_kfold

from cspine.evaluation.claims import check_table
from cspine.evaluation.claims_input import Table, read_table

PAPER = Path(__file__).parents[1] / "experiments/claims-paper.toml"
NAMES = {"accuracy": "acc", "precision": "prec", "recall": "sens", "f1": "f1", "specificity": "spec"}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    logging.getLogger("mlscorecheck").disabled = True
    table = read_table(PAPER)
    theirs = [arrange_row(table, place) for place in range(len(table.rows))]
    methods: dict[str, Callable[[], object]] = {
        "cspine, every reading": lambda: check_table(table),
        "mlscorecheck, one reading": lambda: [
            check_1_testset_no_kfold(testset=sizes, scores=scores, eps=0.0051, prefilter_by_pairs=False)
            for sizes, scores in theirs
        ],
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


def arrange_row(table: Table, place: int) -> tuple[dict[str, int], dict[str, float]]:
    """A row as mlscorecheck takes it: fractions, and the sizes of the two classes."""
    row = table.rows[place]
    scores = {
        NAMES[value.metric]: float(value.text) / (100 if value.percent else 1)
        for value in row.values
        if value.metric in NAMES
    }
    return {"p": row.sizes.positives[0], "n": row.sizes.negatives[0]}, scores


if __name__ == "__main__":
    main()
