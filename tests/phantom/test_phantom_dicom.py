"""The phantom's DICOM studies: what is written is what a reader should find, whatever the habit."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from cspine.cli.app import main
from cspine.core.errors import OutputError
from cspine.data.tables import OVERALL, VERTEBRAE
from cspine.phantom.patient import PhantomPatient, PhantomSettings, make_patient

pydicom = pytest.importorskip("pydicom")

from cspine.core.answers import Reason  # noqa: E402
from cspine.phantom.dicom import HABITS, TRANSFER_SYNTAXES, Habit  # noqa: E402
from cspine.phantom.series import judge_slice, scan_patient, write_phantom_dicom, write_series  # noqa: E402
from tests.ct.reading import read_dicom  # noqa: E402
from tests.phantom.faults import FAULTS, HABIT_BY_NAME  # noqa: E402

SETTINGS = PhantomSettings(patients=9, size_px=40, field_of_view_mm=120, fracture_conspicuity=2, seed=4)
SPACING_MM = (3.0, 3.0, 3.0)


@pytest.fixture(scope="module")
def phantom_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_phantom_dicom(tmp_path_factory.mktemp("set") / "set", SETTINGS, slice_spacing_mm=4.0)


def hash_folder(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_the_same_settings_give_the_same_bytes(phantom_set: Path, tmp_path: Path) -> None:
    again = write_phantom_dicom(tmp_path / "again", SETTINGS, slice_spacing_mm=4.0)
    assert hash_folder(again) == hash_folder(phantom_set)


@pytest.mark.parametrize("habit", HABITS, ids=lambda habit: habit.name)
def test_a_habit_changes_the_files_and_no_hounsfield_unit(
    habit: Habit, broken_neck: PhantomPatient, tmp_path: Path
) -> None:
    series = scan_patient(broken_neck, SPACING_MM, habit)
    write_series(tmp_path, series.volume, habit)
    [result] = read_dicom(tmp_path)
    volume = result.volume
    truth = series.volume
    np.testing.assert_array_equal(volume.hu, truth.hu)
    # FFS and HFP turn the picture, so that turning it back is said.
    turned = habit.patient_position != "HFS"
    assert {finding.reason for finding in result.intake.findings} == ({Reason.TURNED} if turned else set())
    assert np.abs(volume.origins_mm - truth.origins_mm).max() < 1e-3
    assert volume.spacing_mm == pytest.approx(truth.spacing_mm)
    path = next(path for path in tmp_path.rglob("*") if path.is_file())
    dataset = pydicom.dcmread(path)
    assert dataset.file_meta.TransferSyntaxUID == TRANSFER_SYNTAXES[habit.encoding]
    assert ("NumberOfFrames" in dataset) == habit.multi_frame
    assert dataset.PhotometricInterpretation == habit.photometric


def test_the_tables_say_what_the_masks_and_the_patients_say(phantom_set: Path) -> None:
    slices = pl.read_csv(phantom_set / "labels.csv", infer_schema=False)
    studies = pl.read_csv(phantom_set / "studies.csv")
    assert studies.height == SETTINGS.patients
    assert studies["habit"].to_list() == [habit.name for habit in HABITS]
    assert {"fracture", "normal"} <= set(slices["label"])
    read = [series.volume for series in read_dicom(phantom_set / "studies")]
    assert len(read) == SETTINGS.patients
    ids = {volume.slice_id(index) for volume in read for index in range(len(volume))}
    assert ids == set(slices["slice_id"])
    for index, study in enumerate(studies.iter_rows(named=True)):
        patient = make_patient(index, SETTINGS)
        broken = {f"C{fracture.number}" for fracture in patient.fractures}
        assert {name for name in VERTEBRAE if study[name]} == broken
        assert study[OVERALL] == bool(broken)
        own = slices.filter(pl.col("study_uid") == study["study_uid"])
        shown = set(own.filter(pl.col("label") == "fracture")["vertebra_level"])
        assert shown <= broken
        # From feet to head the levels go up.
        levels = [int(level[1]) for level in own["vertebra_level"].drop_nulls()]
        assert levels[0] == 7
        firsts = [levels.index(level) for level in (7, 6, 5, 4, 3, 2)]
        assert firsts == sorted(firsts)


def test_a_break_too_faint_to_be_seen_gets_no_label(
    broken_neck: PhantomPatient,
) -> None:
    fracture = broken_neck.fractures[0]
    vertebrae = np.zeros((8, 8), np.uint8)
    vertebrae[2:6, 2:6] = fracture.number
    gap = np.zeros((8, 8), np.uint8)
    assert judge_slice(broken_neck, vertebrae, gap, 1.0)[0] == "normal"
    gap[3, 3] = 1
    assert judge_slice(broken_neck, vertebrae, gap, 0.5 * fracture.visible_mm2)[0] == ""
    label, level, kind = judge_slice(broken_neck, vertebrae, gap, fracture.visible_mm2)
    assert (label, level, kind) == ("fracture", f"C{fracture.number}", fracture.kind)


def test_every_reason_of_dicom_intake_can_be_planted() -> None:
    assert set(FAULTS) == set(Reason) - {Reason.UNUSABLE_NIFTI}


def test_decimal_strings_keep_to_sixteen_characters(phantom_set: Path) -> None:
    for path in [path for path in phantom_set.rglob("*") if path.is_file() and path.suffix != ".csv"][::20]:
        dataset = pydicom.dcmread(path, stop_before_pixels=True)
        for element in dataset.iterall():
            if element.VR == "DS":
                values = element.value if element.VM > 1 else [element.value]
                assert all(len(str(value)) <= 16 for value in values), element.keyword


def test_a_folder_in_use_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("kept")
    with pytest.raises(OutputError, match="not empty"):
        write_phantom_dicom(tmp_path, SETTINGS)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--format", "jpeg"], "png, nifti, dicom, rsna"),
        (["--format", "dicom", "--size-px", "30"], "give 36 or more"),
        (["--format", "dicom", "--slice-spacing-mm", "0"], "slice_spacing_mm"),
    ],
)
def test_the_command_refuses_what_it_cannot_make(
    options: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["phantom", str(tmp_path / "set"), *options])
    assert stop.value.code == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "set").exists()


def test_a_slope_that_is_not_one_loses_no_hounsfield_unit(
    broken_neck: PhantomPatient, tmp_path: Path
) -> None:
    habit = replace(HABIT_BY_NAME["half-steps"], slope=0.25, encoding="explicit")
    series = scan_patient(broken_neck, SPACING_MM, habit)
    write_series(tmp_path, series.volume, habit)
    [result] = read_dicom(tmp_path)
    np.testing.assert_array_equal(result.volume.hu, series.volume.hu)
