"""Leaks: what stands on both sides of a split, so that the numbers on one side tell of the other.

Works on a table of slices: a manifest's columns and `family`, which copies share (`cspine.auditing.copies`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations

import polars as pl
from pydantic import JsonValue

from cspine.auditing.findings import Finding
from cspine.core.types import Split
from cspine.metrics.intervals import explain_unit

# column -> code, singular, plural; from the surest sign to the weakest.
_SHARED: dict[str, tuple[str, str, str]] = {
    "patient_id": ("patient-across-splits", "patient stands", "patients stand"),
    "study_uid": ("study-across-splits", "study stands", "studies stand"),
    "series_uid": ("series-across-splits", "series stands", "series stand"),
    "source_id": ("source-slice-across-splits", "source slice stands", "source slices stand"),
    "family": ("copies-across-splits", "slice stands as copies", "slices stand as copies"),
    "file_sha256": ("file-across-splits", "file stands, byte for byte,", "files stand, byte for byte,"),
}


def list_pairs(table: pl.DataFrame) -> list[tuple[str, str]]:
    """All pairs of splits that are there, in the order train, val, test, external."""
    present = set(table["split"].drop_nulls())
    return list(combinations([split.value for split in Split if split.value in present], 2))


def find_leaks(table: pl.DataFrame, pairs: Iterable[tuple[str, str]] | None = None) -> list[Finding]:
    """Groups on both sides of any pair of splits, and neighbours in one series on both sides.

    Args:
        table: `split`, `path`, `position` and any of patient_id, study_uid, series_uid, source_id, family,
            file_sha256.
        pairs: Which splits are compared; None is every pair.

    Returns:
        A finding a column and pair, with the groups' number and the files on the second side.
    """
    found: list[Finding] = []
    for one, other in list_pairs(table) if pairs is None else pairs:
        here, there = (table.filter(pl.col("split") == split) for split in (one, other))
        found += _find_shared(here, there, one, other)
        found += _find_neighbours(here, there, one, other)
    return found


def _find_shared(here: pl.DataFrame, there: pl.DataFrame, one: str, other: str) -> list[Finding]:
    found = []
    for column, (code, singular, plural) in _SHARED.items():
        if column not in here.columns:
            continue
        shared = here[column].drop_nulls().unique().implode()
        inside = there.filter(pl.col(column).is_in(shared))
        groups = inside[column].n_unique()
        if groups:
            matching = here.filter(pl.col(column).is_in(inside[column].unique().implode()))
            found.append(
                Finding(
                    code=code,
                    severity="invalidates",
                    text=f"{groups:,} {singular if groups == 1 else plural} in both {one} and {other}: "
                    f"{inside.height:,} of the {there.height:,} slices of {other}.",
                    evidence={
                        "splits": [one, other],
                        "groups": groups,
                        f"slices_{one}": matching.height,
                        f"slices_{other}": inside.height,
                    },
                    files=(*matching["path"], *inside["path"]),
                )
            )
    return found


def _find_neighbours(here: pl.DataFrame, there: pl.DataFrame, one: str, other: str) -> list[Finding]:
    """Slices whose nearest other slice of their series lies on the other side."""
    if not {"series_uid", "position"} <= set(here.columns):
        return []
    both = pl.concat([here, there]).filter(
        pl.col("series_uid").is_not_null() & pl.col("position").is_not_null()
    )
    # Copies of one slice share a position, and are no neighbours of it: so places are compared, not rows.
    places = (
        both.group_by("series_uid", "position")
        .agg((pl.col("split") == one).any().alias("here"), (pl.col("split") == other).any().alias("there"))
        .sort("series_uid", "position")
    )
    here_next, there_next = pl.col("here").shift(-1), pl.col("there").shift(-1)
    crossing = places.with_columns(
        next_position=pl.col("position").shift(-1),
        crosses=((pl.col("here") & there_next) | (pl.col("there") & here_next))
        & (pl.col("series_uid").shift(-1) == pl.col("series_uid")),
    ).filter("crosses")
    if crossing.is_empty():
        return []
    ends = pl.concat(
        [
            crossing.select("series_uid", "position"),
            crossing.select("series_uid", position="next_position"),
        ]
    ).unique()
    noun, verb = ("pair", "lies") if crossing.height == 1 else ("pairs", "lie")
    words = f"{crossing.height:,} {noun} of neighbouring slices of one series {verb}"
    files = both.join(ends, on=["series_uid", "position"], how="semi", maintain_order="left")["path"]
    return [
        Finding(
            code="neighbours-across-splits",
            severity="invalidates",
            text=f"{words} one in {one} and one in {other}: they show nearly the same.",
            evidence={"splits": [one, other], "pairs": crossing.height},
            files=tuple(files),
        )
    ]


def find_unknown_groups(table: pl.DataFrame, reported: str | None = None) -> list[Finding]:
    """Whether it is known whose the slices are, said plainly, and what the intervals of a split are over then.

    Args:
        table: As for `find_leaks`, with all its columns.
        reported: The split whose intervals are meant; None is the whole set.
    """
    patients = table["patient_id"].null_count()
    if not patients:
        return []
    series = table["series_uid"].null_count()
    if patients < table.height:
        text = f"The patient of {patients:,} of {table.height:,} slices is unknown."
    elif not series:
        text = "There are no patient ids: groups are series by file name or UID."
    elif table["source_id"].null_count() == 0:
        text = "There are no patient and no series ids: groups are source slices by file name."
    else:
        text = (
            "There are no patient ids and no series: groups are copies found from pixels, else single slices."
        )
    text += " Nothing shows that the splits come from different patients."
    part = table if reported is None else table.filter(pl.col("split") == reported)
    if caveat := explain_unit(part, copies="family"):
        text += f" {caveat}"
    return [
        Finding(
            code="unknown-patients",
            severity="warning",
            text=text,
            evidence={"slices_without_patient": patients, "slices_without_series": series},
        )
    ]


@dataclass(frozen=True)
class Choices:
    """What a run says of its own choices.

    Attributes:
        selection: The split that training was watched on; None where that is not known.
        watched: What was chosen there, in words: "early stopping", "the best epoch".
        tuned: What was chosen on the reported split itself, whatever `selection` is: "the threshold of NAME".
        backbones: Model -> what it is a training of. Several models of one backbone are several runs of it.
    """

    selection: str | None = None
    watched: Sequence[str] = ("early stopping",)
    tuned: Sequence[str] = ()
    backbones: Mapping[str, str] = field(default_factory=dict)


def find_selection_leak(choices: Choices, reported: str | None) -> list[Finding]:
    """Whether something was chosen on the split that is reported, or may be when the best of several runs is quoted."""
    if reported is None:
        return []
    found = []
    chosen = [*(choices.watched if choices.selection == reported else ()), *choices.tuned]
    if chosen:
        words = " and ".join(filter(None, (", ".join(chosen[:-1]), chosen[-1])))
        found.append(
            Finding(
                code="selection-on-reported",
                severity="invalidates",
                text=f"{words[0].upper()}{words[1:]} watched the {reported} split, which is also the split that is "
                f"reported: the numbers are optimistic, and not what unseen slices would get.",
                evidence={
                    "selection": choices.selection,
                    "reported": reported,
                    "chosen": list[JsonValue](chosen),
                },
            )
        )
    return [*found, *_find_several_runs(choices.backbones, reported)]


def _find_several_runs(backbones: Mapping[str, str], reported: str) -> list[Finding]:
    found = []
    for backbone in dict.fromkeys(backbones.values()):
        names = [name for name, one in backbones.items() if one == backbone]
        if len(names) > 1:
            found.append(
                Finding(
                    code="several-runs",
                    severity="warning",
                    text=f"{', '.join(names)} are {len(names)} runs of one backbone ({backbone}), all scored on "
                    f"{reported}: to quote the best of them is to choose it on what is reported.",
                    evidence={"backbone": backbone, "models": list[JsonValue](names), "reported": reported},
                )
            )
    return found
