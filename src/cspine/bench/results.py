"""What every measurement of speed leaves: rates with their spread, ratios, the command, the machine and the versions.

Loads no torch, so that tables can be made again wherever the JSON is.
"""

from __future__ import annotations

import platform
import re
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict

from cspine.core.machine import count_cpus

PACKAGES = ("torch", "onnxruntime", "openvino", "nncf", "timm")
"""Whose versions speed depends on."""


class Rates(BaseModel):
    """Slices a second of one way, one value a repeat, in the order measured."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    slices_per_s: tuple[float, ...]

    @property
    def median(self) -> float:
        """Slices a second."""
        return float(np.median(self.slices_per_s))


class RunHead(BaseModel):
    """What was run, and where.

    Attributes:
        command: As it can be typed again.
        machine: Processor and CPUs, without the name of the machine.
        versions: Of Python and of `PACKAGES`, those that are installed; none where a script did not ask.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    command: str
    machine: str
    versions: dict[str, str] = {}

    def write(self, how: str = "") -> str:
        """The head of a table, as Markdown: the command, the machine, the versions, and how it was measured."""
        versions = ", ".join(f"{name} {found}" for name, found in self.versions.items())
        where = "; ".join(filter(None, (self.machine, versions)))
        return f"`{self.command}`\n\n{where}. {how}".rstrip()


def describe_run(command: str) -> RunHead:
    """The head of a measurement in this process."""
    return RunHead(command=command, machine=describe_processor(), versions=list_versions())


def list_versions() -> dict[str, str]:
    """Versions of Python and of what runs networks here."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def divide_pairs(first: Sequence[float], second: Sequence[float]) -> tuple[float, ...]:
    """Ratios within a repeat, so that a slow minute strikes both.

    Raises:
        ValueError: there are not as many of one as of the other.
    """
    return tuple(one / other for one, other in zip(first, second, strict=True))


def describe_processor() -> str:
    """Processor, CPUs that may be used, and whether it has bf16 of its own; no name of the machine."""
    text = _read("/proc/cpuinfo")
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    name = found.group(1).strip() if found else platform.processor() or platform.machine()
    kinds = [kind for kind in ("amx_bf16", "avx512_bf16", "avx512f", "avx2") if kind in text]
    return f"{name}, {count_cpus()} CPUs" + (f", {kinds[0]}" if kinds else "")


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError:
        return ""


def format_number(value: float, digits: int = 3) -> str:
    """So many digits; whole where more of them stand before the point, as an exponent is hard to read in a table."""
    return f"{value:,.0f}" if abs(value) >= 10**digits - 0.5 else f"{value:.{digits}g}"


def format_spread(values: Sequence[float], digits: int = 3) -> str:
    """The median, and the least and the greatest in brackets, each as `format_number` has it."""
    low, middle, high = (format_number(value, digits) for value in np.quantile(values, (0, 0.5, 1)))
    return f"{middle} ({low} to {high})"
