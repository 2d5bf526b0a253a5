"""Reading of DICOM sources, for every test that wants their volumes."""

from __future__ import annotations

from pathlib import Path

from cspine.ct.annotations import CtSeries
from cspine.ct.intake import IntakePolicy
from cspine.ct.series import read_series


def read_dicom(source: Path, policy: IntakePolicy | None = None) -> list[CtSeries]:
    """Every series of a source, and every file that belongs to none."""
    return list(read_series(source, "dicom", policy or IntakePolicy()))
