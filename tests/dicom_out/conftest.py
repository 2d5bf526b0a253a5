"""Cases that several tests look at are made once."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from cspine.core.answers import Reason
from cspine.phantom.patient import PhantomPatient
from tests.dicom_out.answers import Case, make_case

GetCase = Callable[..., Case]


@pytest.fixture(scope="session")
def get_case(tmp_path_factory: pytest.TempPathFactory, broken_neck: PhantomPatient) -> GetCase:
    done: dict[tuple[str, tuple[Reason, ...]], Case] = {}

    def get(habit: str = "plain", faults: Sequence[Reason] = ()) -> Case:
        key = (habit, tuple(faults))
        if key not in done:
            done[key] = make_case(tmp_path_factory.mktemp("series"), broken_neck, habit, faults)
        return done[key]

    return get


@pytest.fixture
def case(get_case: GetCase) -> Case:
    return get_case()
