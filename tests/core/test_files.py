"""A file or folder is the finished new one or untouched, and a full disk is said in plain words."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cspine.core.errors import OutputError, TrainingError
from cspine.core.files import (
    atomic_file,
    atomic_folder,
    compute_hash,
    explain_os_error,
    write_json,
    write_text,
)


def test_a_file_appears_only_when_it_is_finished(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "a.txt"
    with atomic_file(target) as temporary:
        temporary.write_text("new")
        assert not target.exists()
        assert temporary.parent == target.parent
    assert target.read_text() == "new"
    assert os.listdir(target.parent) == ["a.txt"]


def test_a_file_gets_the_mode_of_any_new_file(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    write_text(tmp_path / "a.txt", "x")
    assert (tmp_path / "a.txt").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize("error", [RuntimeError("no"), KeyboardInterrupt(), TrainingError("no")])
def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path: Path, error: BaseException) -> None:
    target = tmp_path / "a.txt"
    write_text(target, "old")

    def fail() -> None:
        with atomic_file(target) as temporary:
            temporary.write_text("half")
            raise error

    with pytest.raises(type(error)):
        fail()
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("error", [RuntimeError("no"), KeyboardInterrupt(), OSError(errno.EIO, "I/O error")])
def test_an_error_leaves_no_folder(tmp_path: Path, error: BaseException) -> None:
    wanted = OutputError if isinstance(error, OSError) else type(error)

    def fail() -> None:
        with atomic_folder(tmp_path / "out") as temporary:
            (temporary / "a.txt").write_text("half")
            raise error

    with pytest.raises(wanted):
        fail()
    assert os.listdir(tmp_path) == []


def test_a_folder_appears_whole(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with atomic_folder(tmp_path / "out") as temporary:
        (temporary / "a.txt").write_text("all")
        assert not list((tmp_path / "out").iterdir())
    assert os.listdir(tmp_path) == ["out"]
    assert (tmp_path / "out/a.txt").read_text() == "all"


def test_a_folder_that_holds_something_is_refused_and_kept(tmp_path: Path) -> None:
    write_text(tmp_path / "out/a.txt", "old")
    with pytest.raises(OutputError, match="not empty"), atomic_folder(tmp_path / "out"):
        pytest.fail("the body must not run")
    assert (tmp_path / "out/a.txt").read_text() == "old"


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def refuse(*_: object, **__: object) -> int:
        raise OSError(code, os.strerror(code))

    write_text(tmp_path / "a.txt", "old")
    monkeypatch.setattr(Path, "write_text", refuse)
    with pytest.raises(OutputError, match="disk is full") as caught:
        write_text(tmp_path / "a.txt", "new")
    assert caught.value.where == str(tmp_path / "a.txt")
    assert caught.value.exit_code == 2
    assert (tmp_path / "a.txt").read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


@pytest.mark.parametrize(
    ("error", "wanted"),
    [
        (RuntimeError("underlying IO error: No space left on device (os error 28)"), "disk is full"),
        (RuntimeError("I/O error: Permission denied (os error 13)"), "permission denied"),
    ],
)
def test_a_system_error_inside_another_is_found(tmp_path: Path, error: Exception, wanted: str) -> None:
    with pytest.raises(OutputError, match=wanted), atomic_file(tmp_path / "a.bin"):
        raise error
    assert os.listdir(tmp_path) == []


def test_an_error_without_a_reason_still_says_something() -> None:
    assert "oserror" in str(explain_os_error(OSError(), Path("a")))


def test_a_folder_where_the_file_should_be_is_an_output_error(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(OutputError):
        write_text(tmp_path / "a", "x")
    assert os.listdir(tmp_path) == ["a"]


def test_a_file_where_a_folder_should_be_is_an_output_error(tmp_path: Path) -> None:
    write_text(tmp_path / "a", "x")
    with pytest.raises(OutputError):
        write_text(tmp_path / "a/b", "x")
    with pytest.raises(OutputError), atomic_folder(tmp_path / "a/b"):
        pytest.fail("the body must not run")


def test_json_has_no_nan(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", {"x": float("nan")})
    assert os.listdir(tmp_path) == []


@given(st.dictionaries(st.text(), st.integers() | st.text() | st.lists(st.booleans())))
def test_the_hash_ignores_the_order_of_keys(value: dict[str, object]) -> None:
    backwards = dict(reversed(value.items()))
    assert compute_hash({"a": value}) == compute_hash({"a": backwards})
    assert compute_hash(value) != compute_hash({"a": value})


def test_the_hash_heeds_the_order_of_lists_and_its_length() -> None:
    assert compute_hash([1, 2]) != compute_hash([2, 1])
    assert len(compute_hash(1)) == 16
    assert compute_hash(1, length=8) == compute_hash(1)[:8]
