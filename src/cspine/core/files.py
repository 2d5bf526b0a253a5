"""Atomic writes: a file or folder is either the finished new one or untouched."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cspine.core.errors import CspineError, InputError, OutputError

if TYPE_CHECKING:
    import polars as pl


def explain_os_error(error: OSError, target: Path) -> OutputError:
    """Turn an `OSError` met while writing `target` into one clear message."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return OutputError(
            "the disk is full; this file was not written",
            where=str(target),
            fix="free some space, or name another folder",
        )
    reason = error.strerror or type(error).__name__
    return OutputError(
        f"cannot write: {reason.lower()}", where=str(target), fix="name a folder you may write to"
    )


@contextlib.contextmanager
def atomic_file(target: Path) -> Iterator[Path]:
    """Yield a temporary path beside `target`; on success it takes the place of `target`, on failure it is removed.

    Raises:
        OutputError: the file cannot be written (full disk, no permission, a folder of that name).
    """
    target = Path(target)
    temporary: Path | None = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".partial", dir=target.parent)
        os.close(handle)
        temporary = Path(name)
        yield temporary
        # mkstemp makes private files; an output should have the mode any new file of this user gets.
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        temporary.replace(target)
        temporary = None
    except OSError as error:
        raise explain_os_error(error, target) from error
    except CspineError:
        raise
    except Exception as error:
        # Writers in Rust (safetensors, polars) hide the system's error in a message of their own kind.
        if found := re.search(r"\(os error (\d+)\)", str(error)):
            code = int(found[1])
            raise explain_os_error(OSError(code, os.strerror(code)), target) from error
        raise
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `target`; on success it becomes `target`, on failure it is removed.

    Raises:
        OutputError: `target` exists and is not empty, or cannot be written.
    """
    target = Path(target)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise OutputError(
            "the output folder exists and is not empty",
            where=str(target),
            fix="name a new folder, or remove this one",
        )
    temporary: Path | None = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".partial", dir=target.parent))
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o777 & ~umask)
        if target.exists():
            target.rmdir()
        temporary.replace(target)
        temporary = None
    except OSError as error:
        raise explain_os_error(error, target) from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def refuse_to_replace(output: Path, *sources: Path) -> None:
    """Raise `InputError` where an output would take the place of what it is made from."""
    for source in sources:
        if output.exists() and source.exists() and output.samefile(source):
            raise InputError(
                "the output would replace its own source", where=str(output), fix="name another file with -o"
            )


def refuse_other_suffix(output: Path, suffix: str, what: str) -> None:
    """Raise `InputError` where an output is not named as what it is: it could be taken for something else later."""
    if output.suffix.lower() != suffix:
        raise InputError(
            f"{what} is written as {suffix}",
            where=str(output),
            fix=f"name a file that ends in {suffix} with -o",
        )


def write_text(target: Path, text: str) -> Path:
    """Write `text` to `target` atomically (UTF-8)."""
    with atomic_file(target) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return Path(target)


def write_parquet(target: Path, table: pl.DataFrame, metadata: dict[str, str] | None = None) -> Path:
    """Write `table` to `target` atomically, with `metadata` in the file's header.

    The bytes are made first: where the disk is full, the system says so in its own words, and polars does not.
    """
    content = io.BytesIO()
    table.write_parquet(content, metadata=metadata)
    with atomic_file(target) as temporary:
        temporary.write_bytes(content.getbuffer())
    return Path(target)


def write_json(target: Path, value: Any) -> Path:
    """Write `value` as indented JSON, atomically. NaN and infinity are refused: undefined is null here."""
    return write_text(target, json.dumps(value, indent=2, allow_nan=False) + "\n")


def compute_hash(value: Any, length: int = 16) -> str:
    """A short SHA-256 of a JSON-able value, the same for the same content whatever the order of its keys."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:length]
