"""Fixtures for tests of several parts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from cspine.phantom.patient import PhantomPatient
    from tests.pacs import Pacs


@pytest.fixture(scope="session")
def broken_neck() -> PhantomPatient:
    """A drawn neck with a fracture, coarse enough to be quick."""
    from cspine.phantom.patient import PhantomSettings, make_patient

    settings = PhantomSettings(patients=6, size_px=40, field_of_view_mm=110, seed=1)
    patients = (make_patient(index, settings) for index in range(settings.patients))
    return next(patient for patient in patients if patient.fractures)


@pytest.fixture(scope="session")
def pacs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pacs]:
    """A running Orthanc; skips where none is installed. It starts empty and is shared: look only for your own UIDs."""
    from tests.pacs import run_orthanc

    with run_orthanc(tmp_path_factory.mktemp("orthanc")) as running:
        yield running
