"""The whole audit on sets made by hand: what is planted is found, and a clean set is called sound."""

from __future__ import annotations

import shutil
from pathlib import Path

import cv2
import numpy as np
import polars as pl
import pytest

from cspine.auditing.audit import audit_manifest, measure_size
from cspine.auditing.findings import AuditResult
from cspine.auditing.leaks import Choices
from tests.auditing.sets import edit_image, make_phantom, make_rows, read_set


@pytest.fixture(scope="module")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_phantom(tmp_path_factory.mktemp("audit") / "phantom")


@pytest.fixture(scope="module")
def clean(phantom: Path) -> AuditResult:
    return audit(phantom)


@pytest.fixture
def copy(phantom: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(phantom, tmp_path / "set"))


def audit(folder: Path) -> AuditResult:
    return audit_manifest(read_set(folder)).result


def list_codes(result: AuditResult) -> set[str]:
    return {finding.code for finding in result.findings}


def test_a_clean_set_is_sound_and_nothing_but_notes_is_found(clean: AuditResult) -> None:
    assert clean.verdict == "sound", [one.text for one in clean.findings if one.severity != "info"]
    assert clean.families == ()
    assert clean.effective_n.files == clean.effective_n.distinct_slices == 144
    assert clean.effective_n.patients == 24
    assert {baseline.name for baseline in clean.baselines} >= {"nearest neighbour", "logistic regression"}


@pytest.mark.parametrize(
    "change",
    ["blank", "inverted", "saturated", "border", "burnt-in-text", "colour", "odd-shape", "unlike-the-set"],
)
def test_a_planted_anomaly_is_found_in_its_file_alone(copy: Path, change: str) -> None:
    path = next(one for one in sorted(copy.rglob("*.png")) if "mask" not in one.as_posix())
    edit_image(path, change)
    found = [one for one in audit(copy).findings if one.code == change]
    assert [one.files for one in found] == [(path.relative_to(copy).as_posix(),)]


def test_blank_slices_of_several_patients_are_no_copies(copy: Path) -> None:
    labels = pl.read_csv(copy / "labels.csv", infer_schema=False)
    parts = [labels.filter(pl.col("split") == split)["path"][0] for split in ("train", "test")]
    for path in parts:
        edit_image(copy / path, "blank")
    result = audit(copy)
    assert sorted({one.code: one.files for one in result.findings}["blank"]) == sorted(parts)
    assert result.families == ()
    assert result.verdict == "limited"


def test_copies_in_other_splits_and_with_other_labels_invalidate(copy: Path) -> None:
    manifest = read_set(copy)
    rows = manifest.table.filter(pl.col("split") == "train")
    fracture = rows.filter(pl.col("label") == 1).row(0, named=True)
    labels = pl.read_csv(copy / "labels.csv", infer_schema=False)
    shutil.copy(copy / fracture["path"], copy / "again.png")
    given = {
        "path": "again.png",
        "label": "normal",
        "split": "test",
        "patient_id": "another",
        "slice_id": "again",
    }
    extra = pl.DataFrame({name: [given.get(name)] for name in labels.columns}, schema=labels.schema)
    pl.concat([labels, extra]).write_csv(copy / "labels.csv")
    result = audit(copy)
    assert result.verdict == "not evidence"
    assert {"copies-across-splits", "label-conflict", "file-across-splits"} <= list_codes(result)
    assert result.families == (tuple(sorted(("again.png", fracture["path"]))),)


def test_brightness_by_class_is_metadata_and_a_shortcut(copy: Path) -> None:
    for row in read_set(copy).table.iter_rows(named=True):
        if row["label"] == 1:
            pixels = np.asarray(cv2.imread(str(copy / row["path"]), cv2.IMREAD_GRAYSCALE))
            cv2.imwrite(str(copy / row["path"]), np.clip(pixels.astype(int) + 60, 0, 255).astype(np.uint8))
    result = audit(copy)
    telling = {
        str(one.evidence["property"]) for one in result.findings if one.code == "metadata-predicts-class"
    }
    assert "mean" in telling
    assert "shortcut" in list_codes(result)
    assert result.verdict == "not evidence"


def test_an_unreadable_slice_is_a_finding_and_the_rest_audited(copy: Path) -> None:
    manifest = read_set(copy)
    gone = manifest.table["path"][3]
    (copy / gone).unlink()
    result = audit_manifest(manifest).result
    found = [one for one in result.findings if one.code == "unreadable"]
    assert [one.files for one in found] == [(gone,)]
    assert result.effective_n.files == 144


def test_what_the_import_could_not_read_is_a_finding_too(phantom: Path) -> None:
    left_out = [("a.png", "truncated"), ("b.png", "truncated")]
    result = audit_manifest(read_set(phantom), unreadable=left_out).result
    (found,) = [one for one in result.findings if one.code == "unreadable"]
    assert found.files == ("a.png", "b.png")
    assert found.evidence == {"files": 2, "reasons": {"truncated": 2}}
    assert result.verdict == "limited"


def test_copies_of_one_label_in_one_split_are_harmless(copy: Path) -> None:
    labels = pl.read_csv(copy / "labels.csv", infer_schema=False)
    row = labels.row(0, named=True)
    shutil.copy(copy / row["path"], copy / "again.png")
    given = {**row, "path": "again.png", "slice_id": "again", "mask_path": None}
    extra = pl.DataFrame({name: [given.get(name)] for name in labels.columns}, schema=labels.schema)
    pl.concat([labels, extra]).write_csv(copy / "labels.csv")
    result = audit(copy)
    assert list_codes(result) == {"copies"}
    assert result.verdict == "sound"
    assert (result.effective_n.files, result.effective_n.distinct_slices) == (145, 144)


def test_intervals_over_patients_are_wider_than_over_files(clean: AuditResult) -> None:
    size = clean.effective_n
    assert size.naive is not None
    assert size.clustered is not None
    assert (size.naive.unit, size.clustered.unit) == ("file", "patient")
    assert size.naive.n == size.by_split["test"]["files"]
    assert size.clustered.n == size.by_split["test"]["patients"]
    assert size.clustered.low < size.naive.low  # type: ignore[operator]


def test_selection_on_what_is_reported_is_a_finding_of_the_run(phantom: Path) -> None:
    result = audit_manifest(read_set(phantom), choices=Choices("test"), reported="test").result
    assert "selection-on-reported" in list_codes(result)
    assert result.verdict == "not evidence"


def test_equal_files_are_counted_apart_from_other_copies(copy: Path) -> None:
    """One slice as three files: the second is equal pixel for pixel, the third is flipped."""
    labels = pl.read_csv(copy / "labels.csv", infer_schema=False)
    row = labels.row(0, named=True)
    pixels = np.asarray(cv2.imread(str(copy / row["path"]), cv2.IMREAD_GRAYSCALE))
    extra = []
    for name, changed in (("equal", np.dstack([pixels] * 3)), ("flipped", pixels[:, ::-1])):
        cv2.imwrite(str(copy / f"{name}.png"), changed)
        extra.append({**row, "path": f"{name}.png", "slice_id": name, "mask_path": None})
    added = pl.DataFrame(
        {name: [one.get(name) for one in extra] for name in labels.columns}, schema=labels.schema
    )
    pl.concat([labels, added]).write_csv(copy / "labels.csv")
    (found,) = [one for one in audit(copy).findings if one.code == "copies"]
    assert found.evidence["families"] == 1
    assert (found.evidence["equal_groups"], found.evidence["equal_files"]) == (1, 2)
    assert "1 of them stands in the set two and more times (3 files)" in found.text
    assert "2 of them are equal pixel for pixel to another, in 1 group." in found.text


def test_an_unlabelled_set_without_splits_is_audited_too(copy: Path) -> None:
    labels = pl.read_csv(copy / "labels.csv", infer_schema=False)
    labels.with_columns(label=pl.lit(""), split=pl.lit("")).write_csv(copy / "labels.csv")
    result = audit(copy)
    assert result.baselines == ()
    assert result.metadata == ()
    assert result.effective_n.reported_split is None


@pytest.mark.parametrize("units", [4, 12])
def test_the_example_interval_holds_for_fractional_counts(units: int) -> None:
    size = measure_size(make_rows(split=["val"] * units), "val")
    assert size.clustered is not None
    # Wilson's interval holds the p with |0.95 - p| <= z sqrt(p (1 - p) / n); its ends are the roots.
    for end in (size.clustered.low, size.clustered.high):
        assert end is not None
        assert abs(0.95 - end) == pytest.approx(1.959964 * (end * (1 - end) / units) ** 0.5, abs=1e-6)
