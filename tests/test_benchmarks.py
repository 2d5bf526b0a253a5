"""The scripts in benchmarks/ find what they measure: names that moved are noticed here."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[1] / "benchmarks"


@pytest.mark.parametrize("name", sorted(path.stem for path in SCRIPTS.glob("[!_]*.py")))
def test_a_script_imports_what_it_measures(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openvino")
    monkeypatch.syspath_prepend(str(SCRIPTS))
    module = importlib.import_module(name)
    del sys.modules[name]
    assert callable(module.main)
