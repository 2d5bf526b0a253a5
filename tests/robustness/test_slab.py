"""Slice thickness: only where the neighbours of a slice are known, and then their mean."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from cspine.core.types import Slice
from cspine.data.manifest import SCHEMA, Manifest
from cspine.robustness.corruptions import THICKNESS, Neighbours, apply_corruption, find_neighbours


def make_manifest(source: str = "labels-table", **columns: Any) -> Manifest:
    """Six slices of one series, 1 mm apart."""
    n = 6
    rows = {
        "slice_id": [f"s{i}" for i in range(n)],
        "path": [f"s{i}.png" for i in range(n)],
        "series_uid": ["1.2"] * n,
        "position": [float(i) for i in range(n)],
        "width_px": [8] * n,
        "height_px": [8] * n,
        "mode": ["L"] * n,
        "bits_stored": [8] * n,
        "channels_differ": [False] * n,
        "file_bytes": [10] * n,
        "file_sha256": [f"{i:064x}" for i in range(n)],
        **columns,
    }
    table = pl.DataFrame({name: rows.get(name, [None] * n) for name in SCHEMA}, schema=SCHEMA)
    return Manifest(table, Path("nowhere"), source)


def test_a_slab_is_what_lies_within_half_its_thickness() -> None:
    found = find_neighbours(make_manifest(), ["s0", "s3"], 10.0)
    assert isinstance(found, Neighbours)
    assert found.find_slab("s3", 2.0) == ["s2", "s3", "s4"]
    assert found.find_slab("s3", 3.0) == ["s2", "s3", "s4"]
    assert found.find_slab("s3", 5.0) == ["s1", "s2", "s3", "s4", "s5"]
    assert found.find_slab("s0", 5.0) == ["s0", "s1", "s2"]  # the end of the series


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"source": "class-folders"}, "millimetres"),
        ({"series_uid": ["1.2"] * 5 + [None]}, "series and a position"),
        ({"position": [0.0, 1.0, 2.0, 2.0, 3.0, 4.0]}, "one position"),
        ({"position": [0.0, 1.0, 2.0, 30.0, 60.0, 90.0]}, "3 of 6 slices have no neighbour within 5 mm"),
        ({"width_px": [8] * 5 + [9]}, "differ in size"),
    ],
)
def test_without_known_neighbours_it_says_why_not(changes: Any, words: str) -> None:
    manifest = make_manifest(**changes)
    found = find_neighbours(manifest, manifest.slice_ids, 10.0)
    assert isinstance(found, str)
    assert words in found


def test_a_thicker_slice_is_the_mean_of_its_slab() -> None:
    slab = [Slice(np.full((4, 4), value, np.int16), "hu", f"s{value}") for value in (0, 100, 500)]
    assert (apply_corruption(slab[1], THICKNESS, 2, slab=slab).pixels == 200).all()
