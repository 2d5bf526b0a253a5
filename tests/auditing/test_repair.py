"""The repaired manifest: what is dropped, merged and regrouped, each with its reason, and nothing else is changed."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cspine.auditing.anomalies import find_label_conflicts
from cspine.auditing.audit import AuditedSet, Repaired, measure_size, repair_manifest
from cspine.auditing.findings import AuditResult
from cspine.auditing.leaks import find_leaks
from cspine.core.errors import InputError
from cspine.data.manifest import SCHEMA, Manifest, complete_table

BASE = {
    "width_px": 64,
    "height_px": 64,
    "mode": "L",
    "bits_stored": 8,
    "channels_differ": False,
    "file_bytes": 100,
    "file_sha256": "h",
}


def repair(**columns: list[object]) -> tuple[Manifest, Repaired]:
    count = len(next(iter(columns.values())))
    extra = {name: columns.pop(name, None) for name in ("family", "std", "unreadable")}
    left_out = columns.pop("left_out", [])
    rows = {
        "slice_id": [f"s{row}" for row in range(count)],
        "path": [f"s{row}.png" for row in range(count)],
        **columns,
    }
    table = complete_table(
        pl.DataFrame(rows).with_columns(**{key: pl.lit(value) for key, value in BASE.items()})
    )
    manifest = Manifest(table, Path(), "test")
    seen = table.with_columns(
        family=pl.Series(extra["family"] or list(range(count)), dtype=pl.Int64),
        std=pl.Series(extra["std"] or [50.0] * count, dtype=pl.Float64),
        levels=pl.lit(100),
        unreadable=pl.Series(extra["unreadable"] or [None] * count, dtype=pl.String),
    )
    size = measure_size(seen, None)
    result = AuditResult(
        verdict="sound",
        findings=(),
        families=(),
        baselines=(),
        metadata=(),
        effective_n=size,
        manifest_hash=manifest.hash,
    )
    return manifest, repair_manifest(manifest, AuditedSet(result, seen), left_out)  # type: ignore[arg-type]


def list_changes(repaired: Repaired) -> list[tuple[str, str]]:
    return [(path, change) for path, change, _ in repaired.changes.iter_rows()]


def test_a_sound_set_stays_as_it_is() -> None:
    manifest, repaired = repair(label=[0, 1, 0], split=["train", "train", "val"])
    assert repaired.changes.is_empty()
    assert repaired.manifest.hash == manifest.hash


def test_what_cannot_be_used_is_dropped_with_its_reason() -> None:
    _, repaired = repair(label=[0, 1, 0], std=[50.0, 0.0, 50.0], unreadable=["no such file", None, None])
    assert repaired.changes.rows() == [
        ("s0.png", "dropped", "cannot be read"),
        ("s1.png", "dropped", "blank"),
    ]
    assert repaired.manifest.slice_ids == ["s2"]


def test_copies_with_two_labels_are_all_dropped() -> None:
    _, repaired = repair(label=[0, 1, 0, 1], family=[5, 5, 6, 7])
    assert list_changes(repaired) == [("s0.png", "dropped"), ("s1.png", "dropped")]


def test_of_copies_in_two_splits_those_that_are_learned_from_go() -> None:
    _, repaired = repair(label=[0, 0, 0, 1], split=["train", "val", "test", "train"], family=[5, 5, 5, 6])
    assert list_changes(repaired) == [("s0.png", "dropped"), ("s1.png", "dropped")]
    assert repaired.manifest.table.filter(pl.col("split") == "test")["slice_id"].to_list() == ["s2"]


def test_copies_get_one_source_and_a_known_one_stays() -> None:
    _, repaired = repair(label=[0, 0, 1, 1], family=[1, 1, 2, 2], source_id=[None, None, "a", "a"])
    assert list_changes(repaired) == [("s0.png", "merged"), ("s1.png", "merged")]
    assert repaired.manifest.table["source_id"].to_list() == ["family-s0", "family-s0", "a", "a"]


def test_a_source_stays_whole_without_copies_by_pixels() -> None:
    _, repaired = repair(label=[0, 0, 1], family=[1, 1, 2], source_id=["a", "a", "a"])
    assert repaired.changes.is_empty()
    assert repaired.manifest.table["source_id"].to_list() == ["a", "a", "a"]


def test_copies_with_two_sources_are_regrouped_with_all_of_both() -> None:
    _, repaired = repair(label=[0, 0, 0, 0], family=[1, 2, 2, 3], source_id=["b", "b", "a", None])
    assert list_changes(repaired) == [("s0.png", "regrouped"), ("s1.png", "regrouped")]
    assert repaired.manifest.table["source_id"].to_list() == ["a", "a", "a", None]


def test_a_repaired_source_in_two_splits_is_no_leak() -> None:
    _, repaired = repair(
        label=[0, 0, 1], split=["train", "val", "train"], family=[1, 2, 3], source_id=["a", "a", "b"]
    )
    assert list_changes(repaired) == [("s0.png", "dropped")]
    assert find_leaks(repaired.manifest.table.drop("file_sha256")) == []


def test_what_is_dropped_costs_no_other_slice() -> None:
    _, repaired = repair(
        label=[0, 0],
        split=["train", "test"],
        source_id=["a", "a"],
        unreadable=[None, "no such file"],
    )
    assert list_changes(repaired) == [("s1.png", "dropped")]


def test_what_the_import_left_out_is_listed_too() -> None:
    _, repaired = repair(label=[0, 1], left_out=[("broken.png", "truncated")])
    assert repaired.changes.rows() == [("broken.png", "dropped", "cannot be read: truncated")]


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(
        st.tuples(
            st.sampled_from([0, 1, None]),
            st.sampled_from(["train", "val", "test", "external", None]),
            st.integers(0, 3),
            st.sampled_from(["a", "b", "c", None]),
        ),
        min_size=1,
        max_size=9,
    )
)
def test_after_the_repair_nothing_is_left_of_what_it_mends(rows: list[tuple[object, ...]]) -> None:
    label, split, family, source = (list(column) for column in zip(*rows, strict=True))
    try:
        _, repaired = repair(label=label, split=split, family=family, source_id=source)
    except InputError:
        return
    table = repaired.manifest.table
    of = {f"s{row}": one for row, one in enumerate(family)}
    table = table.with_columns(
        family=pl.Series([of[one] for one in table["slice_id"]], dtype=pl.Int64),
        file_sha256=pl.Series([str(of[one]) for one in table["slice_id"]]),
    )
    assert find_leaks(table) == []
    assert find_label_conflicts(table) == []
    dropped = repaired.changes.filter(pl.col("change") == "dropped").height
    assert dropped + len(repaired.manifest) == len(rows)
    sources = table.filter(pl.len().over("family") > 1).group_by("family").agg(pl.col("source_id").n_unique())
    assert set(sources["source_id"]) <= {1}


def test_nothing_left_is_refused() -> None:
    with pytest.raises(InputError, match="nothing would be left"):
        repair(label=[0, 1], family=[1, 1])


def test_the_columns_are_those_of_a_manifest() -> None:
    _, repaired = repair(label=[0, 1])
    assert repaired.manifest.table.schema == SCHEMA
