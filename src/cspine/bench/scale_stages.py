"""One stage on one set, in a process of its own: python -m cspine.bench.scale_stages STAGE FOLDER SLICES SIZE_PX.

Prints one line of JSON. What a stage needs is imported and opened before the clock starts.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import TracebackType

import numpy as np
import numpy.typing as npt

from cspine.bench.scale_results import DRAWS, EVALUATE, StageRun
from cspine.core.machine import read_memory

BATCH_SIZE = 32
_STUB_FEATURES = 1280  # as many as MobileNetV2 has
_SAMPLE_S = 0.02

Work = Callable[["Parts"], None]


class Parts:
    """CPU seconds of the named parts of a stage, as its progress tells them."""

    def __init__(self) -> None:
        self.cpu_s: dict[str, float] = {}
        self._name, self._since = "", 0.0

    def tell(self, name: str, done: int = 0, total: int = 0) -> None:
        """A part begins, or goes on."""
        if name != self._name:
            now = time.process_time()
            if self._name:
                self.cpu_s[self._name] = self.cpu_s.get(self._name, 0.0) + now - self._since
            self._name, self._since = name, now


class _PrivateMemory:
    """The greatest memory that no file stands behind, looked at every 20 ms: the system cannot take it back."""

    def __init__(self) -> None:
        self.peak_bytes: int | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def _watch(self) -> None:
        while True:
            if (now := read_memory("RssAnon")) is not None:
                self.peak_bytes = max(now, self.peak_bytes or 0)
            if self._stop.wait(_SAMPLE_S):
                return

    def __enter__(self) -> _PrivateMemory:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()


def run_stage(stage: str, folder: Path, count: int, size_px: int) -> StageRun:
    """Prepare a stage, then run it under the clock."""
    work = _PREPARE[stage](folder, count, size_px)
    start_bytes = read_memory("VmRSS")
    parts = Parts()
    with _PrivateMemory() as memory:
        began, cpu = time.perf_counter(), time.process_time()
        work(parts)
        wall_s, cpu_s = time.perf_counter() - began, time.process_time() - cpu
        parts.tell("end")
    return StageRun(
        wall_s=wall_s,
        cpu_s=cpu_s,
        start_bytes=start_bytes,
        peak_bytes=read_memory("VmHWM"),
        private_bytes=memory.peak_bytes,
        parts_cpu_s={name: round(value, 3) for name, value in parts.cpu_s.items()},
    )


def name_manifest(folder: Path, count: int) -> Path:
    """Where the import leaves its manifest."""
    return folder / f"manifest-{count}.parquet"


def _prepare_import(folder: Path, count: int, size_px: int) -> Work:
    from cspine.data.layouts import import_dataset
    from cspine.data.manifest import write_manifest

    def work(parts: Parts) -> None:
        manifest, _ = import_dataset(folder / f"labels-{count}.csv")
        write_manifest(manifest, name_manifest(folder, count))

    return work


def _prepare_audit(folder: Path, count: int, size_px: int) -> Work:
    from cspine.auditing.audit import audit_manifest
    from cspine.data.manifest import read_manifest

    def work(parts: Parts) -> None:
        audit_manifest(read_manifest(name_manifest(folder, count)), progress=parts.tell)

    return work


def _prepare_cache(folder: Path, count: int, size_px: int) -> Work:
    from cspine.data.cache import open_cache
    from cspine.data.manifest import read_manifest
    from cspine.preprocess import Equalise, Recipe, Resize

    recipe = Recipe(steps=(Equalise(), Resize(height_px=size_px, width_px=size_px)))

    def work(parts: Parts) -> None:
        open_cache(read_manifest(name_manifest(folder, count)), recipe, folder / "cache")

    return work


def _prepare_load(folder: Path, count: int, size_px: int) -> Work:
    import torch

    from cspine.data.cache import open_cache
    from cspine.data.manifest import read_manifest
    from cspine.experiment import AugmentSettings
    from cspine.preprocess import Equalise, Recipe, Resize
    from cspine.training.batches import Source, make_cases, stream_pixels

    recipe = Recipe(steps=(Equalise(), Resize(height_px=size_px, width_px=size_px)))
    device, augment = torch.device("cpu"), AugmentSettings()

    def work(parts: Parts) -> None:
        manifest = read_manifest(name_manifest(folder, count))
        cache = open_cache(manifest, recipe, folder / "cache")
        cases = make_cases(manifest.table, cache)
        source = Source(cases, cases.labels, stream_pixels(cache, cases, device), 1.0)
        for plan in source.plan_epoch(BATCH_SIZE, augment, torch.Generator().manual_seed(0)):
            source.read(plan)

    return work


def _prepare_predict(folder: Path, count: int, size_px: int) -> Work:
    from cspine.core.predictions import make_predictions, write_predictions
    from cspine.data.manifest import read_manifest
    from cspine.inference.engines import Answer, ExportRecord
    from cspine.inference.predictor import ExportedModel, Predictor
    from cspine.models.header import CheckpointHeader, resolve_spec
    from cspine.preprocess import Equalise, Recipe, Resize

    class Stub:
        """In the place of a network: the mean of the pixels, and as many features as MobileNetV2 has."""

        name, about, features, batch_size = "torch", "no network", _STUB_FEATURES, BATCH_SIZE

        def run(self, batches: Iterable[npt.NDArray[np.uint8]]) -> Iterator[Answer]:
            for pixels in batches:
                yield Answer(_average(pixels), np.ones((len(pixels), _STUB_FEATURES), np.float32))

    recipe = Recipe(steps=(Equalise(), Resize(height_px=size_px, width_px=size_px)))
    header = CheckpointHeader(
        spec=resolve_spec("mobilenetv2"), recipe=recipe, manifest_hash="none", weights="none"
    )
    record = ExportRecord(
        header=header, source_hash="none", format="onnx", precision="fp32", features=_STUB_FEATURES
    )
    predictor = Predictor(ExportedModel(record, Stub(), "none"), runtime=Stub())

    def work(parts: Parts) -> None:
        manifest = read_manifest(name_manifest(folder, count))
        ids = manifest.slice_ids
        logits = predictor.score_read(count, lambda index: manifest.read_slice(ids[index]))
        table = make_predictions(
            manifest.table,
            ids,
            logits,
            model="stub",
            checkpoint_hash="none",
            recipe_hash=recipe.hash,
            manifest_hash=manifest.hash,
        )
        write_predictions(table, folder / f"predicted-{count}.parquet")

    return work


def _average(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
    return np.asarray(pixels.reshape(len(pixels), -1).mean(axis=1) / 128 - 1)


def _prepare_evaluate(folder: Path, count: int, size_px: int) -> Work:
    from cspine.core.predictions import read_predictions
    from cspine.metrics.evaluation import evaluate

    def work(parts: Parts) -> None:
        evaluate(read_predictions(folder / f"predictions-{count}.parquet"), draws=DRAWS)

    return work


_PREPARE: dict[str, Callable[[Path, int, int], Work]] = {
    "import": _prepare_import,
    "audit": _prepare_audit,
    "cache": _prepare_cache,
    "load": _prepare_load,
    "predict": _prepare_predict,
    EVALUATE: _prepare_evaluate,
}


if __name__ == "__main__":
    print(
        json.dumps(run_stage(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])).model_dump())
    )
