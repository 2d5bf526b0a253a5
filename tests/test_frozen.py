"""Files that earlier versions wrote still load, with the values that those versions found.

`tests/frozen/2026-11.zip` was made on drawn necks by the code of November 2026: a checkpoint of test_resnet with
weights of a pattern, its exports, a finished run, an audit and a folder of answers.
"""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

import cspine
from cspine.auditing.findings import AuditResult
from cspine.inference.answers import AnswersFolder
from cspine.inference.predictor import Predictor


@pytest.fixture(scope="module")
def frozen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("frozen")
    with zipfile.ZipFile(Path(__file__).parent / "frozen/2026-11.zip") as archive:
        archive.extractall(folder)
    return folder


@pytest.fixture(scope="module")
def expected(frozen: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((frozen / "expected.json").read_text())
    return found


@pytest.mark.parametrize("name", ["m.safetensors", "m.openvino", "m.onnx"])
def test_a_checkpoint_and_its_exports_answer_as_then(
    frozen: Path, expected: dict[str, Any], name: str
) -> None:
    pytest.importorskip("openvino")
    predictor = Predictor.load(frozen / name)
    shape = (3, *expected["shape"])
    pixels = (np.arange(np.prod(shape)).reshape(shape) * 7919 % 251).astype(np.uint8)
    assert predictor.predict_pixels(pixels) == pytest.approx(expected["logits"], abs=1e-4)
    assert predictor.header.threshold == 0.45
    assert predictor.header.calibration.slope == 1.5
    if name == "m.safetensors":
        assert predictor.checkpoint_hash == expected["checkpoint_hash"]


def test_a_run_and_its_manifest_are_read(frozen: Path, expected: dict[str, Any]) -> None:
    results = cspine.read_results(frozen / "run")
    assert results.models[0].evaluation.metrics["auroc"].value == expected["auroc"]
    assert results.verdict == "not evidence"
    assert cspine.read_manifest(frozen / "run/manifest.parquet").hash == expected["manifest_hash"]
    assert cspine.Experiment.model_validate_json((frozen / "run/experiment.json").read_bytes()).name == "tiny"


def test_predictions_are_evaluated_as_then(frozen: Path, expected: dict[str, Any]) -> None:
    (path,) = (frozen / "run/models/small").glob("predictions*.parquet")
    assert cspine.evaluate(path, draws=40)["auroc"].value == expected["auroc"]


def test_an_audit_is_read(frozen: Path) -> None:
    audit = AuditResult.model_validate_json((frozen / "audit.json").read_bytes())
    assert audit.findings
    assert audit.effective_n.files == 72


def test_a_folder_of_answers_is_read_and_written_as_then(frozen: Path, expected: dict[str, Any]) -> None:
    before = {
        name: (frozen / "answers" / name).read_bytes()
        for name in ("studies.csv", "slices.csv", "studies.json")
    }
    answered = AnswersFolder(frozen / "answers").write_tables()
    for one, wanted in zip(answered, expected["studies"], strict=True):
        assert one.key == wanted["series_uid"]
        assert (one.answer.call, one.answer.prob, one.truth) == (
            wanted["call"],
            wanted["prob"],
            wanted["truth"],
        )
    for name, content in before.items():
        assert (frozen / "answers" / name).read_bytes() == content, name
    assert pl.read_parquet(frozen / "answers/slices.parquet").height == 35
