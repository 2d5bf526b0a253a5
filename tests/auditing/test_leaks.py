"""Leaks: every kind that is planted is found with its files, and nothing is found where nothing is shared."""

from __future__ import annotations

import polars as pl
import pytest

from cspine.auditing.leaks import Choices, find_leaks, find_selection_leak, find_unknown_groups
from tests.auditing.sets import make_rows

SPLITS = ["train", "train", "val", "val"]


def test_a_clean_split_has_no_leak() -> None:
    rows = make_rows(split=SPLITS, patient_id=["a", "b", "c", "d"], series_uid=["a1", "b1", "c1", "d1"])
    assert find_leaks(rows) == []
    assert find_unknown_groups(rows) == []


@pytest.mark.parametrize(
    ("column", "code"),
    [
        ("patient_id", "patient-across-splits"),
        ("study_uid", "study-across-splits"),
        ("series_uid", "series-across-splits"),
        ("source_id", "source-slice-across-splits"),
        ("file_sha256", "file-across-splits"),
    ],
)
def test_a_group_on_both_sides_is_found_with_its_files(column: str, code: str) -> None:
    rows = make_rows(split=SPLITS, **{column: ["a", "b", "b", "c"]})
    (found,) = find_leaks(rows)
    assert found.code == code
    assert found.severity == "invalidates"
    assert found.files == ("s1.png", "s2.png")
    assert found.evidence == {"splits": ["train", "val"], "groups": 1, "slices_train": 1, "slices_val": 1}


def test_copies_that_only_pixels_tell_of_are_a_leak() -> None:
    (found,) = find_leaks(make_rows(split=SPLITS, family=[1, 7, 7, 7]))
    assert found.code == "copies-across-splits"
    assert "2 of the 2 slices of val" in found.text


def test_an_unknown_group_is_not_shared() -> None:
    assert find_leaks(make_rows(split=SPLITS, patient_id=[None, None, None, None])) == []


def test_slices_without_a_split_leak_nowhere() -> None:
    assert find_leaks(make_rows(split=["train", None], patient_id=["a", "a"])) == []


def test_every_pair_of_splits_is_looked_at() -> None:
    rows = make_rows(split=["train", "val", "test"], patient_id=["a", "b", "b"])
    (found,) = find_leaks(rows)
    assert found.evidence["splits"] == ["val", "test"]


def test_neighbours_of_one_series_on_both_sides_are_found() -> None:
    rows = make_rows(split=SPLITS, series_uid=["a", "a", "a", "b"], position=[1.0, 2.0, 3.0, 4.0])
    found = {one.code: one for one in find_leaks(rows)}
    assert found["neighbours-across-splits"].evidence["pairs"] == 1
    assert found["neighbours-across-splits"].files == ("s1.png", "s2.png")


def test_neighbours_are_found_across_a_slice_on_both_sides() -> None:
    """Place 2 is in train and val, so 1 and 2 are neighbours across, and so are 2 and 3."""
    rows = make_rows(split=SPLITS, series_uid=["a"] * 4, position=[1.0, 2.0, 2.0, 3.0])
    found = {one.code: one for one in find_leaks(rows)}
    assert found["neighbours-across-splits"].evidence["pairs"] == 2
    assert set(found["neighbours-across-splits"].files) == {f"s{row}.png" for row in range(4)}


def test_neighbours_of_one_split_or_of_two_series_are_none() -> None:
    rows = make_rows(split=SPLITS, series_uid=["a", "a", "b", "b"], position=[1.0, 2.0, 3.0, 4.0])
    assert find_leaks(rows) == []


def test_copies_at_one_position_are_no_neighbours() -> None:
    rows = make_rows(split=["train", "val"], series_uid=["a", "a"], position=[1.0, 1.0])
    assert "neighbours-across-splits" not in {one.code for one in find_leaks(rows)}


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"series_uid": ["x", "x", "y", "y"]}, "groups are series"),
        ({"source_id": ["x", "x", "y", "y"]}, "groups are source slices"),
        ({}, "copies found from pixels"),
        ({"patient_id": ["a", None, "b", "c"]}, "The patient of 1 of 4 slices is unknown"),
    ],
)
def test_unknown_patients_are_said_plainly(columns: dict[str, list[str | None]], words: str) -> None:
    (found,) = find_unknown_groups(make_rows(split=SPLITS, **columns))
    assert found.code == "unknown-patients"
    assert words in found.text


def test_selection_on_the_reported_split_is_a_leak() -> None:
    choices = Choices("val", ("early stopping", "the schedule", "the best epoch"))
    (found,) = find_selection_leak(choices, "val")
    assert found.severity == "invalidates"
    assert found.text.startswith("Early stopping, the schedule and the best epoch watched the val split")
    assert find_selection_leak(choices, "test") == []
    assert find_selection_leak(choices, None) == []
    assert find_selection_leak(Choices(), "val") == []


def test_a_threshold_chosen_on_the_reported_split_is_a_leak() -> None:
    (found,) = find_selection_leak(Choices("val", tuned=["the threshold of a"]), "test")
    assert found.code == "selection-on-reported"
    assert found.text.startswith("The threshold of a watched the test split")


def test_several_runs_of_one_backbone_are_said() -> None:
    (found,) = find_selection_leak(
        Choices("val", backbones={"a": "resnet50", "b": "vit", "c": "resnet50"}), "test"
    )
    assert (found.code, found.severity) == ("several-runs", "warning")
    assert found.text.startswith("a, c are 2 runs of one backbone (resnet50), all scored on test")
    assert find_selection_leak(Choices("val", backbones={"a": "resnet50", "b": "vit"}), "test") == []


def test_the_order_of_rows_does_not_matter() -> None:
    rows = make_rows(
        split=["train", "val"] * 6,
        patient_id=list("aabbccddeeff"),
        family=[1, 2, 3, 1, 4, 5, 6, 7, 8, 9, 10, 3],
    )
    mixed = rows.sample(fraction=1, shuffle=True, seed=1)

    def summarise(table: pl.DataFrame) -> list[tuple[str, list[str]]]:
        return [(one.code, sorted(one.files)) for one in find_leaks(table)]

    assert summarise(rows) == summarise(mixed)
