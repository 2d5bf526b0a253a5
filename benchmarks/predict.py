"""Prediction speed of the paper's three models: torch, ONNX Runtime and OpenVINO in fp32, bf16 and int8, in turns.

    python benchmarks/predict.py --repeats 5 -o predict.json

Random weights at 224x224 pixels, batches of 16. `cspine bench predict` does the same for models of one's own choice.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from cspine.bench.prediction import measure_prediction
from cspine.bench.prediction_results import write_prediction_table
from cspine.cli.screen import Bars
from cspine.core.files import write_json
from cspine.models.header import ZOO


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batches", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("-o", "--output", type=Path, help="also write JSON here")
    options = parser.parse_args()
    with Bars() as bars:
        measured = measure_prediction(
            tuple(ZOO),
            batches=options.batches,
            repeats=options.repeats,
            command=f"python benchmarks/predict.py --batches {options.batches} --repeats {options.repeats}",
            watcher=bars,
        )
    if options.output:
        write_json(options.output, measured.model_dump(mode="json"))
    print(write_prediction_table(measured))


if __name__ == "__main__":
    main()
