"""Import: every layout to the right rows, every bad one to a message that says what to change."""

from __future__ import annotations

import json
import os
import re
import tarfile
from collections import defaultdict
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from PIL import Image

from cspine.core.errors import InputError
from cspine.data.layouts import import_dataset
from cspine.data.manifest import write_manifest

DATA = Path(os.environ.get("CSPINE_DATA", Path(__file__).parents[3] / "shared" / "data"))


def draw(path: Path, value: int = 0, dtype: type = np.uint8, size: int = 16) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((size, size), value, dtype=dtype)).save(path)
    return path


def draw_set(root: Path, *folders: str, images: int = 2) -> Path:
    for number, folder in enumerate(folders):
        for index in range(images):
            draw(root / folder / f"{index}.png", 10 * number + index)
    return root


def import_rows(source: Path, **options: object) -> list[dict]:
    return import_dataset(source, **options)[0].table.to_dicts()  # type: ignore[arg-type]


# Class folders -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [("fracture", "normal"), ("normal", "fracture")])
def test_the_label_comes_from_the_name_of_the_folder(tmp_path: Path, order: tuple[str, str]) -> None:
    draw_set(tmp_path, *(f"{split}/{name}" for split in ("train", "val") for name in order))
    rows = import_rows(tmp_path)
    assert len(rows) == 8
    assert all(row["label"] == ("/fracture/" in row["path"]) for row in rows)
    assert all(row["split"] == row["path"].split("/")[0] for row in rows)
    assert all(row["slice_id"] == row["path"] for row in rows)
    assert {row["patient_id"] for row in rows} == {None}


def test_the_positive_class_is_the_one_that_is_named(tmp_path: Path) -> None:
    draw_set(tmp_path, "train/healthy", "train/broken")
    manifest, report = import_dataset(tmp_path, positive_class="Broken", negative_class="HEALTHY")
    assert (manifest.positive_class, manifest.negative_class) == ("Broken", "HEALTHY")
    assert all(row["label"] == ("broken" in row["path"]) for row in manifest.table.to_dicts())
    assert report.counts == {"train": {"Broken": 2, "HEALTHY": 2}}
    swapped = import_rows(tmp_path, positive_class="healthy", negative_class="broken")
    assert all(row["label"] == ("healthy" in row["path"]) for row in swapped)


@pytest.mark.parametrize(
    ("folder", "split"),
    [("Train", "train"), ("valid", "val"), ("VALIDATION", "val"), ("test", "test"), ("external", "external")],
)
def test_split_folders_have_several_names(tmp_path: Path, folder: str, split: str) -> None:
    draw_set(tmp_path, f"{folder}/Fracture", f"{folder}/NORMAL/deeper/still")
    assert {row["split"] for row in import_rows(tmp_path)} == {split}


def test_without_split_folders_the_split_is_unknown(tmp_path: Path) -> None:
    draw_set(tmp_path, "fracture", "normal")
    manifest, report = import_dataset(tmp_path)
    assert manifest.splits == {}
    assert report.counts == {"none": {"fracture": 2, "normal": 2}}


def test_other_files_are_skipped_and_counted(tmp_path: Path) -> None:
    draw_set(tmp_path, "train/fracture", "train/normal", "train/__MACOSX/fracture", "train/fracture/.cache")
    draw(tmp_path / "train/fracture/._0.png")
    draw(tmp_path / "loose.png")
    (tmp_path / "train/normal/Thumbs.db").write_bytes(b"x")
    (tmp_path / "train/normal/notes.txt").write_text("x")
    (tmp_path / "README.md").write_text("x")
    (tmp_path / "train/empty").mkdir()
    manifest, report = import_dataset(tmp_path)
    assert len(manifest) == 4
    assert report.skipped == {
        "hidden or system files": 6,
        "images outside a class folder": 1,
        "other files (.md)": 1,
        "other files (.txt)": 1,
    }


@pytest.mark.parametrize(
    ("folders", "what", "fix"),
    [
        (["train/fracture", "train/normal", "train/unsure"], "'unsure' is neither class", "move it out"),
        (["train/fracture", "train/Fracture", "train/normal"], "class 'fracture' is there twice", "merge"),
        (["val/fracture", "val/normal", "valid/normal"], "split 'val' is there twice", "merge"),
        (
            ["train/fracture", "train/normal", "val/normal"],
            "split 'val' has 2 images, but none of class",
            "add",
        ),
        (["fracture"], "the set has 2 images, but none of class 'normal'", "add"),
        (
            ["train/fracture", "train/normal", "holdout/normal"],
            "'holdout' stands beside the splits",
            "rename",
        ),
        (["train/fracture", "train/normal", "normal"], "stand beside split folders", "put the class folders"),
        (["data/train/fracture", "data/train/normal"], "one level below", "did you mean {root}/data?"),
        (["cats", "dogs"], "its folders: 'cats', 'dogs'", "give the two classes the names"),
        ([], "there are no images", "name a folder"),
    ],
)
def test_a_doubtful_folder_is_refused(tmp_path: Path, folders: list[str], what: str, fix: str) -> None:
    draw_set(tmp_path, *folders)
    with pytest.raises(InputError) as caught:
        import_dataset(tmp_path)
    assert what in caught.value.what
    assert caught.value.fix is not None
    assert fix.format(root=tmp_path) in caught.value.fix
    assert caught.value.where is not None
    assert str(tmp_path) in caught.value.where


def test_an_empty_class_folder_is_a_missing_class(tmp_path: Path) -> None:
    draw_set(tmp_path, "train/fracture")
    (tmp_path / "train/normal").mkdir()
    with pytest.raises(InputError, match="split 'train' has 2 images, but none of class 'normal'"):
        import_dataset(tmp_path)


def test_a_split_folder_without_images_is_noted(tmp_path: Path) -> None:
    draw_set(tmp_path, "train/fracture", "train/normal")
    (tmp_path / "test/normal").mkdir(parents=True)
    manifest, report = import_dataset(tmp_path)
    assert manifest.splits == {"train": 4}
    assert "The folder 'test' has no images." in report.notes
    (tmp_path / "empty/train").mkdir(parents=True)
    with pytest.raises(InputError, match="there are no images"):
        import_dataset(tmp_path / "empty")


def test_one_class_folder_is_not_the_set(tmp_path: Path) -> None:
    draw_set(tmp_path, "train/fracture", "train/normal")
    with pytest.raises(InputError, match="one class folder") as caught:
        import_dataset(tmp_path / "train/fracture")
    assert caught.value.fix == f"did you mean {tmp_path / 'train'}?"


@pytest.mark.parametrize(("positive", "negative"), [("normal", "Normal "), ("", "normal"), ("fracture", " ")])
def test_the_classes_need_two_names(tmp_path: Path, positive: str, negative: str) -> None:
    with pytest.raises(InputError, match="different names"):
        import_dataset(tmp_path, positive_class=positive, negative_class=negative)


def test_a_missing_source_and_an_unknown_layout_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file or folder"):
        import_dataset(tmp_path / "gone")
    with pytest.raises(InputError, match="no layout 'rsna'"):
        import_dataset(tmp_path, layout="rsna")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="not a folder"):
        import_dataset(draw(tmp_path / "a.png"), layout="class-folders")


def test_names_of_the_kaggle_set_give_series_and_source(tmp_path: Path) -> None:
    names = [
        "CSFDV1B10 (18).png",
        "CSFDV1B10 (18)-rotated3-rotated2.png",
        "CSFDV1B13 (15)_1-sharpened.png",
        "x.png",
    ]
    for name in names:
        draw(tmp_path / "train/fracture" / name)
    draw(tmp_path / "val/normal/CSFDV1B10 (109)-rotated1.png")
    draw(tmp_path / "val/fracture/CSFDV1B10 (18)-sharpened.png")
    draw(tmp_path / "train/normal/CSFDV1B10 (109).png")
    manifest, report = import_dataset(tmp_path)
    rows = {row["path"].split("/", 1)[1]: row for row in manifest.table.to_dicts()}
    found = [
        (rows[f"fracture/{name}"][key]) for name in names for key in ("series_uid", "position", "source_id")
    ]
    first = ["CSFDV1B10", 18.0, "CSFDV1B10 (18)"]
    assert found == [*first, *first, "CSFDV1B13", 15.0, "CSFDV1B13 (15)_1", None, None, None]
    assert (report.series, report.source_slices, report.patients, report.studies) == (2, 3, None, None)
    assert "2 source slices stand in more than one split." in report.notes
    assert any(note.startswith("6 of 7 files have names of the Kaggle set") for note in report.notes)


# Files ---------------------------------------------------------------------------------------------------------------


def test_unreadable_images_are_left_out_and_listed(tmp_path: Path) -> None:
    draw_set(tmp_path, "train/fracture", "train/normal")
    (tmp_path / "train/normal/bad.png").write_bytes(b"")
    draw(tmp_path / "train/normal/tiny.png", size=1)
    manifest, report = import_dataset(tmp_path)
    assert len(manifest) == report.slices == 4
    assert report.unreadable == (
        ("train/normal/bad.png", "an empty file (0 bytes)"),
        ("train/normal/tiny.png", "1x1 pixels: smaller than 16 px a side"),
    )
    with pytest.raises(InputError, match="2 of 6 images cannot be read") as caught:
        import_dataset(tmp_path, strict=True)
    assert "train/normal/bad.png: an empty file (0 bytes)" in caught.value.what


def test_a_set_of_no_or_one_readable_class_is_refused(tmp_path: Path) -> None:
    draw_set(tmp_path, "train/fracture", "train/normal")
    for path in (tmp_path / "train/normal").iterdir():
        path.write_bytes(b"x")
    with pytest.raises(InputError, match="split 'train' has 2 images, but none of class 'normal'"):
        import_dataset(tmp_path)
    for path in (tmp_path / "train/fracture").iterdir():
        path.write_bytes(b"x")
    with pytest.raises(InputError, match="none of the 4 images can be read"):
        import_dataset(tmp_path)


def test_the_depth_is_decided_for_the_whole_set(tmp_path: Path) -> None:
    draw(tmp_path / "fracture/a.png", 100, np.uint16)
    draw(tmp_path / "fracture/b.png", 255)
    draw(tmp_path / "normal/c.png", 4000, np.uint16)
    draw(tmp_path / "normal/d.tif", 1, np.float32)
    manifest, report = import_dataset(tmp_path)
    assert dict(manifest.table.select("path", "bits_stored").iter_rows()) == {
        "fracture/a.png": 12,
        "fracture/b.png": 8,
        "normal/c.png": 12,
        "normal/d.tif": 1,
    }
    assert manifest.read_slice("fracture/a.png").pixels[0, 0] == round(100 * 255 / 4095)
    assert (report.bits, report.bits_stored) == ({"16": 2, "8": 1, "32": 1}, {"12": 2, "8": 1, "1": 1})
    assert report.modes == {"I;16": 2, "L": 1, "F": 1}


def test_colour_is_counted_and_noted(tmp_path: Path) -> None:
    draw_set(tmp_path, "fracture", "normal")
    Image.new("RGB", (30, 20), (255, 0, 0)).save(tmp_path / "normal/colour.png")
    manifest, report = import_dataset(tmp_path)
    assert report.channels_differ == int(manifest.table["channels_differ"].sum()) == 1
    assert report.sizes == {"16x16": 4, "30x20": 1}
    assert any("1 slices have colour" in note for note in report.notes)
    assert json.loads(json.dumps(report.as_dict())) == report.as_dict()


def test_progress_counts_every_file_in_any_number_of_threads(tmp_path: Path) -> None:
    draw_set(tmp_path, "fracture", "normal", images=5)
    calls: list[tuple[int, int]] = []
    one, _ = import_dataset(tmp_path, workers=1, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(done, 10) for done in range(1, 11)]
    assert import_dataset(tmp_path, workers=4)[0].hash == one.hash


# Labels tables -------------------------------------------------------------------------------------------------------


def write_table(root: Path, *lines: str, name: str = "labels.csv") -> Path:
    for index in range(4):
        draw(root / f"images/{index}.png", index)
    (root / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return root / name


FULL = (
    "path,label,patient_id,study_uid,series_uid,source_id,position,split,vertebra_level,fracture_type,mask_path,slice_id",
    "images/0.png,fracture,001,1.2,1.2.3,a,-12.5,train,C2,dens,masks/0.png,s0",
    "images/1.png,0,001,1.2,1.2.3,b,7,validation,,,,s1",
    "./images/2.png,NORMAL,,,,,,external,,,,s2",
    "images\\3.png,,002,,,,,,,,,s3",
)


def test_a_full_table_is_read_and_ids_stay_text(tmp_path: Path) -> None:
    draw(tmp_path / "masks/0.png")
    write_table(tmp_path, *FULL)
    manifest, report = import_dataset(tmp_path)  # found by its name in the folder
    rows = manifest.table.select(FULL[0].split(",")).rows()
    assert rows[0] == (
        *("images/0.png", 1, "001", "1.2", "1.2.3", "a", -12.5, "train", "C2", "dens"),
        *("masks/0.png", "s0"),
    )
    assert rows[1] == ("images/1.png", 0, "001", "1.2", "1.2.3", "b", 7.0, "val", None, None, None, "s1")
    assert rows[2] == ("images/2.png", 0, None, None, None, None, None, "external", None, None, None, "s2")
    assert rows[3] == ("images/3.png", None, "002", *[None] * 8, "s3")
    assert (report.patients, report.studies, report.layout) == (2, 1, "labels-table")
    assert report.counts["none"] == {"fracture": 0, "normal": 0, "unlabelled": 1}
    assert "1 patients stand in more than one split." in report.notes


@pytest.mark.parametrize("kind", ["tsv", "parquet", "bom", "quoted"])
def test_other_kinds_of_table_say_the_same(tmp_path: Path, kind: str) -> None:
    lines = ("Path,Label,patient_id", "images/0.png,fracture,007", "images/1.png,normal,010")
    table = write_table(tmp_path, *lines, name="table.csv")
    if kind == "tsv":
        table = write_table(tmp_path, *(line.replace(",", "\t") for line in lines), name="table.tsv")
    elif kind == "parquet":
        table = tmp_path / "table.parquet"
        pl.DataFrame(
            {"path": ["images/0.png", "images/1.png"], "label": [1, 0], "patient_id": ["007", "010"]}
        ).write_parquet(table)
    elif kind == "bom":
        table.write_text("\ufeff" + table.read_text(), encoding="utf-8")
    else:
        table.write_text("\n".join(",".join(f'" {cell}"' for cell in line.split(",")) for line in lines))
    manifest, _ = import_dataset(table)
    assert manifest.table.select("path", "label", "patient_id", "slice_id").rows() == [
        ("images/0.png", 1, "007", "images/0.png"),
        ("images/1.png", 0, "010", "images/1.png"),
    ]


def test_unknown_columns_are_named_and_left_out(tmp_path: Path) -> None:
    write_table(tmp_path, "path,age,label", "images/0.png,50,1", "images/1.png,60,0")
    manifest, report = import_dataset(tmp_path)
    assert "age" not in manifest.table.columns
    assert report.notes == ("Columns of the table that were not kept: age.",)


def test_missing_files_and_masks_are_reported(tmp_path: Path) -> None:
    write_table(
        tmp_path, "path,label,mask_path", "images/0.png,1,m.png", "images/9.png,0,", "images/1.png,0,"
    )
    manifest, report = import_dataset(tmp_path)
    assert report.unreadable == (("images/9.png", "no such file"),)
    assert manifest.table["mask_path"].to_list() == [None, None]
    assert "1 mask files are missing; their slices have no mask." in report.notes


def test_a_split_of_one_class_is_noted(tmp_path: Path) -> None:
    write_table(
        tmp_path, "path,label,split", "images/0.png,1,train", "images/1.png,0,train", "images/2.png,0,test"
    )
    assert "Split 'test' has no slice of class 'fracture'." in import_dataset(tmp_path)[1].notes


@pytest.mark.parametrize(
    ("lines", "what"),
    [
        (["images/0.png,maybe"], "a label that is none of .* \\('maybe'\\) in row 2"),
        (["images/0.png,1", "images/1.png,2"], "a label .*\\('2'\\) in row 3"),
        (["images/0.png,1", "./images/0.png,0"], "a path that another row has too .* in row 2, 3"),
        ([",1"], "no path in row 2"),
        (["../x.png,1"], "a path leads out of the root folder"),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, lines: list[str], what: str) -> None:
    table = write_table(tmp_path, "path,label", *lines)
    with pytest.raises(InputError, match=what):
        import_dataset(table)


@pytest.mark.parametrize(
    ("column", "cells", "what"),
    [
        ("slice_id", ("a", "a"), "a slice_id that another row has too in row 2, 3"),
        ("slice_id", ("a", ""), "no slice_id in row 3"),
        ("split", ("train", "dev"), "a split that is none of .* \\('dev'\\) in row 3"),
        ("position", ("1", "high"), "a position that is not a number in row 3"),
        ("position", ("nan", "1"), "a position that is not a number in row 2"),
    ],
)
def test_a_bad_cell_is_named(tmp_path: Path, column: str, cells: tuple[str, str], what: str) -> None:
    rows = [f"images/{index}.png,{index},{cell}" for index, cell in enumerate(cells)]
    table = write_table(tmp_path, f"path,label,{column}", *rows)
    with pytest.raises(InputError, match=what):
        import_dataset(table)


def test_labels_may_be_true_and_false(tmp_path: Path) -> None:
    write_table(tmp_path, "path,label", "images/0.png,0", "images/1.png,1")  # draws the images
    (tmp_path / "labels.csv").unlink()
    rows = pl.DataFrame({"path": ["images/0.png", "images/1.png"], "label": [False, True]})
    rows.write_parquet(tmp_path / "labels.parquet")
    assert [row["label"] for row in import_rows(tmp_path)] == [0, 1]


def test_a_class_called_0_is_a_name(tmp_path: Path) -> None:
    write_table(tmp_path, "path,label", "images/0.png,0", "images/1.png,1")
    assert [row["label"] for row in import_rows(tmp_path, positive_class="0", negative_class="1")] == [1, 0]
    with pytest.raises(InputError, match=r"\('1'\) in row 3"):
        import_rows(tmp_path, positive_class="0", negative_class="normal")


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ("path;label\na.png;1\n", "lacks path and label; its columns: path;label"),
        ("path,label\n", "has no rows"),
        ("", "cannot be read"),
        ("path,label\na,b,c,d\n", "cannot be read"),
        ("path,Path,label\na,b,1\n", "has the column path twice"),
        ("path,label, label\na,0,1\n", "has the column label twice"),
        ("path,label,split,split\na,0,train,val\n", "has the column split twice"),
    ],
)
def test_a_table_that_is_none_is_refused(tmp_path: Path, content: str, what: str) -> None:
    (tmp_path / "t.csv").write_text(content)
    with pytest.raises(InputError, match=what):
        import_dataset(tmp_path / "t.csv")


def test_a_folder_needs_one_labels_table(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no labels table"):
        import_dataset(tmp_path, layout="labels-table")
    for name in ("labels.csv", "labels.tsv"):
        write_table(tmp_path, "path,label", name=name)
    with pytest.raises(InputError, match="several labels tables"):
        import_dataset(tmp_path)


def test_paths_start_from_the_root_that_is_named(tmp_path: Path) -> None:
    table = write_table(tmp_path / "set", "path,label", "0.png,1", f"{tmp_path}/set/images/1.png,0")
    manifest, _ = import_dataset(table, root=tmp_path / "set/images")
    assert manifest.table["path"].to_list() == ["0.png", "1.png"]


def test_a_manifest_is_imported_with_its_labels_and_classes(tmp_path: Path) -> None:
    draw_set(tmp_path / "set", "train/broken", "train/whole")
    manifest, _ = import_dataset(tmp_path / "set", positive_class="broken", negative_class="whole")
    path = write_manifest(manifest, tmp_path / "m.parquet")
    draw(tmp_path / "set/train/broken/0.png", 99)
    again, report = import_dataset(path)
    assert (again.positive_class, report.layout) == ("broken", "manifest")
    assert again.table.drop("file_sha256", "file_bytes").equals(
        manifest.table.drop("file_sha256", "file_bytes")
    )
    assert again.pixel_hash != manifest.pixel_hash


# The real set --------------------------------------------------------------------------------------------------------


def test_the_kaggle_set_is_200_sources_of_which_two_straddle(tmp_path: Path) -> None:
    archive = DATA / "kaggle-cspine.tar"
    if not archive.is_file():
        pytest.skip(f"no {archive.name} in {DATA.name}; name its folder in CSPINE_DATA")
    # The parsing is of names, so that all names are kept and every file holds the same small image.
    image = draw(tmp_path / "image.png").read_bytes()
    root = tmp_path / "set"
    with tarfile.open(archive) as members:
        for name in members.getnames():
            path = root / re.sub(r"\.(L|RGB)\.webp$", ".png", name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(image)
    manifest, report = import_dataset(root)
    assert report.counts == {
        "train": {"fracture": 1900, "normal": 1900},
        "val": {"fracture": 200, "normal": 200},
    }
    assert (report.source_slices, report.series, report.patients) == (200, 4, None)
    splits = defaultdict(set)
    labels = defaultdict(set)
    for source, split, label in manifest.table.select("source_id", "split", "label").iter_rows():
        splits[source].add(split)
        labels[source].add(label)
    assert {source for source, names in splits.items() if len(names) > 1} == {
        "CSFDV1B10 (18)",
        "CSFDV1B10 (109)",
    }
    assert all(len(both) == 1 for both in labels.values())
    assert manifest.table["source_id"].value_counts()["count"].unique().to_list() == [21]
