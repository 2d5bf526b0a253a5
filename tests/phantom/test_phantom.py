"""The phantom: the same bytes from a seed, plausible tissue, and nothing but the fracture to tell the classes by."""

from __future__ import annotations

import csv
import hashlib
from collections import Counter
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from sklearn.metrics import roc_auc_score

from cspine.core.errors import InputError
from cspine.phantom.dataset import LABEL_COLUMNS, write_phantom
from cspine.phantom.patient import (
    FRACTURE_KINDS,
    KINDS_BY_LEVEL,
    PhantomPatient,
    PhantomSettings,
    draw_fracture,
    make_patient,
)
from cspine.phantom.scanner import render_plane, render_volume, to_display8, without_fractures

SMALL = PhantomSettings(patients=6, slices_per_patient=4, size_px=48)
STUDY = PhantomSettings(
    patients=90, slices_per_patient=8, size_px=64, fracture_fraction=0.7, field_of_view_mm=110
)


def read_labels(folder: Path) -> list[dict[str, str]]:
    with (folder / "labels.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def hash_tree(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_phantom(tmp_path_factory.mktemp("phantom") / "small", SMALL, workers=1)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_phantom(tmp_path_factory.mktemp("phantom") / "study", STUDY, workers=1)


@pytest.fixture(scope="module")
def whole_patient() -> PhantomPatient:
    settings = PhantomSettings(noise_hu=(0, 0), field_of_view_mm=200)
    patient = without_fractures(make_patient(0, settings))
    return replace(patient, table=False, sharpening=0.0, blur_mm=0.2)


def test_the_number_of_workers_changes_no_byte(small: Path, tmp_path: Path) -> None:
    again = write_phantom(tmp_path / "again", SMALL, workers=2)
    assert hash_tree(again) == hash_tree(small)


def test_another_seed_gives_other_slices(small: Path, tmp_path: Path) -> None:
    other = write_phantom(tmp_path / "other", replace(SMALL, seed=1), workers=1)
    pixels = {digest for name, digest in hash_tree(small).items() if name.startswith("t")}
    assert not pixels & {digest for name, digest in hash_tree(other).items() if name.startswith("t")}


def test_the_labels_table_names_every_slice_and_mask(small: Path) -> None:
    rows = read_labels(small)
    assert tuple(rows[0]) == LABEL_COLUMNS
    assert len(rows) == SMALL.patients * SMALL.slices_per_patient
    slices = {
        str(p.relative_to(small))
        for split in ("train", "val", "test")
        for p in small.glob(f"{split}/*/*.png")
    }
    assert {row["path"] for row in rows} == slices
    gaps = {str(p.relative_to(small)) for p in small.glob("masks/*-fracture.png")}
    assert {row["mask_path"] for row in rows if row["mask_path"]} == gaps
    assert len(list(small.glob("masks/*.png"))) == len(slices) + len(gaps)
    for row in rows:
        assert row["path"].split("/")[:2] == [row["split"], row["label"]]
        assert bool(row["mask_path"]) == bool(row["fracture_type"]) == (row["label"] == "fracture")


def test_masks_mark_the_fracture_inside_its_vertebra(study: Path) -> None:
    rows = [row for row in read_labels(study) if row["label"] == "fracture"]
    for row in rows:
        gap = cv2.imread(str(study / row["mask_path"]), cv2.IMREAD_UNCHANGED)
        vertebrae = cv2.imread(str(study / "masks" / Path(row["path"]).name), cv2.IMREAD_UNCHANGED)
        assert set(np.unique(gap)) == {0, 255}
        assert int(row["vertebra_level"][1]) in set(np.unique(vertebrae[gap > 0]))


def test_a_patient_is_in_one_split_and_splits_have_both_classes(study: Path) -> None:
    splits: dict[str, set[str]] = {}
    for row in read_labels(study):
        splits.setdefault(row["patient_id"], set()).add(row["split"])
    assert len(splits) == STUDY.patients
    assert all(len(found) == 1 for found in splits.values())
    classes = {(row["split"], row["label"]) for row in read_labels(study)}
    assert len(classes) == 6


def test_both_classes_have_the_same_levels(study: Path) -> None:
    rows = read_labels(study)
    share = {}
    for label in ("fracture", "normal"):
        levels = Counter(row["vertebra_level"] for row in rows if row["label"] == label)
        share[label] = {level: count / sum(levels.values()) for level, count in levels.items()}
    assert set(share["fracture"]) == set(share["normal"]) == {f"C{n}" for n in range(1, 8)}
    assert all(abs(share["fracture"][level] - share["normal"][level]) < 0.08 for level in share["normal"])


def test_fractured_patients_have_normal_slices_too(study: Path) -> None:
    labels: dict[str, set[str]] = {}
    for row in read_labels(study):
        labels.setdefault(row["patient_id"], set()).add(row["label"])
    assert all("normal" in found for found in labels.values())


def test_brightness_and_contrast_do_not_tell_the_class(study: Path) -> None:
    pixels, truth, _ = load_study(study)
    for statistic in (pixels.mean(axis=1), pixels.std(axis=1)):
        assert 0.4 < roc_auc_score(truth, statistic) < 0.6


def test_a_nearest_neighbour_is_near_chance_across_patients(study: Path) -> None:
    pixels, truth, train = load_study(study)
    distance = ((pixels[~train][:, None] - pixels[train][None]) ** 2).sum(axis=2)
    order = np.argsort(distance, axis=1)
    for neighbours in (1, 5):
        votes = truth[train][order[:, :neighbours]].mean(axis=1)
        assert roc_auc_score(truth[~train], votes) <= 0.6


def load_study(folder: Path) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """32x32 pixels, truth, and whether the slice is one to learn from."""
    rows = read_labels(folder)
    images = [cv2.imread(str(folder / row["path"]), cv2.IMREAD_UNCHANGED) for row in rows]
    pixels = np.stack([cv2.resize(image, (32, 32), interpolation=cv2.INTER_AREA).ravel() for image in images])
    truth = np.array([row["label"] == "fracture" for row in rows])
    return pixels.astype(np.float32), truth, np.array([row["split"] == "train" for row in rows])


@pytest.mark.parametrize("kind", FRACTURE_KINDS)
def test_each_fracture_leaves_a_dark_gap_in_bone(kind: str, whole_patient: PhantomPatient) -> None:
    number = max(n for n, kinds in KINDS_BY_LEVEL.items() if kind in kinds)
    vertebra = whole_patient.vertebrae[number - 1]
    fracture = draw_fracture(np.random.default_rng(5), vertebra, 1.0, kind)
    broken = replace(whole_patient, fractures=(fracture,))
    z_mm = vertebra.to_neck(fracture.cracks[0].centre)[2]
    hu, _, gap = render_plane(broken, z_mm, size_px=256, field_of_view_mm=110)
    intact, vertebrae, none = render_plane(whole_patient, z_mm, size_px=256, field_of_view_mm=110)
    assert gap.sum() > 10
    assert not none.any()
    in_bone = (gap > 0) & (vertebrae == number)
    assert hu[in_bone].mean() < intact[in_bone].mean() - 100
    assert np.array_equal(hu[:20], intact[:20]), "what is far from the break must not change"


def test_tissues_have_plausible_hounsfield_units(whole_patient: PhantomPatient) -> None:
    z_mm = whole_patient.vertebrae[4].centre_mm[2]
    hu, vertebrae, _ = render_plane(whole_patient, z_mm, size_px=400)
    assert hu.dtype == np.int16
    assert hu[0, 0] < -900
    values = np.bincount((hu + 1024).ravel(), minlength=4096)
    fat = int(values[1024 - 150 : 1024 - 50].argmax()) - 150
    muscle = int(values[1024 + 40 : 1024 + 100].argmax()) + 40
    assert -115 < fat < -70
    assert 40 < muscle < 70
    bone = hu[vertebrae == 5]
    assert np.percentile(bone, 97) > 700
    assert 100 < np.percentile(bone, 15) < 700


def test_a_volume_holds_c1_above_c2_above_the_rest() -> None:
    patient = make_patient(1, SMALL)
    volume = render_volume(patient, (4.0, 1.5, 1.5))
    assert volume.hu.shape == volume.vertebra_mask.shape == volume.fracture_mask.shape
    heights = [np.argwhere(volume.vertebra_mask == number)[:, 0].mean() for number in range(1, 8)]
    assert heights == sorted(heights, reverse=True)


def test_window_maps_its_edges_to_black_and_white() -> None:
    hu = np.array([[-2000, -500, 400, 1300, 3000]], np.int16)
    assert to_display8(hu, 400, 1800).tolist() == [[0, 0, 128, 255, 255]]


@pytest.mark.parametrize(
    "wrong",
    [
        {"patients": 2},
        {"slices_per_patient": 1},
        {"size_px": 8},
        {"fracture_fraction": 1.2},
        {"fracture_conspicuity": 0.0},
        {"noise_hu": (60.0, 10.0)},
        {"train_fraction": 0.9, "val_fraction": 0.2},
        {"seed": -1},
    ],
)
def test_settings_out_of_range_are_refused_by_name(wrong: dict[str, object]) -> None:
    with pytest.raises(InputError, match=next(reversed(wrong))):
        PhantomSettings(**wrong)  # type: ignore[arg-type]


def test_a_patient_outside_the_set_is_refused() -> None:
    with pytest.raises(InputError, match="no patient 6"):
        make_patient(6, SMALL)


def test_a_folder_in_use_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="not empty"):
        write_phantom(tmp_path, SMALL)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_no_workers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="workers"):
        write_phantom(tmp_path / "new", SMALL, workers=0)


@pytest.mark.parametrize("workers", [1, 2])
def test_an_interrupted_write_leaves_nothing(tmp_path: Path, workers: int) -> None:
    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_phantom(tmp_path / "new", SMALL, workers=workers, progress=interrupt)
    assert not list(tmp_path.iterdir())
