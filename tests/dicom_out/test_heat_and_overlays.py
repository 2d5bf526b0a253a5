"""Where things lie in the patient is computed here from the attributes alone (PS3.3 C.7.6.2.1.1), as a viewer does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import highdicom as hd
import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset

from cspine.core.answers import Action, IntakeFinding, Reason
from cspine.core.errors import InputError
from cspine.dicom_out.objects import write_dicom_outputs
from cspine.dicom_out.source import NOTICE, HeatMaps, find_source
from tests.ct.reading import read_dicom
from tests.dicom_out.answers import POINT, Case, make_answer

SERIES = [
    ("plain", ()),
    ("feet-first", ()),
    ("turned", ()),
    ("enhanced", ()),
    ("plain", (Reason.GANTRY_TILT,)),
    ("turned", (Reason.GANTRY_TILT,)),
    ("plain", (Reason.UNEVEN_SPACING,)),
]


def find_point_mm(
    position: Sequence[float],
    orientation: Sequence[float],
    spacing: Sequence[float],
    row_px: float,
    column_px: float,
) -> np.ndarray:
    right, down = np.array(orientation[:3], float), np.array(orientation[3:], float)
    return np.array(position, float) + right * spacing[1] * column_px + down * spacing[0] * row_px


def find_center(weights: np.ndarray) -> tuple[float, float]:
    rows, columns = np.indices(weights.shape)
    return float((rows * weights).sum() / weights.sum()), float((columns * weights).sum() / weights.sum())


def write_heat(folder: Path, case: Case) -> Dataset:
    _, path = write_dicom_outputs(folder / "out", case.source, case.answer, case.heat)
    return pydicom.dcmread(path)


@pytest.mark.parametrize(("habit", "faults"), SERIES)
def test_a_point_of_the_heat_keeps_its_place_in_the_patient(
    tmp_path: Path, get_case: Callable[..., Case], habit: str, faults: Sequence[Reason]
) -> None:
    case = get_case(habit, faults)
    written = write_heat(tmp_path, case)
    shared = written.SharedFunctionalGroupsSequence[0]
    # The frame with one bright pixel; the other is flat.
    frame = int(np.argmax([picture.std() for picture in written.pixel_array]))
    group = written.PerFrameFunctionalGroupsSequence[frame]
    found_mm = find_point_mm(
        group.PlanePositionSequence[0].ImagePositionPatient,
        shared.PlaneOrientationSequence[0].ImageOrientationPatient,
        shared.PixelMeasuresSequence[0].PixelSpacing,
        *find_center(written.pixel_array[frame].astype(float)),
    )
    np.testing.assert_allclose(found_mm, case.volume.find_point_mm(*POINT), atol=0.05)


@pytest.mark.parametrize(("habit", "faults"), SERIES[:-1])
def test_a_frame_of_the_heat_covers_the_instance_that_it_names(
    tmp_path: Path, get_case: Callable[..., Case], habit: str, faults: Sequence[Reason]
) -> None:
    case = get_case(habit, faults)
    written = write_heat(tmp_path, case)
    sources = {str(one.SOPInstanceUID): one for one in map(pydicom.dcmread, list_files(case.folder))}
    shared = written.SharedFunctionalGroupsSequence[0]
    for group in written.PerFrameFunctionalGroupsSequence:
        (reference,) = group.DerivationImageSequence[0].SourceImageSequence
        source = sources[reference.ReferencedSOPInstanceUID]
        place, common = source, source
        if "NumberOfFrames" in source:
            place = source.PerFrameFunctionalGroupsSequence[reference.ReferencedFrameNumber - 1]
            place, common = place.PlanePositionSequence[0], source.SharedFunctionalGroupsSequence[0]
        assert (written.Rows, written.Columns) == (source.Rows, source.Columns)
        assert written.FrameOfReferenceUID == source.FrameOfReferenceUID
        position = group.PlanePositionSequence[0].ImagePositionPatient
        np.testing.assert_allclose(position, place.ImagePositionPatient, atol=1e-4)
        for sequence, keyword in (
            ("PlaneOrientationSequence", "ImageOrientationPatient"),
            ("PixelMeasuresSequence", "PixelSpacing"),
        ):
            theirs = common[sequence][0][keyword] if sequence in common else common[keyword]
            np.testing.assert_allclose(shared[sequence][0][keyword].value, theirs.value, atol=1e-5)


def list_files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_heat_over_two_multi_frame_objects_names_each_frame(
    tmp_path: Path, get_case: Callable[..., Case]
) -> None:
    whole = pydicom.dcmread(list_files(get_case("enhanced").folder)[0])
    whole.decompress(generate_instance_uid=False)
    groups, pixels = list(whole.PerFrameFunctionalGroupsSequence), whole.PixelData
    frame_bytes = 2 * whole.Rows * whole.Columns
    (tmp_path / "in").mkdir()
    for uid, (first, last) in {"2.25.1": (0, 13), "2.25.2": (13, len(groups))}.items():
        part = deepcopy(whole)
        part.SOPInstanceUID = part.file_meta.MediaStorageSOPInstanceUID = uid
        part.NumberOfFrames, part.PerFrameFunctionalGroupsSequence = last - first, groups[first:last]
        part.PixelData = pixels[first * frame_bytes : last * frame_bytes]
        part.save_as(tmp_path / "in" / uid, enforce_file_format=True)
    (result,) = read_dicom(tmp_path / "in")
    answer = make_answer(result)
    heat = HeatMaps((12, 13), np.zeros((2, *result.volume.hu.shape[1:]), np.float32), "x")
    source = find_source(tmp_path / "in", answer)
    _, path = write_dicom_outputs(tmp_path / "out", source, answer, heat)
    items = [
        group.DerivationImageSequence[0].SourceImageSequence[0]
        for group in pydicom.dcmread(path).PerFrameFunctionalGroupsSequence
    ]
    named = {(str(item.ReferencedSOPInstanceUID), int(item.ReferencedFrameNumber)) for item in items}
    assert named == {("2.25.1", 13), ("2.25.2", 1)}


def test_highdicom_reads_the_heat_back_as_it_was(tmp_path: Path, case: Case) -> None:
    _, path = write_dicom_outputs(tmp_path / "out", case.source, case.answer, case.heat)
    read = hd.imread(path)
    values = read.get_frames(apply_real_world_transform=True)
    np.testing.assert_allclose(np.sort(values, axis=0), np.sort(case.heat.maps, axis=0), atol=1 / 65535)
    mapping = read.SharedFunctionalGroupsSequence[0].RealWorldValueMappingSequence[0]
    assert mapping.QuantityDefinitionSequence[0].ConceptCodeSequence[0].CodeValue == "130402"
    assert NOTICE in read.SeriesDescription
    assert NOTICE in read.ContentDescription
    assert read.ContentQualification == "RESEARCH"


def test_interpolated_heat_says_that_it_lies_between_two_slices(
    tmp_path: Path, get_case: Callable[..., Case]
) -> None:
    case = get_case("plain", (Reason.UNEVEN_SPACING,))
    for group in write_heat(tmp_path, case).PerFrameFunctionalGroupsSequence:
        sources = group.DerivationImageSequence[0].SourceImageSequence
        assert len(sources) in (1, 2)
        assert {item.SpatialLocationsPreserved for item in sources} == {"NO"}


@pytest.mark.parametrize(("habit", "faults"), [SERIES[0], *SERIES[4:]])
def test_a_point_of_an_overlay_keeps_its_place(
    tmp_path: Path, get_case: Callable[..., Case], habit: str, faults: Sequence[Reason]
) -> None:
    case = get_case(habit, faults)
    _, first, _ = write_dicom_outputs(tmp_path / "out", case.source, case.answer, None, case.overlays)
    written = pydicom.dcmread(first)
    red = (written.pixel_array == (255, 0, 0)).all(axis=2).astype(float)
    found_mm = find_point_mm(
        written.ImagePositionPatient,
        written.ImageOrientationPatient,
        written.PixelSpacing,
        *find_center(red),
    )
    np.testing.assert_allclose(found_mm, case.volume.find_point_mm(*POINT), atol=0.05)
    assert written.FrameOfReferenceUID == case.source.header.FrameOfReferenceUID


@pytest.mark.parametrize("size_px", [20, 100, 600])
def test_an_overlay_of_any_size_covers_the_slice(tmp_path: Path, case: Case, size_px: int) -> None:
    index, rows, columns = POINT[0], *case.volume.hu.shape[1:]
    picture = np.zeros((round(size_px * rows / columns), size_px, 3), np.uint8)
    _, path = write_dicom_outputs(tmp_path / "out", case.source, case.answer, None, {index: picture})
    written = pydicom.dcmread(path)
    factor = written.Columns / size_px
    corners_mm = [
        find_point_mm(
            written.ImagePositionPatient, written.ImageOrientationPatient, written.PixelSpacing, *at
        )
        for at in ((-0.5, -0.5), (factor * len(picture) - 0.5, factor * size_px - 0.5))
    ]
    expected_mm = [
        case.volume.find_point_mm(index, *at) for at in ((-0.5, -0.5), (rows - 0.5, columns - 0.5))
    ]
    np.testing.assert_allclose(corners_mm, expected_mm, atol=1e-3)


def test_overlays_are_a_series_with_the_notice_burned_in(tmp_path: Path, case: Case) -> None:
    _, *paths = write_dicom_outputs(tmp_path / "out", case.source, case.answer, None, case.overlays)
    written = [pydicom.dcmread(path) for path in paths]
    assert [path.name for path in paths] == ["overlay-001.dcm", "overlay-002.dcm"]
    assert [one.SourceImageSequence[0].ReferencedSOPInstanceUID for one in written] == [
        case.answer.slice_ids[13],
        case.answer.slice_ids[14],
    ]
    assert len({one.SeriesInstanceUID for one in written}) == 1
    assert len({one.SOPInstanceUID for one in written}) == 2
    for one in written:
        assert NOTICE in one.SeriesDescription
        factor = one.Columns // case.volume.hu.shape[2]
        strip = one.pixel_array[factor * case.volume.hu.shape[1] :]
        assert (strip == (255, 255, 0)).all(axis=2).sum() > 500
        assert len(np.unique(strip[0])) == 1


def test_heat_without_a_place_in_the_patient_is_refused(tmp_path: Path, case: Case) -> None:
    ordered = IntakeFinding(reason=Reason.MISSING_POSITION, action=Action.CORRECT, detail="by Slice Location")
    row = case.answer.intake.model_copy(update={"findings": (ordered,)})
    answer = replace(case.answer, intake=row)
    source = find_source(case.folder, answer)
    with pytest.raises(InputError, match="place of each slice"):
        write_dicom_outputs(tmp_path / "out", source, answer, case.heat)
    assert list(tmp_path.iterdir()) == []
    _, overlay, _ = write_dicom_outputs(tmp_path / "out", source, answer, None, case.overlays)
    assert "ImagePositionPatient" not in pydicom.dcmread(overlay)


def test_maps_and_pictures_of_another_grid_are_refused(tmp_path: Path, case: Case) -> None:
    with pytest.raises(ValueError, match="of the volume's slices"):
        write_dicom_outputs(
            tmp_path, case.source, case.answer, HeatMaps((1,), np.zeros((1, 9, 9), np.float32), "x")
        )
    with pytest.raises(ValueError, match="another shape"):
        write_dicom_outputs(tmp_path, case.source, case.answer, None, {1: np.zeros((50, 60, 3), np.uint8)})
    for wrong in (np.full((1, 2, 2), 1.5, np.float32), np.full((1, 2, 2), np.nan, np.float32)):
        with pytest.raises(ValueError, match=r"0\.\.1"):
            HeatMaps((1,), wrong, "x")
    with pytest.raises(ValueError, match="same slice"):
        HeatMaps((1, 1), np.zeros((2, 2, 2), np.float32), "x")
