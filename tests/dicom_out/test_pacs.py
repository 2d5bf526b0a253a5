"""What an archive makes of the objects: a real Orthanc stores them beside their source and gives them back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pydicom
import pytest
from pydicom.dataset import Dataset

from cspine.dicom_out.objects import write_dicom_outputs
from cspine.dicom_out.source import Deidentify
from tests.dicom_out.answers import Case
from tests.pacs import Pacs


def fetch(pacs: Pacs, study_uid: str) -> tuple[dict[str, str], dict[str, Dataset]]:
    """Series UID to modality, by QIDO-RS; SOP Instance UID to instance, by WADO-RS."""
    client = pacs.make_client()
    series = {
        one["0020000E"]["Value"][0]: one["00080060"]["Value"][0]
        for one in client.search_for_series(study_uid, fields=["Modality"])
    }
    as_stored = (("application/dicom", "*"),)
    instances = {
        str(one.SOPInstanceUID): one
        for uid in series
        for one in client.retrieve_series(study_uid, uid, media_types=as_stored)
    }
    return series, instances


@pytest.mark.parametrize("habit", ["plain", "enhanced"])
def test_an_archive_gives_back_source_and_answer_as_one_study(
    pacs: Pacs, tmp_path: Path, get_case: Callable[..., Case], habit: str
) -> None:
    case = get_case(habit)
    sources = [pydicom.dcmread(path) for path in case.folder.rglob("*") if path.is_file()]
    paths = write_dicom_outputs(tmp_path / "out", case.source, case.answer, case.heat, case.overlays)
    written = [pydicom.dcmread(path) for path in paths]
    pacs.store([*sources, *written])
    series, instances = fetch(pacs, str(sources[0].StudyInstanceUID))
    stored = {str(one.SeriesInstanceUID): str(one.Modality) for one in [*sources, *written]}
    assert sorted(stored.values()) == ["CT", "OT", "OT", "SR"]
    # One neck is one study, whatever scanner wrote it: another test's answer may lie there too.
    assert stored.items() <= series.items()
    assert {str(one.SOPInstanceUID) for one in sources} <= set(instances)
    for one in written:
        assert instances[one.SOPInstanceUID] == one


def test_a_second_de_identified_run_adds_nothing(pacs: Pacs, tmp_path: Path, case: Case) -> None:
    key = Deidentify("a key of some length")
    for run in ("first", "second"):
        paths = write_dicom_outputs(tmp_path / run, case.source, case.answer, case.heat, deidentify=key)
        pacs.store(map(pydicom.dcmread, paths))
    series, instances = fetch(pacs, key.map_uid(str(case.volume.study_uid)))
    assert sorted(series.values()) == ["OT", "SR"]
    assert len(instances) == 2
