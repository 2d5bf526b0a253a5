"""Splits that keep together what belongs together.

A split is honest when nothing on one side tells about the other: all slices of a patient, or, where patients
are unknown, of a study, a series or a source slice, go to the same side. This module divides one split of a
manifest in two that way.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import polars as pl
from sklearn.model_selection import LeaveOneGroupOut, StratifiedGroupKFold

from cspine.core.errors import InputError
from cspine.core.types import GROUP_NAMES, Label, Split, plural
from cspine.data.manifest import Manifest

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


# Folds: the same set divided several times, each time by whole groups, so that every slice is tested once.
#
# for fold in make_folds(manifest, scheme="kfold", folds=5, seed=1):
#     fold.manifest       # its `split` says train, val and test of this fold


Scheme = Literal["holdout", "kfold", "leave-one-out"]
SCHEMES: tuple[Scheme, ...] = ("holdout", "kfold", "leave-one-out")

MAX_LEFT_OUT = 100
"""More groups than this are not left out one by one: each is a training."""

MAX_SEED = 2**31
"""Seeds are below this, as in an experiment."""

_FOLD_TRIES = 32
_TWO_GROUPS = 2.2  # a little more than two, so that the filling does not stop at one


@dataclass(frozen=True, eq=False)
class Fold:
    """One division of a set.

    Attributes:
        name: Such as "seed1-fold2", or "leave-out-3".
        manifest: The labelled slices of the set; `split` is train, val (to select on) or test (held out).
        groups: How many groups are held out.
    """

    name: str
    manifest: Manifest
    groups: int


def choose_fold_column(table: pl.DataFrame, by: str = "auto") -> str:
    """The column whose values stay together: the patient, else study, series, source slice, as far as all are known.

    Raises:
        InputError: `by` is no such column or has nulls; or "auto" finds none, which means that nothing tells copies or
            neighbours apart (`cspine.auditing.audit` then finds copies from pixels).
    """
    if by == "auto":
        found = find_fold_column(table)
        if found is None:
            raise InputError(
                "neither patients, studies, series nor source slices are known for all slices, so no split is honest",
                fix="fill one of these columns, or group by slice_id where every slice is a case of its own",
            )
        return found
    return check_group_column(table, by)


def select_labelled(manifest: Manifest) -> Manifest:
    """The slices that have a label.

    Raises:
        InputError: there are none.
    """
    table = manifest.table.filter(pl.col("label").is_not_null())
    if table.is_empty():
        raise InputError("no slice has a label, so there is nothing to divide")
    return manifest.with_table(table)


def find_fold_column(table: pl.DataFrame) -> str | None:
    """The surest column of groups that is known for all slices; None where there is none but the slices themselves."""
    return next((name for name in GROUP_COLUMNS[:-1] if not table[name].null_count()), None)


def make_folds(
    manifest: Manifest,
    *,
    scheme: Scheme,
    folds: int = 5,
    test_fraction: float = 0.2,
    selection_fraction: float = 0.15,
    by: str = "auto",
    seed: int = 0,
    repeats: int = 1,
) -> list[Fold]:
    """Divide a set by whole groups, with both classes in proportion as near as whole groups come.

    Args:
        manifest: The set; its own splits are not looked at. Unlabelled slices are left out.
        scheme: "holdout" holds one part out; "kfold" each of `folds` parts in turn; "leave-one-out" each group in turn.
        folds: Parts of "kfold", 2 and more.
        test_fraction: Of "holdout", above 0 and below 1.
        selection_fraction: Of what is not held out, carved out as val: selected on, never reported. By the same groups,
            or where few series are left by source slices, else slices.
        by: See `choose_fold_column`.
        seed: Chooses the parts.
        repeats: Does it again with seed + 1, ...; of no use for "leave-one-out", whose parts no seed changes.

    Returns:
        Folds in order; over one repeat of "kfold" or "leave-one-out", every labelled slice is in test once.

    Raises:
        InputError: it cannot be done; the message has the counts.
    """
    if not 0 <= seed <= MAX_SEED - repeats:
        raise InputError(f"{seed} is no seed", fix=f"choose one from 0 to {MAX_SEED - repeats:,}")
    labelled = select_labelled(manifest)
    table = labelled.table
    column = choose_fold_column(table, by)
    groups = table[column].rank("dense").to_numpy().astype(np.int64)
    count, word = len(np.unique(groups)), GROUP_NAMES[column]
    _check_counts(scheme, folds, count, word, repeats)
    if scheme == "kfold":
        _check_classes(table, column, folds)
    found = []
    for repeat in range(repeats):
        prefix = f"seed{seed + repeat}-" if repeats > 1 else ""
        if scheme == "holdout":
            found.append(
                _hold_out(labelled, column, test_fraction, selection_fraction, seed + repeat, prefix)
            )
            continue
        for number, held in enumerate(_iterate(scheme, folds, table, groups, seed + repeat), start=1):
            name = f"{prefix}{'leave-out-' if scheme == 'leave-one-out' else 'fold'}{number}"
            found.append(_make_fold(labelled, held, column, selection_fraction, seed + repeat, name))
    return found


def _check_counts(scheme: Scheme, folds: int, count: int, word: str, repeats: int) -> None:
    words = f"{count:,} {plural(word)}"
    if scheme == "kfold" and not 2 <= folds <= count:
        raise InputError(
            f"{words} cannot be divided into {folds} folds",
            fix=f"choose from 2 to {count} folds" if count >= 2 else "group by a finer column",
        )
    if scheme == "leave-one-out" and not 2 <= count <= MAX_LEFT_OUT:
        raise InputError(
            f"there are {words} to leave out one by one; it takes 2 to {MAX_LEFT_OUT}",
            fix="use kfold" if count > MAX_LEFT_OUT else "group by a finer column",
        )
    if scheme == "leave-one-out" and repeats > 1:
        raise InputError("leaving out each group in turn is the same for every seed", fix="set repeats to 1")


def _check_classes(table: pl.DataFrame, column: str, folds: int) -> None:
    """Refuse folds of which some would lack a class for certain."""
    for label, name in ((1, "positive"), (0, "negative")):
        having = table.filter(pl.col("label") == label)[column].n_unique()
        if having < folds:
            word = GROUP_NAMES[column]
            raise InputError(
                f"{having:,} of {table[column].n_unique():,} {plural(word)} "
                f"{'has' if having == 1 else 'have'} {name} slices, so they cannot be spread over {folds} folds",
                fix=f"choose from 2 to {having} folds"
                if having >= 2
                else "group by a finer column, or label more",
            )


def _iterate(
    scheme: Scheme, folds: int, table: pl.DataFrame, groups: npt.NDArray[np.int64], seed: int
) -> Iterator[npt.NDArray[np.int64]]:
    """Rows that are held out, fold by fold. Sorted by slice first: the order of rows moves nothing."""
    order = np.asarray(table["slice_id"].arg_sort())
    labels = table["label"].to_numpy()[order]
    rows = np.zeros((len(labels), 1))
    if scheme == "leave-one-out":
        parts = [held for _, held in LeaveOneGroupOut().split(rows, labels, groups[order])]
    else:
        # It fills greedily, so a fold may get one class or nothing: then the groups are tried in another order.
        for attempt in range(_FOLD_TRIES):
            state = seed if attempt == 0 else np.random.RandomState([seed, attempt])
            splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=state)
            parts = [held for _, held in splitter.split(rows, labels, groups[order])]
            if all(len(np.unique(labels[held])) == len(Label) for held in parts):
                break
        else:
            raise InputError(
                f"no division into {folds} folds was found in which each has both classes",
                fix="choose fewer folds",
            )
    for held in parts:
        yield order[held]


def _make_fold(
    manifest: Manifest,
    held: npt.NDArray[np.int64],
    column: str,
    selection_fraction: float,
    seed: int,
    name: str,
) -> Fold:
    table = manifest.table
    test = np.zeros(table.height, np.bool_)
    test[held] = True
    split = np.where(test, Split.TEST.value, Split.TRAIN.value)
    divided = manifest.with_table(table.with_columns(split=pl.Series(split, dtype=pl.String)))
    groups = table.filter(pl.Series(test))[column].n_unique()
    return Fold(name, _carve_selection(divided, column, selection_fraction, seed, name), groups)


def _carve_selection(manifest: Manifest, column: str, fraction: float, seed: int, name: str) -> Manifest:
    """Carve val by the fold's own column, or, where too few series or studies are left, by a finer one that is known.

    A patient is never divided, nor are the known copies of a slice. Where `fraction` is less than two groups, two are
    taken, up to half of them.
    """
    part = manifest.select(Split.TRAIN).table
    finer = (
        GROUP_COLUMNS[GROUP_COLUMNS.index(column) :] if column in ("study_uid", "series_uid") else (column,)
    )
    problem: InputError | None = None
    for one in (one for one in finer if not part[one].null_count()):
        groups = part[one].n_unique()
        for share in sorted({fraction, max(fraction, min(0.5, _TWO_GROUPS / groups))}):
            try:
                return carve_split(
                    manifest, from_split=Split.TRAIN, to_split=Split.VAL, fraction=share, seed=seed, by=one
                )
            except InputError as error:
                problem = error
    assert problem is not None
    raise InputError(f"no part to select on can be carved: {problem.what}", where=name, fix=problem.fix)


def _hold_out(
    manifest: Manifest, column: str, fraction: float, selection_fraction: float, seed: int, prefix: str
) -> Fold:
    whole = manifest.with_table(manifest.table.with_columns(split=pl.lit(Split.TRAIN.value)))
    held = carve_split(
        whole, from_split=Split.TRAIN, to_split=Split.TEST, fraction=fraction, seed=seed, by=column
    )
    name = f"{prefix}holdout"
    groups = held.select(Split.TEST).table[column].n_unique()
    return Fold(name, _carve_selection(held, column, selection_fraction, seed, name), groups)
