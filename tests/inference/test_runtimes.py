"""Which engine runs a file, and what is said where none does; what is read of a file without one."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from cspine.core.errors import CheckpointError, MissingExtraError
from cspine.inference.engines import (
    ExportRecord,
    StoredOod,
    choose_runtime,
    read_any_header,
    read_record,
)
from cspine.inference.predictor import load_exported
from cspine.models.header import CheckpointHeader, ModelSpec
from cspine.models.ood import OodDetector
from cspine.preprocess import Recipe

RECORD = ExportRecord(
    header=CheckpointHeader(
        spec=ModelSpec(name="m", backbone="test_resnet"), recipe=Recipe(), manifest_hash="m", weights="none"
    ),
    source_hash="s",
    format="onnx",
    precision="fp32",
    features=4,
)


def write_onnx(path: Path, **properties: str) -> Path:
    """A valid model that does nothing but carry properties."""
    value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    node = onnx.helper.make_node("Identity", ["x"], ["y"])
    out = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])
    model = onnx.helper.make_model(onnx.helper.make_graph([node], "g", [value], [out]))
    onnx.helper.set_model_props(model, properties)
    onnx.save(model, path)
    return path


@pytest.mark.parametrize(
    ("file_format", "asked", "installed", "wanted"),
    [
        (None, "auto", {"openvino", "onnxruntime"}, "torch"),
        (None, "openvino", {"openvino"}, "openvino"),
        ("onnx", "auto", {"openvino", "onnxruntime"}, "openvino"),
        ("onnx", "auto", {"onnxruntime"}, "onnx"),
        ("onnx", "onnx", {"openvino", "onnxruntime"}, "onnx"),
        ("onnx", "onnx", {"openvino"}, "openvino"),
        ("openvino", "auto", {"openvino"}, "openvino"),
    ],
)
def test_the_engine_follows_from_the_file_and_what_is_installed(
    file_format: Any, asked: Any, installed: set[str], wanted: str
) -> None:
    name, why = choose_runtime(file_format, asked, "f", installed=installed.__contains__)
    assert name == wanted
    assert why


def test_where_no_engine_is_installed_the_extra_is_named() -> None:
    with pytest.raises(MissingExtraError, match="exported to onnx") as caught:
        choose_runtime("onnx", "auto", "f", installed=lambda _: False)
    assert "cspine[export]" in str(caught.value)


@pytest.mark.parametrize(("file_format", "asked"), [("onnx", "torch"), ("openvino", "onnx")])
def test_an_engine_that_cannot_run_the_file_is_refused(file_format: Any, asked: Any) -> None:
    with pytest.raises(CheckpointError, match="does not run on") as caught:
        choose_runtime(file_format, asked, "f")
    assert "auto" in str(caught.value)


def test_torchscript_of_earlier_versions_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="TorchScript is not supported"):
        read_any_header(tmp_path / "m.torchscript")


def test_the_record_is_found_among_other_properties(tmp_path: Path) -> None:
    path = write_onnx(tmp_path / "m.onnx", author="a", cspine=RECORD.model_dump_json(), other="b")
    assert read_record(path) == RECORD


def test_a_familiarity_comes_back_with_the_same_bits() -> None:
    rng = np.random.default_rng(0)
    wanted = OodDetector(rng.normal(size=5).astype(np.float32), rng.normal(size=(3, 5)).astype(np.float32))
    found = StoredOod.store(wanted).restore()
    np.testing.assert_array_equal(found.mean, wanted.mean)
    np.testing.assert_array_equal(found.whitening, wanted.whitening)


def make_bad_file(kind: str, folder: Path) -> Path:
    path = folder / f"m.{'openvino' if kind == 'foreign zip' else 'onnx'}"
    if kind == "foreign":
        return write_onnx(path, author="a")
    if kind == "foreign zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("model.xml", "<net/>")
    elif kind == "text":
        path.write_text("this is no model at all, only words\n" * 20)
    elif kind == "cut off":
        write_onnx(path, cspine=RECORD.model_dump_json())
        path.write_bytes(path.read_bytes()[:-50])
    elif kind == "other version":
        write_onnx(path, cspine='{"format_version": 99}')
    elif kind == "misnamed":
        record = RECORD.model_copy(update={"format": "openvino"})
        write_onnx(path, cspine=record.model_dump_json())
    elif kind == "empty":
        path.touch()
    return path


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("missing", "no such exported model"),
        ("foreign", "not exported by cspine"),
        ("foreign zip", "not exported by cspine"),
        ("empty", "not exported by cspine"),
        ("text", "damaged"),
        ("cut off", "damaged"),
        ("other version", "does not validate"),
        ("misnamed", "holds openvino"),
    ],
)
def test_a_file_that_is_none_of_ours_is_refused_with_the_reason(
    kind: str, words: str, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=words):
        read_record(make_bad_file(kind, tmp_path))


def test_a_graph_that_the_engine_cannot_run_is_one_clear_error(tmp_path: Path) -> None:
    path = write_onnx(tmp_path / "m.onnx", cspine=RECORD.model_dump_json())
    content = path.read_bytes().replace(b"Identity", b"Idontity")
    path.write_bytes(content)
    for runtime in ("onnx", "openvino"):
        with pytest.raises(CheckpointError, match="cannot run the model"):
            load_exported(path, runtime)  # type: ignore[arg-type]


def test_a_precision_that_passed_no_gate_is_refused(tmp_path: Path) -> None:
    path = write_onnx(tmp_path / "m.onnx", cspine=RECORD.model_dump_json())
    with pytest.raises(CheckpointError, match="passed its gate in that, not in bf16"):
        load_exported(path, precision="bf16")


def test_an_exported_model_is_loaded_without_torch() -> None:
    code = (
        "import sys, pathlib, cspine.core.errors\nfrom cspine.inference.predictor import Predictor\n"
        "try:\n    Predictor.load(pathlib.Path('none.onnx'))\nexcept cspine.core.errors.CheckpointError:\n    pass\n"
        "assert 'torch' not in sys.modules and 'openvino' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
