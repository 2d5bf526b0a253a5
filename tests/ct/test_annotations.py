"""The RSNA 2022 layout: studies, boxes and segmentations to labelled slices, on a drawn set in exactly that layout."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from cspine.cli.app import main
from cspine.core.errors import InputError
from cspine.data.manifest import read_manifest, read_stack_slice
from cspine.data.tables import OVERALL, TARGETS
from cspine.phantom.patient import PhantomSettings, make_patient
from cspine.phantom.scanner import render_volume

pydicom = pytest.importorskip("pydicom")
pytest.importorskip("nibabel")

from cspine.core.answers import Action, Reason  # noqa: E402
from cspine.ct.annotations import StoredBox, place_box, read_rsna_labels  # noqa: E402
from cspine.ct.dicom import scan_dicom  # noqa: E402
from cspine.ct.importing import CtImport, import_ct  # noqa: E402
from cspine.ct.intake import IntakePolicy  # noqa: E402
from cspine.phantom.series import judge_slice, write_phantom_rsna  # noqa: E402

SETTINGS = PhantomSettings(patients=6, size_px=40, field_of_view_mm=120, fracture_conspicuity=2, seed=4)
SPACING_MM = (4.0, 3.0, 3.0)


@pytest.fixture(scope="module")
def challenge(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rsna")
    return write_phantom_rsna(folder / "set", SETTINGS, slice_spacing_mm=SPACING_MM[0], box_every=2)


@pytest.fixture(scope="module")
def imported(challenge: Path, tmp_path_factory: pytest.TempPathFactory) -> CtImport:
    return import_ct(challenge, tmp_path_factory.mktemp("imported") / "set")


def test_the_layout_is_the_published_one(challenge: Path) -> None:
    names = {path.name for path in challenge.iterdir()}
    assert names == {"train.csv", "train_images", "train_bounding_boxes.csv", "segmentations"}
    header = (challenge / "train.csv").read_text().splitlines()[0]
    assert header == "StudyInstanceUID,patient_overall,C1,C2,C3,C4,C5,C6,C7"
    header = (challenge / "train_bounding_boxes.csv").read_text().splitlines()[0]
    assert header == "StudyInstanceUID,x,y,width,height,slice_number"
    studies = pl.read_csv(challenge / "train.csv")["StudyInstanceUID"].to_list()
    assert sorted(path.name for path in (challenge / "train_images").iterdir()) == sorted(studies)
    for study in studies:
        numbers = sorted(int(path.stem) for path in (challenge / "train_images" / study).glob("*.dcm"))
        assert numbers == list(range(1, len(numbers) + 1))
        dataset = pydicom.dcmread(challenge / "train_images" / study / "1.dcm", stop_before_pixels=True)
        assert dataset.InstanceNumber == 1
        assert dataset.PatientID == dataset.StudyInstanceUID == study
    assert {path.suffix for path in (challenge / "segmentations").iterdir()} == {".nii"}


def test_slices_are_labelled_by_boxes_and_whole_studies_only(challenge: Path, imported: CtImport) -> None:
    labels = read_rsna_labels(challenge)
    boxed = set(labels.boxes)
    broken = {study for study, targets in labels.studies.items() if targets[OVERALL]}
    assert boxed < broken < set(labels.studies)
    for index in range(SETTINGS.patients):
        patient = make_patient(index, SETTINGS)
        own = imported.manifest.table.filter(pl.col("study_uid") == patient.study_uid)
        if patient.study_uid not in broken:
            assert set(own["label"]) == {0}
        elif patient.study_uid not in boxed:
            assert set(own["label"]) == {None}
        else:
            neck = render_volume(patient, SPACING_MM)
            wanted = [
                int(judge_slice(patient, neck.vertebra_mask[z], neck.fracture_mask[z], 9.0)[0] == "fracture")
                for z in range(len(neck.hu))
            ]
            assert own["label"].to_list() == wanted
    notes = " ".join(imported.report.notes)
    assert f"{len(broken - boxed)} of {len(broken)} studies with a fracture have no boxes" in notes


def test_boxes_lie_around_the_fractures_of_their_slices(challenge: Path, imported: CtImport) -> None:
    boxes = pl.read_parquet(imported.manifest.root / "boxes.parquet")
    stored = pl.read_csv(challenge / "train_bounding_boxes.csv")
    assert boxes.height == stored.height > 0
    rows = boxes.join(imported.manifest.table, on="slice_id")
    assert rows.height == boxes.height
    assert set(rows["label"]) == {1}
    necks = {p.study_uid: render_volume(p, SPACING_MM) for p in (make_patient(i, SETTINGS) for i in range(6))}
    for row in rows.iter_rows(named=True):
        mask = necks[row["study_uid"]].fracture_mask[row["frame"]]
        y, x = np.nonzero(mask)
        # The middle of pixel 0 is 0, so its left edge is -0.5.
        assert row["x_px"] <= x.min() - 0.5 + 1e-3
        assert row["y_px"] <= y.min() - 0.5 + 1e-3
        assert row["x_px"] + row["width_px"] >= x.max() + 0.5 - 1e-3
        assert row["y_px"] + row["height_px"] >= y.max() + 0.5 - 1e-3
        assert row["width_px"] <= np.ptp(x) + 1 + 4 + 1e-3


def test_study_labels_and_vertebrae_are_kept(challenge: Path, imported: CtImport) -> None:
    series = pl.read_parquet(imported.manifest.root / "series.parquet")
    wanted = pl.read_csv(challenge / "train.csv").rename({"StudyInstanceUID": "study_uid"})
    joined = series.join(wanted, on="study_uid", suffix="_wanted")
    assert joined.height == SETTINGS.patients
    for target in TARGETS:
        assert joined[target].to_list() == joined[f"{target}_wanted"].to_list()
    with_mask = series.filter(pl.col("vertebrae_path").is_not_null())
    assert with_mask.height == SETTINGS.patients // 2
    necks = {p.study_uid: render_volume(p, SPACING_MM) for p in (make_patient(i, SETTINGS) for i in range(6))}
    for row in with_mask.iter_rows(named=True):
        neck = necks[row["study_uid"]]
        read = [
            read_stack_slice(imported.manifest.root / row["vertebrae_path"], z) for z in range(row["slices"])
        ]
        np.testing.assert_array_equal(np.stack(read), neck.vertebra_mask)
        own = imported.manifest.table.filter(pl.col("study_uid") == row["study_uid"])
        middle = neck.vertebra_mask[row["slices"] // 2]
        level = int(np.bincount(middle[middle > 0]).argmax())
        assert own["vertebra_level"][row["slices"] // 2] == f"C{level}"


def test_the_command_recognises_the_layout(
    challenge: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["import", str(challenge), "-o", str(tmp_path / "set")])
    assert not stop.value.code
    assert "(rsna)" in capsys.readouterr().out
    assert read_manifest(tmp_path / "set" / "manifest.parquet").source == "rsna"


def test_the_command_writes_the_layout(tmp_path: Path) -> None:
    arguments = ["--format", "rsna", "--patients", "6", "--size-px", "36", "--slice-spacing-mm", "8"]
    with pytest.raises(SystemExit) as stop:
        main(["phantom", str(tmp_path / "set"), *arguments])
    assert not stop.value.code
    assert (tmp_path / "set" / "train_bounding_boxes.csv").is_file()


@pytest.mark.parametrize("correct", [False, True], ids=["as scanned", "gaps filled"])
def test_a_box_stays_at_its_place_whatever_intake_did(correct: bool, challenge: Path, tmp_path: Path) -> None:
    study = next(path for path in sorted((challenge / "train_images").iterdir()))
    paths = sorted(study.iterdir(), key=lambda path: int(path.stem))
    for path in paths[:10] + paths[11:]:  # one slice is gone
        dataset = pydicom.dcmread(path)
        if dataset.file_meta.TransferSyntaxUID.is_compressed:
            dataset.decompress()
        # Turned by half a turn, as of a patient who lies prone.
        pixels = dataset.pixel_array[::-1, ::-1]
        right, down = (
            np.array(dataset.ImageOrientationPatient[:3]),
            np.array(dataset.ImageOrientationPatient[3:]),
        )
        spacing = [float(value) for value in dataset.PixelSpacing]
        corner = np.array([float(value) for value in dataset.ImagePositionPatient])
        corner += right * spacing[1] * (pixels.shape[1] - 1) + down * spacing[0] * (pixels.shape[0] - 1)
        dataset.ImagePositionPatient = [f"{value:.6f}" for value in corner]
        dataset.ImageOrientationPatient = [f"{-value:.6f}" for value in (*right, *down)]
        dataset.PixelData = pixels.tobytes()
        dataset.save_as(tmp_path / path.name)
    action = Action.CORRECT if correct else Action.WARN
    policy = IntakePolicy(actions={Reason.MISSING_SLICES: action}, max_gap_mm=10)
    [series] = scan_dicom(tmp_path).series
    volume = series.read(policy).volume
    number = 20
    frame = next(frame for frame in series.frames if frame.file.path.stem == str(number))
    rows, columns = volume.hu.shape[1:]
    box = place_box(StoredBox(number, 3, 5, 7, 9), frame, volume)
    # Turned by half a turn, the box that was 3 from the left and 5 from the top ends 3 from the right and 5 from below.
    assert (box.width_px, box.height_px) == pytest.approx((7, 9))
    assert box.x_px + 0.5 == pytest.approx(columns - 3 - 7, abs=1e-3)
    assert box.y_px + 0.5 == pytest.approx(rows - 5 - 9, abs=1e-3)
    positions = sorted(frame.image_position_mm[2] for frame in series.frames)
    assert volume.positions_mm[box.index] == pytest.approx(frame.image_position_mm[2])
    assert (len(volume) == len(positions)) != correct


BOXES = "StudyInstanceUID,x,y,width,height,slice_number\n"


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("train.csv", "StudyInstanceUID,C1\na,0\n", "lacks"),
        (
            "train_bounding_boxes.csv",
            BOXES + "b,1,1,2,2,3\n",
            "not in train.csv",
        ),
        (
            "train_bounding_boxes.csv",
            BOXES + "a,1,1,0,2,3\n",
            "not above 0",
        ),
        (
            "train_bounding_boxes.csv",
            BOXES + "a,1,,4,2,3\n",
            "no y in row 2",
        ),
        (
            "train_bounding_boxes.csv",
            BOXES + "a,1,1,4,2,x\n",
            "whole number",
        ),
    ],
)
def test_tables_that_do_not_fit_are_refused(name: str, text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text(
        "StudyInstanceUID,patient_overall,C1,C2,C3,C4,C5,C6,C7\na,1,1,0,0,0,0,0,0\n"
    )
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=words):
        read_rsna_labels(tmp_path)


def test_what_could_not_be_joined_is_counted(challenge: Path) -> None:
    labels = read_rsna_labels(challenge)
    study = next(iter(labels.boxes))
    [series] = scan_dicom(challenge / "train_images" / study).series
    volume = series.read().volume
    truth = labels.annotate(volume, None)  # its files are not known
    assert truth.boxes == []
    assert labels.notes["boxes are of slices that were not taken"] == len(labels.boxes[study])
    labels.annotate(replace(volume, study_uid="2.25.9"), None)
    assert labels.notes["series are of studies that train.csv does not name"] == 1
