"""How long does `cspine --help` take, beside an empty Python and beside the import of a table library?

    python benchmarks/start.py --repeats 30 -o start.json

Every time is that of a fresh process, in turns, from its start to its end; the files are in the system's cache.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

from _tables import write_start_table

from cspine.bench.results import describe_run
from cspine.core.files import write_json

WAYS = {
    "python -c pass": ("-c", "pass"),
    "python -c 'import polars'": ("-c", "import polars"),
    "cspine --help": ("-m", "cspine", "--help"),
    "cspine predict --help": ("-m", "cspine", "predict", "--help"),
    "cspine info": ("-m", "cspine", "info"),
}


def time_process(arguments: tuple[str, ...]) -> float:
    """Seconds of one fresh process that has to succeed."""
    started = time.perf_counter()
    subprocess.run([sys.executable, *arguments], stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("-o", "--output", type=Path, help="also write JSON here")
    options = parser.parse_args()
    for arguments in WAYS.values():  # compiled, and in the cache
        time_process(arguments)
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    for _ in range(options.repeats):
        for way, arguments in WAYS.items():
            seconds[way].append(time_process(arguments))
    command = f"python benchmarks/start.py --repeats {options.repeats}"
    result = {**describe_run(command).model_dump(), "seconds": seconds}
    if options.output:
        write_json(options.output, result)
    print(write_start_table(result))


if __name__ == "__main__":
    main()
