"""A drawn neck, coarse enough to be quick, for every test of the readers."""

from __future__ import annotations

import pytest

from cspine.phantom.patient import PhantomPatient, PhantomSettings, make_patient

SETTINGS = PhantomSettings(patients=6, size_px=40, field_of_view_mm=110, seed=1)


@pytest.fixture(scope="session")
def broken_neck() -> PhantomPatient:
    for index in range(SETTINGS.patients):
        patient = make_patient(index, SETTINGS)
        if patient.fractures:
            return patient
    raise AssertionError("the set has no broken neck")
