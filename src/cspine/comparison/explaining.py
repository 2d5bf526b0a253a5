"""Where models look: maps of slices whose fracture has a known place, scored, checked and drawn."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

from cspine.comparison.prepare import PreparedData
from cspine.core.errors import CspineError, InputError, MissingExtraError
from cspine.core.files import compute_hash, write_json
from cspine.core.progress import Watcher, count_steps
from cspine.core.types import Slice
from cspine.data.manifest import Manifest
from cspine.data.regions import Region, Regions
from cspine.experiment import Experiment
from cspine.explain.drawing import SliceView, choose_scales, draw_tile, encode_png
from cspine.explain.maps import ALL, Explainer, Method, list_parts, randomise
from cspine.explain.pointing import (
    Likeness,
    PointingResult,
    SanityResult,
    SlicePointing,
    compare_maps,
    evaluate_pointing,
    judge_sanity,
    score_slice,
)
from cspine.inference.predictor import Predictor
from cspine.metrics.evaluation import index_units
from cspine.metrics.intervals import IntervalOptions
from cspine.preprocess import Placement, Window, apply_window
from cspine.report.results import ExplainedSlice, ModelExplanation, Note

SET_SLICES = 60
SANITY_SLICES, SANITY_NETWORKS = 12, 2
SAMPLES = 6
_BODY_HU, _BODY_DISPLAY = -400, 10
Maps = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Explained:
    """What was found, and the first slices of the draw, ready to be drawn."""

    result: ModelExplanation
    views: tuple[SliceView, ...]


@dataclass(frozen=True)
class _Case:
    """One slice, its map on its own grid, and what is known of it."""

    item: Slice
    heat: Maps
    region: Region | None
    placement: Placement
    prob: float


@dataclass(frozen=True)
class ExplainOptions:
    """What is explained, and how.

    Attributes:
        method: See `explain.maps`.
        count: At most so many slices, drawn by `seed`; 0 is 60 of a set, 8 of a series.
        seed: Of the draw, and of the random networks.
        threshold: The model calls a slice a fracture from this probability; None is the checkpoint's own.
        split: Only this one; None is the whole set.
        cascade: Of Grad-CAM: whether the sanity check goes stage by stage, or looks at the head and at all alone.
    """

    method: Method = "occlusion"
    count: int = 0
    seed: int = 0
    threshold: float | None = None
    split: str | None = None
    cascade: bool = True


def explain_set(
    predictor: Predictor,
    manifest: Manifest,
    wanted: ExplainOptions,
    options: IntervalOptions,
    watcher: Watcher,
) -> Explained:
    """Explain slices with a fracture: those whose place is known, else any; score and check the maps.

    Raises:
        InputError: there is no such split, no fracture in it, or Grad-CAM cannot read the backbone.
        RecipeError: the slices are of another kind than the recipe takes.
        MissingExtraError: captum is not installed.
    """
    method, split, seed = wanted.method, wanted.split, wanted.seed
    threshold = predictor.header.threshold if wanted.threshold is None else wanted.threshold
    explainer = Explainer(predictor.model, predictor.recipe, method)
    part = manifest.select(split) if split else manifest
    predictor.recipe.check_domain(part.domain, str(manifest.root))
    regions = Regions(part)
    slice_ids, known = choose_slices(part, regions, wanted.count or SET_SLICES, seed)
    name = predictor.header.spec.name
    watcher.start("Explaining", len(slice_ids))
    items = [part.read_slice(slice_id, predictor.recipe.offsets_mm) for slice_id in slice_ids]
    pixels = np.stack([predictor.recipe.apply(item) for item in items])
    signed = explainer.explain_signed(pixels, count_steps(watcher, len(items)))
    probs = predictor.find_probabilities(predictor.predict_pixels(pixels))
    cases = [
        _make_case(item, np.maximum(one, 0), regions, predictor, float(prob))
        for item, one, prob in zip(items, signed, probs, strict=True)
    ]
    watcher.finish(f"{name}, {len(cases):,} slices, {explainer.describe()}")
    scores = {case.item.slice_id: score for case in cases if (score := _score(case)) is not None}
    called = {case.item.slice_id for case in cases if case.prob >= threshold}
    pointing, pointing_called = (
        _evaluate(some, cases, part.table, options)
        for some in (scores, {key: value for key, value in scores.items() if key in called})
    )
    checked = min(SANITY_SLICES, len(cases))
    sanity = _check_sanity(
        predictor,
        explainer,
        pixels[:checked],
        signed[:checked],
        cascade=wanted.cascade and method == "gradcam",  # occlusion of so many networks would take long
        seed=seed,
        judge=_make_judge(part.table, slice_ids[:checked], options),
        watcher=watcher,
    )
    shown = cases[:SAMPLES]
    scales = choose_scales([case.heat for case in shown])
    result = ModelExplanation(
        model=name,
        checkpoint_hash=predictor.checkpoint_hash,
        method=method,
        words=explainer.describe(),
        cell_mm=_find_cell(explainer, cases[0]),
        split=split or "all of them",
        seed=seed,
        threshold=threshold,
        pointing=pointing,
        pointing_called=pointing_called,
        why_none=None if known else "no slice with a fracture has a mask or boxes",
        sanity=sanity,
        samples=tuple(_make_sample(case, scale) for case, scale in zip(shown, scales, strict=True)),
    )
    return Explained(result, tuple(_make_view(*pair) for pair in zip(shown, scales, strict=True)))


def choose_slices(manifest: Manifest, regions: Regions, count: int, seed: int) -> tuple[list[str], bool]:
    """Ids of at most `count` fractures, drawn by `seed`, and whether their places are known.

    Raises:
        InputError: no slice is labelled as a fracture.
    """
    fractures = manifest.table.filter(pl.col("label") == 1)["slice_id"]
    if fractures.is_empty():
        raise InputError(
            "no slice is labelled as a fracture, so there is nothing to point at",
            where=str(manifest.root),
            fix="name another split, or a series instead of a set",
        )
    placed = fractures.filter(fractures.is_in(regions.slice_ids))
    chosen = (fractures if placed.is_empty() else placed).sort()
    drawn = chosen.sample(min(count, len(chosen)), seed=seed, shuffle=True)
    return drawn.to_list(), not placed.is_empty()


def _make_case(item: Slice, heat: Maps, regions: Regions, predictor: Predictor, prob: float) -> _Case:
    placement = predictor.recipe.locate(item)
    return _Case(item, placement.bring_back(heat), regions.read(item.slice_id), placement, prob)


def _score(case: _Case) -> SlicePointing | None:
    if case.region is None or not case.region.mask.any():
        return None
    return score_slice(
        case.heat, case.region.mask, find_ground(case.item, case.placement), case.item.spacing_mm
    )


def find_ground(item: Slice, placement: Placement) -> npt.NDArray[np.bool_]:
    """(H, W) the body, as far as the network sees it; all that it sees where there is no body."""
    seen = placement.bring_back(np.ones(placement.size_px, np.float32)) > 0
    body = item.pixels > (_BODY_HU if item.domain == "hu" else _BODY_DISPLAY)
    both = seen & body
    return both if both.any() else seen


def _evaluate(
    scores: dict[str, SlicePointing],
    cases: Sequence[_Case],
    table: pl.DataFrame,
    options: IntervalOptions,
) -> PointingResult | None:
    if not scores:
        return None
    masks = sum(
        case.region is not None and case.region.kind == "mask"
        for case in cases
        if case.item.slice_id in scores
    )
    return evaluate_pointing(scores, table, masks=masks, options=options)


def _check_sanity(
    predictor: Predictor,
    explainer: Explainer,
    pixels: npt.NDArray[np.uint8],
    signed: Maps,
    *,
    cascade: bool,
    seed: int,
    judge: Callable[[Sequence[tuple[str, Sequence[Likeness]]]], SanityResult],
    watcher: Watcher,
) -> SanityResult:
    """Maps of networks that are random from the head on: stage by stage (`cascade`), or the head and all alone."""
    parts = list(list_parts(predictor.model))
    depths = range(1, len(parts)) if cascade else (1,)
    total = len(pixels) * (len(depths) + SANITY_NETWORKS)
    watcher.start("Checking maps", total)
    advance = count_steps(watcher, total)

    def compare(network_seed: int, depth: int | None) -> Likeness:
        model = randomise(predictor.model, predictor.recipe.scale, network_seed, depth)
        return compare_maps(signed, explainer.of(model).explain_signed(pixels, advance))

    steps = [(_name_parts(parts, depth), [compare(seed, depth)]) for depth in depths]
    steps.append((ALL, [compare(seed + number, None) for number in range(SANITY_NETWORKS)]))
    result = judge(steps)
    watcher.finish(f"{predictor.header.spec.name} {result.words}")
    return result


def _make_judge(
    table: pl.DataFrame, slice_ids: Sequence[str], options: IntervalOptions
) -> Callable[[Sequence[tuple[str, Sequence[Likeness]]]], SanityResult]:
    """`judge_sanity` of these slices, in this order."""
    rows = table.filter(pl.col("slice_id").is_in(list(slice_ids)))
    units, unit = index_units(rows, options.unit)
    by_id = dict(zip(rows["slice_id"], units, strict=True))
    ordered = np.array([by_id[slice_id] for slice_id in slice_ids])
    return partial(judge_sanity, units=ordered, unit=unit, options=options)


def _name_parts(parts: Sequence[str], depth: int) -> str:
    return "the head" if depth == 1 else f"from {parts[-depth]} on"


def _find_cell(explainer: Explainer, case: _Case) -> float | None:
    """Side of a cell of the map in mm, of one slice for all."""
    if case.item.spacing_mm is None:
        return None
    sides = np.multiply(np.multiply(explainer.cell_px, case.placement.step_px), case.item.spacing_mm)
    return float(sides.mean())


def show_slice(item: Slice, window: Window) -> npt.NDArray[np.uint8]:
    """(H, W) uint8: HU through a window, pictures as they are."""
    if item.domain == "hu":
        return apply_window(item.pixels, window.center_hu, window.width_hu)
    return np.asarray(item.pixels, np.uint8)


def _make_sample(case: _Case, scale: float) -> ExplainedSlice:
    region = None if case.region is None else case.region.mask
    peak = np.unravel_index(int(case.heat.argmax()), case.heat.shape)
    return ExplainedSlice(
        slice_id=case.item.slice_id,
        prob=case.prob,
        hit=None if region is None else bool(region[peak] and case.heat[peak] > 0),
        picture_png=encode_png(draw_tile(show_slice(case.item, Window()), case.heat, scale, region)),
    )


def _make_view(case: _Case, scale: float) -> SliceView:
    return SliceView(
        pixels=show_slice(case.item, Window()),
        heat=case.heat,
        caption=f"fracture, p = {case.prob:.3f}",
        spacing_mm=case.item.spacing_mm,
        region=None if case.region is None else case.region.mask,
        scale=scale,
    )


def check_explanations(experiment: Experiment) -> None:
    """Raise `MissingExtraError` before the training where maps are asked for and captum is not installed."""
    if experiment.explanations.enabled is True and not _has_captum():
        raise MissingExtraError("explaining what a network looks at (explanations.enabled)", "studies")


def explain_models(
    experiment: Experiment,
    prepared: PreparedData,
    predictors: Mapping[str, Predictor],
    options: IntervalOptions,
    folder: Path,
    watcher: Watcher,
) -> tuple[tuple[ModelExplanation, ...], tuple[Note, ...]]:
    """Explain every model on the same slices of the reported split.

    With "auto" what cannot be explained is left out with a note: a comparison that is done is worth more than its maps.

    What an earlier run explained in `folder` is read again, so that resuming it changes no number.

    Raises:
        CspineError: as of `explain_set`, where maps were asked for.
    """
    settings = experiment.explanations
    if settings.enabled is False or (settings.enabled == "auto" and not _has_captum()):
        return (), ()
    wanted = ExplainOptions(
        method=settings.method,
        count=settings.max_slices,
        seed=experiment.seed,
        threshold=experiment.evaluation.threshold,
        split=prepared.reported,
        cascade=False,
    )
    found, notes = [], []
    for name, predictor in predictors.items():
        try:
            if settings.enabled == "auto" and not _knows_places(prepared):
                return (), ()
            # The words of the hash are those of earlier versions, whose files are found again by it.
            intervals = {"draws": options.draws, "level": options.level, "by": options.unit}
            origin = compute_hash(
                [{**asdict(wanted), "options": intervals}, predictor.checkpoint_hash, prepared.manifest.hash]
            )
            path = folder / "models" / name / f"explanation-{origin}.json"
            explained = _read_kept(path)
            if explained is None:
                explained = explain_set(predictor, prepared.manifest, wanted, options, watcher).result
                write_json(path, explained.model_dump(mode="json"))
        except CspineError as error:
            if settings.enabled is True:
                raise
            notes.append(Note(severity="info", text=f"No maps of {name}: {error.what}."))
        else:
            found.append(explained.model_copy(update={"model": name}))
    return tuple(found), tuple(notes)


def _read_kept(path: Path) -> ModelExplanation | None:
    """What an earlier run left; None where there is nothing, or nothing that this version understands."""
    try:
        return ModelExplanation.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _has_captum() -> bool:
    return find_spec("captum") is not None


def _knows_places(prepared: PreparedData) -> bool:
    """Whether masks or boxes say where a fracture of the reported split is."""
    part = prepared.manifest.select(prepared.reported)
    return choose_slices(part, Regions(part), 1, 0)[1]
