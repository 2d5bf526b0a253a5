"""Prediction speed: the engines that can run a network, in turns in one process; one slice alone; a fresh process."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cspine.bench.prediction_results import (
    ONNX_RUNTIME,
    OPENVINO,
    OPENVINO_BF16,
    OPENVINO_INT8,
    PLAIN_TORCH,
    TORCH,
    EngineSpeed,
    PredictionBench,
    PredictionSpeed,
)
from cspine.bench.results import Rates, describe_run
from cspine.core.errors import CspineError
from cspine.core.progress import Silent, Watcher
from cspine.inference.engines import (
    Answer,
    ExportFormat,
    ExportPrecision,
    ExportRecord,
    RuntimeName,
    has_bf16,
    import_openvino,
    is_installed,
)
from cspine.inference.export import prepare_writer
from cspine.inference.predictor import Predictor
from cspine.inference.torch_engine import TorchRuntime
from cspine.models.checkpoint import load_checkpoint, write_checkpoint
from cspine.models.classifier import build_classifier
from cspine.models.header import CheckpointHeader, resolve_spec
from cspine.preprocess import Equalise, Recipe, Resize

WARM_UP = 2
"""Batches, and single slices, before the clock starts."""

_FIRST_ANSWER = """
import sys
from pathlib import Path
import numpy as np
from cspine.inference.predictor import Predictor
predictor = Predictor.load(Path(sys.argv[1]), runtime=sys.argv[2], device="cpu")
predictor.predict_pixels(np.zeros((1, *predictor.recipe.shape), np.uint8))
"""


@dataclass(frozen=True)
class _Noise:
    """Slices of noise: what int8 is calibrated on does not change its speed."""

    shape: tuple[int, ...]

    @property
    def slice_ids(self) -> list[str]:
        """A few."""
        return [str(number) for number in range(8)]

    def read_one(self, slice_id: str) -> npt.NDArray[np.uint8]:
        """One of them."""
        return np.random.default_rng(int(slice_id)).integers(0, 256, self.shape, dtype=np.uint8)


@dataclass(frozen=True)
class _Way:
    name: str
    path: Path
    runtime: RuntimeName


def measure_prediction(
    models: Sequence[str],
    *,
    size_px: int = 224,
    batch_size: int = 16,
    batches: int = 20,
    repeats: int = 5,
    singles: int = 50,
    starts: int = 3,
    command: str = "",
    watcher: Watcher | None = None,
) -> PredictionBench:
    """Measure models of the zoo, or timm backbones, with random weights, on the CPU.

    Args:
        models: Their names.
        size_px: Side of the slices.
        batch_size, batches: Of a repeat of each way.
        repeats: Rounds of all ways of a model.
        singles: Single slices, for the latency.
        starts: Fresh processes, for the time from start to first answer.
        command: For the record.
        watcher: Is told how far it is.

    Raises:
        MissingExtraError: OpenVINO, NNCF or onnx is not installed. ONNX Runtime is left out where it is not there.
    """
    watcher = watcher or Silent()
    recipe = Recipe(steps=(Equalise(), Resize(height_px=size_px, width_px=size_px)))
    pixels = np.random.default_rng(1).integers(0, 256, (batches * batch_size, size_px, size_px), np.uint8)
    speeds = []
    for name in models:
        with tempfile.TemporaryDirectory(prefix="cspine-bench-") as folder:
            watcher.start(f"Converting {name}", 0)
            ways = _write_ways(name, recipe, Path(folder))
            watcher.finish(f"{len(ways)} ways")
            speeds.append(_measure_model(name, ways, pixels, batch_size, (repeats, singles, starts), watcher))
    return PredictionBench(
        **describe_run(command).model_dump(),
        size_px=(size_px, size_px),
        batch_size=batch_size,
        batches=batches,
        models=tuple(speeds),
    )


def _write_ways(name: str, recipe: Recipe, folder: Path) -> list[_Way]:
    """The checkpoint and its exports, which pass no gate here: only how fast they are is asked."""
    spec = resolve_spec(name)
    header = CheckpointHeader(spec=spec, recipe=recipe, manifest_hash="none", weights="none")
    source = folder / "model.safetensors"
    write_checkpoint(source, build_classifier(spec, recipe.scale, seed=0), header)
    checkpoint = load_checkpoint(source)

    def write(to: ExportFormat, precision: ExportPrecision) -> Path:
        path = folder / f"model-{precision}.{to}"
        record = ExportRecord(
            header=header,
            source_hash=checkpoint.hash,
            format=to,
            precision=precision,
            features=checkpoint.model.find_width(),
        )
        prepare_writer(checkpoint, to, precision, _Noise(recipe.shape))(path, record)
        return path

    ways = [_Way(PLAIN_TORCH, source, "torch"), _Way(TORCH, source, "torch")]
    if is_installed("onnxruntime"):
        ways.append(_Way(ONNX_RUNTIME, write("onnx", "fp32"), "onnx"))
    ways.append(_Way(OPENVINO, write("openvino", "fp32"), "openvino"))
    if has_bf16(import_openvino().Core()):
        ways.append(_Way(OPENVINO_BF16, write("openvino", "bf16"), "openvino"))
    return [*ways, _Way(OPENVINO_INT8, write("openvino", "int8"), "openvino")]


def _measure_model(
    name: str,
    ways: Sequence[_Way],
    pixels: npt.NDArray[np.uint8],
    batch_size: int,
    counts: tuple[int, int, int],
    watcher: Watcher,
) -> PredictionSpeed:
    repeats, singles, starts = counts
    predictors = {way.name: _load(way) for way in ways}
    for predictor in predictors.values():
        predictor.batch_size = batch_size
        predictor.predict_pixels(pixels[: WARM_UP * batch_size])
    rates: dict[str, list[float]] = {way.name: [] for way in ways}
    watcher.start(f"Measuring {name}", repeats)
    for number in range(repeats):
        for way, predictor in predictors.items():
            started = time.perf_counter()
            predictor.predict_pixels(pixels)
            rates[way].append(len(pixels) / (time.perf_counter() - started))
        watcher.advance(number + 1, repeats)
    latencies = {way: _time_singles(predictor, pixels, singles) for way, predictor in predictors.items()}
    abouts = {way: predictor.runtime.about for way, predictor in predictors.items()}
    predictors.clear()  # their threads have no part in what the fresh processes take
    # What torch does with freed memory has no part in its start.
    started_up = {
        way.name: () if way.name == PLAIN_TORCH else tuple(_time_start(way) for _ in range(starts))
        for way in ways
    }
    watcher.finish(", ".join(f"{way} {np.median(found):.3g}/s" for way, found in rates.items()))
    return PredictionSpeed(
        model=name,
        ways={
            way.name: EngineSpeed(
                about=abouts[way.name],
                rates=Rates(slices_per_s=tuple(rates[way.name])),
                latency_ms=latencies[way.name],
                start_up_s=started_up[way.name],
            )
            for way in ways
        },
    )


class _PlainTorch(TorchRuntime):
    """Torch that hands freed memory back, as it does by itself."""

    def run(self, batches: Iterable[npt.NDArray[np.uint8]]) -> Iterator[Answer]:
        """One batch after the other."""
        return map(self.answer, batches)


def _load(way: _Way) -> Predictor:
    predictor = Predictor.load(way.path, runtime=way.runtime, device="cpu")
    if way.name == PLAIN_TORCH:
        predictor.runtime = _PlainTorch(predictor.model, "cpu")
    return predictor


def _time_singles(predictor: Predictor, pixels: npt.NDArray[np.uint8], count: int) -> tuple[float, ...]:
    found = []
    for number in range(WARM_UP + count):
        one = pixels[number % len(pixels)][None]
        started = time.perf_counter()
        predictor.predict_pixels(one)
        found.append(1000 * (time.perf_counter() - started))
    return tuple(found[WARM_UP:])


def _time_start(way: _Way) -> float:
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", _FIRST_ANSWER, str(way.path), way.runtime],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise CspineError(f"{way.name} did not start in a fresh process", where=done.stderr[-300:])
    return time.perf_counter() - started
