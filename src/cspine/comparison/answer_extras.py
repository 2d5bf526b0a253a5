"""What goes with an answer about a series on request: maps and their pictures, their scores, DICOM objects."""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cspine.comparison.answer_scores import PICTURES_FOLDER, STUDY_PICTURE, name_folder
from cspine.comparison.explaining import find_ground, show_slice
from cspine.comparison.explaining_study import (
    StudyExplanation,
    draw_carrying,
    draw_study,
    explain_series,
)
from cspine.comparison.watch import Silent
from cspine.data.regions import fill_boxes
from cspine.evaluation.pointing import score_slice
from cspine.explain.maps import Explainer, Method
from cspine.files import atomic_folder
from cspine.inference.predictor import Predictor
from cspine.preprocess import Window
from cspine.reporting.explained import choose_scales
from cspine.reporting.heat import draw_tile
from cspine.studies.answer import StudyAnswer
from cspine.studies.dicom import DicomSeries
from cspine.studies.intake import IntakePolicy
from cspine.studies.outputs.heat import Heat
from cspine.studies.outputs.identity import Deidentify
from cspine.studies.outputs.source import is_referable, make_source
from cspine.studies.outputs.write import write_dicom_outputs
from cspine.studies.series import SeriesToAnswer
from cspine.studies.volume import Volume

DICOM_FOLDER = "dicom"
MOST_POINTED = 4
"""Slices of a study whose maps are scored: evenly among those with a known fracture, whatever the model says."""

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class AnswerExtras:
    """Makes them for one series after the other.

    Attributes:
        folder: Of the answers; pictures and objects go into folders of their own in it.
        predictor: Whose maps are drawn: of several models the first.
        method: None draws none.
        dicom: Whether DICOM objects are written, beside series that are DICOM.
        deidentify: Of the DICOM objects.
        policy: That the series were read with.

    Raises:
        CheckpointError: maps are asked for, and another engine than torch runs the network.
        InputError, MissingExtraError: as of `Explainer`.
    """

    folder: Path
    predictor: Predictor
    method: Method | None
    dicom: bool
    deidentify: Deidentify | None
    policy: IntakePolicy

    def __post_init__(self) -> None:
        if self.method is not None:  # now, and not when the first series has been answered
            Explainer(self.predictor.model, self.predictor.recipe, self.method)

    def make(self, item: SeriesToAnswer, answer: StudyAnswer) -> dict[str, Any]:
        """Make what was asked for; returns the scores of the maps, JSON-able, by slice id.

        Raises:
            InputError: DICOM objects cannot be made of this series, or Grad-CAM cannot read the backbone.
            MissingExtraError: captum or highdicom is not installed.
            OutputError: something cannot be written.
        """
        found, scores = None, {}
        if self.method is not None and item.volume is not None and answer.carrying:
            found = explain_series(
                self.predictor,
                item.volume,
                answer.probs,
                answer.carrying,
                method=self.method,
                watcher=Silent(),
            )
            self._draw(found, answer, name_folder(item.key))
            scores = self._score(item, item.volume)
        if self.dicom and item.intake.format == "dicom" and item.frames and is_referable(item.frames):
            self._write_dicom(item, answer, found)
        return scores

    def _draw(self, found: StudyExplanation, answer: StudyAnswer, name: str) -> None:
        height_mm = answer.positions_mm[found.carrying[0]] - answer.positions_mm[0]
        title = f"{answer.call.capitalize()}, probability {answer.prob:.3f}"
        lines = [
            f"Strongest slice: {found.carrying[0] + 1} of {len(answer.slice_ids)}, {height_mm:.0f} mm above the lowest."
        ]
        with atomic_folder(_clear(self.folder / PICTURES_FOLDER / name)) as folder:
            draw_study(found, folder / STUDY_PICTURE, title=title, lines=lines)
            draw_carrying(found, folder, singly=False)

    def _score(self, item: SeriesToAnswer, volume: Volume) -> dict[str, Any]:
        """Of slices where a fracture is known to be, so that what the model says does not choose them."""
        regions = find_regions(item, volume)
        if not regions or self.method is None:
            return {}
        known = sorted(regions)
        count = min(MOST_POINTED, len(known))
        chosen = [known[round(place)] for place in np.linspace(0, len(known) - 1, count)]
        explainer = Explainer(self.predictor.model, self.predictor.recipe, self.method)
        offsets = self.predictor.recipe.offsets_mm
        items = {index: volume.slice(index, offsets) for index in dict.fromkeys(chosen)}
        scores = {}
        for (index, one), heat in zip(
            items.items(), explainer.explain_slices(list(items.values())), strict=True
        ):
            ground = find_ground(one, self.predictor.recipe.locate(one))
            found = score_slice(heat, regions[index], ground, one.spacing_mm)
            scores[one.slice_id] = {**asdict(found), "mask": item.fractures is not None}
        return scores

    def _name_objects(self, key: str) -> str:
        """As the file of the series; under another identity by the secret key, or the name would give the UID away."""
        if self.deidentify is None:
            return name_folder(key)
        return self.deidentify.derive("folder", key).hex()[:16]

    def _write_dicom(self, item: SeriesToAnswer, answer: StudyAnswer, found: StudyExplanation | None) -> None:
        source = make_source(DicomSeries(Path(item.intake.source), item.frames), answer, self.policy)
        heat, overlays = None, None
        if found is not None and item.volume is not None:
            heats = found.comparable
            largest = max(float(one.max()) for one in heats.values())
            if largest > 0 and source.has_place:
                maps = np.stack([one / largest for one in heats.values()]).astype(np.float32)
                heat = Heat(tuple(heats), maps.clip(0, 1), found.words)
            overlays = draw_overlays(found, item.volume)
        write_dicom_outputs(
            _clear(self.folder / DICOM_FOLDER / self._name_objects(item.key)),
            source,
            answer,
            heat,
            overlays,
            deidentify=self.deidentify,
        )


def _clear(folder: Path) -> Path:
    """What an interrupted run left of a series that it kept no answer of is in the way."""
    shutil.rmtree(folder, ignore_errors=True)
    return folder


def find_regions(item: SeriesToAnswer, volume: Volume) -> dict[int, Mask]:
    """Where fractures are known to be: slice number to (H, W), from the mask where there is one, else from boxes."""
    if item.fractures is not None:
        there = np.flatnonzero(item.fractures.any(axis=(1, 2)))
        return {int(index): item.fractures[index] > 0 for index in there}
    boxes: dict[int, list[tuple[float, float, float, float]]] = {}
    for box in item.boxes:
        boxes.setdefault(box.index, []).append((box.x_px, box.y_px, box.width_px, box.height_px))
    shape = volume.hu.shape[1], volume.hu.shape[2]
    regions = {index: fill_boxes(some, shape) for index, some in boxes.items()}
    return {index: mask for index, mask in regions.items() if mask.any()}


def draw_overlays(found: StudyExplanation, volume: Volume) -> dict[int, npt.NDArray[np.uint8]]:
    """The slices that carry the answer with their maps over them, on the grid of the volume."""
    heats = [found.heats[index] for index in found.carrying]
    side = max(volume.hu.shape[1:])
    return {
        index: draw_tile(show_slice(volume.slice(index), Window()), heat, scale, side_px=side)
        for index, heat, scale in zip(found.carrying, heats, choose_scales(heats), strict=True)
    }
