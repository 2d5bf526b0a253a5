"""`cspine audit --fix`: a new manifest without what makes a comparison misleading. The files are never touched."""

from __future__ import annotations

from dataclasses import dataclass

import polars as pl

from cspine.audit.anomalies import BLANK
from cspine.audit.audit import AuditedSet
from cspine.data.manifest import Manifest
from cspine.data.types import Split
from cspine.errors import InputError

CHANGES_SCHEMA = pl.Schema({"path": pl.String, "change": pl.String, "reason": pl.String})


@dataclass(frozen=True, eq=False)
class Repaired:
    """The new manifest, and `CHANGES_SCHEMA`: one row a change, sorted by path."""

    manifest: Manifest
    changes: pl.DataFrame


def repair_manifest(manifest: Manifest, audited: AuditedSet) -> Repaired:
    """Drop, merge and regroup.

    - dropped: slices that cannot be read or are blank; all copies of a slice whose labels contradict each other; from
      train (then val), whatever stands as a copy in a split that is reported on (test, external; else val).
    - merged: all copies of a slice get one `source_id`, so that every later split and interval counts them once.
    - regrouped: a slice with a `source_id` that its pixels contradict (not a copy of the others) gets one of its own.

    Raises:
        InputError: nothing would be left.
    """
    table = audited.table
    drops = pl.concat([_drop_unusable(table), _drop_conflicts(table), _drop_straddling(table)])
    drops = drops.unique("path", keep="first", maintain_order=True)
    kept = table.join(drops.select("path"), on="path", how="anti", maintain_order="left")
    if kept.is_empty():
        raise InputError("nothing would be left of the set", fix="look at the findings first: cspine audit")
    merged, merges = _merge_copies(kept)
    changes = pl.concat([drops, merges]).sort("path", "change")
    return Repaired(manifest.with_table(merged.select(manifest.table.columns)), changes)


def _list_changes(rows: pl.DataFrame, change: str, reason: str) -> pl.DataFrame:
    return rows.select("path", change=pl.lit(change), reason=pl.lit(reason)).cast(CHANGES_SCHEMA)


def _drop_unusable(table: pl.DataFrame) -> pl.DataFrame:
    unreadable = table.filter(pl.col("unreadable").is_not_null())
    blank = table.filter(BLANK.fill_null(False))
    return pl.concat(
        [_list_changes(unreadable, "dropped", "cannot be read"), _list_changes(blank, "dropped", "blank")]
    )


def _drop_conflicts(table: pl.DataFrame) -> pl.DataFrame:
    labels = pl.col("label").drop_nulls().n_unique().over("family")
    return _list_changes(table.filter(labels > 1), "dropped", "its copies have different labels")


def _drop_straddling(table: pl.DataFrame) -> pl.DataFrame:
    """From the earlier split, what stands in a later one too: what is reported stays as it was published."""
    order = [split.value for split in Split]
    place = pl.col("split").replace_strict(order, range(len(order)), default=None, return_dtype=pl.Int32)
    last = place.max().over("family")
    rows = table.with_columns(place=place, last=last).filter(pl.col("place") < pl.col("last"))
    return _list_changes(rows, "dropped", "a copy of it stands in a later split")


def _merge_copies(kept: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Give each family one `source_id`, kept where it names this family and no other."""
    size = pl.len().over("family")
    named = pl.col("source_id")
    single_family = pl.col("family").n_unique().over("source_id") == 1
    whole_family = (named.n_unique().over("family") == 1) & named.is_not_null()
    own = pl.format("family-{}", pl.col("slice_id").sort().first().over("family"))
    wanted = (
        pl.when(whole_family & single_family)
        .then(named)
        .when((size > 1) | named.is_not_null())
        .then(own)
        .otherwise(named)
    )
    merged = kept.with_columns(wanted=wanted, copies=size)
    changed = merged.filter(~pl.col("wanted").eq_missing(named))
    together, alone = changed.filter(pl.col("copies") > 1), changed.filter(pl.col("copies") == 1)
    changes = pl.concat(
        [
            _list_changes(together, "merged", "copies of one slice have one source_id"),
            _list_changes(alone, "regrouped", "its pixels are no copy of those that had its source_id"),
        ]
    )
    return merged.with_columns(source_id="wanted"), changes
