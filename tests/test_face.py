"""Every function of the face on a small phantom, after every module was imported: none of them replaces a function."""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path

import polars as pl
import pytest

import cspine
from cspine.core.errors import InputError

FACE = ("audit", "check_claims", "compare", "evaluate", "load", "read_results")
PAPER = {"accuracy": "97.50", "precision": "0.49", "recall": "0.47", "f1": "0.49"}
EXPERIMENT = """\
name = "tiny"
title = "Tiny"
[splits]
selection = "val"
reported = "test"
[preprocess]
image_size_px = 32
[training]
epochs = 1
batch_size = 16
[evaluation]
draws = 60
[robustness]
corruptions = []
[models.small]
backbone = "test_resnet"
weights = "none"
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("face")
    settings = cspine.PhantomSettings(patients=12, slices_per_patient=6, size_px=40, seed=5)
    cspine.write_phantom(folder / "phantom", settings, workers=1)
    (folder / "tiny.toml").write_text(EXPERIMENT)
    return folder


def test_no_module_replaces_a_function_of_the_face() -> None:
    for module in pkgutil.walk_packages(cspine.__path__, "cspine."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    for name in FACE:
        assert callable(getattr(cspine, name)), name


def test_a_comparison_is_run_read_again_and_its_model_loaded(place: Path) -> None:
    results = cspine.compare(place / "tiny.toml", place / "run", overrides=[f"data.root={place / 'phantom'}"])
    assert cspine.read_results(place / "run") == results
    assert repr(results).startswith("ComparisonResults(tiny: small; verdict: ")
    frame = results.to_frame()
    auroc = frame.filter(name="small", metric="auroc")["value"].item()
    assert auroc == results.models[0].evaluation.metrics["auroc"].value
    assert results._repr_html_().count("<img") == 3
    model = cspine.load(place / "run/models/small/checkpoint.safetensors")
    table = model.predict_slices(place / "run/manifest.parquet", "test")
    assert cspine.evaluate(table, draws=60)["auroc"].value == pytest.approx(auroc)
    audit = cspine.audit(place / "run")
    assert audit.verdict in ("sound", "limited", "not evidence")


def test_an_audit_says_what_the_command_says(place: Path, tmp_path: Path) -> None:
    found = cspine.audit(place / "phantom", tmp_path / "a.html", tmp_path / "fixed.parquet")
    assert (tmp_path / "a.html").is_file()
    assert cspine.read_manifest(tmp_path / "fixed.parquet").slice_ids
    assert found.changes is not None
    assert found.to_frame()["code"].to_list() == [one.code for one in found.findings]
    assert repr(found).startswith(f"Audit({found.verdict}: ")
    assert found.verdict in found._repr_html_()
    assert cspine.audit(cspine.read_manifest(tmp_path / "fixed.parquet")).effective_n.files > 0


@pytest.mark.parametrize("form", [lambda row: row, lambda row: [row], lambda row: pl.DataFrame([row])])
def test_a_table_of_claims_comes_in_any_form(form: object) -> None:
    found = cspine.check_claims(form({**PAPER, "positives": 200, "negatives": 200}))  # type: ignore[operator]
    assert not found.possible
    assert repr(found) == "TableVerdict(1 rows, 1 impossible)"
    assert not found.to_frame()["possible"].any()
    assert cspine.check_claims({"accuracy": "97.50"}, positives=200, negatives=200).possible


def test_claims_without_rows_or_with_unknown_metrics_are_refused() -> None:
    with pytest.raises(InputError, match="no row"):
        cspine.check_claims([], total=400)
    with pytest.raises(InputError):
        cspine.check_claims({"acuracy": "97.50"}, total=400)
