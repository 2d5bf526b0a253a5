"""How much faster is an epoch with a frozen backbone, once its features are there?

    python benchmarks/frozen.py --slices 320 --repeats 5 -o frozen.json

Trains each of the paper's networks on random pixels of 224x224 for two epochs, and its head alone for ten, in turns;
the time of an epoch counts learning and validation. The first epoch's features are the price, told beside.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
import polars as pl
from _tables import write_frozen_table

from cspine.bench.results import describe_run
from cspine.core.files import write_json
from cspine.data.cache import SliceCache
from cspine.experiment import AugmentSettings, TrainingSettings
from cspine.models.classifier import build_classifier
from cspine.models.header import ZOO, CheckpointHeader, resolve_spec
from cspine.preprocess import Recipe
from cspine.training.batches import make_cases
from cspine.training.loop import train
from cspine.training.state import Outcome

SIZE_PX, FROZEN_EPOCHS, HELD_OUT = 224, 10, 4  # a quarter as many slices are validated on


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--slices", type=int, default=320)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("-o", "--output", type=Path, help="also write JSON here")
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    count = options.slices + options.slices // HELD_OUT
    pixels = rng.integers(0, 256, (count, SIZE_PX, SIZE_PX), dtype=np.uint8)
    cache = SliceCache(pixels, tuple(f"{number:06}" for number in range(count)), Path())
    models = []
    for name in ZOO:
        found: dict[str, list[float]] = {"epoch_s": [], "frozen_epoch_s": [], "features_s": []}
        for _ in range(options.repeats):
            # Of two, for the first warms up.
            found["epoch_s"].append(run(name, cache, options.slices, "trained", 2)[0].history[-1].seconds)
            outcome, seconds = run(name, cache, options.slices, "frozen", FROZEN_EPOCHS)
            found["frozen_epoch_s"].append(median(record.seconds for record in outcome.history[1:]))
            found["features_s"].append(seconds - sum(record.seconds for record in outcome.history))
        models.append({"model": name, **found})
        print(name, "done", flush=True)
    command = f"python benchmarks/frozen.py --slices {options.slices} --repeats {options.repeats}"
    result = {
        **describe_run(command).model_dump(),
        "slices": options.slices,
        "size_px": SIZE_PX,
        "models": models,
    }
    if options.output:
        write_json(options.output, result)
    print(write_frozen_table(result))


def run(name: str, cache: SliceCache, learned: int, backbone: str, epochs: int) -> tuple[Outcome, float]:
    """One training from random weights, and its seconds."""
    spec, recipe = resolve_spec(name), Recipe()
    table = pl.DataFrame({"slice_id": cache.slice_ids, "label": [number % 2 for number in range(len(cache))]})
    settings = TrainingSettings.model_validate(
        {"epochs": epochs, "precision": "auto", "backbone": backbone, "early_stopping_patience": 0}
    )
    with tempfile.TemporaryDirectory() as folder:
        model = build_classifier(spec, recipe.scale, seed=0)
        started = time.perf_counter()
        outcome = train(
            model,
            cache,
            make_cases(table[:learned], cache),
            make_cases(table[learned:], cache),
            CheckpointHeader(spec=spec, recipe=recipe, manifest_hash="none", weights="none"),
            Path(folder),
            settings=settings,
            augment=AugmentSettings(),
            seed=0,
            fingerprint="frozen",
        )
        return outcome, time.perf_counter() - started


if __name__ == "__main__":
    main()
