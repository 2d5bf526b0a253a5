"""Which of our files does a DICOM slice cross on its way from its file to a probability?

    python benchmarks/path.py

Every file under src/cspine in which a function runs while one drawn series is answered, by a predictor that was loaded
and used before: what loading, the command line and the pages need is not counted.
"""

from __future__ import annotations

import sys
import tempfile
import threading
from collections import Counter
from pathlib import Path

from _measure import make_study_recipe, write_model, write_series

import cspine

GOAL = 15
SOURCES = Path(cspine.__file__).parent


def main() -> int:
    crossed: Counter[str] = Counter()

    def note(frame: object, event: str, argument: object) -> None:
        if event == "call":
            name = frame.f_code.co_filename  # type: ignore[attr-defined]
            if name.startswith(str(SOURCES)):
                crossed[str(Path(name).relative_to(SOURCES))] += 1

    with tempfile.TemporaryDirectory() as name:
        series = write_series(Path(name) / "series", 24)
        predictor = cspine.load(write_model("mobilenetv2", Path(name) / "m.safetensors", make_study_recipe()))
        predictor.predict(series)
        threading.setprofile_all_threads(note) if sys.version_info >= (3, 12) else threading.setprofile(note)
        sys.setprofile(note)
        predictor.predict(series)
        sys.setprofile(None)
        threading.setprofile(None)
    for path, calls in crossed.most_common():
        print(f"{calls:7,d} calls  {path}")
    print(f"{len(crossed)} files (at most {GOAL})")
    return int(len(crossed) > GOAL)


if __name__ == "__main__":
    sys.exit(main())
