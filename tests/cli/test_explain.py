"""`cspine explain` on a drawn set with masks, on a drawn series, and on what it cannot take."""

from __future__ import annotations

import json
import re
from pathlib import Path

import cv2
import numpy as np
import polars as pl
import pytest

from cspine.ct.nifti import write_nifti
from cspine.ct.volume import CANONICAL_DIRECTION, Volume, grid_origins
from cspine.data.layouts import import_dataset
from cspine.data.manifest import write_manifest
from cspine.models.checkpoint import write_checkpoint
from cspine.models.classifier import build_classifier
from cspine.models.header import CheckpointHeader, ModelSpec
from cspine.phantom.dataset import write_phantom
from cspine.phantom.patient import PhantomSettings
from cspine.preprocess import CropBody, Equalise, Neighbours, Recipe, Resize, Window
from tests.commands import run_here

SPEC = ModelSpec(name="small", backbone="test_resnet")
RESIZE = Resize(height_px=64, width_px=64)
PICTURES = Recipe(steps=(Equalise(method="none"), RESIZE))
STUDIES = Recipe(steps=(Neighbours(count=3), CropBody(field_of_view_mm=80), Window(), RESIZE))


def write_model(path: Path, recipe: Recipe) -> Path:
    header = CheckpointHeader(spec=SPEC, recipe=recipe, manifest_hash="m", weights="none")
    write_checkpoint(path, build_classifier(SPEC, recipe.scale, seed=1), header)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set of pictures with masks, its manifest, and one model for pictures and one for HU."""
    root = tmp_path_factory.mktemp("explain")
    settings = PhantomSettings(
        patients=8, slices_per_patient=4, fracture_fraction=0.9, size_px=48, field_of_view_mm=70.0, seed=3
    )
    write_phantom(root / "set", settings, workers=1)
    write_manifest(import_dataset(root / "set")[0], root / "manifest.parquet")
    write_model(root / "pictures.safetensors", PICTURES)
    write_model(root / "studies.safetensors", STUDIES)
    hu = np.full((12, 60, 70), -1000, np.int16)
    hu[:, 8:52, 10:60] = np.random.default_rng(0).integers(0, 800, (12, 44, 50))
    origins = grid_origins((0.0, 0.0, 0.0), CANONICAL_DIRECTION[0], 8.0, 12)
    write_nifti(root / "neck.nii.gz", Volume(hu, (8.0, 1.5, 1.5), CANONICAL_DIRECTION, origins))
    return root


def explain(folder: Path, source: str, model: str, name: str, *more: str) -> tuple[Path, str]:
    done = run_here("explain", folder / source, "-c", folder / model, "-o", folder / name, *more)
    assert done.returncode == 0, done.stderr
    return folder / name, done.stdout


def test_a_set_gets_scores_a_sanity_check_and_pictures(folder: Path) -> None:
    out, shown = explain(
        folder, "manifest.parquet", "pictures.safetensors", "a", "--method", "gradcam", "--slices", "3"
    )
    found = json.loads((out / "explain.json").read_text())
    explanation = found["explanation"]
    assert found["settings"]["slices"] == 3
    assert explanation["pointing"]["slices"] == 3
    assert explanation["pointing"]["masks"] == 3
    assert explanation["pointing"]["unit"] == "patient"
    # Pictures say no spacing, so nothing can be said of millimetres.
    names = [measure["name"] for measure in explanation["pointing"]["measures"]]
    assert names == ["hit", "energy", "iou_area", "iou_half"]
    assert [step["part"] for step in explanation["sanity"]["steps"]][-1] == "all weights"
    assert explanation["sanity"]["passes"] in (True, False, None)
    assert "sanity check" in shown
    assert "Pointing game: the peak is inside" in shown
    page = (out / "explain.html").read_text()
    assert not re.search(r'(?:src|href)="(?!data:|slices/)', page)
    assert page.count("data:image/png") == 1 + 3
    assert len(list((out / "slices").iterdir())) == 3


def test_a_series_gets_planes_and_slices_without_labels(folder: Path) -> None:
    out, shown = explain(
        folder, "neck.nii.gz", "studies.safetensors", "b", "--slices", "3", "--method", "occlusion"
    )
    found = json.loads((out / "explain.json").read_text())["series"]
    assert found["slices"] == 12
    probs = [row["prob"] for row in found["explained"]]
    assert probs == sorted(probs, reverse=True)
    assert len(probs) == 3
    assert found["finding"]["slice"] in [row["slice"] for row in found["explained"]]
    assert "Highest probability" in shown
    for name in ("study.png", "slices.png", f"slices/{found['explained'][0]['slice']:04d}.png"):
        assert cv2.imread(str(out / name)) is not None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("set", "-c", "pictures.safetensors", "--method", "saliency"), "no such method"),
        (("nowhere", "-c", "pictures.safetensors"), "no such file or folder"),
        (("set", "-c", "studies.safetensors"), "the recipe takes Hounsfield units"),
        (("neck.nii.gz", "-c", "pictures.safetensors"), "the recipe takes 8-bit display values"),
        (("neck.nii.gz", "-c", "studies.safetensors", "--split", "test"), "a series has no splits"),
        (("set", "-c", "pictures.safetensors", "--split", "external"), "no slices in split 'external'"),
    ],
)
def test_what_cannot_be_explained_is_refused_and_nothing_is_left(
    folder: Path, arguments: tuple[str, ...], message: str
) -> None:
    done = run_here("explain", *arguments, "-o", "c", cwd=folder)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (folder / "c").exists()
    assert not list(folder.glob(".c.*"))


def test_a_set_without_fractures_has_nothing_to_point_at(folder: Path) -> None:
    manifest = import_dataset(folder / "manifest.parquet")[0]
    whole = manifest.with_table(manifest.table.filter(pl.col("label") == 0))
    write_manifest(whole, folder / "whole.parquet")
    done = run_here("explain", "whole.parquet", "-c", "pictures.safetensors", "-o", "d", cwd=folder)
    assert done.returncode == 2
    assert "nothing to point at" in done.stderr


def test_without_masks_maps_are_checked_and_drawn(folder: Path) -> None:
    manifest = import_dataset(folder / "manifest.parquet")[0]
    bare = manifest.with_table(manifest.table.with_columns(mask_path=pl.lit(None, pl.String)))
    write_manifest(bare, folder / "bare.parquet")
    out, shown = explain(
        folder, "bare.parquet", "pictures.safetensors", "e", "--method", "gradcam", "--slices", "2"
    )
    found = json.loads((out / "explain.json").read_text())["explanation"]
    assert found["pointing"] is None
    assert "has a mask or boxes" in found["why_none"]
    assert found["sanity"]["slices"] == 2
    assert "no pointing scores" in shown
