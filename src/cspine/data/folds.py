"""Folds: the same set divided several times, each time by whole groups, so that every slice is tested once.

for fold in make_folds(manifest, scheme="kfold", folds=5, seed=1):
    fold.manifest       # its `split` says train, val and test of this fold
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import polars as pl
from sklearn.model_selection import LeaveOneGroupOut, StratifiedGroupKFold

from cspine.data.manifest import Manifest
from cspine.data.splits import GROUP_COLUMNS, carve_split, check_group_column
from cspine.data.types import GROUP_NAMES, Label, Split, plural
from cspine.errors import InputError

Scheme = Literal["holdout", "kfold", "leave-one-out"]
SCHEMES: tuple[Scheme, ...] = ("holdout", "kfold", "leave-one-out")

MAX_LEFT_OUT = 100
"""More groups than this are not left out one by one: each is a training."""

MAX_SEED = 2**31
"""Seeds are below this, as in an experiment."""

_TRIES = 32
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
            neighbours apart (`cspine.audit.grouping` then finds copies from pixels).
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
        for attempt in range(_TRIES):
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
