"""What a split keeps together where ids are unknown: copies, found from pixels."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import polars as pl
import pytest

from cspine.auditing.audit import name_sources, settle_groups
from cspine.auditing.copies import Families, Family
from cspine.core.errors import InputError
from cspine.data.layouts import import_dataset
from cspine.data.manifest import Manifest
from cspine.data.splits import make_folds
from cspine.phantom.patient import PhantomSettings, make_patient
from cspine.phantom.scanner import render_plane, to_display8
from tests.data.test_folds import make_manifest

SLICES = 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve slices of twelve necks, without any id, each as it is and flipped."""
    root = tmp_path_factory.mktemp("grouping") / "set"
    settings = PhantomSettings(size_px=128, seed=5)
    for number in range(SLICES):
        neck = make_patient(number, settings)
        pixels = to_display8(render_plane(neck, 0.0, size_px=128, follow_spine=False)[0])
        place = root / ("fracture" if number % 2 else "normal")
        place.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(place / f"n{number}.png"), pixels)
        cv2.imwrite(str(place / f"copy of n{number}.png"), np.ascontiguousarray(pixels[:, ::-1]))
    return root


def test_copies_stay_together_where_nothing_else_is_known(folder: Path) -> None:
    manifest, column = settle_groups(import_dataset(folder)[0])
    assert column == "source_id"
    sizes = manifest.table["source_id"].value_counts()["count"]
    assert sizes.to_list() == [2] * SLICES
    for fold in make_folds(manifest, scheme="kfold", folds=3, by=column):
        sides = fold.manifest.table.with_columns(pl.col("path").str.extract(r"(n\d+)\.png").alias("neck"))
        assert sides.group_by("neck").agg(pl.col("split").n_unique())["split"].to_list() == [1] * SLICES


def test_nothing_is_read_where_groups_are_known() -> None:
    manifest = make_manifest([f"p{row // 4}" for row in range(16)], [0, 1] * 8)
    grouped, column = settle_groups(manifest)
    assert column == "patient_id"
    assert grouped.table.equals(manifest.table)


def test_slices_named_as_their_own_cases_stay_so() -> None:
    manifest = make_manifest([str(row) for row in range(8)], [0, 1] * 4, "vertebra_level")
    assert settle_groups(manifest, "slice_id")[1] == "slice_id"
    with pytest.raises(InputError, match="have no series_uid"):
        settle_groups(manifest, "series_uid")


def test_a_set_without_labels_is_refused_before_pixels() -> None:
    manifest = make_manifest([str(row) for row in range(8)], [None] * 8, "vertebra_level")
    with pytest.raises(InputError, match="no slice has a label"):
        settle_groups(manifest)


def find_names(manifest: Manifest, *families: tuple[str, ...]) -> list[str]:
    found = Families(tuple(Family(ids, (), ()) for ids in families), 0, (), 0)
    return name_sources(manifest, found).table["source_id"].to_list()


def test_a_known_source_is_joined_with_unnamed_copies() -> None:
    manifest = make_manifest(["a", "a", "b", "b", "c"], [0, 0, 1, 1, 0], "source_id")
    table = manifest.table.with_columns(
        source_id=pl.when(pl.col("slice_id").is_in(["s002", "s004"])).then(None).otherwise("source_id")
    )
    manifest = manifest.with_table(table)
    assert find_names(manifest, ("s001", "s002")) == ["a", "a", "a", "b", "family-s004"]
    assert find_names(manifest) == ["a", "a", "family-s002", "b", "family-s004"]
    assert find_names(manifest, ("s001", "s003")) == ["a", "a", "family-s002", "a", "family-s004"]
