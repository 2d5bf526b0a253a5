"""`cspine audit --fix`: a new manifest without what makes a comparison misleading. The files are never touched."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import polars as pl
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

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


def repair_manifest(
    manifest: Manifest, audited: AuditedSet, unreadable: Iterable[tuple[str, str]] = ()
) -> Repaired:
    """Drop, merge and regroup.

    - dropped: slices that cannot be read or are blank; all copies of a slice whose labels contradict each other; from
      train (then val), whatever stands as a copy, or with the same `source_id`, in a split that is reported on (test,
      external; else val).
    - merged: copies of a slice without a `source_id` get one, so that every later split and interval counts them once.
    - regrouped: copies of a slice with several get one. A `source_id` is never taken apart: that pixels do not show two
      slices as copies is no proof that they are none.

    Args:
        manifest: The set.
        audited: Its audit.
        unreadable: Path and reason of files that the import left out already; they are listed as dropped.

    Raises:
        InputError: nothing would be left.
    """
    table = audited.table.with_columns(group=number_groups(audited.table))
    gone = pl.DataFrame(
        [(path, "dropped", f"cannot be read: {reason}") for path, reason in unreadable],
        schema=CHANGES_SCHEMA,
        orient="row",
    )
    drops = pl.concat([gone, _drop_unusable(table), _drop_conflicts(table)])
    drops = pl.concat([drops, _drop_straddling(_leave_out(table, drops))])
    drops = drops.unique("path", keep="first", maintain_order=True)
    kept = _leave_out(table, drops)
    if kept.is_empty():
        raise InputError("nothing would be left of the set", fix="look at the findings first: cspine audit")
    merged, merges = _merge_copies(kept)
    changes = pl.concat([drops, merges]).sort("path", "change")
    return Repaired(manifest.with_table(merged.select(manifest.table.columns)), changes)


def number_groups(table: pl.DataFrame) -> pl.Series:
    """A number a slice, the same for all that are one slice by their pixels (`family`) or by their `source_id`."""
    family, source = (table[name].rank("dense").to_numpy() for name in ("family", "source_id"))
    known = ~np.isnan(source.astype(float))
    families = int(family.max())
    ends = family[known].astype(np.int64) - 1, source[known].astype(np.int64) - 1 + families
    count = families + table["source_id"].drop_nulls().n_unique()
    graph = coo_array((np.ones(len(ends[0])), ends), shape=(count, count))
    group = connected_components(graph, directed=False)[1]
    return pl.Series(group[family.astype(np.int64) - 1], dtype=pl.Int64)


def _leave_out(table: pl.DataFrame, drops: pl.DataFrame) -> pl.DataFrame:
    return table.join(drops.select("path"), on="path", how="anti", maintain_order="left")


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
    last = place.max().over("group")
    rows = table.with_columns(place=place, last=last).filter(pl.col("place") < pl.col("last"))
    return _list_changes(rows, "dropped", "a copy of it stands in a later split")


def _merge_copies(kept: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Give each group of two and more one `source_id`: the first that one of them has, else a new one."""
    named = pl.col("source_id")
    own = pl.format("family-{}", pl.col("slice_id").sort().first().over("group"))
    first = pl.coalesce(named.sort(nulls_last=True).first().over("group"), own)
    wanted = pl.when(pl.len().over("group") > 1).then(first).otherwise(named)
    merged = kept.with_columns(wanted=wanted)
    changed = merged.filter(~pl.col("wanted").eq_missing(named))
    fresh = changed["source_id"].is_null()
    changes = pl.concat(
        [
            _list_changes(changed.filter(fresh), "merged", "copies of one slice have one source_id"),
            _list_changes(
                changed.filter(~fresh), "regrouped", "its pixels are a copy of a slice of another source_id"
            ),
        ]
    )
    return merged.with_columns(source_id="wanted"), changes
