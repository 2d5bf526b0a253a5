"""How long do commands take from their start to their end, beside an empty Python and beside the answer itself?

    python benchmarks/start.py --repeats 5 -o start.json

Fresh processes in turns; the files are in the system's cache. `predict` answers one raw series of 512x512 pixels by
MobileNetV2 of random weights, from a checkpoint and from an OpenVINO export; "the answer" is the same in a process that
has loaded everything and answered once.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

from _measure import (
    format_spread,
    make_parser,
    make_study_recipe,
    run_apart,
    save,
    show,
    time_in_turns,
    time_process,
    write_exported,
    write_model,
    write_series,
)

SHORT = {
    "python -c pass": ("-c", "pass"),
    "python -c 'import polars'": ("-c", "import polars"),
    "cspine --help": ("-m", "cspine", "--help"),
    "cspine predict --help": ("-m", "cspine", "predict", "--help"),
    "cspine info": ("-m", "cspine", "info"),
}


def time_answer(model: Path, series: Path) -> float:
    """Seconds of the second answer in one process, from the files on."""
    import cspine

    predictor = cspine.load(model)
    predictor.predict(series)
    started = time.perf_counter()
    predictor.predict(series)
    return time.perf_counter() - started


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--slices", type=int, default=300)
    parser.add_argument("--answer", nargs=2, type=Path, help="(for a process of its own)")
    options = parser.parse_args()
    if options.answer:
        print(time_answer(*options.answer))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        series = write_series(folder / "series", options.slices)
        checkpoint = write_model("mobilenetv2", folder / "m.safetensors", make_study_recipe())
        models = {
            "checkpoint": checkpoint,
            "OpenVINO": write_exported(checkpoint, folder / "m.openvino", "openvino"),
        }
        ways = {way: lambda arguments=arguments: time_process(arguments) for way, arguments in SHORT.items()}
        outputs = iter(range(10_000))

        def predict(model: Path) -> float:
            place = folder / f"answers-{next(outputs)}"
            return time_process(
                ["-m", "cspine", "predict", str(series), "-c", str(model), "-o", str(place), "--json"]
            )

        for label, model in models.items():
            ways[f"cspine predict, {label}"] = lambda model=model: predict(model)
            ways[f"the answer, {label}"] = lambda model=model: run_apart(
                __file__, "--answer", str(model), str(series)
            )
        for run in ways.values():  # compiled, and in the cache
            run()
        found = time_in_turns(ways, options.repeats)
    show(("command", "s"), [(way, format_spread(values)) for way, values in found.items()])
    save(options.output, {"slices": options.slices, "seconds": found})


if __name__ == "__main__":
    sys.exit(main())
