"""The demo: a drawn set, and the three models of the paper compared on it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from cspine.comparison.compare import compare
from cspine.core.errors import InputError
from cspine.core.files import explain_os_error
from cspine.core.progress import Watcher
from cspine.experiment import read_experiment
from cspine.phantom.dataset import write_phantom
from cspine.phantom.patient import PhantomSettings
from cspine.report.results import ComparisonResults

DEMO_PHANTOM = PhantomSettings(
    patients=112,
    slices_per_patient=10,
    fracture_fraction=0.7,
    size_px=48,
    field_of_view_mm=70.0,
    fracture_conspicuity=2.5,
    seed=7,
)


def find_experiment(name: str) -> Path:
    """A shipped experiment: beside the package when it is installed, in the repository when that is being worked on."""
    installed = Path(str(files("cspine"))) / "experiments" / name
    return installed if installed.is_file() else Path(__file__).parents[3] / "experiments" / name


def run_demo(
    output: Path, overrides: Sequence[str], *, fresh: bool, watcher: Watcher, command: str
) -> ComparisonResults:
    """Draw the set into output/phantom and compare the models in output/run.

    An earlier demo there is continued, or begun anew where it is finished or `fresh`.
    """
    data, run = output / "phantom", output / "run"
    for folder, mark in ((data, "phantom.json"), (run, "experiment.json")):
        if folder.exists() and any(folder.iterdir()) and not _is_of_demo(folder / mark):
            raise InputError(
                "the folder holds something that the demo did not make",
                where=str(folder),
                fix="name another folder with -o",
            )
    try:
        if fresh:
            shutil.rmtree(data, ignore_errors=True)
        if fresh or (run / "report.html").exists():
            shutil.rmtree(run, ignore_errors=True)
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise explain_os_error(error, output) from error
    path = find_experiment("demo.toml")
    changed = [f"data.root={data}", *overrides]
    read_experiment(path, changed)  # or necks would be drawn for an option that is none
    if not (data / "labels.csv").exists():
        watcher.start("Drawing phantom patients", DEMO_PHANTOM.patients)
        write_phantom(data, DEMO_PHANTOM, progress=watcher.advance)
        watcher.finish(f"{DEMO_PHANTOM.patients} patients in {data}")
    return compare(path, run, overrides=changed, resume=True, watcher=watcher, command=command)


def _is_of_demo(mark: Path) -> bool:
    """Whether a run's or a phantom's own record says that it is the demo's; unfinished ones have a record too."""
    try:
        record = json.loads(mark.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    if mark.name == "phantom.json":
        return bool(record.get("settings") == DEMO_PHANTOM.to_dict())
    return bool(record.get("name") == "demo")
