"""Splits that keep together what belongs together.

A split is honest when nothing on one side tells about the other: all slices of a patient, or, where patients
are unknown, of a study, a series or a source slice, go to the same side. This module divides one split of a
manifest in two that way.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import polars as pl

from cspine.data.manifest import Manifest
from cspine.data.types import GROUP_NAMES, Split
from cspine.errors import InputError

# A slice is its own group only where nothing else is known.
GROUP_COLUMNS = tuple(GROUP_NAMES)
MIN_SERIES = 5


_TRIES = 64

# What is counted in a group or a side: slices of the negative and positive class, and all slices (some
# unlabelled).
Counts = npt.NDArray[np.int64]


def choose_group_column(table: pl.DataFrame, by: str = "auto") -> str:
    """The column whose values must not be divided.

    Args:
        table: A manifest's table, or a part of one.
        by: One of `GROUP_COLUMNS`; or "auto": the first of them that has no nulls. Series count only where there
            are at least 5: with fewer there is nothing to choose from. (The Kaggle set has 4, so it is grouped by
            source slice.)

    Raises:
        InputError: `by` is no such column, or has nulls: a slice of an unknown group could be on the wrong side.
    """
    if by == "auto":
        return next(name for name in GROUP_COLUMNS if name == "slice_id" or _is_usable(table[name]))
    return check_group_column(table, by)


def check_group_column(table: pl.DataFrame, by: str) -> str:
    """`by`, where slices can be grouped by it.

    Raises:
        InputError: it is no column of groups, or has nulls.
    """
    if by not in GROUP_COLUMNS:
        raise InputError(
            f"slices cannot be grouped by '{by}'",
            fix=f"choose auto, {', '.join(GROUP_COLUMNS[:-1])} or slice_id",
        )
    if nulls := table[by].null_count():
        raise InputError(
            f"{nulls:,} of {table.height:,} slices have no {by}, so they cannot be grouped by it",
            fix="fill the column, or group by another",
        )
    return by


def _is_usable(column: pl.Series) -> bool:
    return column.null_count() == 0 and (column.name != "series_uid" or column.n_unique() >= MIN_SERIES)


def carve_split(
    manifest: Manifest,
    *,
    from_split: Split | str = Split.TRAIN,
    to_split: Split | str = Split.VAL,
    fraction: float,
    seed: int,
    by: str = "auto",
) -> Manifest:
    """Move whole groups of one split to another, which has no slices yet.

    The moved part has about `fraction` of the slices of either class: as near as whole groups come, and its
    size off by no more than the largest group. The same seed moves the same groups, whatever the order of rows.

    Args:
        manifest: The set.
        from_split: What is divided.
        to_split: What the moved slices become.
        fraction: Part of `from_split` that moves, above 0 and below 1.
        seed: Chooses which.
        by: See `choose_group_column`.

    Returns:
        The manifest with its column `split` changed and nothing else.

    Raises:
        InputError: it cannot be divided so that either side has two groups and both classes; the message has
        the counts.
    """
    if not 0 < fraction < 1:
        raise InputError(
            f"a fraction of {fraction:g} cannot be carved out", fix="choose one above 0 and below 1"
        )
    if str(to_split) not in list(Split) or to_split in manifest.splits:
        have = (
            f"has {manifest.splits[str(to_split)]:,} slices already"
            if to_split in manifest.splits
            else "is unknown"
        )
        raise InputError(f"the split '{to_split}' {have}", fix="carve into a split that is empty so far")
    part = manifest.select(from_split).table
    column = choose_group_column(part, by)
    names, counts = _count_groups(part, column)
    moved = _choose_groups(counts, fraction, np.random.default_rng(seed))
    if problems := _find_problems(counts, moved, str(from_split), str(to_split)):
        raise InputError(
            f"{fraction:g} of '{from_split}' cannot become '{to_split}', grouped by {column}: {'; '.join(problems)}",
            fix="choose another fraction or another column to group by, or name a split of your own",
        )
    moved_names = [name for name, moves in zip(names, moved, strict=True) if moves]
    moves = (pl.col("split") == str(from_split)) & pl.col(column).is_in(moved_names)
    split = pl.when(moves).then(pl.lit(str(to_split))).otherwise(pl.col("split")).alias("split")
    return manifest.with_table(manifest.table.with_columns(split))


def _count_groups(part: pl.DataFrame, column: str) -> tuple[list[str], Counts]:
    """The groups in the order of their names, and (groups, 3) counts."""
    label = pl.col("label")
    counts = part.group_by(column).agg((label == 0).sum().alias("0"), (label == 1).sum().alias("1"), pl.len())
    counts = counts.sort(column)
    return counts[column].to_list(), counts.drop(column).to_numpy().astype(np.int64)


def _choose_groups(counts: Counts, fraction: float, generator: np.random.Generator) -> npt.NDArray[np.bool_]:
    """Which groups move: (groups,) of bool.

    The first of some random fillings that breaks no rule; if all do, the last, whose problems are then told.
    Not scikit-learn's StratifiedGroupKFold, which knows no fractions but 1/k.
    """
    target = counts[:, 2].sum() * fraction
    for _ in range(_TRIES):
        moved = _fill(counts, fraction, generator.permutation(len(counts)))
        near = abs(counts[moved, 2].sum() - target) <= counts[:, 2].max()
        if near and not _find_problems(counts, moved, "", ""):
            break
    return moved


def _fill(counts: Counts, fraction: float, order: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """Go through the groups once; one moves when that brings classes and size nearer to their fractions."""
    totals = counts.sum(axis=0)
    shares = (counts / np.maximum(totals, 1)).tolist()
    missing = [fraction if total else 0.0 for total in totals]
    moved = np.zeros(len(counts), dtype=np.bool_)
    for index in order:
        left = [gap - share for gap, share in zip(missing, shares[index], strict=True)]
        if sum(map(abs, left)) < sum(map(abs, missing)):
            missing = left
            moved[index] = True
    return moved


def _find_problems(counts: Counts, moved: npt.NDArray[np.bool_], from_split: str, to_split: str) -> list[str]:
    """Why a division must not be used, with the counts; empty where it may be."""
    problems = []
    for split, side in ((from_split, counts[~moved]), (to_split, counts[moved])):
        if len(side) < 2:
            problems.append(f"'{split}' would have {len(side)} of {len(counts)} groups, and needs 2")
            continue
        negatives, positives, _ = side.sum(axis=0)
        if not negatives or not positives:
            problems.append(f"'{split}' would have {positives:,} positive and {negatives:,} negative slices")
    return problems
