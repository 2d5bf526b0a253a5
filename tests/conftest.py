"""Fixtures for tests of several parts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.pacs import Pacs


@pytest.fixture(scope="session")
def pacs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pacs]:
    """A running Orthanc; skips where none is installed. It starts empty and is shared: look only for your own UIDs."""
    from tests.pacs import run_orthanc

    with run_orthanc(tmp_path_factory.mktemp("orthanc")) as running:
        yield running
