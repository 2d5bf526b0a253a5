"""Bounds that take each independent unit as one trial, for where a bootstrap or a normal approximation cannot know.

At 400 right of 400 all draws of a bootstrap agree and a variance is zero. What is known then:

- a proportion (accuracy, precision, recall, specificity, FPR, NPV): Clopper-Pearson with value * n successes,
  n being the *units* that carry its denominator. Of all ways in which units can have that mean, all-or-none
  has the largest variance, so this is conservative;
- a metric that rises with each of some proportions (`Metric.parts`: balanced accuracy, F1, MCC, a predictive
  value at a given prevalence): the value that follows from such bounds of its parts, each at level
  1 - alpha / parts (Bonferroni);
- AUROC: Clopper-Pearson on the largest number of disjoint pairs of a unit with fractures and another with
  normal slices, each pair an independent trial of "the fracture scores higher".
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import stats

from cspine.data.types import plural
from cspine.evaluation.metrics import METRICS, Cases, Metric, Totals


class Bound(NamedTuple):
    """Ends of an interval and how they were found."""

    low: float
    high: float
    method: str


class UnitBounds:
    """Bounds that take each unit as one trial; see the head of this module."""

    def __init__(self, cases: Cases, totals: Totals, unit: str, level: float) -> None:
        self.cases, self.totals, self.unit, self.alpha = cases, totals, unit, 1 - level

    def find(self, name: str, metric: Metric) -> Bound | None:
        """The bound of a metric that has a value; None for a metric that no bound is known for."""
        if metric.proportion:
            n = self.count_carriers(metric)
            counted = f"{n} {self.unit if n == 1 else plural(self.unit)}"
            return Bound(*self._bound_part(metric, self.alpha), f"Clopper-Pearson on {counted}")
        if metric.combine is not None:
            parts = metric.parts
            bounds = [self._bound_part(METRICS[part], self.alpha / len(parts)) for part in parts]
            low, high = metric.combine(*(b[0] for b in bounds)), metric.combine(*(b[1] for b in bounds))
            return Bound(low, high, f"Clopper-Pearson bounds of {', '.join(parts)} on {plural(self.unit)}")
        return self.find_auroc() if name == "auroc" else None

    def find_auroc(self) -> Bound:
        """The bound of AUROC, of cases with both classes."""
        value = float(METRICS["auroc"].compute(self.totals)[0])
        pairs = count_disjoint_pairs(self.cases)
        low, high = bound_proportion(value, pairs, self.alpha)
        return Bound(low, high, f"Clopper-Pearson on {pairs} disjoint pairs of {plural(self.unit)}")

    def _bound_part(self, metric: Metric, alpha: float) -> tuple[float, float]:
        """A proportion's bound. Undefined, it may be anything, so it cannot narrow what it is a part of."""
        value = float(metric.compute(self.totals)[0])
        return (0.0, 1.0) if np.isnan(value) else bound_proportion(value, self.count_carriers(metric), alpha)

    def count_carriers(self, metric: Metric) -> int:
        """Units with at least one slice in the denominator."""
        return int(np.count_nonzero(metric.ratio(self.cases.per_unit)[1]))


def bound_proportion(value: float, n: int, alpha: float) -> tuple[float, float]:
    """Clopper-Pearson (Biometrika 1934) at value * n of n; the count need not be whole."""
    count = value * n
    low = 0.0 if value == 0 else float(stats.beta.ppf(alpha / 2, count, n - count + 1))
    high = 1.0 if value == 1 else float(stats.beta.ppf(1 - alpha / 2, count + 1, n - count))
    return low, high


def count_disjoint_pairs(cases: Cases) -> int:
    """The most pairs of a unit with a fracture and another with a normal slice, no unit in two pairs."""
    per_unit = cases.per_unit
    fracture, normal = per_unit.positives > 0, per_unit.negatives > 0
    return min(int(fracture.sum()), int(normal.sum()), cases.units // 2)
