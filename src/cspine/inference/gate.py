"""The parity gate: does an exported model answer as its checkpoint does?

In fp32 that is a matter of logits. In bf16 and int8 logits move, so what counts is what they are for: the AUROC of
labelled slices, its difference to torch in fp32 with a paired interval over whole patients, and the decisions at the
operating point. That AUROC stays says nothing about the calibration, which the decisions do.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from cspine.core.estimates import Estimate, FrozenModel
from cspine.core.logistic import expit
from cspine.core.predictions import make_predictions
from cspine.inference.engines import ExportPrecision, Runtime
from cspine.inference.predictor import TOLERANCE
from cspine.metrics.evaluation import arrange_table, sort_labelled
from cspine.metrics.intervals import estimate_intervals, leave_out_units
from cspine.metrics.paired import subtract_estimates
from cspine.metrics.scores import METRICS
from cspine.models.header import CheckpointHeader
from cspine.models.ood import OodDetector

Floats = npt.NDArray[np.float64]


class Bounds(FrozenModel):
    """What an export may differ by from torch in fp32; None is not asked for.

    Attributes:
        logit: Largest difference of a logit.
        auroc: Difference of AUROC, either way.
        auroc_low: Lower end of the 95% interval of exported - torch.
        changed: Share of decisions that may change.
        distance: Median change of the distance from the training slices, as a share of it.
    """

    logit: float | None = None
    auroc: float | None = None
    auroc_low: float | None = None
    changed: float = 0.0
    distance: float = 0.01


BOUNDS: dict[ExportPrecision, Bounds] = {
    "fp32": Bounds(logit=TOLERANCE),
    "bf16": Bounds(auroc=0.01, auroc_low=-0.02, changed=0.05, distance=0.05),
    "int8": Bounds(auroc=0.01, auroc_low=-0.02, changed=0.05, distance=0.05),
}


class GateResult(FrozenModel):
    """One engine on the exported file, beside torch in fp32.

    Attributes:
        engine: What ran it.
        origin: Which slices.
        slices, random: How many of them, and how many of noise beside them (fp32).
        logit: Largest difference of a logit, over all.
        changed: Decisions that changed, over all.
        auroc_torch, auroc, auroc_difference: Of the slices; the difference is exported - torch. None in fp32.
        distance: Median relative change of the distance from the training; None where the checkpoint measures none.
        bounds: What was allowed.
        failures: What went beyond, in words; empty where the gate is passed.
    """

    engine: str
    origin: str
    slices: int
    random: int
    logit: float
    changed: int
    auroc_torch: Estimate | None = None
    auroc: Estimate | None = None
    auroc_difference: Estimate | None = None
    distance: float | None = None
    bounds: Bounds
    failures: tuple[str, ...] = ()


@dataclass(frozen=True)
class Checked:
    """Logits and distances of torch and of an export, of the same slices; the last `random` are of noise."""

    torch: Floats
    exported: Floats
    distances: tuple[Floats, Floats] | None
    random: int

    @property
    def slices(self) -> int:
        """Without noise."""
        return len(self.torch) - self.random


def answer_both(
    reference: Runtime,
    exported: Runtime,
    batches: Iterable[npt.NDArray[np.uint8]],
    random: npt.NDArray[np.uint8] | None,
    ood: OodDetector | None,
) -> Checked:
    """Run the same batches through both, then noise."""
    every = itertools.chain(batches, [] if random is None else [random])
    pairs = [[next(iter(engine.run([one]))) for engine in (reference, exported)] for one in every]
    torch, other = zip(*pairs, strict=True)
    logits = [np.concatenate([scores.logits for scores in side]) for side in (torch, other)]
    distances = None
    if ood is not None:
        first, second = (
            np.concatenate([ood.measure(scores.features) for scores in side]) for side in (torch, other)
        )
        distances = (first, second)
    return Checked(logits[0], logits[1], distances, 0 if random is None else len(random))


def judge(
    checked: Checked,
    header: CheckpointHeader,
    bounds: Bounds,
    *,
    engine: str,
    origin: str,
    table: pl.DataFrame | None = None,
    manifest_hash: str = "phantom",
) -> GateResult:
    """Hold an export to its bounds.

    Args:
        checked: What both answered.
        header: The operating point: calibration and threshold.
        bounds: What is allowed.
        engine, origin: For the record.
        table: Manifest rows of the slices, in order; needed where AUROC is bounded.
        manifest_hash: Of the manifest that they are from.
    """
    difference = float(np.abs(checked.exported - checked.torch).max())
    changed = int((_decide(checked.exported, header) != _decide(checked.torch, header)).sum())
    failures = []
    if not np.isfinite(checked.exported).all():
        failures.append("a logit is not finite")
        difference = float(np.finfo(np.float64).max)
    if bounds.logit is not None and not difference <= bounds.logit:
        failures.append(f"logits differ by up to {difference:.3g}, more than {bounds.logit:g}")
    share = changed / len(checked.torch)
    if share > bounds.changed:
        failures.append(
            f"{changed} of {len(checked.torch)} decisions changed ({share:.1%}), more than {bounds.changed:.0%}"
        )
    distance = _compare_distances(checked)
    if distance is not None and not distance <= bounds.distance:
        failures.append(
            f"distances from the training slices changed by {distance:.1%} in the median, more than "
            f"{bounds.distance:.0%}"
        )
    areas: list[Estimate | None] = [None, None, None]
    if bounds.auroc is not None and bounds.auroc_low is not None and np.isfinite(checked.exported).all():
        assert table is not None
        areas = list(_compare_areas(checked, header, table, manifest_hash))
        failures += _judge_areas(areas[2], bounds.auroc, bounds.auroc_low)
    return GateResult(
        engine=engine,
        origin=origin,
        slices=checked.slices,
        random=checked.random,
        logit=difference,
        changed=changed,
        auroc_torch=areas[0],
        auroc=areas[1],
        auroc_difference=areas[2],
        distance=distance,
        bounds=bounds,
        failures=tuple(failures),
    )


def _decide(logits: Floats, header: CheckpointHeader) -> npt.NDArray[np.bool_]:
    probabilities = expit(header.calibration.slope * logits + header.calibration.intercept)
    return np.asarray(probabilities >= header.threshold)


def _compare_distances(checked: Checked) -> float | None:
    if checked.distances is None:
        return None
    first, second = (side[: checked.slices] for side in checked.distances)
    return float(np.median(np.abs(second - first) / np.maximum(first, 1e-9)))


def _compare_areas(
    checked: Checked, header: CheckpointHeader, table: pl.DataFrame, manifest_hash: str
) -> tuple[Estimate, Estimate, Estimate]:
    """AUROC of torch, of the export, and export - torch."""
    found = []
    for name, logits in (("torch", checked.torch), ("exported", checked.exported)):
        predictions = make_predictions(
            table,
            table["slice_id"].to_list(),
            logits[: checked.slices],
            model=name,
            checkpoint_hash=name,
            recipe_hash=header.recipe.hash,
            manifest_hash=manifest_hash,
        )
        cases = arrange_table(sort_labelled(predictions))
        estimate = estimate_intervals(cases, names=("auroc",))["auroc"]
        found.append((estimate, leave_out_units(cases, {"auroc": METRICS["auroc"]})["auroc"]))
    (torch, torch_left), (exported, exported_left) = found
    return torch, exported, subtract_estimates(exported, torch, exported_left, torch_left)


def _judge_areas(difference: Estimate | None, most: float, lowest: float) -> list[str]:
    if difference is None or difference.value is None:
        return ["AUROC is not defined on these slices"]
    failures = []
    if abs(difference.value) > most:
        failures.append(f"AUROC changed by {difference.value:+.4f}, more than {most:g}")
    # Where no slice changed its rank there is no interval, and none is needed.
    if difference.low is None and difference.value != 0:
        failures.append(f"the change of AUROC has no interval: {difference.reason}")
    elif difference.low is not None and difference.low < lowest:
        failures.append(
            f"AUROC changed by {difference.value:+.4f}, and the 95% interval of the change reaches down to "
            f"{difference.low:+.4f}, below {lowest:g}"
        )
    return failures
