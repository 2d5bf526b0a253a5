"""Where torch is not loaded. Who may import whom are the contracts in pyproject.toml (import-linter, `make check`)."""

from __future__ import annotations

import pkgutil
import subprocess
import sys

import pytest

import cspine

TORCH = ("torch", "torchvision", "timm", "lightning", "lightning_fabric")
ROOMS = (
    "core", "preprocess", "data", "ct", "phantom", "metrics", "claims", "robustness", "auditing", "experiment",
    "dicom_out", "report", "answering", "evaluating",
)  # fmt: skip
"""Nothing in these needs a network."""

LIGHT = (
    "cspine.models.header", "cspine.inference.engines", "cspine.inference.predictor", "cspine.inference.answers",
    "cspine.comparison.describe", "cspine.cli.app",
)  # fmt: skip
"""Modules of rooms that do: `cspine info`, `cspine --help` and predictions by an export rest on them."""

FITTING = ("cspine.auditing.shortcuts", "cspine.auditing.audit")
"""Parts of the audit fit something."""


def list_torch_free() -> list[str]:
    names = [module.name for module in pkgutil.walk_packages(cspine.__path__, "cspine.")]
    rooms = tuple(f"cspine.{room}" for room in ROOMS)
    inside = [name for name in names if name in rooms or name.startswith(tuple(f"{room}." for room in rooms))]
    return [name for name in [*inside, *LIGHT] if name not in FITTING]


def test_torch_is_not_loaded_where_none_belongs() -> None:
    code = (
        f"import importlib, sys\n"
        f"for name in {list_torch_free()!r}:\n"
        f"    importlib.import_module(name)\n"
        f"    loaded = sorted(set({TORCH!r}) & set(sys.modules))\n"
        f"    assert not loaded, f'{{name}} loads {{loaded}}'\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("room", ROOMS)
def test_every_room_that_is_listed_is_there(room: str) -> None:
    assert any(name.startswith(f"cspine.{room}") for name in list_torch_free())
