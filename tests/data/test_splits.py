"""Carving a split: nothing that belongs together is divided, both classes on both sides, the same for a seed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cspine.core.errors import InputError
from cspine.data.manifest import SCHEMA, Manifest, complete_table
from cspine.data.splits import carve_split, choose_group_column


def make_manifest(groups: list[tuple[int, int]], column: str = "patient_id") -> Manifest:
    """One group for each (negative, positive) count, all in train."""
    rows: list[dict[str, Any]] = []
    for group, counts in enumerate(groups):
        for label, count in enumerate(counts):
            rows += [{"label": label, column: f"g{group}"}] * count
    table = pl.DataFrame(rows, schema_overrides={"label": pl.Int8}).with_row_index("slice_id")
    fixed = {
        "split": "train",
        "width_px": 16,
        "height_px": 16,
        "mode": "L",
        "bits_stored": 8,
        "file_bytes": 1,
    }
    table = table.with_columns(
        pl.col("slice_id").cast(pl.String),
        **{name: pl.lit(value) for name, value in fixed.items()},
        path=pl.lit("a.png"),
        channels_differ=pl.lit(False),
        file_sha256=pl.lit("0" * 64),
    )
    return Manifest(complete_table(table), Path("data"), "labels-table")


def list_sides(manifest: Manifest, column: str = "patient_id") -> tuple[set[str], set[str]]:
    return tuple(set(manifest.select(split).table[column]) for split in ("train", "val"))  # type: ignore[return-value]


group_lists = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)).filter(any), min_size=4, max_size=25)


@given(group_lists, st.floats(0.05, 0.95), st.integers(0, 2**32))
@settings(max_examples=150, deadline=None)
def test_no_group_is_on_both_sides_and_every_side_can_be_used(
    groups: list[tuple[int, int]], fraction: float, seed: int
) -> None:
    manifest = make_manifest(groups)
    try:
        carved = carve_split(manifest, fraction=fraction, seed=seed)
    except InputError:
        return  # when it must be possible is the next property
    train, val = list_sides(carved)
    assert not train & val
    assert len(train) >= 2
    assert len(val) >= 2
    for split in ("train", "val"):
        assert set(carved.select(split).table["label"]) == {0, 1}
    largest = max(map(sum, groups))
    assert abs(carved.splits["val"] - fraction * len(manifest)) <= largest
    assert carved.table.drop("split").equals(manifest.table.drop("split"))


@given(st.integers(10, 40), st.integers(1, 5), st.floats(0.2, 0.8), st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_ten_even_groups_are_divided_in_balance(count: int, size: int, fraction: float, seed: int) -> None:
    carved = carve_split(make_manifest([(size, size)] * count), fraction=fraction, seed=seed)
    labels = carved.select("val").table["label"].to_list()
    assert labels.count(1) == labels.count(0)
    assert abs(len(labels) - fraction * 2 * size * count) <= size


@given(st.integers(0, 1000), st.permutations(range(12)))
@settings(max_examples=30, deadline=None)
def test_the_seed_decides_and_the_order_of_rows_does_not(seed: int, order: list[int]) -> None:
    manifest = make_manifest([(1, 0), (0, 1)] * 6)
    shuffled = manifest.with_table(manifest.table[order])
    first = carve_split(manifest, fraction=0.4, seed=seed)
    assert carve_split(shuffled, fraction=0.4, seed=seed).hash == first.hash


def test_seeds_choose_different_groups() -> None:
    manifest = make_manifest([(index % 3 + 1, 2) for index in range(20)])
    assert len({carve_split(manifest, fraction=0.3, seed=seed).hash for seed in range(10)}) > 5


def test_other_splits_stay_as_they_are() -> None:
    manifest = make_manifest([(2, 2)] * 10)
    in_test = pl.col("patient_id").is_in(["g0", "g1"])
    table = manifest.table.with_columns(
        split=pl.when(in_test).then(pl.lit("test")).otherwise(pl.col("split"))
    )
    carved = carve_split(manifest.with_table(table), fraction=0.25, seed=1)
    assert carved.splits == {"train": 24, "val": 8, "test": 8}
    assert set(carved.select("test").table["patient_id"]) == {"g0", "g1"}


@pytest.mark.parametrize(
    ("groups", "fraction", "what"),
    [
        ([(5, 5)] * 3, 0.3, r"'val' would have 1 of 3 groups, and needs 2"),
        ([(5, 5)] * 10, 0.01, r"'val' would have 0 of 10 groups"),
        ([(5, 0)] * 8 + [(0, 5)], 0.5, r"would have 0 positive and \d+ negative slices"),
        (
            [(5, 0)] * 8,
            0.5,
            r"'train' would have 0 positive and 20 negative slices; 'val' would have 0 positive",
        ),
        ([(5, 5)] * 8, 0.0, "a fraction of 0 cannot be carved out"),
        ([(5, 5)] * 8, 1.0, "a fraction of 1 cannot be carved out"),
        ([(5, 5)] * 8, float("nan"), "a fraction of nan cannot be carved out"),
    ],
)
def test_an_impossible_division_is_refused_with_the_counts(
    groups: list[tuple[int, int]], fraction: float, what: str
) -> None:
    with pytest.raises(InputError, match=what):
        carve_split(make_manifest(groups), fraction=fraction, seed=0)


def test_a_split_that_is_used_or_unknown_is_no_target() -> None:
    manifest = make_manifest([(2, 2)] * 10)
    carved = carve_split(manifest, fraction=0.3, seed=0)
    with pytest.raises(InputError, match="the split 'val' has 12 slices already"):
        carve_split(carved, fraction=0.3, seed=0)
    with pytest.raises(InputError, match="the split 'dev' is unknown"):
        carve_split(manifest, to_split="dev", fraction=0.3, seed=0)
    with pytest.raises(InputError, match="no slices in split 'test'"):
        carve_split(manifest, from_split="test", fraction=0.3, seed=0)


def make_table(**columns: list[str | None]) -> pl.DataFrame:
    names = ("patient_id", "study_uid", "series_uid", "source_id")
    length = len(next(iter(columns.values())))
    table = pl.DataFrame({name: columns.get(name, [None] * length) for name in names})
    return table.with_columns(slice_id=pl.int_range(length).cast(pl.String)).cast(
        {n: SCHEMA[n] for n in names}
    )


SIX = ["a", "b", "c", "d", "e", "f"]


@pytest.mark.parametrize(
    ("columns", "chosen"),
    [
        ({"patient_id": ["a", "a", "b"], "study_uid": ["1", "2", "3"]}, "patient_id"),
        ({"patient_id": ["a", None, "b"], "study_uid": ["1", "2", "3"]}, "study_uid"),
        ({"series_uid": SIX, "source_id": SIX}, "series_uid"),
        ({"series_uid": ["a", "a", "a", "b", "c", "d"], "source_id": SIX}, "source_id"),
        ({"series_uid": [None, *SIX[1:]], "source_id": SIX}, "source_id"),
        ({"source_id": [None, *SIX[1:]]}, "slice_id"),
    ],
)
def test_the_surest_known_group_is_chosen(columns: dict[str, list[str | None]], chosen: str) -> None:
    assert choose_group_column(make_table(**columns)) == chosen


def test_a_named_column_is_taken_or_refused() -> None:
    table = make_table(patient_id=["a", None, "b"], series_uid=["1", "1", "2"])
    assert choose_group_column(table, "series_uid") == "series_uid"
    with pytest.raises(InputError, match="1 of 3 slices have no patient_id"):
        choose_group_column(table, "patient_id")
    with pytest.raises(InputError, match="cannot be grouped by 'label'"):
        choose_group_column(table, "label")
