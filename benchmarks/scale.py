"""Time and peak memory of every stage as the set grows, and the evaluation of a million predictions.

    python benchmarks/scale.py --sizes 1000 3000 10000 30000 100000 -o scale.json --plot scale.png

Draws small slices, measures each stage in a process of its own, and keeps every result in the JSON as it comes: run
again with the same file, it goes on where it was stopped. `cspine bench scale` does the same.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from cspine.bench.scale import ALL_STAGES, SIZES, measure_scale
from cspine.bench.scale_results import draw_scale, write_scale_table
from cspine.cli.screen import Bars


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", nargs="+", type=int, default=SIZES)
    parser.add_argument("--stages", nargs="+", default=ALL_STAGES, choices=ALL_STAGES)
    parser.add_argument("--size-px", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("-o", "--output", type=Path, help="also write JSON here, as it comes")
    parser.add_argument("--plot", type=Path, help="also draw a PNG")
    options = parser.parse_args()
    with Bars() as bars:
        measured = measure_scale(
            options.sizes,
            options.stages,
            size_px=options.size_px,
            repeats=options.repeats,
            output=options.output,
            command=" ".join(["python", "benchmarks/scale.py", *sys.argv[1:]]),
            watcher=bars,
        )
    if options.plot:
        draw_scale(measured, options.plot)
    print(write_scale_table(measured))


if __name__ == "__main__":
    main()
