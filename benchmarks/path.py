"""Which of our files does a DICOM slice cross on its way from its file to a probability?

    python benchmarks/path.py

Every file under src/cspine in which a function runs from the look for a series' files to its answer, by a predictor
that was loaded and used before: what loading, the command line, progress and the pages need is not counted.
"""

from __future__ import annotations

import sys
import tempfile
import threading
from collections import Counter
from pathlib import Path
from types import FrameType

from _measure import make_study_recipe, write_model, write_series

import cspine
from cspine.ct.dicom import scan_dicom
from cspine.inference.study import StudyPredictor

GOAL = 15
SOURCES = Path(cspine.__file__).parent


def main() -> int:
    crossed: Counter[str] = Counter()
    on_the_way = threading.Event()

    def note(frame: FrameType, event: str, argument: object) -> None:
        name = frame.f_code.co_filename
        if not name.startswith(str(SOURCES)):
            return
        if frame.f_code is scan_dicom.__code__:
            on_the_way.set()
        if event == "call" and on_the_way.is_set():
            crossed[str(Path(name).relative_to(SOURCES))] += 1
        if event == "return" and frame.f_code is StudyPredictor.answer.__code__:
            on_the_way.clear()

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
