"""Where a model looks in one series: maps of its strongest slices and those about them, and where evidence peaks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cspine.comparison.watch import Watcher
from cspine.explain.maps import UNITS, Explainer, Method
from cspine.inference.predictor import Predictor
from cspine.preprocess import Window, apply_window
from cspine.reporting.explained import (
    AXIAL_SIDES,
    PlaneView,
    SliceView,
    choose_scales,
    draw_planes,
    draw_slice_picture,
    draw_slice_sheet,
)
from cspine.reporting.heat import find_scale
from cspine.studies.planes import Plane, cut_planes
from cspine.studies.volume import Volume

STUDY_PICTURE, SHEET_PICTURE, SLICES_FOLDER = "study.png", "slices.png", "slices"
_WINDOW = Window()
_AROUND_MM = 12.0
_BATCH = 32
Maps = npt.NDArray[np.float32]


@dataclass(frozen=True)
class StudyExplanation:
    """What speaks for a fracture in a series.

    Attributes:
        volume: The series.
        probs: (n,) of each slice, calibrated.
        carrying: Numbers of the slices that were asked about, the strongest first.
        heats: Slice number to its map, (H, W) on the grid of the volume; those of `carrying`, and some about them.
        finding: (slice, row, column) of the largest evidence in the slices that carry the answer; None where there is
            none at all.
        words, unit: How the maps were made, and what they are in ("" is no unit).
    """

    volume: Volume
    probs: npt.NDArray[np.float64]
    carrying: tuple[int, ...]
    heats: dict[int, Maps]
    finding: tuple[int, int, int] | None
    words: str
    unit: str


def score_series(predictor: Predictor, volume: Volume) -> npt.NDArray[np.float64]:
    """(n,) calibrated probability of every slice; a few slices are in work at a time.

    Raises:
        RecipeError: the model was not trained on Hounsfield units.
    """
    offsets = predictor.recipe.offsets_mm
    logits = [
        predictor.predict_slices(
            [volume.slice(index, offsets) for index in range(start, min(start + _BATCH, len(volume)))]
        )
        for start in range(0, len(volume), _BATCH)
    ]
    return predictor.find_probabilities(np.concatenate(logits))


def explain_series(
    predictor: Predictor,
    volume: Volume,
    probs: npt.NDArray[np.float64],
    carrying: Sequence[int],
    *,
    method: Method,
    watcher: Watcher,
) -> StudyExplanation:
    """Explain the slices that carry an answer; and for the planes across them, what lies within 12 mm of the strongest.

    Args:
        predictor: Of the model.
        volume: The series.
        probs: Of all slices.
        carrying: Numbers of slices, the strongest first; at least one.
        method: See `explain.maps`. Occlusion explains no more slices than these twice over.
        watcher: Told about progress.

    Raises:
        MissingExtraError, InputError: as of `Explainer`.
    """
    explainer = Explainer(predictor.model, predictor.recipe, method)
    far = np.abs(volume.positions_mm - volume.positions_mm[carrying[0]])
    near = [int(index) for index in np.argsort(far, kind="stable") if far[index] <= _AROUND_MM]
    if method == "occlusion":
        near = near[: len(carrying)]
    wanted = sorted({*carrying, *near})
    watcher.start("Explaining slices", len(wanted))
    heats = {}
    for done, index in enumerate(wanted, start=1):
        heats[index] = explainer.explain_slice(volume.slice(index, predictor.recipe.offsets_mm))
        watcher.advance(done, len(wanted))
    watcher.finish(f"{len(wanted):,} of {len(volume):,}, {explainer.describe()}")
    strongest = max(carrying, key=lambda index: float(heats[index].max()))
    row, column = np.unravel_index(int(heats[strongest].argmax()), heats[strongest].shape)
    return StudyExplanation(
        volume=volume,
        probs=probs,
        carrying=tuple(carrying),
        heats=heats,
        finding=(strongest, int(row), int(column)) if heats[strongest].max() > 0 else None,
        words=explainer.describe(),
        unit=UNITS[method],
    )


def draw_study(found: StudyExplanation, path: Path, *, title: str, lines: Sequence[str] = ()) -> Path:
    """The series in three planes through the finding; through its strongest slice's middle where nothing was found."""
    size = found.volume.hu.shape
    point = found.finding or (found.carrying[0], size[1] // 2, size[2] // 2)
    if found.finding is None:
        lines = [*lines, "No part of a slice speaks for a fracture by itself; nothing is marked."]
    planes = [
        _show(plane, found.finding is not None) for plane in cut_planes(found.volume, point, found.heats)
    ]
    return draw_planes(
        planes,
        path,
        scale=find_scale(found.heats.values()),
        unit=found.unit,
        method=f"{found.words}; of {len(found.heats)} slices, between the ticks",
        title=title,
        lines=lines,
    )


def _show(plane: Plane, marked: bool) -> PlaneView:
    return PlaneView(
        name=plane.name,
        pixels=apply_window(plane.hu, _WINDOW.center_hu, _WINDOW.width_hu),
        heat=plane.values,
        spacing_mm=plane.spacing_mm,
        cross=plane.cross if marked else None,
        sides=tuple(plane.sides.items()),
        between=plane.between,
    )


def draw_carrying(found: StudyExplanation, folder: Path) -> list[Path]:
    """A sheet of the slices that carry the answer, and one picture for each, into a folder."""
    heats = [found.heats[index] for index in found.carrying]
    views = [
        SliceView(
            pixels=apply_window(found.volume.hu[index], _WINDOW.center_hu, _WINDOW.width_hu),
            heat=heat,
            caption=f"slice {index + 1} of {len(found.volume)}, p = {found.probs[index]:.3f}",
            spacing_mm=found.volume.spacing_mm[1:],
            scale=scale,
            sides=tuple(AXIAL_SIDES.items()),
        )
        for index, heat, scale in zip(found.carrying, heats, choose_scales(heats), strict=True)
    ]
    title = "Slices with the highest probability of a fracture, the highest first"
    paths = [draw_slice_sheet(views, folder / SHEET_PICTURE, method=found.words, title=title)]
    for index, view in zip(found.carrying, views, strict=True):
        name = f"{SLICES_FOLDER}/{index + 1:04d}.png"
        paths.append(draw_slice_picture(view, folder / name, method=found.words))
    return paths
