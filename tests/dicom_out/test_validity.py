"""What others say of the objects: dciodvfy (dicom3tools) and dsrdump (DCMTK), where they are installed."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from cspine.core.answers import Reason
from cspine.dicom_out.objects import write_dicom_outputs
from cspine.dicom_out.source import Deidentify
from tests.dicom_out.answers import Case

KNOWN_WARNINGS = (
    # Type 2, and empty in a de-identified object.
    r"needed to build DICOMDIR - Study (Date|Time|ID)$",
    # Defined terms and modules younger than this dciodvfy: PS3.3 C.8.32.2 and A.8.1.3.
    r"Unrecognized defined term <QUANTITY> for value 4 of attribute <(Image|Frame) Type>$",
    r"not present in standard DICOM IOD - .*(Slice Thickness|Position|Orientation|Frame of Reference)",
    r"this is a Standard Extended SOP Class$",
)


def require(program: str) -> str:
    found = shutil.which(program)
    if found is None:
        pytest.skip(f"{program} is not installed")
    return found


@pytest.mark.parametrize(
    ("habit", "faults", "deidentify"),
    [
        ("plain", (), None),
        ("plain", (), Deidentify("a key of some length")),
        ("enhanced", (), None),
        ("turned", (Reason.GANTRY_TILT,), None),
        ("plain", (Reason.UNEVEN_SPACING,), None),
    ],
    ids=["plain", "deidentified", "enhanced", "tilted", "interpolated"],
)
def test_dciodvfy_finds_no_error_and_only_known_warnings(
    tmp_path: Path,
    get_case: Callable[..., Case],
    habit: str,
    faults: Sequence[Reason],
    deidentify: Deidentify | None,
) -> None:
    program = require("dciodvfy")
    case = get_case(habit, faults)
    paths = write_dicom_outputs(
        tmp_path / "out", case.source, case.answer, case.heat, case.overlays, deidentify=deidentify
    )
    assert len(paths) == 4
    for path in paths:
        done = subprocess.run([program, path], capture_output=True, text=True, check=False)
        complaints = [line for line in done.stderr.splitlines() if re.match("Error|Warning", line)]
        unknown = [line for line in complaints if not re.search("|".join(KNOWN_WARNINGS), line.strip())]
        assert not unknown, f"{path.name}: {unknown}"
        assert done.returncode == 0


def test_dsrdump_reads_the_report(tmp_path: Path, case: Case) -> None:
    program = require("dsrdump")
    (path,) = write_dicom_outputs(tmp_path / "out", case.source, case.answer)
    done = subprocess.run([program, path], capture_output=True, text=True, check=True)
    assert 'NUM:(,,"Probability")="0.768525"' in done.stdout
    assert 'CODE:(,,"Fracture of bone")=(52101004,SCT,"Present")' in done.stdout
