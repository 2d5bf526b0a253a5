"""The public face of the package: which names it has, that they are real, and that it costs nothing to import."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import cspine

# Removing or renaming one of these breaks users: it needs a line in CHANGELOG.md.
PUBLIC = {
    "Audit",
    "assess_calibration",
    "audit",
    "check_claims",
    "compare",
    "Checkpoint",
    "Comparison",
    "Evaluation",
    "ComparisonResults",
    "CspineError",
    "Estimate",
    "FractureModel",
    "StudyOptions",
    "load",
    "EvaluationResult",
    "Experiment",
    "ImportReport",
    "Label",
    "Manifest",
    "ModelSpec",
    "PhantomSettings",
    "Predictor",
    "Recipe",
    "Slice",
    "SliceCache",
    "Split",
    "__version__",
    "evaluate",
    "import_dataset",
    "load_checkpoint",
    "read_experiment",
    "read_manifest",
    "read_predictions",
    "read_results",
    "run_comparison",
    "write_manifest",
    "write_phantom",
    "write_predictions",
    "write_report",
}


def test_the_public_names_are_these() -> None:
    assert set(cspine.__all__) == PUBLIC
    assert len(cspine.__all__) == len(PUBLIC)
    assert set(dir(cspine)) >= PUBLIC


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_a_public_name_is_there_and_documented(name: str) -> None:
    value = getattr(cspine, name)
    if name != "__version__":
        assert inspect.getdoc(value)
        assert value is getattr(import_module(value.__module__), name)


def test_the_names_for_type_checkers_are_the_names_at_run_time() -> None:
    tree = ast.parse(Path(cspine.__file__).read_text(encoding="utf-8"))
    block = next(
        node
        for node in tree.body
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
    )
    imports = [node for node in block.body if isinstance(node, ast.ImportFrom)]
    assert {alias.asname: node.module for node in imports for alias in node.names} == cspine._HOME
    assert all(alias.name == alias.asname for node in imports for alias in node.names)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="nothing_of_that_name"):
        _ = cspine.nothing_of_that_name


def test_star_import_brings_the_public_names() -> None:
    names: dict[str, object] = {}
    exec("from cspine import *", names)
    assert set(names) >= PUBLIC


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = (
        "import sys, cspine\n"
        "assert cspine.__version__\n"
        "heavy = {'torch', 'timm', 'polars', 'numpy', 'matplotlib', 'pydantic', 'cv2'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
