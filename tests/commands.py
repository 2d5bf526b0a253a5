"""Run a command line of cspine in this process, as fast as its code is, or in one of its own, as a user does."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

from cspine.cli.app import main

WIDE = {"COLUMNS": "100"}


@dataclass(frozen=True)
class Finished:
    """What a command left: its exit code, and what it printed."""

    returncode: int
    stdout: str
    stderr: str


def run_here(*arguments: object, cwd: Path | None = None) -> Finished:
    """Run a command line in this process. A traceback would stand in `stderr`, as it would on a terminal."""
    out, err = io.StringIO(), io.StringIO()
    code: int | str | None = 0
    with (
        contextlib.chdir(cwd or Path.cwd()),
        mock.patch.dict(os.environ, WIDE),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            main([str(one) for one in arguments])
        except SystemExit as stop:
            code = stop.code
        except Exception:
            traceback.print_exc()
            code = 1
    return Finished(int(code or 0), out.getvalue(), err.getvalue())


def run_apart(*arguments: object, cwd: Path | None = None) -> Finished:
    """Run a command line in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "cspine", *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, **WIDE, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    return Finished(done.returncode, done.stdout, done.stderr)
