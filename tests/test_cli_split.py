"""`cspine split` as a user runs it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from cspine.data.layouts import import_dataset
from cspine.data.manifest import read_manifest
from tests.auditing.sets import make_phantom
from tests.commands import Finished, run_here


@pytest.fixture(scope="module")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_phantom(tmp_path_factory.mktemp("split") / "phantom", patients=10)


def run(*arguments: object) -> Finished:
    return run_here("split", *arguments)


def test_a_manifest_a_fold_is_written_and_can_be_read_again(phantom: Path, tmp_path: Path) -> None:
    result = run(phantom, "-o", tmp_path / "folds", "--scheme", "kfold", "--folds", 3)
    assert result.returncode == 0, result.stderr
    files = sorted((tmp_path / "folds").iterdir())
    assert [path.name for path in files] == ["fold1.parquet", "fold2.parquet", "fold3.parquet"]
    tested = [slice_id for path in files for slice_id in read_manifest(path).select("test").slice_ids]
    assert len(tested) == len(set(tested)) == 60
    assert read_manifest(files[0]).read_row(0).pixels.shape == (64, 64)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--scheme", "kfold", "--folds", "11"), "10 patients cannot be divided into 11 folds"),
        (("--scheme", "thirds"), "choose one of holdout, kfold, leave-one-out"),
        (("--by", "source_id"), "have no source_id"),
    ],
)
def test_an_impossible_split_is_one_message(
    phantom: Path, tmp_path: Path, arguments: tuple[str, ...], words: str
) -> None:
    result = run(phantom, "-o", tmp_path / "folds", *arguments)
    assert result.returncode == 2
    assert words in " ".join(result.stderr.split())
    assert list(tmp_path.iterdir()) == []


def test_without_any_ids_copies_are_found_and_kept_together(phantom: Path, tmp_path: Path) -> None:
    for row in read_rows(phantom):
        place = tmp_path / "set" / ("fracture" if row["label"] else "normal")
        place.mkdir(parents=True, exist_ok=True)
        for copy in range(2):
            shutil.copy(phantom / row["path"], place / f"{Path(row['path']).stem}-{copy}.png")
    result = run(tmp_path / "set", "-o", tmp_path / "folds", "--scheme", "kfold", "--folds", 2)
    assert result.returncode == 0, result.stderr
    assert "copies found from pixels" in " ".join(result.stdout.split())
    for path in (tmp_path / "folds").iterdir():
        table = read_manifest(path).table.with_columns(pl.col("slice_id").str.replace(r"-\d(\.png)?$", ""))
        assert table.group_by("slice_id").agg(pl.col("split").n_unique())["split"].max() == 1


def read_rows(phantom: Path) -> list[dict[str, Any]]:
    return import_dataset(phantom)[0].table.rows(named=True)
