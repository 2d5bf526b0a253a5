"""How long does the demo take, and where does the time go?

    python benchmarks/demo.py -o demo.json

Runs `cspine demo` once into a temporary folder, or one that is kept; nothing is fetched. The stages come
from what the run wrote.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from _tables import write_demo_table

from cspine.bench.results import describe_run
from cspine.core.files import write_json


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-o", "--output", type=Path, help="also write JSON here")
    parser.add_argument("--keep", type=Path, help="a new folder for what the demo makes")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = options.keep or Path(name) / "demo"
        started = time.perf_counter()
        subprocess.run([sys.executable, "-m", "cspine", "demo", "-o", str(folder)], check=True)
        wall_s = time.perf_counter() - started
        results = json.loads((folder / "run/results.json").read_text(encoding="utf-8"))
    result = {
        **describe_run("python benchmarks/demo.py").model_dump(),
        "wall_s": round(wall_s, 1),
        "stages_s": results["run"]["stages_s"],
    }
    if options.output:
        write_json(options.output, result)
    print(write_demo_table(result))


if __name__ == "__main__":
    main()
