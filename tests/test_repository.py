"""What the repository as a whole promises: short files, no private paths, links that lead somewhere."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("src", "tests", "docs", "experiments", "benchmarks", ".ci")
TEXT = {"", ".cfg", ".css", ".csv", ".html", ".j2", ".json", ".md", ".py", ".svg", ".toml", ".txt"}
LONGEST_FILE = 740

# Put together here, so that this file does not hold what it forbids.
REGISTRIES = (
    "pypi" + ".org",
    "python" + "hosted",
    "npmjs" + ".org",
    "deb" + ".debian",
    "download." + "pytorch",
)
PRIVATE_PATHS = tuple("/" + name + "/" for name in ("work", "root", "opt", "home", "Users"))


MADE = {ROOT / "docs/reference/commands.md", ROOT / "docs/tutorials/first-steps.md"}
"""By `make docs`; not in the repository."""


def list_text_files() -> list[Path]:
    inside = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*")]
    return sorted(
        path
        for path in [*ROOT.iterdir(), *inside]
        if path.is_file()
        and path.name != ".git"  # of a linked worktree, it says where the repository lies
        and path.suffix in TEXT
        and path not in MADE
        and not {"__pycache__", ".mypy_cache"} & set(path.parts)
        and not path.name.startswith(".coverage")
    )


def read_markdown(path: Path) -> str:
    """The text of a page without its code, in which a bracket is no link."""
    text = re.sub(r"^(```|~~~).*?^\1", "", path.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    return re.sub(r"`[^`\n]*`", "", text)


def list_anchors(path: Path) -> set[str]:
    """What `#...` may name in a page: its headings, spelled as hosts of repositories spell them."""
    text = re.sub(r"^(```|~~~).*?^\1", "", path.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+\s+(.*?)\s*$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_no_note_lies_in_the_root() -> None:
    notes = {path.name for path in ROOT.iterdir() if path.suffix in (".md", ".txt")}
    assert notes == {"CHANGELOG.md", "CONTRIBUTING.md", "README.md", "constraints.txt"}


PAGES = [path for path in list_text_files() if path.suffix == ".md"]
EXPERIMENTS = sorted((ROOT / "experiments").glob("*.toml"))


@pytest.mark.parametrize("path", sorted((ROOT / "src").rglob("*.py")), ids=lambda path: path.name)
def test_no_source_file_is_long(path: Path) -> None:
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= LONGEST_FILE, f"{path.relative_to(ROOT)} has {lines} lines; split it by what it is about"


def test_no_file_names_a_registry_or_a_private_path() -> None:
    wrong = []
    for path in list_text_files():
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            found = [word for word in REGISTRIES if word in line]
            found += [word for word in PRIVATE_PATHS if re.search(rf"(?<![\w.~<>}}-]){word}", line)]
            wrong += [f"{path.relative_to(ROOT)}:{number}: {word}" for word in found]
    assert not wrong, "\n".join(wrong)


def test_constraints_are_exact_pins_and_name_no_source() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert pins == sorted(pins, key=lambda pin: pin.split("==")[0].lower()), "run `make constraints`"
    wrong = [line for line in pins if not re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.!+]+", line)]
    assert not wrong


def test_constraints_pin_every_dependency_within_its_range() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = {canonicalize_name(name): version for name, _, version in (line.partition("==") for line in lines)}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for text in project["dependencies"] + project["optional-dependencies"]["dev"]:
        wanted = Requirement(text)
        assert pins.get(canonicalize_name(wanted.name)) in wanted.specifier, text


def test_every_package_that_is_imported_is_a_declared_dependency() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    texts = project["dependencies"] + [
        text for extra in project["optional-dependencies"].values() for text in extra
    ]
    declared = {canonicalize_name(Requirement(text).name) for text in texts} | {"cspine"}
    homes = metadata.packages_distributions()
    wrong = set()
    for path in (ROOT / "src").rglob("*.py"):
        for name in list_imported_packages(path) - sys.stdlib_module_names:
            if not {canonicalize_name(home) for home in homes.get(name, [name])} & declared:
                wrong.add(f"{path.relative_to(ROOT)} imports {name}")
    assert not wrong, "\n".join(sorted(wrong))


def list_imported_packages(path: Path) -> set[str]:
    names = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names.append(str(node.module))
    return {name.split(".")[0] for name in names}


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_relative_link_leads_somewhere(page: Path) -> None:
    wrong = [link for link in list_links(page) if not leads_somewhere(page, link)]
    assert not wrong, f"{page.relative_to(ROOT)}: {wrong}"


def list_links(page: Path) -> Iterator[str]:
    text = read_markdown(page)
    for link in re.findall(r"\]\(\s*<?([^)\s>]+)", text) + re.findall(r"<img[^>]*\bsrc=\"([^\"]+)\"", text):
        if not re.match(r"[a-z]+:", link):
            yield link


def leads_somewhere(page: Path, link: str) -> bool:
    name, _, anchor = link.partition("#")
    target = (page.parent / name).resolve() if name else page
    inside = target == ROOT or ROOT in target.parents
    if target in MADE:  # the build of the site looks at these
        return True
    return inside and target.exists() and (not anchor or anchor in list_anchors(target))


def test_the_changelog_has_a_place_for_what_is_not_released() -> None:
    assert "\n## [Unreleased]\n" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.name)
def test_an_experiment_file_says_what_it_shows_at_its_head(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    head = []
    for line in lines:
        if not line.startswith("#"):
            break
        head.append(line)
    assert head, f"{path.name} starts without a comment"
    assert re.search(r"\b(second|minute|hour)s?\b", " ".join(head)), (
        f"{path.name} does not say how long it takes"
    )
    tomllib.loads("\n".join(lines))


def test_the_installed_version_is_the_one_of_the_project_file() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert metadata.version("cspine") == project["version"]


@pytest.mark.parametrize("path", sorted((ROOT / "tests").rglob("test_*.py")), ids=lambda path: path.name)
def test_names_of_tests_are_short(path: Path) -> None:
    names = re.findall(r"^ *def (test_\w+)", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert not [name for name in names if len(name) > 60]
