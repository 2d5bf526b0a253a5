"""`cspine split` as a user runs it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from cspine.data.manifest import read_manifest
from tests.audit.sets import make_phantom


@pytest.fixture(scope="module")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_phantom(tmp_path_factory.mktemp("split") / "phantom", patients=10)


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "cspine", "split", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


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
def test_what_is_impossible_is_one_message_and_nothing_is_written(
    phantom: Path, tmp_path: Path, arguments: tuple[str, ...], words: str
) -> None:
    result = run(phantom, "-o", tmp_path / "folds", *arguments)
    assert result.returncode == 2
    assert words in " ".join(result.stderr.split())
    assert list(tmp_path.iterdir()) == []
