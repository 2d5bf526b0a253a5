"""What the commands do that need torch."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

import numpy as np
import polars as pl
import torch
from rich.console import Console

from cspine.auditing.findings import VERDICT_WORDS, list_reasons
from cspine.cli.screen import Bars, show_evaluations, show_findings, show_stages
from cspine.comparison.compare import compare, quote_command
from cspine.comparison.prepare import prepare_data
from cspine.comparison.robustness import choose_robustness_slices, make_corruptor, show_severities
from cspine.comparison.training import check_run_folder, check_training, train_model
from cspine.core.errors import InputError
from cspine.core.estimates import choose_strongest
from cspine.core.files import explain_os_error, refuse_other_suffix
from cspine.data.manifest import write_manifest
from cspine.experiment import Experiment, read_experiment
from cspine.models.classifier import build_classifier, list_layers
from cspine.models.header import ZOO, resolve_spec
from cspine.models.weights import load_weights
from cspine.phantom.dataset import write_phantom
from cspine.phantom.patient import PhantomSettings
from cspine.preprocess import Recipe
from cspine.report.pictures import draw_contact_sheet, draw_corruption_sheet, draw_network, draw_recipe
from cspine.report.report import REPORT_FILE
from cspine.report.results import ComparisonResults
from cspine.report.text import format_estimate
from cspine.robustness.corruptions import CORRUPTIONS
from cspine.robustness.curves import check_points
from cspine.training.batches import apply_augmentation

DEMO_PHANTOM = PhantomSettings(
    patients=112,
    slices_per_patient=10,
    fracture_fraction=0.7,
    size_px=48,
    field_of_view_mm=70.0,
    fracture_conspicuity=2.5,
    seed=7,
)
_AUGMENTED = 4


def find_experiment(name: str) -> Path:
    """A shipped experiment: beside the package when it is installed, in the repository when that is being worked on."""
    installed = Path(str(files("cspine"))) / "experiments" / name
    return installed if installed.is_file() else Path(__file__).parents[3] / "experiments" / name


def run_compare(path: Path, overrides: Sequence[str], output: Path, resume: bool) -> None:
    """`cspine compare`."""
    with Bars() as bars:
        command = quote_command(sys.argv[1:])
        results = compare(path, output, overrides=overrides, resume=resume, watcher=bars, command=command)
    _show_result(results, output)


def run_demo(output: Path, overrides: Sequence[str], fresh: bool) -> None:
    """`cspine demo`: an earlier demo in the folder is gone on with, or begun anew where it is finished or `fresh`."""
    data = output / "phantom"
    run = output / "run"
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
    with Bars() as bars:
        if not (data / "labels.csv").exists():
            bars.start("Drawing phantom patients", DEMO_PHANTOM.patients)
            write_phantom(data, DEMO_PHANTOM, progress=bars.advance)
            bars.finish(f"{DEMO_PHANTOM.patients} patients in {data}")
        command = quote_command(sys.argv[1:])
        results = compare(path, run, overrides=changed, resume=True, watcher=bars, command=command)
    _show_result(results, run)


def _is_of_demo(mark: Path) -> bool:
    """Whether a run's or a phantom's own record says that it is the demo's; unfinished ones have a record too."""
    try:
        record = json.loads(mark.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    if mark.name == "phantom.json":
        return bool(record.get("settings") == DEMO_PHANTOM.to_dict())
    return bool(record.get("name") == "demo")


def _show_result(results: ComparisonResults, folder: Path) -> None:
    # A terminal is too narrow for all baselines: the one to beat stands beside the models, the report has the others.
    bar = choose_strongest(results.baselines)
    show_evaluations(
        [model.evaluation for model in results.models]
        + [baseline.evaluation for baseline in results.baselines if baseline is bar]
    )
    console = Console()
    for one in results.studies:
        found = one.evaluation
        auroc = format_estimate(found.metrics["auroc"])
        words = f"{one.model}: AUROC {auroc} over {found.slices} studies, by {one.fit.aggregation}"
        console.print(words, soft_wrap=True, highlight=False, markup=False)
    show_stages(results.run.stages_s, results.run.wall_s)
    if results.verdict:
        audited = "" if results.audit else " The data were not audited."
        console.print(
            f"verdict: {results.verdict}. {VERDICT_WORDS[results.verdict]}{audited}", soft_wrap=True
        )
    show_findings(console, list_reasons(results.findings or ()))
    for note in results.notes:
        console.print(f"{note.severity}: {note.text}", style="yellow", highlight=False, markup=False)
    report = (folder / REPORT_FILE).resolve()
    console.print(f"report: {report}", soft_wrap=True, highlight=False, markup=False)


def run_training(path: Path, model: str, overrides: Sequence[str], output: Path, resume: bool) -> None:
    """`cspine train`."""
    experiment = read_experiment(path, overrides)
    if model not in experiment.models:
        raise InputError(
            f"the experiment has no model {model!r}",
            where=str(path),
            fix="one of " + ", ".join(experiment.models),
        )
    with Bars() as bars:
        check_run_folder(output, "manifest.parquet", resume=resume)
        prepared = prepare_data(experiment, bars)
        check_training(experiment, model, prepared, output, resume=resume)
        write_manifest(prepared.manifest, output / "manifest.parquet")
        trained = train_model(experiment, model, prepared, output, output / "cache", bars, resume=resume)
    Console().print(f"checkpoint: {trained.checkpoint}", soft_wrap=True, highlight=False, markup=False)


def draw_sheet(path: Path, overrides: Sequence[str], output: Path, count: int) -> None:
    """`cspine contact-sheet`."""
    refuse_other_suffix(output, ".png", "a contact sheet")
    experiment = read_experiment(path, overrides)
    with Bars() as bars:
        prepared = prepare_data(experiment, bars)
        recipe = _first_recipe(experiment)
        table = prepared.table(prepared.train)
        chosen = table.sample(min(count, len(table)), seed=experiment.seed, shuffle=True)
        raw = [prepared.manifest.read_slice(slice_id, recipe.offsets_mm) for slice_id in chosen["slice_id"]]
    done = [recipe.apply(item) for item in raw]
    if recipe.channels > 1:
        done = [channels[recipe.shown_channel] for channels in done]
    pixels = torch.from_numpy(np.stack(done)).unsqueeze(1)
    generator = torch.Generator().manual_seed(experiment.seed)
    variants = [apply_augmentation(pixels, experiment.augment, generator) for _ in range(_AUGMENTED)]
    after = [
        [base, *(np.asarray(variant[row, 0].round().clamp(0, 255).to(torch.uint8)) for variant in variants)]
        for row, base in enumerate(done)
    ]
    captions = [item.slice_id for item in raw]
    looked_at = prepared.manifest.as_display(experiment.preprocess.shown_window)
    before = [np.asarray(looked_at.read_slice(item.slice_id).pixels, dtype=np.uint8) for item in raw]
    draw_contact_sheet(before, after, captions, output)
    Console().print(f"contact sheet: {output}", soft_wrap=True, highlight=False, markup=False)


def draw_corruptions(path: Path, overrides: Sequence[str], output: Path) -> None:
    """`cspine contact-sheet --corruptions`: one fracture under every corruption, before the recipe."""
    refuse_other_suffix(output, ".png", "a contact sheet")
    experiment = read_experiment(path, overrides)
    settings = experiment.robustness
    check_points(settings.corruptions, settings.severities)
    with Bars() as bars:
        prepared = prepare_data(experiment, bars)
        table = choose_robustness_slices(settings, prepared, experiment.seed)
        shown = table.filter(pl.col("label") == 1)["slice_id"][0]
        corruptor = make_corruptor(settings, prepared.manifest, table["slice_id"].to_list(), experiment.seed)
        missing = corruptor.explain_missing(settings.corruptions)
        kinds = [kind for kind in settings.corruptions if kind not in missing]
        rows = []
        bars.start("Corrupting", len(kinds))
        for done, kind in enumerate(kinds):
            bars.advance(done, len(kinds), kind)
            one = CORRUPTIONS[kind]
            captions = ["clean", *(f"{level}: {value:g}" for level, value in enumerate(one.values, start=1))]
            rows.append(
                (
                    f"{one.label}: {one.parameter}, {one.unit}",
                    show_severities(corruptor, shown, kind),
                    captions,
                )
            )
        bars.finish(f"{len(kinds)} corruptions of {shown}")
    console = Console()
    for kind, reason in missing.items():
        words = f"not applicable: {kind}: {reason}"
        console.print(words, style="yellow", soft_wrap=True, highlight=False, markup=False)
    if not rows:
        raise InputError("no corruption is left to draw", where="robustness.corruptions", fix="name another")
    draw_corruption_sheet(rows, output)
    console.print(f"contact sheet: {output}", soft_wrap=True, highlight=False, markup=False)


def _first_recipe(experiment: Experiment) -> Recipe:
    name = next(iter(experiment.models))
    # Scaling is not visible in a picture, so no weights need to be had for it.
    return experiment.make_recipe(
        load_weights("none", experiment.find_spec(name), channels=experiment.preprocess.channels).scale
    )


def draw_diagrams(folder: Path) -> None:
    """`cspine info models --diagrams`: the layers of each model of the zoo and the preprocessing way."""
    recipe = Recipe()
    written = [draw_recipe(recipe, folder / "preprocessing.svg")]
    for name in ZOO:
        model = build_classifier(resolve_spec(name), recipe.scale, seed=0)
        written.append(draw_network(list_layers(model, recipe.size_px), name, folder / f"{name}.svg"))
    for path in written:
        Console().print(f"drawn: {path}", soft_wrap=True, highlight=False, markup=False)
