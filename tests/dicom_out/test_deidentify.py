from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pydicom
import pytest
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset

from cspine.core.answers import Abstention, AbstentionReason
from cspine.core.errors import InputError
from cspine.dicom_out.objects import write_dicom_outputs
from cspine.dicom_out.source import Deidentify, find_source, read_key
from tests.dicom_out.answers import Case

KEY = Deidentify("a key of some length")
# What hospitals' headers hold, each value such that it can stand in a file by no accident.
IDENTIFYING = {
    "PatientName": "Zwetschgenbaum^Ottilie",
    "PatientBirthDate": "19470823",
    "PatientBirthTime": "041733",
    "PatientSex": "O",
    "PatientAge": "073Y",
    "PatientWeight": "63.25",
    "PatientSize": "1.6875",
    "PatientAddress": "Quittenweg 17",
    "PatientComments": "Herzschrittmacher",
    "OtherPatientIDs": "OPID-5540",
    "EthnicGroup": "Huzulen",
    "IssuerOfPatientID": "Klinikum Nord",
    "StudyDate": "20191231",
    "StudyTime": "235958",
    "SeriesDate": "20191230",
    "ContentDate": "20191229",
    "AcquisitionDate": "20191228",
    "AccessionNumber": "ACC-99817",
    "ReferringPhysicianName": "Pfefferkorn^Balduin",
    "PerformingPhysicianName": "Rosskastanie^Ida",
    "OperatorsName": "Mirabell^Urs",
    "StudyDescription": "CT HWS nach Sturz",
    "SeriesDescription": "Knochenfenster XQ",
    "StudyID": "SID-4711",
    "InstitutionName": "Krankenhaus Waldeck",
    "InstitutionAddress": "Holunderallee 3",
    "StationName": "CTROOM9",
    "Manufacturer": "Tomowerk",
    "ManufacturerModelName": "Spirale 64",
    "DeviceSerialNumber": "SN-883112",
    "SoftwareVersions": "VA48Z",
    "ProtocolName": "Polytrauma-7",
    "PositionReferenceIndicator": "Sternalkerbe",
}
UIDS = ("SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID")


@pytest.fixture
def named(tmp_path: Path, case: Case) -> Case:
    """The series with everything in its headers that could name somebody."""
    folder = tmp_path / "named"
    folder.mkdir()
    for path in case.folder.iterdir():
        dataset = pydicom.dcmread(path)
        for keyword, value in IDENTIFYING.items():
            setattr(dataset, keyword, value)
        dataset.add_new(0x00091001, "LO", "Privatsache")
        dataset.add_new(0x00090010, "LO", "TOMOWERK")
        dataset.save_as(folder / path.name)
    refusal = AbstentionReason(Abstention.INTAKE_REFUSED, "file Zwetschgenbaum.dcm cannot be decoded")
    answer = replace(case.answer, abstentions=(refusal,))
    return replace(case, folder=folder, answer=answer, source=find_source(folder, answer))


def write(folder: Path, case: Case, deidentify: Deidentify | None = KEY) -> list[Path]:
    return write_dicom_outputs(
        folder, case.source, case.answer, case.heat, case.overlays, deidentify=deidentify
    )


def list_elements(dataset: Dataset) -> Iterator[DataElement]:
    yield from dataset.iterall()


def test_no_identifying_value_of_the_source_is_in_the_bytes(tmp_path: Path, named: Case) -> None:
    sources = [pydicom.dcmread(path) for path in named.folder.iterdir()]
    secrets = {str(value) for keyword, value in IDENTIFYING.items() if keyword != "PatientSex"}
    secrets |= {
        part for keyword, value in IDENTIFYING.items() if "Name" in keyword for part in value.split("^")
    }
    secrets |= {str(one[keyword].value) for one in sources for keyword in (*UIDS, "PatientID")}
    secrets |= {"Privatsache", "TOMOWERK"}
    for path in write(tmp_path / "out", named):
        content = path.read_bytes()
        for secret in secrets:
            assert secret.encode() not in content, f"{path.name} holds {secret}"
    for path in write(tmp_path / "as it is", named, None):
        assert {one for one in secrets if one.encode() in path.read_bytes()} >= {"ACC-99817", "19470823"}


def test_every_attribute_is_known_and_none_is_private(tmp_path: Path, named: Case) -> None:
    """Values that come from the source at all: UIDs by way of the key, and how pixels lie."""
    source = pydicom.dcmread(next(named.folder.iterdir()))
    theirs = {element.keyword: str(element.value) for element in list_elements(source)}
    same: set[str] = set()
    for path in write(tmp_path / "out", named):
        for element in list_elements(pydicom.dcmread(path)):
            assert not element.tag.is_private
            if (
                element.VR != "SQ"
                and str(element.value)
                and theirs.get(element.keyword) == str(element.value)
            ):
                same.add(element.keyword)
    assert same <= {
        "BitsAllocated",
        "BitsStored",
        "BodyPartExamined",
        "Columns",
        "HighBit",
        "ImageOrientationPatient",
        "ImagePositionPatient",
        "InstanceNumber",
        "LossyImageCompression",
        "PhotometricInterpretation",
        "PixelRepresentation",
        "PixelSpacing",
        "RescaleSlope",
        "Rows",
        "SamplesPerPixel",
        "SliceThickness",
    }


def test_a_de_identified_object_says_so_and_names_no_date(tmp_path: Path, named: Case) -> None:
    for path in write(tmp_path / "out", named):
        written = pydicom.dcmread(path)
        assert written.PatientIdentityRemoved == "YES"
        assert written.DeidentificationMethodCodeSequence[0].CodeValue == "113100"
        assert (written.StudyDate, written.PatientBirthDate, written.PatientSex) == ("", "", "")
        dates = {str(e.value)[:8] for e in list_elements(written) if e.VR in ("DA", "DT") and e.value}
        assert dates <= {"19000101"}


def test_the_same_key_writes_the_same_objects(tmp_path: Path, named: Case) -> None:
    first = [path.read_bytes() for path in write(tmp_path / "a", named)]
    assert [path.read_bytes() for path in write(tmp_path / "b", named)] == first
    other = write(tmp_path / "c", named, Deidentify("another key of some length"))
    for path, content in zip(other, first, strict=True):
        assert pydicom.dcmread(path).StudyInstanceUID.encode() not in content


def test_references_agree_with_a_source_of_the_same_key(tmp_path: Path, named: Case) -> None:
    report, heat, *_ = map(pydicom.dcmread, write(tmp_path / "out", named))
    assert report.StudyInstanceUID == heat.StudyInstanceUID == KEY.map_uid(str(named.volume.study_uid))
    assert report.PatientID == heat.PatientID == KEY.map_patient(str(named.volume.patient_id))
    assert heat.FrameOfReferenceUID == KEY.map_uid(str(named.volume.frame_of_reference_uid))
    referenced = {item.ReferencedSOPInstanceUID for item in heat.SourceImageSequence}
    assert referenced == {KEY.map_uid(named.answer.slice_ids[index]) for index in named.heat.slices}


def test_a_new_answer_about_the_same_series_is_a_new_object(tmp_path: Path, named: Case) -> None:
    first = pydicom.dcmread(write(tmp_path / "a", named)[0])
    changed = replace(named, answer=replace(named.answer, prob=0.2))
    assert pydicom.dcmread(write(tmp_path / "b", changed)[0]).SOPInstanceUID != first.SOPInstanceUID


def test_a_short_key_is_refused_and_no_key_is_shown() -> None:
    with pytest.raises(ValueError, match="16 characters"):
        Deidentify("short")
    assert "some length" not in repr(KEY)


def test_a_key_is_read_from_a_file_which_may_end_in_a_line_feed(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("a key of some length\n")
    assert read_key(tmp_path / "key") == KEY
    (tmp_path / "short").write_text("secret")
    for name in ("short", "none"):
        with pytest.raises(InputError, match="no key for de-identification") as raised:
            read_key(tmp_path / name)
        assert "secret" not in str(raised.value)
