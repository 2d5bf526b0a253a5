"""Training speed on random pixels: (a) bare steps on one batch, (b) cspine's training loop; the way for a GPU.

Published figures of training throughput are of such data. Nothing is read from disk, and what `cspine train` does
beside the network is all there: the order, augmentation, losses, accuracy. (b) counts the training part of its second
epoch.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from cspine.bench.results import Rates, describe_processor, list_versions
from cspine.bench.training import time_steps
from cspine.bench.training_results import CEILING, PIPELINE, TrainingBench, TrainingSpeed
from cspine.core.progress import Silent, Watcher
from cspine.data.cache import SliceCache
from cspine.experiment import Experiment, TrainingSettings
from cspine.models.classifier import FractureClassifier, build_classifier
from cspine.models.header import CheckpointHeader
from cspine.models.weights import load_weights
from cspine.training.batches import Cases
from cspine.training.loop import train
from cspine.training.speed import choose_precision
from cspine.training.step import find_device


def measure_synthetic(
    experiment: Experiment,
    *,
    batch_size: int,
    batches: int,
    repeats: int,
    compiling: Literal["on", "off"] = "off",
    command: str = "",
    watcher: Watcher | None = None,
) -> TrainingBench:
    """Measure every model of an experiment from random weights, both ways in turns.

    Args:
        experiment: Its models, size of a slice, augmentation and training settings are used; its data are not.
        batch_size: In place of the experiment's.
        batches: An epoch.
        repeats: Rounds of both ways.
        compiling: Whether both run the compiled network.
        command: For the record.
        watcher: Is told how far it is.

    Raises:
        TrainingError: a network is to be compiled, and cannot be.
    """
    watcher = watcher or Silent()
    size = experiment.preprocess.image_size_px
    cache = draw_cache(batches * batch_size, size)
    speeds = []
    for name in experiment.models:
        fixed = {"batch_size": batch_size, "epochs": 2, "early_stopping_patience": 0, "compile": compiling}
        settings = experiment.find_training(name).model_copy(update=fixed)
        watcher.start(f"Measuring {name}", repeats)
        precision = choose_precision(build(experiment, name), settings, (size, size), find_device())
        chosen = settings.model_copy(update={"precision": precision.precision})
        rates: dict[str, list[float]] = {PIPELINE: [], CEILING: []}
        for number in range(repeats):
            rates[PIPELINE].append(time_loop(experiment, name, cache, chosen))
            rates[CEILING].append(
                time_steps(
                    build(experiment, name), chosen, size, precision.precision, batches, compiling == "on"
                )
            )
            note = ", ".join(f"{way} {values[-1]:.3g}/s" for way, values in rates.items())
            watcher.advance(number + 1, repeats, note)
        watcher.finish(precision.why)
        speeds.append(
            TrainingSpeed(
                model=name,
                precision=precision.precision + (" compiled" if compiling == "on" else ""),
                why=precision.why,
                rates={way: Rates(slices_per_s=tuple(values)) for way, values in rates.items()},
            )
        )
    return TrainingBench(
        command=command,
        machine=describe_machine(find_device()),
        versions=list_versions(),
        size_px=(size, size),
        batch_size=dict.fromkeys(experiment.models, batch_size),
        batches=batches,
        models=tuple(speeds),
    )


def draw_cache(count: int, size_px: int) -> SliceCache:
    """`count` slices of noise, in memory."""
    pixels = np.random.default_rng(0).integers(0, 256, (count, size_px, size_px), dtype=np.uint8)
    return SliceCache(pixels, tuple(f"s{number:07}" for number in range(count)), Path())


def build(experiment: Experiment, name: str) -> FractureClassifier:
    """A model with random weights."""
    spec = experiment.find_spec(name)
    scale = load_weights("none", spec, channels=experiment.preprocess.channels).scale
    return build_classifier(spec, scale, seed=experiment.seed)


def time_loop(experiment: Experiment, name: str, cache: SliceCache, settings: TrainingSettings) -> float:
    """(b): slices a second of the second epoch of `train`, its validation not counted."""
    model = build(experiment, name)
    rows = np.arange(len(cache), dtype=np.int64)
    cases = Cases(cache.slice_ids, rows, (torch.arange(len(cache)) % 2).float())
    few = settings.batch_size
    selection = Cases(cache.slice_ids[:few], rows[:few], cases.labels[:few])
    spec = experiment.find_spec(name)
    recipe = experiment.make_recipe(load_weights("none", spec, channels=experiment.preprocess.channels).scale)
    header = CheckpointHeader(spec=spec, recipe=recipe, manifest_hash="", weights="none")
    with tempfile.TemporaryDirectory(prefix="cspine-bench-") as folder:
        outcome = train(
            model,
            cache,
            cases,
            selection,
            header,
            Path(folder),
            settings=settings,
            augment=experiment.augment,
            seed=experiment.seed,
            fingerprint="",
        )
    return outcome.history[-1].slices_per_s


def describe_machine(device: torch.device) -> str:
    """The GPU where there is one, and the processor."""
    processor = describe_processor()
    return f"{torch.cuda.get_device_name(device)}; {processor}" if device.type == "cuda" else processor
