"""`cspine predict` over CT studies: from any source the same answers, kept as they come, and no call without reason."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

import cspine
from cspine.core.aggregation import Aggregation
from cspine.core.errors import InputError
from cspine.core.predictions import read_predictions
from cspine.inference.answers import AnswersFolder, evaluate_answers
from cspine.inference.engines import ExportRecord, is_installed
from cspine.inference.export import prepare_writer
from cspine.models.checkpoint import add_study_parts, load_checkpoint, write_checkpoint
from cspine.models.classifier import build_classifier
from cspine.models.header import CheckpointHeader, ModelSpec
from cspine.models.ood import OodDetector
from cspine.phantom.patient import PhantomSettings
from cspine.phantom.series import write_phantom_rsna
from cspine.preprocess import CropBody, Equalise, Neighbours, Recipe, Resize, Scale, Window
from tests.commands import Finished, run_here

HU_STEPS = (
    Neighbours(count=3, distance_mm=6),
    CropBody(field_of_view_mm=120),
    Window(),
    Resize(height_px=32, width_px=32),
)
NOT_NEEDED = (
    "torch",
    "timm",
    "scipy",
    "sklearn",
    "matplotlib",
    "highdicom",
    "cspine.explain",
    "cspine.comparison",
)
RULE = Aggregation(kind="top_k_mean", k=2, threshold=0.4, studies=9, positives=4, fitted_on="val")


def write_model(path: Path, *, seed: int = 0, hu: bool = True) -> Path:
    spec = ModelSpec(name="small", backbone="test_resnet")
    steps = HU_STEPS if hu else (Equalise(), Resize(height_px=32, width_px=32))
    recipe = Recipe(steps=steps, scale=Scale(mean=(0.0,) * 3, std=(1.0,) * 3))
    header = CheckpointHeader(
        spec=spec, recipe=recipe, manifest_hash="m", weights="none", aggregation=RULE if hu else None
    )
    write_checkpoint(path, build_classifier(spec, recipe.scale, seed=seed), header)
    return path


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six necks as the challenge lays them out, the same set imported, and models."""
    folder = tmp_path_factory.mktemp("studies")
    settings = PhantomSettings(patients=6, size_px=40, field_of_view_mm=110, seed=1)
    write_phantom_rsna(folder / "rsna", settings, slice_spacing_mm=6.0)
    write_model(folder / "m.safetensors")
    write_model(folder / "n.safetensors", seed=1)
    write_model(folder / "pictures.safetensors", hu=False)
    assert run_here("import", "rsna", "-o", "set", cwd=folder).returncode == 0
    return folder


@pytest.fixture(scope="module")
def answers(place: Path) -> Path:
    result = predict(place, "rsna", "-o", "answers")
    assert result.returncode == 0, result.stderr
    return place / "answers"


def predict(place: Path, *arguments: object, model: str = "m.safetensors") -> Finished:
    return run_here("predict", *arguments, "-c", model, cwd=place)


def read_slices(folder: Path) -> pl.DataFrame:
    return pl.read_parquet(folder / "slices.parquet").sort("slice_id")


def test_a_row_a_series_with_the_challenges_levels(place: Path, answers: Path) -> None:
    studies = pl.read_parquet(answers / "studies.parquet")
    labels = pl.read_csv(place / "rsna/train.csv")
    assert studies.height == 6
    assert studies["stands_for_study"].all()
    assert dict(studies.select("study_uid", "truth").iter_rows()) == dict(
        labels.select("StudyInstanceUID", "patient_overall").iter_rows()
    )
    # Every second study has a segmentation.
    assert studies["C1"].null_count() == 3
    assert set(studies["threshold"]) == {0.4}
    slices = read_slices(answers)
    for row in studies.iter_rows(named=True):
        own = slices.filter(pl.col("series_uid") == row["series_uid"])
        assert row["slices"] == own.height
        assert row["logit"] == pytest.approx(own["logit"].sort()[-2:].mean())
        assert own.sort("logit")["carries"][-1]
    assert json.loads((answers / "metrics.json").read_text())["slices"] == 6


def test_dicom_and_imported_set_give_bit_equal_logits(place: Path, answers: Path) -> None:
    assert predict(place, "set", "-o", "from-set").returncode == 0
    assert predict(place, "set", "-o", "p.parquet").returncode == 0
    wanted = read_slices(answers).select("slice_id", "logit")
    assert read_slices(place / "from-set").select("slice_id", "logit").equals(wanted)
    table = read_predictions(place / "p.parquet").select("slice_id", "logit")
    # In batches of other slices, so near and not equal.
    np.testing.assert_allclose(table["logit"], wanted["logit"], atol=1e-5)
    known = "study_uid", "call", "truth", "C1", "C7"
    of_set, of_dicom = (
        pl.read_parquet(folder / "studies.parquet").select(known).sort("study_uid")
        for folder in (place / "from-set", answers)
    )
    assert of_set.drop("C1", "C7").equals(of_dicom.drop("C1", "C7"))


def test_names_and_archives_change_nothing(place: Path, answers: Path, tmp_path: Path) -> None:
    study = sorted((place / "rsna/train_images").iterdir())[0]
    with zipfile.ZipFile(tmp_path / "study.zip", "w") as archive:
        for number, path in enumerate(sorted(study.iterdir(), key=lambda path: path.name[::-1])):
            archive.write(path, f"deep/{number:03}")
    assert predict(place, tmp_path / "study.zip", "-o", tmp_path / "out").returncode == 0
    found = read_slices(tmp_path / "out")
    wanted = read_slices(answers).filter(pl.col("study_uid") == study.name)
    assert found.drop("vertebra_level").equals(wanted.drop("vertebra_level"))


def test_it_goes_on_where_it_stopped_and_reads_nothing_twice(
    place: Path, answers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = []
    add = AnswersFolder.add

    def stop_after_two(self: object, answered: object) -> None:
        if len(kept) == 2:
            raise KeyboardInterrupt
        add(self, answered)  # type: ignore[arg-type]
        kept.append(answered)

    monkeypatch.setattr(AnswersFolder, "add", stop_after_two)
    stopped = predict(place, "rsna", "-o", tmp_path / "a")
    assert stopped.returncode == 130
    assert "--resume" in stopped.stderr
    assert pl.read_csv(tmp_path / "a/studies.csv").height == 2
    monkeypatch.setattr(AnswersFolder, "add", add)

    used = predict(place, "rsna", "-o", tmp_path / "a")
    assert used.returncode == 2
    assert "--resume" in used.stderr
    other = predict(place, "rsna", "-o", tmp_path / "a", "--resume", model="n.safetensors")
    assert other.returncode == 2
    assert "other models" in other.stderr

    went_on = predict(place, "rsna", "-o", tmp_path / "a", "--resume")
    assert went_on.returncode == 0
    assert "2 answered before" in went_on.stderr
    for name in ("studies.csv", "slices.csv", "studies.json", "intake.json"):
        assert (tmp_path / "a" / name).read_bytes() == (answers / name).read_bytes()


def test_two_models_answer_by_their_mean(place: Path, answers: Path) -> None:
    assert predict(place, "rsna", "-o", "other", model="n.safetensors").returncode == 0
    assert predict(place, "rsna", "-c", "n.safetensors", "-o", "both").returncode == 0
    one, two, both = (read_slices(place / name) for name in ("answers", "other", "both"))
    np.testing.assert_allclose(both["logit"], (one["logit"] + two["logit"]) / 2)
    one, two, both = (
        pl.read_parquet(place / name / "studies.parquet").sort("series_uid")
        for name in ("answers", "other", "both")
    )
    np.testing.assert_allclose(both["logit"], (one["logit"] + two["logit"]) / 2)
    assert predict(place, "set", "-c", "n.safetensors", "-o", "b.parquet").returncode == 0
    table = read_predictions(place / "b.parquet")
    np.testing.assert_allclose(table["logit"], read_slices(place / "both")["logit"], atol=1e-5)


def test_no_call_is_made_without_a_fitting_model(place: Path, tmp_path: Path) -> None:
    result = predict(place, "rsna", "-o", tmp_path / "a", model="pictures.safetensors")
    assert result.returncode == 1  # not one call
    assert "unfit-recipe" in result.stdout
    assert set(pl.read_parquet(tmp_path / "a/studies.parquet")["call"]) == {"abstained"}
    assert (tmp_path / "a/answers.html").exists()


def test_a_study_unlike_the_training_gets_its_scores_and_no_call(place: Path, tmp_path: Path) -> None:
    width = load_checkpoint(place / "m.safetensors").model.find_width()
    strange = OodDetector(np.full(width, 1e3, np.float32), np.eye(2, width, dtype=np.float32))
    add_study_parts(
        place / "m.safetensors",
        tmp_path / "strange.safetensors",
        aggregation=RULE,
        ood=strange,
        distance_limit=2.0,
    )
    result = predict(
        place, "rsna", "-o", tmp_path / "a", "--json", model=str(tmp_path / "strange.safetensors")
    )
    assert result.returncode == 1
    found = json.loads(result.stdout)
    assert {one["call"] for one in found} == {"abstained"}
    assert {one["abstentions"][0]["reason"] for one in found} == {"out-of-distribution"}
    assert all(one["prob"] is not None and one["distance"] > one["distance_limit"] for one in found)


def test_a_refused_series_is_a_row_with_its_reason(place: Path, tmp_path: Path) -> None:
    study = sorted((place / "rsna/train_images").iterdir())[0]
    shutil.copytree(study, tmp_path / "in/one")
    whole = sorted((place / "rsna/train_images").iterdir())[1]
    for path in sorted(whole.iterdir(), key=lambda path: int(path.stem))[:4]:
        (tmp_path / "in/two").mkdir(exist_ok=True)
        shutil.copy(path, tmp_path / "in/two")
    (tmp_path / "in/readme.txt").write_text("no picture")
    result = predict(place, tmp_path / "in", "-o", tmp_path / "a")
    assert result.returncode == 0, result.stderr
    assert "too-few-slices" in result.stdout
    assert predict(place, tmp_path / "in", "-o", tmp_path / "b", "--strict").returncode == 1
    rows = pl.read_parquet(tmp_path / "a/studies.parquet").sort("slices")
    assert rows["call"][0] == "abstained"
    assert rows["reasons"][0] == "intake-refused"
    assert "too-few-slices" in rows["intake_reasons"][0]


def test_no_patient_is_named_in_any_file_or_on_the_terminal(place: Path, tmp_path: Path) -> None:
    pydicom = pytest.importorskip("pydicom")
    study = sorted((place / "rsna/train_images").iterdir())[0]
    (tmp_path / "in").mkdir()
    for path in study.iterdir():
        dataset = pydicom.dcmread(path)
        dataset.PatientID, dataset.PatientName = "ID-4711", "Doe^Jane"
        dataset.save_as(tmp_path / "in" / path.name)
    result = predict(place, tmp_path / "in", "-o", tmp_path / "a")
    assert result.returncode == 0
    texts = [result.stdout, result.stderr]
    for path in (tmp_path / "a").rglob("*"):
        if path.is_file():
            texts.append(path.read_bytes().decode("latin-1"))
    assert not any("ID-4711" in text or "Doe" in text for text in texts)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["rsna", "nowhere", "-o", "x"], "no such file or folder"),
        (["rsna", "set/manifest.parquet", "-o", "x.parquet"], "two commands"),
        (["rsna", "-o", "set"], "not empty"),
        (["rsna", "-o", "m.safetensors"], "answers are a folder"),
        (["rsna", "-o", "x", "--policy", "nowhere.toml"], "policy cannot be read"),
        (["rsna", "-o", "x", "--labels", "nowhere.csv"], "nowhere.csv"),
        (["rsna", "-o", "x", "--segmentations", "nowhere"], "no such folder of segmentations"),
        (["set", "-o", "x.parquet", "--strict"], "has no use for it"),
        (["rsna", "-o", "x", "--explain", "saliency"], "gradcam, occlusion"),
        (["rsna", "-o", "x", "--deidentify", "m.safetensors"], "add --dicom-out"),
        (["rsna", "-o", "x", "--dicom-out", "--deidentify", "nowhere"], "no key for de-identification"),
        (["rsna", "-o", "x", "--split", "test"], "only an imported set has splits"),
        (["rsna/train.csv", "-o", "x"], "no CT studies here"),
        (["rsna", "-o", "x", "-c", "pictures.safetensors"], "some take Hounsfield units"),
        (["rsna", "-o", "x", "-c", "nowhere.safetensors"], "no such checkpoint"),
    ],
)
def test_bad_input_is_one_message_and_leaves_nothing(place: Path, arguments: list[str], words: str) -> None:
    before = sorted(place.rglob("*"))
    result = predict(place, *arguments)
    assert result.returncode == 2, result.stdout
    assert words in result.stderr
    assert "Traceback" not in result.stderr
    assert sorted(place.rglob("*")) == before


def test_the_longer_called_series_stands_for_its_study(answers: Path, tmp_path: Path) -> None:
    folder = AnswersFolder.open(tmp_path / "a", {}, resume=False)
    first = AnswersFolder(answers).read()[0]
    part = len(first.answer.slice_ids) // 2
    for name, count in (("a", part), ("b", 2 * part)):
        intake = first.answer.intake.model_copy(update={"series_uid": name})
        shorter = replace(
            first.answer,
            intake=intake,
            slice_ids=first.answer.slice_ids[:count],
            positions_mm=first.answer.positions_mm[:count],
            logits=first.answer.logits[:count],
            probs=first.answer.probs[:count],
            levels=first.answer.levels[:count],
            key_slices=(0,),
        )
        folder.add(replace(first, answer=shorter))
    folder.write_tables()
    # Two of each class are studies; the second series of one is none.
    others = AnswersFolder(answers).read()[1:4]
    for other, truth in zip(others, (0, 0, 1), strict=True):
        folder.add(replace(other, truth=truth))
    evaluation = evaluate_answers(
        [replace(one, truth=1 if one.key in "ab" else one.truth) for one in folder.read()]
    )
    assert evaluation is not None
    assert evaluation.slices == 4
    rows = pl.read_parquet(tmp_path / "a/studies.parquet")
    assert dict(rows.select("series_uid", "stands_for_study").iter_rows()) == {"a": False, "b": True}


def test_an_empty_cell_of_a_label_table_says_nothing(place: Path, tmp_path: Path) -> None:
    uids = [path.name for path in sorted((place / "rsna/train_images").iterdir())[:3]]
    tables = {
        "label": f"study_uid,label\n{uids[0]},fracture\n{uids[1]},normal\n{uids[2]},\n",
        "targets": "study_uid,patient_overall,C1,C2,C3,C4,C5,C6,C7\n"
        f"{uids[0]},1,0,1,0,0,0,0,0\n{uids[1]},0,0,0,0,0,0,0,0\n{uids[2]},,,,,,,,\n",
    }
    for uid in uids:
        shutil.copytree(place / "rsna/train_images" / uid, tmp_path / "in" / uid)
    for name, text in tables.items():
        (tmp_path / f"{name}.csv").write_text(text)
        table, source = tmp_path / f"{name}.csv", tmp_path / "in"
        assert predict(place, source, "-o", tmp_path / name, "--labels", table).returncode == 0
        assert run_here("import", source, "-o", tmp_path / f"{name}-set", "--labels", table).returncode == 0
        assert predict(place, tmp_path / f"{name}-set", "-o", tmp_path / f"{name}-of-set").returncode == 0
        for folder in (tmp_path / name, tmp_path / f"{name}-of-set"):
            found = pl.read_parquet(folder / "studies.parquet")
            assert dict(found.select("study_uid", "truth").iter_rows()) == dict(
                zip(uids, (1, 0, None), strict=True)
            )


def test_what_is_left_out_or_joined_to_nothing_is_said(place: Path, tmp_path: Path) -> None:
    study = sorted((place / "rsna/train_images").iterdir())[0]
    (tmp_path / "l.csv").write_text("study_uid,label\n9.9,fracture\n")
    for name in "abc":
        shutil.copytree(study, tmp_path / name)
    sources = [tmp_path / name for name in "abc"]
    result = predict(place, *sources, "-o", tmp_path / "out", "--labels", tmp_path / "l.csv")
    assert result.returncode == 0
    assert "no study_uid of the table of labels" in result.stderr
    assert "2 series were left out" in result.stderr
    other = predict(place, *sources, "-o", tmp_path / "out", "--resume")
    assert other.returncode == 2
    assert "other models, engines, policy, labels" in other.stderr


def test_studies_of_one_patient_stay_together_when_a_run_goes_on(place: Path, tmp_path: Path) -> None:
    pydicom = pytest.importorskip("pydicom")
    for study in sorted((place / "rsna/train_images").iterdir())[:2]:
        (tmp_path / "in" / study.name).mkdir(parents=True)
        for path in study.iterdir():
            dataset = pydicom.dcmread(path)
            dataset.PatientID = "ID-4711"
            dataset.save_as(tmp_path / "in" / study.name / path.name)
    assert predict(place, tmp_path / "in", "-o", tmp_path / "a").returncode == 0
    whole = pl.read_csv(tmp_path / "a/studies.csv")
    assert whole["group"].n_unique() == 1
    for path in (tmp_path / "a/series").iterdir():
        record = json.loads(path.read_text())
        if record["group"] != record["answer"]["study_uid"]:
            path.unlink()
    assert predict(place, tmp_path / "in", "-o", tmp_path / "a", "--resume").returncode == 0
    assert pl.read_csv(tmp_path / "a/studies.csv").equals(whole)


def test_maps_scores_and_objects_are_on_the_page(place: Path, tmp_path: Path) -> None:
    pydicom = pytest.importorskip("pydicom")
    studies = sorted((place / "rsna/train_images").iterdir())[:2]
    (tmp_path / "set").mkdir()
    for name in ("train.csv", "train_bounding_boxes.csv", "segmentations"):
        (tmp_path / "set" / name).symlink_to(place / "rsna" / name)
    (tmp_path / "set/train_images").mkdir()
    for study in studies:
        (tmp_path / "set/train_images" / study.name).symlink_to(study)
    (tmp_path / "key").write_text("a secret of many characters")
    extras = ("--explain", "gradcam", "--dicom-out", "--deidentify", tmp_path / "key")
    result = predict(place, tmp_path / "set", "-o", tmp_path / "a", *extras)
    assert result.returncode == 0, result.stderr
    rows = pl.read_parquet(tmp_path / "a/studies.parquet")
    broken = rows.filter(pl.col("truth") == 1)
    scored = [
        json.loads(path.read_text())
        for path in (tmp_path / "a/series").iterdir()
        if json.loads(path.read_text())["pointing"]
    ]
    assert len(scored) == broken.height > 0
    for folder in ("pictures", "dicom"):
        assert len(list((tmp_path / "a" / folder).iterdir())) == 2
    names = {path.stem for path in (tmp_path / "a/series").iterdir()}
    assert {path.name for path in (tmp_path / "a/pictures").iterdir()} == names
    assert not {path.name for path in (tmp_path / "a/dicom").iterdir()} & names
    for report in (tmp_path / "a/dicom").rglob("report.dcm"):
        dataset = pydicom.dcmread(report)
        assert dataset.Modality == "SR"
        assert dataset.StudyInstanceUID not in {study.name for study in studies}
    page = (tmp_path / "a/answers.html").read_text()
    assert "Where the model looks" in page
    assert page.count("data:image/jpeg") == 2
    again = predict(place, tmp_path / "set", "-o", tmp_path / "a", "--resume")
    assert again.returncode == 2  # without maps the answers would be others


@pytest.mark.skipif(not is_installed("openvino"), reason="needs OpenVINO (extra export)")
def test_another_engine_gives_the_same_answers(place: Path, answers: Path) -> None:
    result = predict(place, "rsna", "-o", "by-openvino", "--runtime", "openvino")
    assert result.returncode == 0, result.stderr
    assert "OpenVINO" in result.stderr
    wanted, found = (read_slices(folder) for folder in (answers, place / "by-openvino"))
    assert found["slice_id"].to_list() == wanted["slice_id"].to_list()
    np.testing.assert_allclose(found["logit"], wanted["logit"], atol=1e-3)
    other = predict(place, "rsna", "-o", "by-openvino", "--resume")
    assert (other.returncode, "other models, engines" in other.stderr) == (2, True)


@pytest.mark.skipif(not is_installed("onnxruntime"), reason="needs ONNX Runtime (extra export)")
def test_maps_of_another_engine_are_refused_first(place: Path) -> None:
    result = predict(place, "rsna", "-o", "nowhere", "--runtime", "onnx", "--explain", "gradcam")
    assert (result.returncode, "needs the torch network itself" in result.stderr) == (2, True)
    assert not (place / "nowhere").exists()


def test_an_engine_that_there_is_not_is_refused(place: Path) -> None:
    result = predict(place, "rsna", "-o", "nowhere", "--runtime", "abacus")
    assert (result.returncode, "no such runtime: abacus" in result.stderr) == (2, True)
    assert not (place / "nowhere").exists()


def test_a_loaded_model_answers_as_the_command_does(place: Path, answers: Path) -> None:
    found = cspine.load(place / "m.safetensors").predict(place / "rsna")
    frame = found.to_frame().sort("series_uid").drop("source", "group")
    written = pl.read_parquet(answers / "studies.parquet").sort("series_uid").drop("source", "group")
    assert frame.equals(written)
    assert len(found) == 6
    assert found[0].call in ("fracture", "no fracture", "abstained")
    assert repr(found).startswith("StudyAnswers(6 series: ")
    assert "study_uid" in found._repr_html_()


def test_slices_are_scored_as_by_the_command(place: Path, tmp_path: Path) -> None:
    assert predict(place, "set", "-o", tmp_path / "p.parquet").returncode == 0
    table = cspine.load(place / "m.safetensors").predict_slices(place / "set/manifest.parquet")
    assert table.equals(read_predictions(tmp_path / "p.parquet"))


def test_what_needs_a_folder_is_refused_without_one(place: Path) -> None:
    model = cspine.load(place / "m.safetensors")
    with pytest.raises(InputError, match="none is named"):
        model.predict(place / "rsna", options=cspine.StudyOptions(explain="gradcam"))
    with pytest.raises(InputError, match="no CT studies"):
        model.predict(place / "rsna/train.csv")


def test_an_export_answers_without_torch_figures_or_audit(place: Path, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    checkpoint = load_checkpoint(place / "m.safetensors")
    export = tmp_path / "m.openvino"
    series = min((place / "rsna/train_images").iterdir())
    record = ExportRecord(
        header=checkpoint.header,
        source_hash=checkpoint.hash,
        format="openvino",
        precision="fp32",
        features=checkpoint.model.find_width(),
    )
    prepare_writer(checkpoint, "openvino", "fp32", None)(export, record)
    code = (
        "import sys; from cspine.cli import main\n"
        f"try: main(['predict', {str(series)!r}, '-c', {str(export)!r}, '-o', {str(tmp_path / 'a')!r}])\n"
        "except SystemExit as stop: assert not stop.code, stop.code\n"
        f"found = {{*{NOT_NEEDED!r}}} & {{*sys.modules}}; assert not found, found"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=place, capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr
