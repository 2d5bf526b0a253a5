"""Training speed on a GPU: bare steps on a batch that lies on the card, and cspine's training loop, on random pixels.

    python benchmarks/train_gpu.py --repeats 5 -o train_gpu.json

The paper's three models at 224x224 from random weights, at the experiment's batch of 16 and at 256, the batch at which
throughput is published (timm's `results/benchmark-train-*.csv`). Without a GPU nothing is measured. It has not been run
on one yet (docs/gpu.md).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from cspine.bench.synthetic import measure_synthetic
from cspine.bench.training_results import write_training_table
from cspine.cli.screen import Bars
from cspine.core.files import write_json
from cspine.experiment import read_experiment

PAPER = Path(__file__).parents[1] / "experiments/paper.toml"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batches", type=int, default=50, help="of an epoch")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[16, 256])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--compile", choices=["on", "off"], default="on")
    parser.add_argument("-o", "--output", type=Path, help="also write JSON here")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("no CUDA GPU here: nothing was measured")
        return
    experiment = read_experiment(PAPER, ["training.precision=auto"])
    command = (
        f"python benchmarks/train_gpu.py --batches {options.batches} --repeats {options.repeats} "
        f"--compile {options.compile}"
    )
    with Bars() as bars:
        measured = [
            measure_synthetic(
                experiment,
                batch_size=batch_size,
                batches=options.batches,
                repeats=options.repeats,
                compiling=options.compile,
                command=f"{command} --batch-sizes {batch_size}",
                watcher=bars,
            )
            for batch_size in options.batch_sizes
        ]
    if options.output:
        write_json(options.output, [one.model_dump(mode="json") for one in measured])
    print("\n".join(write_training_table(one) for one in measured))


if __name__ == "__main__":
    main()
