"""The manifest keeps its rules, says which one is broken, and is the same after a trip to the disk."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cspine.core.errors import ImageError, ManifestError, OutputError
from cspine.data.images import inspect_image
from cspine.data.manifest import (
    SCHEMA,
    Manifest,
    complete_table,
    is_manifest,
    make_relative,
    read_manifest,
    write_manifest,
    write_stack,
)
from cspine.preprocess import Window


def make_rows(count: int = 3) -> list[dict[str, Any]]:
    return [
        {
            "slice_id": f"s{index}",
            "path": f"s{index}.png",
            "label": index % 2,
            "split": ("train", "val")[index % 2],
            "width_px": 16,
            "height_px": 16,
            "mode": "L",
            "bits_stored": 8,
            "channels_differ": False,
            "file_bytes": 100,
            "file_sha256": f"{index:064x}",
        }
        for index in range(count)
    ]


def make_manifest(rows: list[dict[str, Any]], root: Path = Path("data")) -> Manifest:
    table = pl.DataFrame(rows, schema_overrides=SCHEMA, infer_schema_length=None)
    return Manifest(complete_table(table), root, "class-folders")


def make_files(root: Path, count: int = 3) -> Manifest:
    rows = make_rows(count)
    for index, row in enumerate(rows):
        Image.fromarray(np.full((16, 16), index, dtype=np.uint8)).save(root / row["path"])
        row["file_sha256"] = inspect_image(root / row["path"]).file_sha256
        row |= {"patient_id": "p", "study_uid": "1.2", "series_uid": "1.2.3", "position": 0.5 * index}
    return make_manifest(rows, root)


# Rules ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"slice_id": "s0"}, "1 slice ids stand in more than one row, such as 's0'"),
        ({"slice_id": ""}, "an empty slice id"),
        ({"slice_id": None}, "column slice_id is empty in 1 of 3 rows"),
        ({"label": 2}, "1 of 3 rows have a label other than 0, 1 or none, such as 's2'"),
        ({"label": -1}, "a label other than 0, 1 or none"),
        ({"split": "dev"}, "a split other than train, val, test, external or none"),
        ({"position": float("nan")}, "a position that is NaN or infinite"),
        ({"position": float("inf")}, "a position that is NaN or infinite"),
        ({"bits_stored": 11}, "an unknown depth"),
        ({"width_px": 0}, "a value that is not above 0"),
        ({"path": "/a.png"}, "a path that is not posix and relative to the root"),
        ({"path": "a/../../b.png"}, "a path that is not posix and relative to the root"),
        ({"path": "a\\b.png"}, "a path that is not posix and relative to the root"),
        ({"mask_path": "C:/m.png"}, "a path that is not posix and relative to the root"),
        ({"file_sha256": None}, "column file_sha256 is empty"),
    ],
)
def test_a_broken_rule_is_named(change: dict[str, Any], what: str) -> None:
    rows = make_rows()
    rows[2] |= change
    with pytest.raises(ManifestError, match=what):
        make_manifest(rows)


def test_many_duplicates_are_counted_and_the_first_named() -> None:
    rows = make_rows(20)
    with pytest.raises(ManifestError, match=r"20 slice ids stand .* such as 's0', 's1', 's2' and 17 more"):
        make_manifest(rows + rows)


def test_an_empty_table_is_no_manifest() -> None:
    with pytest.raises(ManifestError, match="no slices"):
        Manifest(pl.DataFrame(schema=SCHEMA), Path(), "x")


def test_columns_must_be_those_of_the_schema() -> None:
    table = make_manifest(make_rows()).table
    wrong = table.drop("label").with_columns(age=1, position=pl.lit("x"))
    with pytest.raises(ManifestError) as caught:
        Manifest(wrong, Path(), "x")
    for part in (
        "missing columns: label",
        "unknown columns: age",
        "wrong types: position is String, not Float64",
    ):
        assert part in caught.value.what
    shuffled = table.select(reversed(table.columns))
    assert Manifest(shuffled, Path(), "x").table.schema == SCHEMA


def test_completing_a_table_refuses_values_of_another_type() -> None:
    with pytest.raises(ManifestError, match="another type"):
        complete_table(pl.DataFrame({"label": ["fracture"]}))


def test_unlabelled_and_unknown_are_null_and_stay_so() -> None:
    row = make_rows(1)[0] | {"label": None, "split": None}
    manifest = make_manifest([row])
    unknown = (
        "label",
        "split",
        "patient_id",
        "study_uid",
        "series_uid",
        "source_id",
        "position",
        "mask_path",
    )
    assert manifest.table.select(unknown).row(0) == (None,) * len(unknown)
    assert manifest.splits == {}


# Splits and hashes ---------------------------------------------------------------------------------------------------


def test_select_keeps_one_split_in_order() -> None:
    manifest = make_manifest(make_rows(6))
    assert manifest.splits == {"train": 3, "val": 3}
    assert manifest.select("val").slice_ids == ["s1", "s3", "s5"]
    assert len(manifest.select("val")) == 3


@pytest.mark.parametrize("split", ["test", "dev"])
def test_selecting_a_missing_split_names_those_that_exist(split: str) -> None:
    with pytest.raises(ManifestError, match=f"no slices in split '{split}'") as caught:
        make_manifest(make_rows()).select(split)
    assert caught.value.fix == "choose one of its splits: train (2), val (1)"


def test_hashes_do_not_depend_on_the_order_of_rows_or_the_root() -> None:
    manifest = make_manifest(make_rows())
    other = make_manifest(make_rows()[::-1], Path("elsewhere"))
    assert (manifest.hash, manifest.pixel_hash) == (other.hash, other.pixel_hash)


@pytest.mark.parametrize(
    "change", [{"label": None}, {"split": "test"}, {"patient_id": "p"}, {"position": 0.1}]
)
def test_what_is_said_about_a_slice_is_in_the_hash_only(change: dict[str, Any]) -> None:
    rows = make_rows()
    before = make_manifest(rows)
    rows[1] |= change
    after = make_manifest(rows)
    assert before.hash != after.hash
    assert before.pixel_hash == after.pixel_hash


@pytest.mark.parametrize("change", [{"file_sha256": "f" * 64}, {"bits_stored": 12}, {"slice_id": "other"}])
def test_what_changes_pixels_is_in_both_hashes(change: dict[str, Any]) -> None:
    rows = make_rows()
    before = make_manifest(rows)
    rows[1] |= change
    after = make_manifest(rows)
    assert before.hash != after.hash
    assert before.pixel_hash != after.pixel_hash


def test_the_names_of_the_classes_are_in_the_hash() -> None:
    manifest = make_manifest(make_rows())
    other = Manifest(manifest.table, manifest.root, manifest.source, "broken", "whole")
    assert other.hash != manifest.hash
    assert other.pixel_hash == manifest.pixel_hash


def test_null_and_empty_hash_differently() -> None:
    rows = make_rows(1)
    assert make_manifest([rows[0] | {"patient_id": ""}]).hash != make_manifest(rows).hash


# Pixels --------------------------------------------------------------------------------------------------------------


def test_a_slice_is_read_with_what_is_known_about_it(tmp_path: Path) -> None:
    manifest = make_files(tmp_path)
    item = manifest.read_slice("s2")
    assert (item.pixels == 2).all()
    assert (item.slice_id, item.patient_id, item.study_uid, item.series_uid) == ("s2", "p", "1.2", "1.2.3")
    assert (item.position, item.domain) == (1.0, "display8")
    assert [int(each.pixels[0, 0]) for each in manifest.iter_slices()] == [0, 1, 2]
    with pytest.raises(ManifestError, match="no such slice"):
        manifest.read_slice("s9")


def test_a_file_that_changed_after_the_import_is_refused(tmp_path: Path) -> None:
    manifest = make_files(tmp_path)
    Image.fromarray(np.full((16, 16), 77, dtype=np.uint8)).save(tmp_path / "s1.png")
    with pytest.raises(ImageError, match="changed since it was imported"):
        manifest.read_slice("s1")


def test_missing_files_are_counted(tmp_path: Path) -> None:
    manifest = make_files(tmp_path, 8)
    manifest.verify_files()
    for index in range(5):
        (tmp_path / f"s{index}.png").unlink()
    with pytest.raises(
        ManifestError, match=r"5 of 8 files are missing, such as 's0\.png', 's1\.png', 's2\.png' and 2 more"
    ):
        manifest.verify_files()


def test_relative_paths_are_posix_and_inside_the_root(tmp_path: Path) -> None:
    assert make_relative(Path("./a/../b/c.png"), tmp_path) == "b/c.png"
    assert make_relative(tmp_path / "c.png", tmp_path) == "c.png"
    with pytest.raises(ManifestError, match="leads out of the root"):
        make_relative(Path("../c.png"), tmp_path)


# Disk ----------------------------------------------------------------------------------------------------------------

texts = st.one_of(st.none(), st.text(st.characters(exclude_categories=["Cs"]), max_size=8))
rows_strategy = st.lists(
    st.fixed_dictionaries(
        {
            "slice_id": st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8),
            "label": st.sampled_from([None, 0, 1]),
            "split": st.sampled_from([None, "train", "val", "test", "external"]),
            "patient_id": texts,
            "series_uid": texts,
            "position": st.one_of(st.none(), st.floats(allow_nan=False, allow_infinity=False)),
            "bits_stored": st.sampled_from([1, 8, 10, 12, 14, 16]),
            "file_bytes": st.integers(1, 2**40),
        }
    ),
    min_size=1,
    max_size=8,
    unique_by=lambda row: row["slice_id"],
)


@given(rows_strategy)
@settings(max_examples=40, deadline=None)
def test_a_manifest_is_the_same_after_a_trip_to_the_disk(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]]
) -> None:
    root = tmp_path_factory.mktemp("root")
    complete = [make_rows(1)[0] | row for row in rows]
    manifest = Manifest(make_manifest(complete).table, root, "labels-table", "broken", "whole")
    back = read_manifest(write_manifest(manifest, root / "m.parquet"))
    assert back.table.equals(manifest.table)
    assert (back.root, back.source) == (root, "labels-table")
    assert (back.positive_class, back.negative_class) == ("broken", "whole")
    assert (back.hash, back.pixel_hash) == (manifest.hash, manifest.pixel_hash)


def test_a_folder_that_holds_its_manifest_can_be_moved(tmp_path: Path) -> None:
    old = tmp_path / "old"
    (old / "images").mkdir(parents=True)
    manifest = make_files(old / "images")
    write_manifest(manifest, old / "manifest.parquet")
    assert read_manifest(old / "manifest.parquet").root == old / "images"
    old.rename(tmp_path / "new")
    moved = read_manifest(tmp_path / "new/manifest.parquet")
    assert moved.root == tmp_path / "new/images"
    moved.verify_files()
    assert read_manifest(tmp_path / "new/manifest.parquet", root=Path("x")).root == Path("x")


def test_files_that_are_no_manifest_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="no such manifest"):
        read_manifest(tmp_path / "no.parquet")
    (tmp_path / "a.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(ManifestError, match="damaged, or no parquet file"):
        read_manifest(tmp_path / "a.parquet")
    pl.DataFrame({"x": [1]}).write_parquet(tmp_path / "b.parquet")
    with pytest.raises(ManifestError, match="no manifest of cspine"):
        read_manifest(tmp_path / "b.parquet")
    assert not is_manifest(tmp_path / "a.parquet")
    assert not is_manifest(tmp_path / "b.parquet")
    path = write_manifest(make_manifest(make_rows()), tmp_path / "c.parquet")
    assert is_manifest(path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ManifestError, match="damaged"):
        read_manifest(path)


@pytest.mark.parametrize(
    ("metadata", "what"),
    [
        ('{"schema_version": 99}', "schema version 99; this cspine reads version 2"),
        ('{"schema_version": 1}', "metadata is incomplete"),
        ("{", "damaged"),
    ],
)
def test_foreign_metadata_is_refused(tmp_path: Path, metadata: str, what: str) -> None:
    table = make_manifest(make_rows()).table
    table.write_parquet(tmp_path / "m.parquet", metadata={"cspine.manifest": metadata})
    with pytest.raises(ManifestError, match=what):
        read_manifest(tmp_path / "m.parquet")


def test_a_broken_rule_in_a_file_names_the_file(tmp_path: Path) -> None:
    path = write_manifest(make_manifest(make_rows()), tmp_path / "m.parquet")
    metadata = pl.read_parquet_metadata(path)["cspine.manifest"]
    pl.read_parquet(path).clear().write_parquet(path, metadata={"cspine.manifest": metadata})
    with pytest.raises(ManifestError, match="no slices") as caught:
        read_manifest(path)
    assert caught.value.where == str(path)


def test_a_manifest_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="cannot write"):
        write_manifest(make_manifest(make_rows()), tmp_path / "file/m.parquet")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


# Slices in Hounsfield units ------------------------------------------------------------------------------------------


def make_hu(root: Path, count: int = 3) -> tuple[Manifest, np.ndarray[Any, Any]]:
    """One series; the values of slice i are about 100 i."""
    hu = (
        np.arange(count * 16 * 16).reshape(count, 16, 16) % 7 + 100 * np.arange(count)[:, None, None] - 500
    ).astype(np.int16)
    stored = write_stack(root / "a.npz", hu)
    rows = make_rows(count)
    for index, row in enumerate(rows):
        row |= {
            "path": "a.npz",
            "mode": "HU",
            "bits_stored": 16,
            "frame": index,
            "file_sha256": stored[index][1],
        }
        row |= {"row_spacing_mm": 0.5, "column_spacing_mm": 0.4, "position": 2.0 * index}
    return make_manifest(rows, root), hu


def test_slices_in_hu_are_read_by_their_number_in_the_file(tmp_path: Path) -> None:
    manifest, hu = make_hu(tmp_path)
    assert manifest.domain == "hu"
    for index, item in enumerate(manifest.iter_slices()):
        np.testing.assert_array_equal(item.pixels, hu[index])
        assert (item.domain, item.spacing_mm, item.position) == ("hu", (0.5, 0.4), 2.0 * index)
    path = write_manifest(manifest, tmp_path / "m.parquet")
    assert read_manifest(path).hash == manifest.hash


def test_slices_in_hu_are_shown_through_a_window(tmp_path: Path) -> None:
    manifest, hu = make_hu(tmp_path)
    shown = manifest.as_display(Window(center_hu=-400, width_hu=510))
    assert shown.domain == "display8"
    item = shown.read_row(2)
    assert item.domain == "display8"
    # From -655 to -145 in 255 steps of 2 HU.
    np.testing.assert_array_equal(item.pixels, np.rint((hu[2].astype(float) + 655) / 2))
    assert shown.hash == manifest.hash
    assert len({manifest.pixel_hash, shown.pixel_hash, manifest.as_display().pixel_hash}) == 3
    pictures = make_files(tmp_path)
    assert pictures.as_display() is pictures


def test_a_slice_that_was_changed_in_its_file_is_refused(tmp_path: Path) -> None:
    manifest, hu = make_hu(tmp_path)
    write_stack(tmp_path / "a.npz", hu + np.int16(1))
    with pytest.raises(ImageError, match="slice 2 has changed"):
        manifest.read_row(1)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"mode": "L"}, "some slices are Hounsfield units and some are pictures"),
        ({"frame": None}, "Hounsfield units without a place in their file"),
        ({"row_spacing_mm": None}, "without a place in their file or a spacing"),
        ({"column_spacing_mm": 0.0}, "a spacing that is not above 0"),
        ({"frame": -1}, "a number below 0"),
    ],
)
def test_a_broken_rule_of_slices_in_hu_is_named(change: dict[str, Any], what: str, tmp_path: Path) -> None:
    manifest, _ = make_hu(tmp_path)
    rows = manifest.table.to_dicts()
    rows[1] |= change
    with pytest.raises(ManifestError, match=what):
        make_manifest(rows)


def test_pictures_have_no_place_in_a_file_of_several() -> None:
    rows = make_rows()
    rows[0] |= {"frame": 0}
    with pytest.raises(ManifestError, match="pictures with a place in a file of several"):
        make_manifest(rows)


def test_a_manifest_of_version_1_keeps_its_hash(tmp_path: Path) -> None:
    manifest = make_manifest(make_rows())
    path = write_manifest(manifest, tmp_path / "m.parquet")
    metadata = json.loads(pl.read_parquet_metadata(path)["cspine.manifest"]) | {"schema_version": 1}
    old = pl.read_parquet(path).drop("frame", "row_spacing_mm", "column_spacing_mm")
    old.write_parquet(path, metadata={"cspine.manifest": json.dumps(metadata)})
    read = read_manifest(path)
    assert read.table.equals(manifest.table)
    # As version 1 computed it: its columns and its own number.
    header = {"version": 1, "classes": ["fracture", "normal"]}
    content = json.dumps(header, sort_keys=True) + old.sort("slice_id").write_ndjson()
    assert read.hash == manifest.hash == hashlib.sha256(content.encode()).hexdigest()[:16]
