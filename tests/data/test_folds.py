"""Folds by whole groups: no group is divided, every slice is tested once, else a refusal with counts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cspine.core.errors import InputError
from cspine.data.manifest import Manifest, complete_table
from cspine.data.splits import MAX_LEFT_OUT, choose_fold_column, make_folds


def make_manifest(groups: list[str], labels: list[int | None], column: str = "patient_id") -> Manifest:
    count = len(groups)
    rows = pl.DataFrame(
        {
            "slice_id": [f"s{row:03}" for row in range(count)],
            "path": [f"s{row:03}.png" for row in range(count)],
            "label": pl.Series(labels, dtype=pl.Int8),
            column: groups,
            "width_px": [64] * count,
            "height_px": [64] * count,
            "mode": ["L"] * count,
            "bits_stored": [8] * count,
            "channels_differ": [False] * count,
            "file_bytes": [100] * count,
            "file_sha256": [f"h{row}" for row in range(count)],
        }
    )
    return Manifest(complete_table(rows), Path(), "test")


def make_patients(patients: int, slices: int = 4, column: str = "patient_id") -> Manifest:
    groups = [f"p{patient}" for patient in range(patients) for _ in range(slices)]
    return make_manifest(groups, [number % 2 for number in range(len(groups))], column)


def list_test(manifest: Manifest) -> set[str]:
    return set(manifest.select("test").slice_ids)


@settings(max_examples=25, deadline=None)
@given(patients=st.integers(8, 14), folds=st.integers(2, 4), seed=st.integers(0, 5))
def test_every_slice_is_tested_once_and_no_patient_is_divided(patients: int, folds: int, seed: int) -> None:
    manifest = make_patients(patients)
    found = make_folds(manifest, scheme="kfold", folds=folds, seed=seed)
    tested = [slice_id for fold in found for slice_id in fold.manifest.select("test").slice_ids]
    assert sorted(tested) == sorted(manifest.slice_ids)
    for fold in found:
        sides = fold.manifest.table.group_by("patient_id").agg(pl.col("split").n_unique())
        assert sides["split"].to_list() == [1] * patients
        assert set(fold.manifest.splits) == {"train", "val", "test"}
    assert sum(fold.groups for fold in found) == patients


def test_the_order_of_rows_does_not_matter() -> None:
    manifest = make_patients(10)
    mixed = manifest.with_table(manifest.table.sample(fraction=1, shuffle=True, seed=3))
    for scheme in ("kfold", "leave-one-out", "holdout"):
        one, other = (make_folds(item, scheme=scheme, seed=2) for item in (manifest, mixed))  # type: ignore[arg-type]
        assert [list_test(fold.manifest) for fold in one] == [list_test(fold.manifest) for fold in other]


def test_leaving_one_series_out_holds_out_each_in_turn() -> None:
    manifest = make_patients(4, column="series_uid")
    found = make_folds(manifest, scheme="leave-one-out", seed=0)
    held = [fold.manifest.select("test").table["series_uid"].unique().to_list() for fold in found]
    assert sorted(held) == [["p0"], ["p1"], ["p2"], ["p3"]]
    assert [fold.name for fold in found] == ["leave-out-1", "leave-out-2", "leave-out-3", "leave-out-4"]


def test_few_series_are_selected_on_by_source_slices() -> None:
    manifest = make_manifest(
        [f"p{row // 12}" for row in range(36)], [row // 2 % 2 for row in range(36)], "series_uid"
    )
    table = manifest.table.with_columns(source_id=pl.Series([f"x{row // 2}" for row in range(36)]))
    for fold in make_folds(manifest.with_table(table), scheme="leave-one-out"):
        sides = fold.manifest.table.group_by("source_id").agg(pl.col("split").n_unique())
        assert sides["split"].max() == 1


def test_a_series_of_one_class_can_be_left_out() -> None:
    manifest = make_manifest(["a"] * 6 + ["b"] * 6 + ["c"] * 4, [0, 1] * 6 + [1] * 4, "series_uid")
    assert [len(list_test(fold.manifest)) for fold in make_folds(manifest, scheme="leave-one-out")] == [
        6,
        6,
        4,
    ]


def test_repeats_use_other_seeds_and_names() -> None:
    found = make_folds(make_patients(12), scheme="holdout", seed=1, repeats=3)
    assert [fold.name for fold in found] == ["seed1-holdout", "seed2-holdout", "seed3-holdout"]
    assert len({frozenset(list_test(fold.manifest)) for fold in found}) > 1


def test_classes_keep_their_proportion_as_near_as_groups_come() -> None:
    labels: list[int | None] = [int(patient % 4 == 0) for patient in range(40) for _ in range(3)]
    manifest = make_manifest([f"p{patient}" for patient in range(40) for _ in range(3)], labels)
    for fold in make_folds(manifest, scheme="kfold", folds=5, seed=0):
        assert np.isclose(fold.manifest.select("test").table["label"].mean(), 0.25, atol=0.13)


def test_unlabelled_slices_are_left_out() -> None:
    manifest = make_manifest([f"p{row // 3}" for row in range(24)], [None, 0, 1] * 8)
    assert all(len(fold.manifest) == 16 for fold in make_folds(manifest, scheme="kfold", folds=3))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"scheme": "kfold", "folds": 7}, "6 patients cannot be divided into 7 folds"),
        ({"scheme": "kfold", "folds": 1}, "into 1 folds"),
        ({"scheme": "kfold", "by": "series_uid"}, "24 of 24 slices have no series_uid"),
        ({"scheme": "kfold", "by": "label"}, "cannot be grouped by 'label'"),
        ({"scheme": "leave-one-out", "repeats": 2}, "the same for every seed"),
        ({"scheme": "kfold", "seed": 2**31}, "2147483648 is no seed"),
        ({"scheme": "kfold", "seed": -1}, "-1 is no seed"),
    ],
)
def test_what_is_impossible_is_refused_with_the_counts(options: dict[str, object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        make_folds(make_patients(6), **options)  # type: ignore[arg-type]


def test_too_many_groups_are_not_left_out_one_by_one() -> None:
    with pytest.raises(InputError, match=f"{MAX_LEFT_OUT + 1} patients to leave out"):
        make_folds(make_patients(MAX_LEFT_OUT + 1, 2), scheme="leave-one-out")


def test_unknown_groups_are_refused_unless_slices_are_named() -> None:
    manifest = make_manifest([str(row) for row in range(36)], [0, 1] * 18, "vertebra_level")
    with pytest.raises(InputError, match="no split is honest"):
        choose_fold_column(manifest.table)
    assert len(make_folds(manifest, scheme="kfold", folds=3, by="slice_id")) == 3


@pytest.mark.parametrize(
    ("labels", "folds", "words"),
    [
        ([1, 0, 0, 0] * 3 + [0] * 28, 5, "3 of 10 patients have positive slices"),
        ([1] * 36 + [0] * 4, 2, "1 of 10 patients has negative slices"),
        ([0] * 40, 2, "0 of 10 patients have positive slices"),
    ],
)
def test_more_folds_than_groups_are_refused_with_the_counts(
    labels: list[int | None], folds: int, words: str
) -> None:
    manifest = make_manifest([f"p{row // 4}" for row in range(40)], labels)
    with pytest.raises(InputError, match=words):
        make_folds(manifest, scheme="kfold", folds=folds)


def test_few_single_slices_are_refused_or_divided() -> None:
    with pytest.raises(InputError, match="2 of 4 patients have positive slices"):
        make_folds(make_manifest(list("abcd"), [1, 0, 1, 0]), scheme="kfold", folds=3)


@settings(max_examples=40, deadline=None)
@given(
    positive=st.integers(2, 5), negative=st.integers(2, 7), folds=st.integers(2, 5), seed=st.integers(0, 9)
)
def test_every_fold_tests_both_classes_or_is_refused(
    positive: int, negative: int, folds: int, seed: int
) -> None:
    count = positive + negative
    groups = [f"p{row % count}" for row in range(3 * count)]
    manifest = make_manifest(groups, [int(row % count < positive) for row in range(3 * count)])
    try:
        found = make_folds(manifest, scheme="kfold", folds=folds, seed=seed)
    except InputError:
        return
    for fold in found:
        assert fold.manifest.select("test").table["label"].n_unique() == 2
