"""Prediction speed of the paper's three models: torch, ONNX Runtime and OpenVINO in fp32, bf16 and int8, in turns.

    python benchmarks/predict.py --repeats 5 -o predict.json

Random weights at 224x224 pixels, batches of 16, on the CPU, in one process. "torch as it comes" is the same network
without `machine.hold_memory`. Engines that are not installed, and bf16 where the processor has none, are left out.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import numpy as np
from _measure import (
    MODELS,
    divide,
    format_spread,
    make_parser,
    save,
    show,
    time_in_turns,
    write_exported,
    write_model,
)

from cspine.inference.engines import has_bf16, import_openvino, is_installed
from cspine.inference.predictor import Predictor
from cspine.inference.torch_engine import TorchRuntime
from cspine.preprocess import Equalise, Recipe, Resize

SIZE_PX, BATCH_SIZE, SINGLES = 224, 16, 50
AS_IT_COMES = "torch as it comes"


class PlainTorch(TorchRuntime):
    """Torch that hands freed memory back, as it does by itself."""

    def run(self, batches):  # type: ignore[no-untyped-def]
        """One batch after the other."""
        return map(self.answer, batches)


def load_ways(name: str, folder: Path) -> dict[str, Predictor]:
    """A predictor for every way to run a model."""
    recipe = Recipe(steps=(Equalise(), Resize(height_px=SIZE_PX, width_px=SIZE_PX)))
    source = write_model(name, folder / "model.safetensors", recipe)
    ways = {way: Predictor.load(source, runtime="torch", device="cpu") for way in (AS_IT_COMES, "torch")}
    ways[AS_IT_COMES].runtime = PlainTorch(ways[AS_IT_COMES].model, "cpu")
    exports = [("onnx", "fp32")] if is_installed("onnxruntime") else []
    if is_installed("openvino"):
        bf16 = [("openvino", "bf16")] if has_bf16(import_openvino().Core()) else []
        exports += [("openvino", "fp32"), *bf16, ("openvino", "int8")]
    for to, precision in exports:
        path = write_exported(source, folder / f"model-{precision}.{to}", to, precision)
        ways[f"{to} {precision}"] = Predictor.load(path, runtime=to, device="cpu")
    for predictor in ways.values():
        predictor.batch_size = BATCH_SIZE
    return ways


def time_slices(predictor: Predictor, pixels: np.ndarray) -> float:
    """Slices a second."""
    started = time.perf_counter()
    predictor.predict_pixels(pixels)
    return len(pixels) / (time.perf_counter() - started)


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--batches", type=int, default=20)
    options = parser.parse_args()
    pixels = np.random.default_rng(1).integers(
        0, 256, (options.batches * BATCH_SIZE, SIZE_PX, SIZE_PX), np.uint8
    )
    rows, figures = [], {}
    for name in options.models:
        with tempfile.TemporaryDirectory() as folder:
            ways = load_ways(name, Path(folder))
            for predictor in ways.values():
                predictor.predict_pixels(pixels[: 2 * BATCH_SIZE])
            runs = {way: lambda one=one: time_slices(one, pixels) for way, one in ways.items()}
            found = time_in_turns(runs, options.repeats)
            for way, one in ways.items():
                single_ms = [1000 / time_slices(one, pixels[:1]) for _ in range(SINGLES)]
                over = [format_spread(divide(found[way], found[base])) for base in (AS_IT_COMES, "torch")]
                rows.append(
                    (name, way, format_spread(found[way]), *over, f"{np.quantile(single_ms, 0.5):.1f}")
                )
            figures[name] = found
    show(("model", "way", "slices/s", f"over {AS_IT_COMES}", "over torch", "one slice, ms"), rows)
    save(options.output, {"slices_per_s": figures})


if __name__ == "__main__":
    main()
