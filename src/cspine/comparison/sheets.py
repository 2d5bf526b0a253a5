"""Contact sheets of what preprocessing, augmentation and corruptions do to slices; diagrams of the models."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import torch

from cspine.comparison.prepare import prepare_data
from cspine.comparison.robustness import choose_robustness_slices, make_corruptor, show_severities
from cspine.core.errors import InputError
from cspine.core.files import refuse_other_suffix
from cspine.core.progress import Watcher
from cspine.experiment import Experiment
from cspine.models.classifier import build_classifier, list_layers
from cspine.models.header import ZOO, resolve_spec
from cspine.models.weights import load_weights
from cspine.preprocess import Recipe
from cspine.report.pictures import draw_contact_sheet, draw_corruption_sheet, draw_network, draw_recipe
from cspine.robustness.corruptions import CORRUPTIONS
from cspine.robustness.curves import check_points
from cspine.training.batches import apply_augmentation

_AUGMENTED = 4


def write_contact_sheet(experiment: Experiment, output: Path, count: int, watcher: Watcher) -> None:
    """Draw `count` training slices before and after preprocessing, and augmented, as one PNG."""
    refuse_other_suffix(output, ".png", "a contact sheet")
    prepared = prepare_data(experiment, watcher)
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


def write_corruption_sheet(experiment: Experiment, output: Path, watcher: Watcher) -> dict[str, str]:
    """Draw one fracture under every corruption of an experiment, before the recipe, as one PNG.

    Returns:
        Corruption -> why these slices cannot show it.

    Raises:
        InputError: the slices can show none of them.
    """
    refuse_other_suffix(output, ".png", "a contact sheet")
    settings = experiment.robustness
    check_points(settings.corruptions, settings.severities)
    prepared = prepare_data(experiment, watcher)
    table = choose_robustness_slices(settings, prepared, experiment.seed)
    shown = table.filter(pl.col("label") == 1)["slice_id"][0]
    corruptor = make_corruptor(settings, prepared.manifest, table["slice_id"].to_list(), experiment.seed)
    missing = corruptor.explain_missing(settings.corruptions)
    kinds = [kind for kind in settings.corruptions if kind not in missing]
    if not kinds:
        raise InputError(
            f"no corruption is left to draw: {'; '.join(missing.values())}",
            where="robustness.corruptions",
            fix="name another",
        )
    rows = []
    watcher.start("Corrupting", len(kinds))
    for done, kind in enumerate(kinds):
        watcher.advance(done, len(kinds), kind)
        one = CORRUPTIONS[kind]
        captions = ["clean", *(f"{level}: {value:g}" for level, value in enumerate(one.values, start=1))]
        pictures = show_severities(corruptor, shown, kind)
        rows.append((f"{one.label}: {one.parameter}, {one.unit}", pictures, captions))
    watcher.finish(f"{len(kinds)} corruptions of {shown}")
    draw_corruption_sheet(rows, output)
    return missing


def _first_recipe(experiment: Experiment) -> Recipe:
    name = next(iter(experiment.models))
    # Scaling is not visible in a picture, so no weights need to be had for it.
    return experiment.make_recipe(
        load_weights("none", experiment.find_spec(name), channels=experiment.preprocess.channels).scale
    )


def write_diagrams(folder: Path) -> list[Path]:
    """Draw the layers of each model of the zoo, and the steps of preprocessing, as SVG."""
    recipe = Recipe()
    written = [draw_recipe(recipe, folder / "preprocessing.svg")]
    for name in ZOO:
        model = build_classifier(resolve_spec(name), recipe.scale, seed=0)
        written.append(draw_network(list_layers(model, recipe.size_px), name, folder / f"{name}.svg"))
    return written
