"""The whole audit of a set: copies, leaks, anomalies, metadata, shortcuts, effective size, and the verdict.

result = audit_manifest(manifest)
result.verdict          # "sound", "limited" or "not evidence"
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import polars as pl

from cspine.audit.anomalies import BLANK, find_anomalies
from cspine.audit.baselines import find_shortcuts, score_given_split, score_held_out
from cspine.audit.copies import find_copies
from cspine.audit.findings import AuditResult, EffectiveSize, Finding, decide_verdict, sort_findings
from cspine.audit.leaks import Choices, find_leaks, find_selection_leak, find_unknown_groups
from cspine.audit.measurements import measure_slices
from cspine.audit.metadata import find_telling_metadata, score_metadata
from cspine.audit.scoring import UNIT_NAMES, choose_unit_column
from cspine.data.manifest import Manifest
from cspine.data.types import Split, plural
from cspine.evaluation.estimate import Estimate
from cspine.evaluation.proportions import bound_wilson

Progress = Callable[[str, int, int], None]

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
    progress: Progress | None = None,
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
