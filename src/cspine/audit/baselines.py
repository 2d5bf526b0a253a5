"""How far the baselines of `cspine.audit.shortcuts` come: on the given split, and with whole groups held out."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import polars as pl
from pydantic import JsonValue
from sklearn.model_selection import GroupKFold, LeaveOneGroupOut

from cspine.audit.findings import Baseline, Finding, Severity
from cspine.audit.scoring import UNIT_NAMES, choose_unit_column, estimate_scores
from cspine.audit.shortcuts import NEAREST_NEIGHBOUR, Features, Fit, fit_rows, list_baselines

WARN_ABOVE = 0.6
INVALIDATES_FROM = 0.9
"""The whole interval of an AUROC above the first is a finding; an AUROC from the second on leaves a model no room."""

MOST_SLICES = 25_000
"""Slices that baselines are taken on at most, of each side of a split and of all folds; drawn by whole groups."""

_FOLDS = 5
_MOST_LEFT_OUT = 12
_MIN_SLICES = 10

Held = Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]


def score_given_split(
    table: pl.DataFrame, thumbnails: npt.NDArray[np.uint8], train: str, reported: str
) -> tuple[Baseline, ...]:
    """Every baseline, learnt from `train` and scored on `reported`; none where a side lacks a class.

    Where copies stand on both sides, each is scored once more, learnt from what has no copy in `reported`: what is
    left of it then is not due to them.

    Args:
        table: Labelled, readable slices: the manifest's columns, the measures and `family`.
        thumbnails: (n, 32, 32) uint8, in the order of the rows.
        train, reported: Names of splits.
    """
    sides = [
        np.flatnonzero((table["split"] == name).fill_null(False).to_numpy()) for name in (train, reported)
    ]
    rows = np.sort(np.concatenate([side[_draw_groups(table[side])] for side in sides]))
    part, there = table[rows], sum(len(side) for side in sides)
    known = (part["split"] == train).to_numpy()
    labels = part["label"].to_numpy()
    if any(len(np.unique(labels[side])) < 2 for side in (known, ~known)):
        return ()
    copied = part["family"].is_in(part["family"].filter(pl.Series(~known)).implode()).to_numpy()
    ways = {f"{train} to {reported}": known, f"{train} without copies to {reported}": known & ~copied}
    if not (known & copied).any() or len(np.unique(labels[known & ~copied])) < 2:
        ways.popitem()
    asked, baselines = part.filter(pl.Series(~known)), list_baselines(part, thumbnails[rows])
    return tuple(
        _evaluate(
            name,
            description,
            protocol + _describe_draw(part, there),
            asked,
            fit_rows(features, fit, labels, np.flatnonzero(learnt), np.flatnonzero(~known)),
        )
        for protocol, learnt in ways.items()
        for name, (description, features, fit) in baselines.items()
    )


def score_held_out(
    table: pl.DataFrame, thumbnails: npt.NDArray[np.uint8]
) -> tuple[tuple[Baseline, ...], list[Finding]]:
    """Every baseline on slices whose whole group was held out, one slice a family, whatever the given split.

    The group is the patient where known, else the series, else the family. Up to 12 groups are left out one by one,
    more in five folds. All files of the other groups are learnt from, as a model would.

    Returns:
        The baselines, and a finding with the nearest neighbour's accuracy in each group that was left out.
    """
    there, drawn = table.height, _draw_groups(table)
    table, thumbnails = table[drawn], thumbnails[drawn]
    firsts = _choose_distinct(table)
    column = next(
        name
        for name in ("patient_id", "series_uid", "family")
        if name == "family" or (table[name].null_count() == 0 and table[name].n_unique() > 1)
    )
    groups = table[column].rank("dense").to_numpy()
    count, labels = len(np.unique(groups)), table["label"].to_numpy()
    if count < 2 or len(firsts) < _MIN_SLICES or len(np.unique(labels)) < 2:
        return (), []
    alone = count <= _MOST_LEFT_OUT
    word = UNIT_NAMES[column]
    protocol = f"leave one {word} out" if alone else f"{_FOLDS} folds by {word}"
    protocol += _describe_draw(table, there)
    part = table[firsts]
    found: list[Baseline] = []
    details: list[Finding] = []
    for name, (description, features, fit) in list_baselines(table, thumbnails).items():
        folds = LeaveOneGroupOut() if alone else GroupKFold(_FOLDS)
        scores = _score_folds(features, fit, labels, folds.split(features, labels, groups), firsts)
        found.append(_evaluate(name, description, protocol, part, scores))
        if name == NEAREST_NEIGHBOUR and alone:
            details = [_describe_groups(part, column, scores)]
    return tuple(found), details


def _draw_groups(table: pl.DataFrame) -> npt.NDArray[np.int64]:
    """Rows of whole groups, drawn with a fixed seed, up to `MOST_SLICES`; all rows where there are no more.

    A group is the independent unit; where there are few of these, so that none can be spared, a family of copies.
    """
    if table.height <= MOST_SLICES:
        return np.arange(table.height)
    column = choose_unit_column(table)
    if table[column].n_unique() <= _MOST_LEFT_OUT:
        column = "family"
    group = table[column].rank("dense").to_numpy().astype(np.int64) - 1
    order = np.random.default_rng(0).permutation(group.max() + 1)
    sizes = np.bincount(group)[order]
    chosen = order[: max(1, int(np.searchsorted(np.cumsum(sizes), MOST_SLICES, side="right")))]
    return np.flatnonzero(np.isin(group, chosen))


def _describe_draw(part: pl.DataFrame, there: int) -> str:
    return f", on {part.height:,} of {there:,} slices, drawn by whole groups" if part.height < there else ""


def _choose_distinct(table: pl.DataFrame) -> npt.NDArray[np.int64]:
    """Rows: the largest slice of each family, the first by name where several are."""
    pixels = pl.col("width_px").cast(pl.Int64) * pl.col("height_px")
    ranked = table.with_row_index("row").sort(pixels, "slice_id", descending=[True, False])
    firsts = ranked.unique("family", keep="first", maintain_order=True)["row"].sort()
    return firsts.to_numpy().astype(np.int64)


def _score_folds(
    features: Features,
    fit: Fit,
    labels: npt.NDArray[np.integer],
    folds: Held,
    asked: npt.NDArray[np.int64],
) -> npt.NDArray[np.float64]:
    """Scores of the rows `asked`, each learnt without its group; a large one where only one class is known."""
    scores = np.zeros(len(labels))
    wanted = np.zeros(len(labels), np.bool_)
    wanted[asked] = True
    for known, held in folds:
        rows = held[wanted[held]]
        if len(np.unique(labels[known])) < 2:
            scores[rows] = 20.0 if labels[known][0] else -20.0
        elif len(rows):
            scores[rows] = fit_rows(features, fit, labels, known, rows)
    return scores[asked]


def _evaluate(
    name: str, description: str, protocol: str, part: pl.DataFrame, scores: npt.NDArray[np.float64]
) -> Baseline:
    unit = choose_unit_column(part)
    values = part.select("label", unit=unit).with_columns(value=pl.Series(scores))
    metrics = estimate_scores(values, ("accuracy", "auroc"), unit_name=UNIT_NAMES[unit])
    positives = int(part["label"].sum())
    return Baseline(
        name=name,
        description=description,
        protocol=protocol,
        slices=part.height,
        positives=positives,
        accuracy=metrics["accuracy"],
        auroc=metrics["auroc"],
        larger_class=max(positives, part.height - positives) / part.height,
    )


def _describe_groups(part: pl.DataFrame, column: str, scores: npt.NDArray[np.float64]) -> Finding:
    """How often the nearest neighbour is right in each group that was left out, beside its larger class."""
    right = pl.Series((scores > 0).astype(np.int8)) == part["label"]
    groups = (
        part.select(column, "label")
        .with_columns(right=right)
        .group_by(column)
        .agg(pl.len().alias("slices"), pl.col("right").mean(), pl.col("label").mean().alias("fractures"))
        .sort(column)
    )
    rows: list[dict[str, JsonValue]] = [
        {
            "group": name,
            "slices": count,
            "accuracy": round(accuracy, 4),
            "larger_class": round(max(fractures, 1 - fractures), 4),
        }
        for name, count, accuracy, fractures in groups.iter_rows()
    ]
    word = UNIT_NAMES[column]
    # A patient is not named on a page that may be passed on; a series of a set of files is.
    names = [f"{row['group']}: " if column == "series_uid" else "" for row in rows]
    shown = "; ".join(
        f"{name}{row['accuracy']:.0%} (always the larger class: {row['larger_class']:.0%})"
        for name, row in zip(names, rows, strict=True)
    )
    return Finding(
        code="held-out-baseline",
        severity="info",
        text=f"With each {word} left out in turn, the nearest neighbour is right in {shown}.",
        evidence={"column": column, "groups": list[JsonValue](rows)},
    )


def find_shortcuts(baselines: tuple[Baseline, ...]) -> list[Finding]:
    """A finding for each baseline that does clearly better than chance, from the protocol that shows it most surely."""
    surest: dict[str, Baseline] = {}
    for baseline in sorted(baselines, key=lambda one: -(one.auroc.low or 0)):
        surest.setdefault(baseline.name, baseline)
    found = []
    for baseline in surest.values():
        low, value = baseline.auroc.low, baseline.auroc.value
        if low is None or value is None or low <= WARN_ABOVE:
            continue
        severity: Severity = "invalidates" if value >= INVALIDATES_FROM else "warning"
        found.append(
            Finding(
                code="shortcut",
                severity=severity,
                text=f'Without any anatomy, the baseline "{baseline.name}" ({baseline.description}) reaches an '
                f"accuracy of {baseline.accuracy.value or 0:.1%} and an AUROC of {value:.3f} [{low:.3f}, "
                f"{baseline.auroc.high or 1:.3f}], {baseline.protocol}.",
                evidence={
                    "baseline": baseline.name,
                    "protocol": baseline.protocol,
                    "auroc": value,
                    "low": low,
                },
            )
        )
    return found
