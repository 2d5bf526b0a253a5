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

SHEET_PICTURE, SLICES_FOLDER = "slices.png", "slices"
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

    @property
    def comparable(self) -> dict[int, Maps]:
        """The maps as they can be shown beside each other.

        Those of Grad-CAM are in no unit, and a slice that shows nothing may have larger values than one that is sure.
        So each is scaled to have its slice's probability as its largest value; maps in a unit stay as they are.
        """
        if self.unit:
            return self.heats
        return {index: weigh_map(heat, float(self.probs[index])) for index, heat in self.heats.items()}


def score_series(predictor: Predictor, volume: Volume) -> npt.NDArray[np.float64]:
    """(n,) calibrated probability of every slice; a few slices are in work at a time.

    Raises:
        RecipeError: the model was not trained on Hounsfield units.
    """
    offsets = predictor.recipe.offsets_mm
    logits = predictor.score_read(len(volume), lambda index: volume.slice(index, offsets))
    return predictor.find_probabilities(logits)


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
    explainer, offsets = Explainer(predictor.model, predictor.recipe, method), predictor.recipe.offsets_mm
    far = np.abs(volume.positions_mm - volume.positions_mm[carrying[0]])
    near = [int(index) for index in np.argsort(far, kind="stable") if far[index] <= _AROUND_MM]
    if method == "occlusion":
        near = near[: len(carrying)]
    wanted = sorted({*carrying, *near})
    watcher.start("Explaining slices", len(wanted))
    heats: dict[int, Maps] = {}
    for start in range(0, len(wanted), _BATCH):
        chunk = wanted[start : start + _BATCH]
        heats |= zip(chunk, explainer.explain_slices([volume.slice(i, offsets) for i in chunk]), strict=True)
        watcher.advance(start + len(chunk), len(wanted))
    watcher.finish(f"{len(wanted):,} of {len(volume):,}, {explainer.describe()}")
    # Grad-CAM's maps of two slices cannot be compared; the strongest slice that has evidence then speaks.
    told = [index for index in carrying if heats[index].max() > 0]
    strongest = (
        max(carrying, key=lambda index: float(heats[index].max())) if UNITS[method] or not told else told[0]
    )
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


def weigh_map(heat: Maps, prob: float) -> Maps:
    """A map whose largest value is its slice's probability; one without evidence stays empty."""
    largest = float(heat.max())
    return heat if largest <= 0 else np.asarray(heat * (prob / largest), np.float32)


def draw_study(found: StudyExplanation, path: Path, *, title: str, lines: Sequence[str] = ()) -> Path:
    """The series in three planes through the finding; through its strongest slice's middle where nothing was found."""
    size, shown = found.volume.hu.shape, found.comparable
    point = found.finding or (found.carrying[0], size[1] // 2, size[2] // 2)
    if found.finding is None:
        lines = [*lines, "No part of a slice speaks for a fracture by itself; nothing is marked."]
    planes = [_show(plane, found.finding is not None) for plane in cut_planes(found.volume, point, shown)]
    scaled = "" if found.unit else ", each scaled to the probability of its slice"
    return draw_planes(
        planes,
        path,
        scale=find_scale(shown.values()),
        unit=found.unit,
        method=f"{found.words}; of {len(found.heats)} slices, between the ticks{scaled}",
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


def draw_carrying(found: StudyExplanation, folder: Path, *, singly: bool = True) -> list[Path]:
    """A sheet of the slices that carry the answer, and where asked one picture for each, into a folder."""
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
    for index, view in zip(found.carrying, views, strict=True) if singly else ():
        name = f"{SLICES_FOLDER}/{index + 1:04d}.png"
        paths.append(draw_slice_picture(view, folder / name, method=found.words))
    return paths
