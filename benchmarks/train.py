"""Training speed of the paper's three models: the network alone, cspine's pipeline, the plain torchvision way.

    python benchmarks/train.py --repeats 5 -o train.json

Draws a phantom of 224x224 pixels and measures `experiments/paper.toml` on it, from random weights, in the precision
that a probe finds to be the faster one. `cspine bench train` does the same with a set and an experiment of one's own.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from cspine.bench.training import measure_training
from cspine.bench.training_results import write_training_table
from cspine.cli.screen import Bars
from cspine.core.files import write_json
from cspine.experiment import read_experiment
from cspine.phantom.dataset import write_phantom
from cspine.phantom.patient import PhantomSettings

PAPER = Path(__file__).parents[1] / "experiments/paper.toml"
MODELS = ("mobilenetv2", "resnet50", "convnext_tiny")
BATCH_SIZE, TRAIN_SHARE, SLICES_A_PATIENT = 16, 0.6, 10


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--batches", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("-o", "--output", type=Path, help="also write JSON here")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, Bars() as bars:
        root = Path(folder) / "phantom"
        slices = 1.3 * options.batches * BATCH_SIZE / TRAIN_SHARE  # more than half of them are normal
        phantom = PhantomSettings(
            patients=max(20, round(slices / SLICES_A_PATIENT)),
            slices_per_patient=SLICES_A_PATIENT,
            fracture_fraction=0.8,
            size_px=224,
        )
        bars.start("Drawing phantom patients", phantom.patients)
        write_phantom(root, phantom, progress=bars.advance)
        bars.finish(f"{phantom.patients} patients")
        overrides = [f"models.{name}.weights=none" for name in MODELS]
        overrides += [f'models.{name}.training.precision="auto"' for name in MODELS]
        experiment = read_experiment(PAPER, [f"data.root={root}", *overrides])
        chosen = {name: experiment.models[name] for name in options.models}
        experiment = experiment.model_copy(update={"models": chosen})
        command = f"python benchmarks/train.py --batches {options.batches} --repeats {options.repeats}"
        if options.models != list(MODELS):
            command += f" --models {' '.join(options.models)}"
        measured = measure_training(
            experiment, batches=options.batches, repeats=options.repeats, command=command, watcher=bars
        )
    if options.output:
        write_json(options.output, measured.model_dump(mode="json"))
    print(write_training_table(measured))


if __name__ == "__main__":
    main()
