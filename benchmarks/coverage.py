"""How often do the intervals at 95% hold the truth, and how often do the tests reject where nothing differs?

Clusters of eight slices of one class, whose logits share half of their variance; the truth is that of 20,000 clusters.
Prints one table a shift of the logits (the larger, the nearer to the end of the range), then the errors of the tests.

    python benchmarks/coverage.py --units 20 --sets 400

Takes about 80 seconds of one core for these numbers. The standard error of a share of 0.95 among 400 sets is 0.011.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from cspine.core.estimates import Estimate
from cspine.core.predictions import compute_sigmoid
from cspine.metrics.intervals import (
    IntervalOptions,
    draw_metrics,
    estimate_clustered_proportion,
    estimate_intervals,
    expand_tail,
    find_percentile_ends,
    leave_out_units,
)
from cspine.metrics.paired import (
    Swaps,
    compare_areas,
    estimate_area,
    permute_units,
    run_mcnemar,
    subtract_estimates,
)
from cspine.metrics.scores import METRICS, Cases, arrange_cases, compute_metrics

NAMES = ("accuracy", "recall", "balanced_accuracy", "f1", "mcc", "auroc", "auprc", "brier", "log_loss")
SIZE = 8
GAP = 0.4  # of the two models' shifts, where differences are covered

Floats = npt.NDArray[np.float64]


def make_pair(seed: int, units: int, shift: float, gap: float) -> tuple[Floats, list[Floats], Floats]:
    """(labels, probabilities of two models, unit). The models share half of what a cluster adds."""
    rng = np.random.default_rng(seed)
    unit = np.repeat(np.arange(units), SIZE)
    classes = rng.random(units) < 0.5
    classes[:2] = True, False
    y = classes[unit].astype(np.int64)
    common = rng.normal(size=units)
    probs = []
    for own in (shift, shift - gap):
        cluster = np.sqrt(0.5) * (common + rng.normal(size=units))
        noise = np.sqrt(0.5) * (cluster[unit] + rng.normal(size=unit.size))
        probs.append(compute_sigmoid(own * (2 * y - 1) + noise))
    return y, probs, unit


def estimate_all(
    y: Floats, probs: list[Floats], unit: Floats, draws: int
) -> Iterator[tuple[str, str, tuple[float, float] | Estimate]]:
    """(quantity, method, interval) of everything that is compared on one set."""
    cases = [arrange_cases(y, p, 0.5, units=unit) for p in probs]
    for name, found in estimate_intervals(cases[0], IntervalOptions(draws), NAMES).items():
        yield name, "jackknife", found
    yield "auroc", "DeLong clustered", estimate_area(y, probs[0], unit, unit="unit")
    yield "auroc", "DeLong by slice", estimate_area(y, probs[0], np.arange(y.size), unit="slice")
    right = np.bincount(unit, weights=(probs[0] >= 0.5) == y)
    yield (
        "accuracy",
        "Wilson clustered",
        estimate_clustered_proportion(right, np.full(right.size, SIZE), unit="unit"),
    )
    yield from estimate_differences(cases, draws)


def estimate_differences(
    cases: list[Cases], draws: int
) -> Iterator[tuple[str, str, tuple[float, float] | Estimate]]:
    names = ("accuracy", "f1", "auroc", "auprc", "brier")
    chosen = {name: METRICS[name] for name in names}
    own = [estimate_intervals(c, IntervalOptions(draws), names) for c in cases]
    left_out = [leave_out_units(c, chosen) for c in cases]
    drawn = [draw_metrics(c, chosen, draws=draws, seed=0) for c in cases]
    for name in names:
        yield (
            f"{name} difference",
            "MOVER",
            subtract_estimates(own[0][name], own[1][name], left_out[0][name], left_out[1][name]),
        )
        difference = drawn[0][name] - drawn[1][name]
        ends = find_percentile_ends(difference[~np.isnan(difference)], expand_tail(cases[0].units, 0.95))
        yield f"{name} difference", "percentile", ends


def cover(units: int, shift: float, sets: int, draws: int) -> None:
    y, probs, _ = make_pair(10**6, 20_000, shift, GAP)
    values = [{name: found.value for name, found in compute_metrics(y, p, 0.5).items()} for p in probs]
    truth = dict(values[0]) | {f"{name} difference": values[0][name] - values[1][name] for name in NAMES}
    counts: dict[tuple[str, str], list[int]] = defaultdict(lambda: [0, 0])
    for seed in range(sets):
        for quantity, method, found in estimate_all(*make_pair(seed, units, shift, GAP), draws):
            low, high = (found.low, found.high) if isinstance(found, Estimate) else found
            if low is not None and high is not None:
                counts[quantity, method][0] += low <= truth[quantity] <= high
                counts[quantity, method][1] += 1
    print(f"\n{units} units, shift {shift}: share of {sets} sets whose interval holds the truth", flush=True)
    for quantity in dict.fromkeys(quantity for quantity, _ in counts):
        shares = "  ".join(
            f"{method} {hits / n:.3f}" + (f" (of {n})" if n < sets else "")
            for (name, method), (hits, n) in counts.items()
            if name == quantity
        )
        print(f"  {quantity:22} truth {truth[quantity]:7.4f}  {shares}", flush=True)


def count_errors(units: int, shift: float, sets: int) -> None:
    hits: dict[str, int] = defaultdict(int)
    for seed in range(sets):
        y, probs, unit = make_pair(seed, units, shift, 0.0)
        first, second = probs
        tests = {
            "permutation, AUROC": permute_units(
                "auroc", y, first, second, unit, unit="unit", swaps=Swaps(999)
            ),
            "permutation, accuracy": permute_units(
                "accuracy", y, first, second, unit, unit="unit", swaps=Swaps(999)
            ),
            "clustered DeLong": compare_areas(y, first, second, unit),
            "DeLong by slice": compare_areas(y, first, second),
            "exact McNemar by slice": run_mcnemar((first >= 0.5) == y, (second >= 0.5) == y),
        }
        for name, test in tests.items():
            hits[name] += test.p is not None and test.p <= 0.05
    shares = "  ".join(f"{name} {count / sets:.3f}" for name, count in hits.items())
    print(
        f"\n{units} units, shift {shift}: share of {sets} sets with p <= 0.05 where nothing differs\n  {shares}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--units", type=int, nargs="+", default=[20])
    parser.add_argument("--shifts", type=float, nargs="+", default=[0.7, 1.2, 2.0])
    parser.add_argument("--sets", type=int, default=400)
    parser.add_argument("--draws", type=int, default=300)
    options = parser.parse_args()
    for units in options.units:
        for shift in options.shifts:
            cover(units, shift, options.sets, options.draws)
            count_errors(units, shift, options.sets)


if __name__ == "__main__":
    main()
