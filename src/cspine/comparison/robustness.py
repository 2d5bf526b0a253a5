"""Stage 3, under corruption: predictions of every model at every severity, kept, and what they say."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import polars as pl

from cspine.comparison.prepare import PreparedData
from cspine.comparison.training import read_same
from cspine.core.estimates import RobustnessPoint
from cspine.core.files import compute_hash
from cspine.core.machine import count_cpus
from cspine.core.predictions import write_predictions
from cspine.core.progress import Watcher
from cspine.core.types import Slice
from cspine.data.manifest import Manifest
from cspine.experiment import Experiment, RobustnessSettings
from cspine.inference.predictor import Predictor, label_logits
from cspine.metrics.intervals import IntervalOptions
from cspine.report.pictures import draw_strip
from cspine.report.results import CorruptionStrip, RobustnessResult
from cspine.robustness.corruptions import (
    CORRUPTIONS,
    SEVERITIES,
    THICKNESS,
    VERSION,
    Neighbours,
    apply_corruption,
    find_neighbours,
)
from cspine.robustness.curves import CLEAN, compare_corruption_errors, summarise_robustness
from cspine.robustness.scanner import PixelMeaning

_CHUNK_SLICES = 64
_MAX_WORKERS = 8

NamedTable = tuple[str, int, pl.DataFrame]


@dataclass(frozen=True)
class Corruptor:
    """Reads slices of a manifest and corrupts them.

    Attributes:
        manifest: Where the slices are.
        seed: Of the random parts.
        meaning: What 8-bit slices are taken to be.
        neighbours: For thicker slices; in words why there are none otherwise.
    """

    manifest: Manifest
    seed: int
    meaning: PixelMeaning
    neighbours: Neighbours | str

    def read(self, slice_id: str, kind: str, severity: int, offsets_mm: tuple[float, ...] = ()) -> Slice:
        """One slice, corrupted, and those at `offsets_mm` from it, corrupted likewise, in `around`."""
        if offsets_mm:
            others = self.manifest.find_around(self.manifest.find_row(slice_id), offsets_mm)
            ids = [self.manifest.table["slice_id"][row] for row in others]
            around = [np.asarray(self.read(one, kind, severity).pixels, np.int16) for one in ids]
            return replace(self.read(slice_id, kind, severity), around=tuple(around))
        raw = self.manifest.read_slice(slice_id)
        slab: list[Slice] = []
        if kind == THICKNESS and severity and isinstance(self.neighbours, Neighbours):
            thickness_mm = CORRUPTIONS[kind].values[severity - 1]
            slab = [
                self.manifest.read_slice(one) for one in self.neighbours.find_slab(slice_id, thickness_mm)
            ]
        return apply_corruption(raw, kind, severity, self.seed, self.meaning, slab)

    def explain_missing(self, kinds: Sequence[str]) -> dict[str, str]:
        """Of these corruptions, those that the slices cannot show, and why."""
        why = self.neighbours
        return {THICKNESS: why} if isinstance(why, str) and THICKNESS in kinds else {}


@dataclass(frozen=True)
class CorruptedRun:
    """What `predict_corrupted` made.

    Attributes:
        tables: (corruption, severity, predictions) of every model, the clean ones first.
        table: The manifest's rows of the slices.
        not_applicable: Corruption -> why these slices cannot show it.
        slice_id, strips: What each corruption looks like on one slice.
    """

    tables: list[NamedTable]
    table: pl.DataFrame
    not_applicable: dict[str, str]
    slice_id: str
    strips: tuple[CorruptionStrip, ...]


def make_corruptor(
    settings: RobustnessSettings, manifest: Manifest, slice_ids: Sequence[str], seed: int
) -> Corruptor:
    """The corruptor of some slices of a manifest, as an experiment wants it."""
    window = settings.window
    return Corruptor(
        manifest,
        seed,
        PixelMeaning(window.center_hu, window.width_hu, settings.field_of_view_mm),
        find_neighbours(manifest, slice_ids, CORRUPTIONS[THICKNESS].values[-1]),
    )


def choose_robustness_slices(settings: RobustnessSettings, prepared: PreparedData, seed: int) -> pl.DataFrame:
    """The reported split, or a seeded part of it with both classes in their proportion."""
    table = prepared.table(prepared.reported).sort("slice_id")
    if not settings.max_slices or settings.max_slices >= len(table):
        return table
    fraction = settings.max_slices / len(table)
    rng = np.random.default_rng(seed)
    kept: list[str] = []
    for label in (0, 1):
        slice_ids = table.filter(pl.col("label") == label)["slice_id"].to_numpy()
        kept += rng.permutation(slice_ids)[: max(1, round(fraction * len(slice_ids)))].tolist()
    return table.filter(pl.col("slice_id").is_in(kept))


def predict_corrupted(
    experiment: Experiment,
    prepared: PreparedData,
    predictors: dict[str, Predictor],
    clean: dict[str, pl.DataFrame],
    folder: Path,
    watcher: Watcher,
) -> CorruptedRun | None:
    """Predictions of every model at every corruption and severity, and the clean ones beside them.

    A slice is corrupted as it lies in the file and then goes through the recipe, once for all models whose recipes
    share their pixel steps. Each point is kept in `folder` under a name made of all that it depends on: an
    interrupted run continues where it stopped, a run with more corruptions makes those alone, and a changed seed,
    severity, set of slices, recipe or checkpoint is made again. None where the experiment wants no robustness.
    """
    settings = experiment.robustness
    if not settings.enabled:
        return None
    table = choose_robustness_slices(settings, prepared, experiment.seed)
    slice_ids = table["slice_id"].to_list()
    corruptor = make_corruptor(settings, prepared.manifest, slice_ids, experiment.seed)
    missing = corruptor.explain_missing(settings.corruptions)
    kinds = [kind for kind in settings.corruptions if kind not in missing]
    points = [(kind, severity) for kind in kinds for severity in settings.severities]
    watcher.start("Robustness", len(points))
    tables: list[NamedTable] = [
        (CLEAN, 0, part.filter(pl.col("slice_id").is_in(slice_ids))) for part in clean.values()
    ]
    made = 0
    for done, (kind, severity) in enumerate(points):
        watcher.advance(done, len(points), f"{kind} {severity}")
        paths = {
            name: folder / name / _name_point(kind, severity, slice_ids, predictor, corruptor)
            for name, predictor in predictors.items()
        }
        found = {
            name: read_same(path, table, predictors[name], prepared.manifest) for name, path in paths.items()
        }
        wanted = {name: predictors[name] for name in predictors if found[name] is None}
        made += bool(wanted)
        for name, logits in _score_corrupted(wanted, corruptor, slice_ids, kind, severity):
            part = label_logits(table, slice_ids, logits, predictors[name], prepared.manifest)
            write_predictions(part, paths[name])
            found[name] = part
        tables += [(kind, severity, part) for part in found.values() if part is not None]
    shown = table.filter(pl.col("label") == 1)["slice_id"][0]
    watcher.finish(f"{len(points)} corruptions of {len(slice_ids):,} slices, {len(points) - made} known")
    return CorruptedRun(tables, table, missing, shown, draw_strips(corruptor, shown, kinds))


def _name_point(
    kind: str, severity: int, slice_ids: Sequence[str], predictor: Predictor, corruptor: Corruptor
) -> str:
    meaning = corruptor.meaning
    key = compute_hash(
        {
            "version": VERSION,
            "kind": kind,
            "value": CORRUPTIONS[kind].values[severity - 1],
            "seed": corruptor.seed,
            "meaning": [meaning.center_hu, meaning.width_hu, meaning.field_of_view_mm],
            "slices": hashlib.sha256("\n".join(sorted(slice_ids)).encode()).hexdigest(),
            "manifest": corruptor.manifest.hash,
            "recipe": predictor.recipe.hash,
            "checkpoint": predictor.checkpoint_hash,
        }
    )
    return f"{kind}-{severity}-{key}.parquet"


def _score_corrupted(
    predictors: dict[str, Predictor],
    corruptor: Corruptor,
    slice_ids: Sequence[str],
    kind: str,
    severity: int,
) -> Iterator[tuple[str, npt.NDArray[np.float64]]]:
    """Logits of each predictor; slices are read in chunks, so memory does not grow with their number."""
    logits: dict[str, list[npt.NDArray[np.float64]]] = {name: [] for name in predictors}
    recipes = {predictor.recipe.pixel_hash: predictor.recipe for predictor in predictors.values()}

    def corrupt(slice_id: str) -> dict[str, npt.NDArray[np.uint8]]:
        items = {
            offsets_mm: corruptor.read(slice_id, kind, severity, offsets_mm)
            for offsets_mm in {recipe.offsets_mm for recipe in recipes.values()}
        }
        return {key: recipe.apply(items[recipe.offsets_mm]) for key, recipe in recipes.items()}

    with ThreadPoolExecutor(min(count_cpus(), _MAX_WORKERS)) as pool:
        for start in range(0, len(slice_ids) if predictors else 0, _CHUNK_SLICES):
            chunk = list(pool.map(corrupt, slice_ids[start : start + _CHUNK_SLICES]))
            for name, predictor in predictors.items():
                batch = np.stack([item[predictor.recipe.pixel_hash] for item in chunk])
                logits[name].append(predictor.predict_pixels(batch))
    for name, parts in logits.items():
        yield name, np.concatenate(parts)


def draw_strips(corruptor: Corruptor, slice_id: str, kinds: Sequence[str]) -> tuple[CorruptionStrip, ...]:
    """What each corruption makes of one slice at severities 0 to 5."""
    return tuple(
        CorruptionStrip(corruption=kind, jpeg=_encode(draw_strip(show_severities(corruptor, slice_id, kind))))
        for kind in kinds
    )


def show_severities(corruptor: Corruptor, slice_id: str, kind: str) -> list[npt.NDArray[np.uint8]]:
    """A slice at severities 0 to 5 of one corruption, as 8-bit pictures."""
    items = [corruptor.read(slice_id, kind, severity) for severity in (0, *SEVERITIES)]
    return [
        np.asarray(item.pixels, np.uint8)
        if item.domain == "display8"
        else corruptor.meaning.show_grey(item.pixels.astype(np.float32))
        for item in items
    ]


def _encode(pixels: npt.NDArray[np.uint8]) -> str:
    _, data = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, 88])
    return base64.b64encode(data.tobytes()).decode()


def assess_robustness(
    experiment: Experiment, run: CorruptedRun | None, options: IntervalOptions
) -> tuple[tuple[RobustnessPoint, ...], RobustnessResult | None]:
    """The curves, the corruption errors and what stands beside them."""
    if run is None:
        return (), None
    settings = experiment.robustness
    options = replace(options, draws=settings.draws)
    threshold = experiment.evaluation.threshold
    return summarise_robustness(run.tables, threshold, options), RobustnessResult(
        slices=len(run.table),
        positives=int(run.table["label"].sum()),
        errors=compare_corruption_errors(run.tables, threshold, options),
        not_applicable=run.not_applicable,
        center_hu=settings.window.center_hu,
        width_hu=settings.window.width_hu,
        field_of_view_mm=settings.field_of_view_mm,
        slice_id=run.slice_id,
        strips=run.strips,
    )
