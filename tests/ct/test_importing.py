"""`cspine import` of CT studies: slices in HU with their labels, and an account of what was taken and refused."""

from __future__ import annotations

import json
import zipfile
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import polars as pl
import pytest

from cspine.cli.app import main
from cspine.core.errors import InputError, OutputError, RecipeError
from cspine.data.cache import open_cache
from cspine.data.layouts import import_dataset
from cspine.data.manifest import Manifest, read_manifest, read_stack_slice
from cspine.data.tables import OVERALL, VERTEBRAE
from cspine.phantom.patient import PhantomSettings, make_patient
from cspine.phantom.scanner import render_volume
from cspine.preprocess import Equalise, Recipe, Resize, Window, apply_window

pydicom = pytest.importorskip("pydicom")
pytest.importorskip("nibabel")

from cspine.core.answers import Action, Reason  # noqa: E402
from cspine.ct.importing import import_ct  # noqa: E402
from cspine.ct.intake import IntakePolicy, read_policy  # noqa: E402
from cspine.ct.series import recognise_format  # noqa: E402
from cspine.phantom.dataset import write_phantom_nifti  # noqa: E402
from cspine.phantom.dicom import PLAIN  # noqa: E402
from cspine.phantom.series import write_phantom_dicom  # noqa: E402
from tests.ct.reading import read_dicom  # noqa: E402

SETTINGS = PhantomSettings(patients=6, size_px=40, field_of_view_mm=120, fracture_conspicuity=2, seed=4)
SPACING_MM = 4.0


@pytest.fixture(scope="module")
def dicom_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dicom")
    return write_phantom_dicom(folder / "set", SETTINGS, slice_spacing_mm=SPACING_MM)


@pytest.fixture(scope="module")
def nifti_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("nifti")
    return write_phantom_nifti(folder / "set", SETTINGS, slice_spacing_mm=SPACING_MM)


@pytest.fixture(scope="module")
def imported(dicom_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("imported") / "set"
    import_ct(dicom_set, folder)
    return folder


def run(arguments: list[str | Path]) -> int:
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    return int(stop.value.code or 0)


def test_slices_have_the_values_and_labels_of_their_source(imported: Path, dicom_set: Path) -> None:
    manifest = read_manifest(imported / "manifest.parquet")
    truth = pl.read_csv(dicom_set / "labels.csv", infer_schema=False)
    assert manifest.domain == "hu"
    assert len(manifest) == truth.height
    joined = manifest.table.join(truth, on="slice_id", suffix="_wanted")
    assert joined.height == truth.height
    wanted = joined["label_wanted"].replace_strict({"fracture": 1, "normal": 0}, default=None)
    assert joined["label"].to_list() == wanted.to_list()
    for name in ("patient_id", "study_uid", "series_uid", "split", "vertebra_level", "fracture_type"):
        assert joined[name].to_list() == joined[f"{name}_wanted"].to_list()
    for result in read_dicom(dicom_set / "studies"):
        volume = result.volume
        for index in (0, len(volume) // 2, len(volume) - 1):
            item = manifest.read_slice(volume.slice_id(index))
            np.testing.assert_array_equal(item.pixels, volume.hu[index])
            assert item.domain == "hu"
            assert item.spacing_mm == pytest.approx(volume.spacing_mm[1:])
            assert item.position == pytest.approx(volume.positions_mm[index])
            assert (item.patient_id, item.series_uid) == (volume.patient_id, volume.series_uid)


def test_volumes_of_nifti_are_labelled_by_their_masks(nifti_set: Path, tmp_path: Path) -> None:
    found = import_ct(nifti_set, tmp_path / "set")
    table = found.manifest.table
    labels = pl.read_csv(nifti_set / "labels.csv")
    for index in range(SETTINGS.patients):
        patient = make_patient(index, SETTINGS)
        own = table.filter(pl.col("patient_id") == patient.patient_id)
        rendered = render_volume(patient, (SPACING_MM, 3.0, 3.0))
        assert own["label"].to_list() == rendered.fracture_mask.any(axis=(1, 2)).astype(int).tolist()
        assert set(own["split"]) == {patient.split}
        for row in own.filter(pl.col("mask_path").is_not_null()).iter_rows(named=True):
            mask = read_stack_slice(found.manifest.root / row["mask_path"], row["frame"])
            np.testing.assert_array_equal(mask, rendered.fracture_mask[row["frame"]])
    series = pl.read_parquet(tmp_path / "set" / "series.parquet")
    assert series["patient_id"].to_list() == labels["patient_id"].to_list()
    assert series.select(OVERALL, *VERTEBRAE).rows() == labels.select(OVERALL, *VERTEBRAE).rows()
    assert series["study_uid"].null_count() == SETTINGS.patients  # NIfTI has none, and none is invented


def test_a_study_label_marks_no_slice_of_a_broken_neck(dicom_set: Path, tmp_path: Path) -> None:
    found = import_ct(dicom_set / "studies", tmp_path / "set", labels=dicom_set / "studies.csv")
    studies = pl.read_csv(dicom_set / "studies.csv")
    broken = dict(studies.select("study_uid", OVERALL).iter_rows())
    for study, label in found.manifest.table.select("study_uid", "label").iter_rows():
        assert label == (None if broken[study] else 0)
    unknown = found.manifest.table["label"].null_count()
    assert any(
        note.startswith(f"{unknown:,} slices are of studies with a fracture") for note in found.report.notes
    )


def test_an_imported_folder_is_read_wherever_a_set_is_named(imported: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    moved.mkdir()
    for path in imported.rglob("*"):
        if path.is_file():
            target = moved / path.relative_to(imported)
            target.parent.mkdir(exist_ok=True)
            target.write_bytes(path.read_bytes())
    manifest, report = import_dataset(moved)
    assert manifest.hash == read_manifest(imported / "manifest.parquet").hash
    assert report.layout == "dicom"
    assert report.patients == SETTINGS.patients
    assert report.modes == {"HU": len(manifest)}
    (moved / "volumes" / "0000.npz").unlink()
    with pytest.raises(InputError, match="1 of 6 files are missing"):
        import_dataset(moved)


def test_the_cache_holds_what_the_recipe_makes_of_hu(imported: Path, tmp_path: Path) -> None:
    manifest = read_manifest(imported / "manifest.parquet")
    recipe = Recipe(steps=(Window(), Equalise(method="none"), Resize(height_px=16, width_px=16)))
    cache = open_cache(manifest, recipe, tmp_path)
    item = manifest.read_slice(manifest.slice_ids[20])
    windowed = apply_window(item.pixels, 400, 1800)
    wanted = cv2.resize(windowed, (16, 16), interpolation=cv2.INTER_AREA)
    np.testing.assert_array_equal(cache.read([item.slice_id])[0], wanted)


def test_a_recipe_for_the_other_kind_of_slice_is_one_clear_error(imported: Path, tmp_path: Path) -> None:
    for_pictures = Recipe()
    for_hu = Recipe(steps=(Window(), Resize()))
    manifest = read_manifest(imported / "manifest.parquet")
    with pytest.raises(
        RecipeError, match="takes 8-bit display values but the slices hold Hounsfield units"
    ) as caught:
        open_cache(manifest, for_pictures, tmp_path)
    assert "preprocess.window" in str(caught.value)
    with pytest.raises(RecipeError, match="takes 8-bit display values"):
        for_pictures.apply(manifest.read_row(0))
    pictures = make_pictures(tmp_path / "pictures")
    with pytest.raises(RecipeError, match="takes Hounsfield units but the slices hold 8-bit display values"):
        open_cache(pictures, for_hu, tmp_path)
    with pytest.raises(RecipeError, match="takes Hounsfield units"):
        for_hu.apply(pictures.read_row(0))
    assert not list(tmp_path.glob("*-*"))


def make_pictures(folder: Path) -> Manifest:
    for number, name in enumerate(("fracture", "normal")):
        (folder / name).mkdir(parents=True)
        cv2.imwrite(str(folder / name / "a.png"), np.full((16, 16), 40 * number, np.uint8))
    manifest, _ = import_dataset(folder)
    return manifest


# What is refused, and how it is said.


@pytest.fixture(scope="module")
def mixed_set(dicom_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two good series, and one that is refused."""
    folder = tmp_path_factory.mktemp("mixed")
    bad = write_phantom_dicom(folder / "bad", SETTINGS, slice_spacing_mm=SPACING_MM, habits=[PLAIN])
    for path in sorted((bad / "studies" / "P0002").rglob("IM*")):
        dataset = pydicom.dcmread(path)
        dataset.RescaleType = "ED"  # electron density, no HU
        dataset.save_as(path)
    for name, source in (("P0000", dicom_set), ("P0001", dicom_set), ("P0002", bad)):
        (source / "studies" / name).rename(folder / name) if source is bad else copy(
            source / "studies" / name, folder
        )
    return folder


def copy(source: Path, folder: Path) -> None:
    for path in source.rglob("*"):
        if path.is_file():
            target = folder / source.name / path.relative_to(source)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())


@pytest.fixture(scope="module")
def three_series(mixed_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("three")
    for name in ("P0000", "P0001", "P0002"):
        copy(mixed_set / name, folder)
    (folder / "readme.txt").write_text("no picture")
    return folder


def test_a_refused_series_is_in_the_account_and_not_in_the_set(three_series: Path, tmp_path: Path) -> None:
    found = import_ct(three_series, tmp_path / "set")
    assert sorted(row.decision for row in found.rows) == ["refused", "taken", "taken"]
    assert found.report.series == 2
    assert "1 file that is not DICOM was passed over." in found.report.notes
    written = json.loads((tmp_path / "set" / "intake.json").read_text())
    assert written["intake"] == found.as_dict()["intake"]
    [refused] = [row for row in written["intake"] if row["decision"] == "refused"]
    assert [finding["reason"] for finding in refused["findings"]] == ["not-hu"]


def test_strict_refuses_the_whole_set_and_writes_nothing(three_series: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"1 of 3 series are refused: not-hu \(1\)"):
        import_ct(three_series, tmp_path / "set", strict=True)
    assert list(tmp_path.iterdir()) == []


def test_if_nothing_can_be_taken_nothing_is_written(
    three_series: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["import", three_series / "P0002", "-o", tmp_path / "set"]) == 2
    output = capsys.readouterr()
    assert "not-hu (refuse)" in output.out
    assert "none of 1 series can be taken: not-hu (1)" in output.err
    assert list(tmp_path.iterdir()) == []


def test_a_policy_file_decides(
    three_series: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    policy = tmp_path / "policy.toml"
    policy.write_text('min_slices = 12\n[actions]\nnot-hu = "warn"\n')
    assert read_policy(policy) == IntakePolicy(actions={Reason.NOT_HU: Action.WARN}, min_slices=12)
    assert run(["import", three_series, "-o", tmp_path / "set", "--policy", policy, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["decision"] for row in found["intake"]] == ["taken"] * 3


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('[actions]\nnot-ct = "warn"', "cannot be met with 'warn'"),
        ('[actions]\nnot-there = "warn"', "actions"),
        ("min_slice = 3", "min_slice"),
        ("min_slices = ", "cannot be read"),
    ],
)
def test_a_policy_file_that_does_not_fit_is_refused(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "policy.toml").write_text(text)
    with pytest.raises(InputError, match=words):
        read_policy(tmp_path / "policy.toml")


def test_neither_screen_nor_json_nor_intake_names_a_patient(
    dicom_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Folders of the phantom are called after its patients; a neutral one is not.
    copy(dicom_set / "studies" / "P0003", tmp_path / "a")
    (tmp_path / "a" / "P0003").rename(tmp_path / "source")
    said = ""
    for options in ([], ["--json"]):
        folder = tmp_path / f"set{len(options)}"
        assert run(["import", tmp_path / "source", "-o", folder, *options]) == 0
        output = capsys.readouterr()
        said += output.out + output.err + (folder / "intake.json").read_text()
    assert "P0003" not in said
    assert "Phantom^" not in said


def test_a_nifti_file_that_is_no_ct_is_a_row_with_a_reason(nifti_set: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for path in ("volumes/P0000.nii.gz", "segmentations/P0000.nii.gz"):
        (source / path.replace("/", "-")).write_bytes((nifti_set / path).read_bytes())
    (source / "damaged.nii").write_bytes(b"no")
    found = import_ct(source, tmp_path / "set")
    reasons = {Path(row.source).name: [finding.reason for finding in row.findings] for row in found.rows}
    assert reasons == {
        "volumes-P0000.nii.gz": [],
        "segmentations-P0000.nii.gz": [Reason.UNUSABLE_NIFTI],
        "damaged.nii": [Reason.UNUSABLE_NIFTI],
    }
    short = import_ct(source / "volumes-P0000.nii.gz", tmp_path / "b", policy=IntakePolicy(min_slices=10))
    assert short.report.slices == found.report.slices
    with pytest.raises(InputError, match="too-few-slices"):
        import_ct(source / "volumes-P0000.nii.gz", tmp_path / "c", policy=IntakePolicy(min_slices=500))


def test_a_zip_and_a_folder_give_the_same_slices(dicom_set: Path, tmp_path: Path) -> None:
    series = dicom_set / "studies" / "P0000"
    with zipfile.ZipFile(tmp_path / "study.zip", "w") as archive:
        for path in series.iterdir():
            archive.write(path, path.name)
    from_zip = import_ct(tmp_path / "study.zip", tmp_path / "a")
    from_folder = import_ct(series, tmp_path / "b")
    assert from_zip.manifest.hash == from_folder.manifest.hash
    assert (tmp_path / "a/volumes/0000.npz").read_bytes() == (tmp_path / "b/volumes/0000.npz").read_bytes()


def test_formats_are_told_by_what_is_in_the_files(dicom_set: Path, nifti_set: Path, tmp_path: Path) -> None:
    assert recognise_format(dicom_set) == "dicom"
    assert recognise_format(nifti_set) == "nifti"
    assert recognise_format(nifti_set / "volumes" / "P0000.nii.gz") == "nifti"
    make_pictures(tmp_path / "pictures")
    with zipfile.ZipFile(tmp_path / "pictures" / "archive.zip", "w") as archive:
        archive.writestr("a.png", b"\x89PNG")
    assert recognise_format(tmp_path / "pictures") is None
    assert recognise_format(tmp_path / "missing") is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("name,label\na,1\n", "names neither slices nor studies"),
        ("slice_id,label\na,2\n", "a label that is none of"),
        ("slice_id,label\na,1\na,0\n", "a slice_id that another row has too in row 2, 3"),
        ("slice_id,split\na,dev\n", "a split that is none of"),
        ("study_uid,label\n,1\n", "no study_uid in row 2"),
    ],
)
def test_a_table_that_does_not_fit_is_refused_by_its_row(
    text: str, words: str, dicom_set: Path, tmp_path: Path
) -> None:
    (tmp_path / "labels.csv").write_text(text)
    with pytest.raises(InputError, match=words):
        import_ct(dicom_set, tmp_path / "set", labels=tmp_path / "labels.csv")
    assert not (tmp_path / "set").exists()


def test_what_could_not_be_joined_is_counted(dicom_set: Path, tmp_path: Path) -> None:
    uid = make_patient(0, SETTINGS).series_uid
    (tmp_path / "labels.csv").write_text(f"series_uid,label\n{uid},normal\n2.25.1,normal\n")
    found = import_ct(dicom_set / "studies", tmp_path / "set", labels=tmp_path / "labels.csv")
    notes = " ".join(found.report.notes)
    assert "5 series are not in the table of labels." in notes
    assert "1 rows of labels.csv name a series_uid that was not taken." in notes
    assert found.manifest.table.filter(pl.col("series_uid") == uid)["label"].unique().to_list() == [0]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--format", "tiff"], "choose one of auto, pictures, dicom, nifti, rsna"),
        (["-o", "set.parquet"], "name a new folder with -o"),
        (["--format", "rsna"], "there is no train.csv"),
        (["--labels", "nowhere.csv"], "cannot be read"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    options: list[str], words: str, dicom_set: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert run(["import", dicom_set, "-o", tmp_path / "set", *options]) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "set").exists()


def test_pictures_take_no_options_of_studies(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_pictures(tmp_path / "pictures")
    assert run(["import", tmp_path / "pictures", "-o", tmp_path / "m.parquet", "--labels", tmp_path]) == 2
    assert "pictures have no use for it" in capsys.readouterr().err


def test_a_folder_in_use_is_left_alone(dicom_set: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("kept")
    with pytest.raises(OutputError, match="not empty"):
        import_ct(dicom_set, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


# Recipes of several channels, through the cache, the network and the corruptions.


CHANNELS = {
    "neighbours": {"count": 3, "distance_mm": 4.0},
    "crop_body": {"field_of_view_mm": 80},
    "window": {},
}


def test_neighbours_are_those_of_the_same_series_by_position(imported: Path, tmp_path: Path) -> None:
    manifest = read_manifest(imported / "manifest.parquet")
    shuffled = manifest.with_table(manifest.table.sample(fraction=1.0, shuffle=True, seed=3))
    table = manifest.table
    for place in (0, 5, 30):
        series = table.filter(pl.col("series_uid") == table["series_uid"][place]).sort("position")
        ids = series["slice_id"].to_list()
        index = ids.index(table["slice_id"][place])
        # The ends of a series stand for what would lie beyond them.
        wanted = [ids[min(max(index + step, 0), len(ids) - 1)] for step in (-2, -1, 0, 1, 2)]
        item = shuffled.read_slice(ids[index], (-8.0, -4.0, 0.0, 4.0, 8.0))
        for pixels, other in zip(item.around, wanted, strict=True):
            np.testing.assert_array_equal(pixels, manifest.read_slice(other).pixels)


def test_channels_go_through_cache_batches_and_predictor(imported: Path, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from cspine.experiment import Experiment
    from cspine.inference.predictor import Predictor
    from cspine.models.checkpoint import Checkpoint
    from cspine.models.classifier import build_classifier
    from cspine.models.header import CheckpointHeader
    from cspine.models.weights import load_weights
    from cspine.training.batches import Cases, open_sources

    experiment = Experiment.model_validate(
        {
            "name": "t",
            "title": "T",
            "preprocess": {**CHANNELS, "image_size_px": 32},
            "models": {"small": {"backbone": "test_resnet", "weights": "none"}},
        }
    )
    spec = experiment.find_spec("small")
    recipe = experiment.make_recipe(load_weights("none", spec, channels=experiment.preprocess.channels).scale)
    manifest = read_manifest(imported / "manifest.parquet")
    cache = open_cache(manifest, recipe, tmp_path)
    assert cache.pixels.shape == (len(manifest), 3, 32, 32)
    ids = manifest.slice_ids[10:14]
    items = [manifest.read_slice(one, recipe.offsets_mm) for one in ids]
    np.testing.assert_array_equal(cache.read(ids), np.stack([recipe.apply(item) for item in items]))
    pictures = cache.as_pictures()
    np.testing.assert_array_equal(pictures.read(ids), cache.read(ids)[:, 1])
    cases = Cases(tuple(ids), cache.rows(ids), torch.zeros(4))
    model = build_classifier(spec, recipe.scale, seed=1)
    (source,) = open_sources(model, cache, [cases], experiment.training, torch.device("cpu"))
    inputs, _ = source.read(source.plan_in_order(4)[0])
    np.testing.assert_array_equal(inputs.numpy(), cache.read(ids))
    header = CheckpointHeader(spec=spec, recipe=recipe, manifest_hash="", weights="none", versions={})
    predictor = Predictor(Checkpoint(model, header, "hash"), device="cpu")
    logits = predictor.predict_slices(items)
    np.testing.assert_allclose(predictor.predict_cached(cache, ids), logits, rtol=1e-5)
    # The channels are different ones: turned round, the answer is another.
    turned = predictor.predict_pixels(np.ascontiguousarray(cache.read(ids)[:, ::-1]))
    assert np.abs(turned - logits).max() > 1e-4


def test_the_trial_before_a_training_reads_the_neighbours_too(imported: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from cspine.comparison.prepare import PreparedData
    from cspine.comparison.training import check_training
    from cspine.data.layouts import import_dataset
    from cspine.experiment import Experiment

    settings = {"backbone": "test_resnet", "weights": "none"}
    preprocess = {**CHANNELS, "image_size_px": 32}
    experiment = Experiment.model_validate(
        {"name": "t", "title": "T", "preprocess": preprocess, "models": {"small": settings}}
    )
    prepared = PreparedData(*import_dataset(imported / "manifest.parquet"), "train", "val", "test")
    check_training(experiment, "small", prepared, tmp_path / "new", resume=False)
    assert not (tmp_path / "new").exists()


def test_corruptions_reach_the_neighbours_too(imported: Path) -> None:
    pytest.importorskip("torch")
    from cspine.comparison.robustness import Corruptor
    from cspine.robustness.corruptions import find_neighbours
    from cspine.robustness.scanner import PixelMeaning

    manifest = read_manifest(imported / "manifest.parquet")
    corruptor = Corruptor(manifest, 1, PixelMeaning(), "none")
    slice_id = manifest.slice_ids[12]
    clean = corruptor.read(slice_id, "noise", 0, (-4.0, 0.0, 4.0))
    noisy = corruptor.read(slice_id, "noise", 5, (-4.0, 0.0, 4.0))
    assert len(noisy.around) == 3
    for one, other in zip(clean.around, noisy.around, strict=True):
        assert not np.array_equal(one, other)
    np.testing.assert_array_equal(noisy.around[1], noisy.pixels)
    # A thicker slice is made of its own neighbours, and so is each of the slices about it.
    thick = replace(corruptor, neighbours=find_neighbours(manifest, [slice_id], 12.0))
    item = thick.read(slice_id, "thickness", 5, (-4.0, 0.0, 4.0))
    np.testing.assert_array_equal(item.around[1], item.pixels)
    assert not np.array_equal(item.around[0], clean.around[0])
