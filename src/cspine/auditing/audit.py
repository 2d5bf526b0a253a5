"""The whole audit of a set: copies, leaks, anomalies, metadata, shortcuts, effective size, and the verdict.

result = audit_manifest(manifest)
result.verdict          # "sound", "limited" or "not evidence"
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from cspine.auditing.anomalies import BLANK, find_anomalies, measure_slices
from cspine.auditing.copies import Families, Progress, find_copies
from cspine.auditing.findings import AuditResult, EffectiveSize, Finding, decide_verdict, sort_findings
from cspine.auditing.leaks import Choices, find_leaks, find_selection_leak, find_unknown_groups
from cspine.auditing.shortcuts import (
    UNIT_NAMES,
    choose_unit_column,
    find_shortcuts,
    find_telling_metadata,
    score_given_split,
    score_held_out,
    score_metadata,
)
from cspine.core.errors import InputError
from cspine.core.estimates import Estimate
from cspine.core.types import Split, plural
from cspine.data.manifest import Manifest
from cspine.data.splits import choose_fold_column, find_fold_column, select_labelled
from cspine.metrics.intervals import bound_wilson

AuditProgress = Callable[[str, int, int], None]

_EXAMPLE_ACCURACY = 0.95
_MUCH_SMALLER = 1.5


@dataclass(frozen=True, eq=False)
class AuditedSet:
    """What an audit saw and said.

    Attributes:
        result: The findings.
        table: The manifest's columns, the measures, and `family`: an integer that copies share.
    """

    result: AuditResult
    table: pl.DataFrame


def audit_manifest(
    manifest: Manifest,
    *,
    unreadable: Iterable[tuple[str, str]] = (),
    train: str = Split.TRAIN,
    choices: Choices | None = None,
    reported: str | None = None,
    progress: AuditProgress | None = None,
) -> AuditedSet:
    """Audit a set.

    Args:
        manifest: The set; its files are read, and never written.
        unreadable: Path and reason of files that the import left out.
        train, reported: What the splits are used for, where that is known. None for `reported` takes test, else val,
            where there is one.
        choices: What a run chose and on which split, where the set is that of a run.
        progress: Told (stage, done, total).
    """

    def tell(stage: str) -> Callable[[int, int], None]:
        return lambda done, total: progress(stage, done, total) if progress is not None else None

    measured = measure_slices(manifest, tell("Measuring"))
    copies = find_copies(manifest, progress=progress)
    table = manifest.table.join(measured.table, on="slice_id", maintain_order="left")
    # Blank slices are equal to each other without being copies of anything.
    blank = set(table.filter(BLANK.fill_null(False))["slice_id"])
    kept = [[one for one in family.slice_ids if one not in blank] for family in copies.families]
    families = [family for family in kept if len(family) > 1]
    equal = [len(group) for family in copies.families for group in family.exact if group[0] not in blank]
    family_of = {one: number for number, family in enumerate(families) for one in family}
    table = table.with_columns(family=number_families(table["slice_id"].to_list(), family_of))
    reported = reported or _choose_reported(manifest)
    usable = (table["unreadable"].is_null() & table["label"].is_not_null()).to_numpy()
    clean, thumbnails = table.filter(pl.Series(usable)), measured.thumbnails[usable]

    given = score_given_split(clean, thumbnails, train, reported) if reported else ()
    held, details = score_held_out(clean, thumbnails) if clean.height else ((), [])
    metadata = score_metadata(clean, choose_unit_column(clean)) if clean["label"].n_unique() == 2 else ()
    size = measure_size(table, reported)
    findings = [
        *_report_left_out(unreadable),
        *find_selection_leak(choices or Choices(), reported),
        *find_leaks(table.with_columns(file_sha256=pl.when(~BLANK.fill_null(False)).then("file_sha256"))),
        *find_unknown_groups(table, reported),
        *find_anomalies(table, measured.thumbnails),
        *_describe_copies(table, size, equal),
        *find_shortcuts((*given, *held)),
        *find_telling_metadata(metadata),
        *details,
    ]
    paths = dict(table.select("slice_id", "path").iter_rows())
    result = AuditResult(
        verdict=decide_verdict(findings),
        findings=sort_findings(findings),
        families=tuple(tuple(sorted(paths[one] for one in family)) for family in families),
        baselines=(*given, *held),
        metadata=metadata,
        effective_n=size,
        manifest_hash=manifest.hash,
    )
    return AuditedSet(result, table)


def number_families(slice_ids: list[str], family_of: Mapping[str, int]) -> pl.Series:
    """A number a slice, the same for the copies of one; a slice without copies has one of its own."""
    own = max(family_of.values(), default=-1) + 1
    return pl.Series([family_of.get(one, own + row) for row, one in enumerate(slice_ids)], dtype=pl.Int64)


def _choose_reported(manifest: Manifest) -> str | None:
    present = manifest.splits
    return next((split.value for split in (Split.TEST, Split.VAL) if split.value in present), None)


def _report_left_out(unreadable: Iterable[tuple[str, str]]) -> list[Finding]:
    left_out = list(unreadable)
    if not left_out:
        return []
    reasons = Counter(reason for _, reason in left_out)
    shown = "; ".join(f"{path}: {reason}" for path, reason in left_out[:3])
    one = len(left_out) == 1
    return [
        Finding(
            code="unreadable",
            severity="warning",
            text=f"{len(left_out):,} image{'' if one else 's'} could not be read and {'is' if one else 'are'} left out "
            f"({shown}{'; ...' if len(left_out) > 3 else ''}).",
            evidence={"files": len(left_out), "reasons": dict(reasons)},
            files=tuple(path for path, _ in left_out),
        )
    ]


def measure_size(table: pl.DataFrame, reported: str | None) -> EffectiveSize:
    """How many files, distinct slices, series and patients there are, and what that does to an interval."""
    splits = [split.value for split in Split if split.value in set(table["split"].drop_nulls())]
    part = table if reported is None else table.filter(pl.col("split") == reported)
    unit = choose_unit_column(part)
    files, units = part.height, part[unit].n_unique()
    return EffectiveSize(
        files=table.height,
        distinct_slices=table["family"].n_unique(),
        series=count_known(table, "series_uid"),
        patients=count_known(table, "patient_id"),
        by_split={
            split: {
                "files": (chosen := table.filter(pl.col("split") == split)).height,
                "distinct_slices": chosen["family"].n_unique(),
                "series": count_known(chosen, "series_uid"),
                "patients": count_known(chosen, "patient_id"),
            }
            for split in splits
        },
        reported_split=reported,
        naive=_find_wilson(files, "file"),
        clustered=_find_wilson(units, UNIT_NAMES[unit]),
    )


def count_known(table: pl.DataFrame, column: str) -> int | None:
    """How many groups are named; None where none is."""
    known = table[column].drop_nulls()
    return known.n_unique() if len(known) else None


def _find_wilson(n: int, unit: str) -> Estimate:
    """Wilson's interval of an accuracy of 0.95 on n units."""
    low, high = bound_wilson(_EXAMPLE_ACCURACY, n)
    return Estimate(value=_EXAMPLE_ACCURACY, low=low, high=high, method="Wilson", unit=unit, n=n)


def _describe_copies(table: pl.DataFrame, size: EffectiveSize, equal: Sequence[int]) -> list[Finding]:
    """The copies of the set; `equal` has the size of each group of files that are equal pixel for pixel."""
    copied = table.filter(pl.len().over("family") > 1)
    if copied.is_empty():
        return []
    families = copied["family"].n_unique()
    large = size.files > _MUCH_SMALLER * size.distinct_slices
    return [
        Finding(
            code="copies",
            severity="warning" if large else "info",
            text=f"{size.files:,} files are {_count(size.distinct_slices, 'distinct slice')}: {families:,} of them "
            f"{'stands' if families == 1 else 'stand'} in the set two and more times ({copied.height:,} files). "
            f"{_describe_equal(equal)}",
            evidence={
                "files": size.files,
                "distinct_slices": size.distinct_slices,
                "families": families,
                "equal_groups": len(equal),
                "equal_files": sum(equal),
            },
            files=tuple(copied.sort("family", "path")["path"]),
        )
    ]


def _describe_equal(equal: Sequence[int]) -> str:
    if not equal:
        return "No two of them are equal pixel for pixel."
    return f"{sum(equal):,} of them are equal pixel for pixel to another, in {_count(len(equal), 'group')}."


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun if number == 1 else plural(noun)}"


# `cspine audit --fix`: a new manifest without what makes a comparison misleading. The files are never touched.


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


# What a split must keep together, where nothing but the pixels says it: the copies of a slice.
#
# manifest, column = settle_groups(manifest)
# folds = make_folds(manifest, scheme="kfold", by=column)


def settle_groups(
    manifest: Manifest, by: str = "auto", progress: Progress | None = None
) -> tuple[Manifest, str]:
    """The labelled slices and the column to divide them by: the patient, else study, series or source slice.

    Where `by` is "auto" and none of these is known for all slices, copies are found from pixels and every slice gets a
    `source_id`, which its copies share. So no copy stands on both sides, but neighbours and patients may.

    Args:
        manifest: The set; its files are read where copies have to be found.
        by: See `cspine.data.splits.choose_fold_column`.
        progress: Of `find_copies`.

    Raises:
        InputError: `by` is no such column or has nulls; no slice has a label.
    """
    labelled = select_labelled(manifest)
    if by != "auto" or find_fold_column(labelled.table) is not None:
        return labelled, choose_fold_column(labelled.table, by)
    return name_sources(labelled, find_copies(labelled, progress=progress)), "source_id"


def name_sources(manifest: Manifest, found: Families) -> Manifest:
    """Give every slice a `source_id`: that of its group where one is known, else one after the group's first slice."""
    table = manifest.table.with_columns(family=number_families(manifest.slice_ids, dict(found.family_of)))
    table = table.with_columns(group=number_groups(table))
    known = pl.col("source_id").sort(nulls_last=True).first().over("group")
    own = pl.format("family-{}", pl.col("slice_id").sort().first().over("group"))
    named = table.with_columns(source_id=pl.coalesce(known, own))
    return manifest.with_table(named.select(manifest.table.columns))
