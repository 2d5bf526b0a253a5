"""The repaired manifest: what is dropped, merged and regrouped, each with its reason, and nothing else is changed."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from cspine.audit.audit import AuditedSet, measure_size
from cspine.audit.findings import AuditResult
from cspine.audit.repair import Repaired, repair_manifest
from cspine.data.manifest import SCHEMA, Manifest, complete_table
from cspine.errors import InputError

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
    return manifest, repair_manifest(manifest, AuditedSet(result, seen))


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


def test_a_source_that_the_pixels_contradict_is_parted() -> None:
    _, repaired = repair(label=[0, 0, 1], family=[1, 1, 2], source_id=["a", "a", "a"])
    assert list_changes(repaired) == [("s0.png", "merged"), ("s1.png", "merged"), ("s2.png", "regrouped")]
    assert repaired.manifest.table["source_id"].n_unique() == 2


def test_nothing_left_is_refused() -> None:
    with pytest.raises(InputError, match="nothing would be left"):
        repair(label=[0, 1], family=[1, 1])


def test_the_columns_are_those_of_a_manifest() -> None:
    _, repaired = repair(label=[0, 1])
    assert repaired.manifest.table.schema == SCHEMA
