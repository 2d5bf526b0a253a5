from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import highdicom as hd
import numpy as np
import pydicom
import pytest
from pydicom.sr.codedict import codes

from cspine.core.answers import Abstention, AbstentionReason, Reason, StudyAnswer
from cspine.core.errors import InputError
from cspine.ct.annotations import CtSeries
from cspine.ct.dicom import DicomSeries, scan_dicom
from cspine.ct.dicom_files import hush_pydicom
from cspine.dicom_out.objects import FRACTURE, write_dicom_outputs
from cspine.dicom_out.source import NOTICE, find_source, is_referable, make_source
from tests.dicom_out.answers import Case, make_answer


def write_report(folder: Path, case: Case, answer: StudyAnswer | None = None) -> hd.sr.ComprehensiveSR:
    (path,) = write_dicom_outputs(folder / "out", case.source, answer or case.answer)
    return hd.sr.srread(path)


def list_texts(report: hd.sr.ComprehensiveSR) -> list[str]:
    return [str(item.TextValue) for item in report.ContentSequence if "TextValue" in item]


def test_the_report_has_probability_call_and_algorithm(tmp_path: Path, case: Case) -> None:
    report = write_report(tmp_path, case)
    (study, *_) = report.content.get_image_measurement_groups()
    assert study.finding_type == FRACTURE
    assert study.finding_sites[0].value == codes.SCT.CervicalSpine
    (measured,) = study.get_measurements(codes.DCM.Probability)
    assert (measured.value, measured.unit) == (0.768525, codes.UCUM.NoUnits)
    (call,) = study.get_qualitative_evaluations(FRACTURE)
    assert call.value == codes.SCT.Present
    said = {str(item.TextValue) for item in study[0].ContentSequence if "TextValue" in item}
    assert {"cspine", "checkpoint=0123456789abcdef", "checkpoint=fedcba9876543210", "threshold=0.5"} <= said
    assert NOTICE in report.SeriesDescription
    assert list_texts(report)[-1].startswith(NOTICE)


def test_each_vertebra_has_its_code_and_its_probability(tmp_path: Path, case: Case) -> None:
    groups = write_report(tmp_path, case).content.get_image_measurement_groups()[1:]
    found = {group.finding_sites[0].value: group.get_measurements()[0].value for group in groups}
    assert found == {codes.SCT.C2Vertebra: 0.75, codes.SCT.C7Vertebra: 0.125}


@pytest.mark.parametrize("habit", ["plain", "enhanced", "turned"])
def test_key_slices_are_referenced_strongest_first(
    tmp_path: Path, get_case: Callable[..., Case], habit: str
) -> None:
    case = get_case(habit)
    report = write_report(tmp_path, case)
    items = [
        item.ReferencedSOPSequence[0]
        for item in report.content.get_image_measurement_groups()[0][0].ContentSequence
        if item.ValueType == "IMAGE"
    ]
    named = [
        f"{item.ReferencedSOPInstanceUID}"
        + (f"#{item.ReferencedFrameNumber}" if "ReferencedFrameNumber" in item else "")
        for item in items
    ]
    assert named == [case.answer.slice_ids[14], case.answer.slice_ids[13]]
    assert {item.ReferencedSOPClassUID for item in items} == {case.source.frames[0].sop_class_uid}


def test_the_report_lies_in_the_study_and_lists_its_series(tmp_path: Path, case: Case) -> None:
    report = write_report(tmp_path, case)
    sources = [pydicom.dcmread(path) for path in case.folder.iterdir()]
    for keyword in (
        "StudyInstanceUID",
        "PatientID",
        "PatientName",
        "StudyDate",
        "StudyID",
        "AccessionNumber",
    ):
        assert report[keyword].value == sources[0][keyword].value, keyword
    assert report.SeriesInstanceUID != sources[0].SeriesInstanceUID
    assert {str(uids[2]) for uids in report.get_evidence()} == {str(one.SOPInstanceUID) for one in sources}


def test_an_abstention_has_its_reason_and_no_call(tmp_path: Path, case: Case) -> None:
    reason = AbstentionReason(Abstention.OUT_OF_DISTRIBUTION, "distance 9.1, limit 4.0")
    report = write_report(tmp_path, case, replace(case.answer, abstentions=(reason,)))
    study = report.content.get_image_measurement_groups()[0]
    assert study.get_qualitative_evaluations(FRACTURE)[0].value == codes.SCT.Indeterminate
    assert "No call is made (out-of-distribution): distance 9.1, limit 4.0" in list_texts(report)


def test_a_refused_series_has_a_report_without_a_probability(tmp_path: Path, case: Case) -> None:
    reason = AbstentionReason(Abstention.INTAKE_REFUSED, "too few slices")
    answer = replace(make_answer(CtSeries(case.answer.intake)), abstentions=(reason,))
    source = find_source(case.folder, answer)
    (path,) = write_dicom_outputs(tmp_path / "out", source, answer)
    study = hd.sr.srread(path).content.get_image_measurement_groups()[0]
    assert study.get_measurements() == []
    assert study.get_qualitative_evaluations(FRACTURE)[0].value == codes.SCT.Indeterminate


def test_unreadable_headers_make_no_unreadable_object(tmp_path: Path, case: Case) -> None:
    with hush_pydicom():
        for path in case.folder.iterdir():
            dataset = pydicom.dcmread(path)
            dataset.SpecificCharacterSet = "ISO_IR 100"
            dataset.PatientName = "Müller"
            dataset.PatientSex, dataset.PatientBirthDate, dataset.SeriesNumber = "W", "1.2.1960", None
            dataset.add_new("PatientWeight", "DS", "70")
            dataset["PatientWeight"].VR = "LO"
            dataset.PatientWeight = "heavy"
            dataset["PatientWeight"].VR = "DS"
            del dataset.StudyID
            dataset.save_as(tmp_path / path.name)
    source = find_source(tmp_path, case.answer)
    (path,) = write_dicom_outputs(tmp_path / "out", source, case.answer)
    report = pydicom.dcmread(path)
    assert str(report.PatientName) == "Müller"
    assert (report.PatientSex, report.PatientBirthDate, report.StudyID) == ("", "", "")
    assert report.SeriesNumber == 9901


def test_another_series_under_the_same_name_is_refused(case: Case) -> None:
    other = replace(case.answer, positions_mm=case.answer.positions_mm + 1.0)
    with pytest.raises(InputError, match="not of this series"):
        find_source(case.folder, other)
    gone = case.answer.intake.model_copy(update={"series_uid": "1.2.3"})
    with pytest.raises(InputError, match="not there"):
        find_source(case.folder, replace(case.answer, intake=gone))


def test_an_answer_of_a_nifti_file_has_no_instances_to_refer_to(case: Case) -> None:
    nifti = case.answer.intake.model_copy(update={"format": "nifti"})
    with pytest.raises(InputError, match="need a DICOM series"):
        find_source(case.folder, replace(case.answer, intake=nifti))


def test_slices_that_could_not_be_decoded_do_not_hide_the_series(case: Case) -> None:
    kept = np.arange(len(case.answer.slice_ids)) != 5
    fewer = replace(
        case.answer,
        slice_ids=tuple(one for one, is_kept in zip(case.answer.slice_ids, kept, strict=True) if is_kept),
        positions_mm=case.answer.positions_mm[kept],
    )
    source = find_source(case.folder, fewer)
    assert source.stack is not None
    assert [frame.sop_instance_uid for frame in source.stack.frames] == list(fewer.slice_ids)


def test_an_interpolated_slice_refers_to_the_two_it_was_made_of(get_case: Callable[..., Case]) -> None:
    case = get_case("plain", (Reason.UNEVEN_SPACING,))
    assert case.source.is_interpolated
    for index, position_mm in enumerate(case.volume.positions_mm):
        at = [
            frame.image_position_mm[2] for frame in case.source.find_frames(index) if frame.image_position_mm
        ]
        assert len(at) in (1, 2)
        assert min(at) - 1e-6 <= position_mm <= max(at) + 1e-6


@pytest.mark.parametrize(
    "change",
    [{"sop_instance_uid": None}, {"study_uid": None}, {"sop_class_uid": "1.2.3"}, {"sop_class_uid": None}],
)
def test_a_series_without_uids_or_not_of_ct_is_refused(case: Case, change: dict[str, str | None]) -> None:
    (series,) = scan_dicom(case.folder).series
    assert is_referable(series.frames)
    frames = (*series.frames[:-1], replace(series.frames[-1], **change))
    assert not is_referable(frames)
    with pytest.raises(InputError, match="refers to CT images by their UIDs"):
        make_source(DicomSeries(series.source, frames), case.answer)


def test_uids_are_fresh_in_every_run(tmp_path: Path, case: Case) -> None:
    first = write_report(tmp_path / "a", case)
    second = write_report(tmp_path / "b", case)
    assert first.SOPInstanceUID != second.SOPInstanceUID
    assert re.fullmatch(r"[0-9.]{1,64}", first.SOPInstanceUID)
