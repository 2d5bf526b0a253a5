"""The import order of docs/architecture.md, held by reading the imports of every module.

To add a module to a folder that is listed, do nothing. To add a folder or a top-level file, give it its place in
`LAYERS`: it may import the layers above it in the table, except those that it names in `never`.
"""

from __future__ import annotations

import ast
import graphlib
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import cspine

SOURCE = Path(cspine.__file__).parent


@dataclass(frozen=True)
class Layer:
    """Modules of one place in the flow. A prefix covers the module of that name and all below it."""

    name: str
    prefixes: tuple[str, ...]
    never: tuple[str, ...] = ()
    no_torch: bool = True


LEARNING = ("models", "experiment", "training", "inference")
# In the order of the flow. The longest prefix that fits decides where a module belongs.
LAYERS = (
    Layer("root", ("cspine",)),
    Layer("core", ("cspine.core",)),
    Layer("preprocess", ("cspine.preprocess",)),
    Layer("data", ("cspine.data",)),
    Layer("ct", ("cspine.ct",)),
    Layer("phantom", ("cspine.phantom",)),
    # What a model is described by: plain rows, which a drawing may know without knowing networks.
    Layer("model headers", ("cspine.models.header",)),
    Layer("models", ("cspine.models",), no_torch=False),
    Layer("metrics", ("cspine.metrics",), never=("models",)),
    Layer("claims", ("cspine.claims",), never=("models",)),
    Layer("robustness", ("cspine.robustness",), never=("models",)),
    Layer("auditing", ("cspine.auditing",), never=("models",)),
    Layer("experiment", ("cspine.experiment",)),
    Layer("training", ("cspine.training",), no_torch=False),
    Layer("inference", ("cspine.inference",), never=("experiment", "training"), no_torch=False),
    Layer("dicom_out", ("cspine.dicom_out",), never=LEARNING),
    Layer("explain", ("cspine.explain",), never=("experiment", "training"), no_torch=False),
    Layer("report", ("cspine.report",), never=LEARNING),
    Layer("comparison", ("cspine.comparison",), no_torch=False),
    Layer("answering", ("cspine.answering",)),
    Layer("evaluating", ("cspine.evaluating",)),
    Layer("cli", ("cspine.cli",)),
    Layer("main", ("cspine.__main__",)),
)
NUMBER = {layer.name: number for number, layer in enumerate(LAYERS)}

TORCH = ("torch", "torchvision", "timm", "lightning", "lightning_fabric")
# Modules of layers that do use torch, which must not: `cspine info` and `cspine --help` rest on them.
LIGHT = (
    "cspine.training",
    "cspine.inference",
    "cspine.inference.engines",
    "cspine.inference.predictor",
    "cspine.comparison.describe",
)
# Modules of torch-free layers that may use it: the part of the audit that fits something, and what a command loads
# once it runs.
HEAVY = ("cspine.auditing.shortcuts", "cspine.auditing.audit", "cspine.cli.run")


def list_modules() -> dict[str, Path]:
    """Every module of the package by its dotted name; a package's own file is the name of the package."""
    found = {}
    for path in sorted(SOURCE.rglob("*.py")):
        parts = path.relative_to(SOURCE.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = list_modules()


def read_imports(module: str) -> Iterator[tuple[str, int]]:
    """Yield what `module` imports, anywhere in it, as (dotted name, line)."""
    tree: ast.AST = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    if module == "cspine":
        tree = without_type_checking(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}:{node.lineno}: relative import; write the full name"
            for alias in node.names:
                submodule = f"{node.module}.{alias.name}"
                yield (submodule if submodule in MODULES else str(node.module)), node.lineno


def without_type_checking(tree: ast.AST) -> ast.AST:
    """The package's own file names all its public names for type checkers; at run time it imports none of them."""

    class Remover(ast.NodeTransformer):
        def visit_If(self, node: ast.If) -> ast.AST | None:
            named = isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
            return None if named else node

    return Remover().visit(tree)


def find_layer(module: str) -> Layer:
    """The layer of a module of ours."""
    fits = [
        (len(prefix), layer)
        for layer in LAYERS
        for prefix in layer.prefixes
        if module == prefix or module.startswith(prefix + ".")
    ]
    length, layer = max(fits, key=lambda fit: fit[0])
    known = module == "cspine" or length > len("cspine")
    assert known, f"{module} has no place in LAYERS (see the docstring of this file)"
    return layer


def is_ours(name: str) -> bool:
    return name == "cspine" or name.startswith("cspine.")


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_from_before_it_in_the_flow(module: str) -> None:
    layer = find_layer(module)
    wrong = []
    for name, line in read_imports(module):
        if not is_ours(name):
            continue
        other = find_layer(name)
        if NUMBER[other.name] > NUMBER[layer.name] or other.name in layer.never:
            wrong.append(f"{module}:{line} ({layer.name}) imports {name} ({other.name})")
    assert not wrong, "\n".join(wrong)


def test_no_module_imports_itself_in_a_circle() -> None:
    graph = {
        module: {name for name, _ in read_imports(module) if is_ours(name) and name in MODULES}
        for module in MODULES
    }
    try:
        list(graphlib.TopologicalSorter(graph).static_order())
    except graphlib.CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def list_torch_free() -> list[str]:
    return [
        module
        for module in MODULES
        if module not in HEAVY and (find_layer(module).no_torch or module in LIGHT)
    ]


@pytest.mark.parametrize("module", list_torch_free())
def test_torch_is_not_imported_where_none_belongs(module: str) -> None:
    wrong = [
        f"{module}:{line} imports {name}"
        for name, line in read_imports(module)
        if name.split(".")[0] in TORCH
    ]
    assert not wrong, "\n".join(wrong)


def test_importing_the_torch_free_modules_leaves_torch_unloaded() -> None:
    modules = [module for module in list_torch_free() if module != "cspine.__main__"]
    code = (
        f"import importlib, sys\n"
        f"for name in {modules!r}:\n"
        f"    importlib.import_module(name)\n"
        f"    loaded = sorted(set({TORCH!r}) & set(sys.modules))\n"
        f"    assert not loaded, f'{{name}} loads {{loaded}}'\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_layer_table_names_only_layers_that_exist() -> None:
    assert len(NUMBER) == len(LAYERS)
    for layer in LAYERS:
        assert set(layer.never) <= set(NUMBER)
        assert all(NUMBER[name] < NUMBER[layer.name] for name in layer.never)
