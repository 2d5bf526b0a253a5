"""Artifacts of an answer: maps of a series, their pictures and scores, DICOM objects; and what is read of them."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import polars as pl

from cspine.comparison.explaining import find_ground, show_slice
from cspine.core.answers import StudyAnswer
from cspine.core.errors import MissingExtraError
from cspine.core.files import atomic_folder, compute_hash
from cspine.core.progress import Silent, Watcher
from cspine.ct.annotations import CtSeries
from cspine.ct.dicom import DicomSeries
from cspine.ct.intake import IntakePolicy
from cspine.ct.volume import Plane, Volume, cut_planes
from cspine.data.regions import fill_boxes
from cspine.dicom_out.source import Deidentify, HeatMaps, is_referable, make_source
from cspine.explain.drawing import (
    AXIAL_SIDES,
    PlaneView,
    SliceView,
    choose_scales,
    draw_planes,
    draw_slice_picture,
    draw_slice_sheet,
    draw_tile,
    find_scale,
)
from cspine.explain.maps import METHODS, UNITS, Explainer, Method
from cspine.explain.pointing import PointingResult, SlicePointing, evaluate_pointing, score_slice
from cspine.inference.answers import Answered
from cspine.inference.predictor import Predictor
from cspine.inference.study import MakeExtras
from cspine.metrics.intervals import IntervalOptions
from cspine.preprocess import Window, apply_window

PICTURES_FOLDER, STUDY_PICTURE = "pictures", "study.png"


def name_folder(key: str) -> str:
    """What the pictures and objects of a series lie in: as its file among the answers is called."""
    return compute_hash(key)


def evaluate_answers_pointing(answered: Sequence[Answered]) -> PointingResult | None:
    """The scores that are kept with the answers, with intervals by patient where patients are told apart."""
    scores, rows, masks = {}, [], 0
    for one in answered:
        for slice_id, score in one.pointing.items():
            values: Mapping[str, Any] = {name: value for name, value in score.items() if name != "mask"}
            scores[slice_id] = SlicePointing(**values)
            masks += bool(score["mask"])
            rows.append({"slice_id": slice_id, "patient_id": one.group})
    if not scores:
        return None
    table = pl.DataFrame(rows, schema={"slice_id": pl.String, "patient_id": pl.String})
    options = IntervalOptions(draws=1000, unit="patient_id")
    return evaluate_pointing(scores, table, masks=masks, options=options)


def read_pictures(folder: Path, answered: Sequence[Answered]) -> dict[str, bytes]:
    """The pictures of the planes through the findings as JPEG, by the key of the series."""
    paths = {one.key: folder / PICTURES_FOLDER / name_folder(one.key) / STUDY_PICTURE for one in answered}
    return {key: _shrink(path) for key, path in paths.items() if path.is_file()}


def _shrink(path: Path) -> bytes:
    """A picture as a quarter of its bytes: a page holds two dozen of them."""
    picture = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if picture is None:
        return b""
    _, jpeg = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, 88])
    return jpeg.tobytes()


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
        key_slices: Numbers of the slices that were asked about, the strongest first.
        heats: Slice number to its map, (H, W) on the grid of the volume; those of `key_slices`, and some about them.
        finding: (slice, row, column) of the largest evidence in the slices that carry the answer; None where there is
            none at all.
        words, unit: How the maps were made, and what they are in ("" is no unit).
    """

    volume: Volume
    probs: npt.NDArray[np.float64]
    key_slices: tuple[int, ...]
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
    key_slices: Sequence[int],
    *,
    method: Method,
    watcher: Watcher,
) -> StudyExplanation:
    """Explain the slices that carry an answer; and for the planes across them, what lies within 12 mm of the strongest.

    Args:
        probs: (n,) of all slices.
        key_slices: Numbers of slices, the strongest first; at least one.
        method: Occlusion, being slow, explains at most twice as many slices.

    Raises:
        MissingExtraError, InputError: as of `Explainer`.
    """
    explainer, offsets = Explainer(predictor.model, predictor.recipe, method), predictor.recipe.offsets_mm
    far = np.abs(volume.positions_mm - volume.positions_mm[key_slices[0]])
    near = [int(index) for index in np.argsort(far, kind="stable") if far[index] <= _AROUND_MM]
    if method == "occlusion":
        near = near[: len(key_slices)]
    wanted = sorted({*key_slices, *near})
    watcher.start("Explaining slices", len(wanted))
    heats: dict[int, Maps] = {}
    for start in range(0, len(wanted), _BATCH):
        chunk = wanted[start : start + _BATCH]
        heats |= zip(chunk, explainer.explain_slices([volume.slice(i, offsets) for i in chunk]), strict=True)
        watcher.advance(start + len(chunk), len(wanted))
    watcher.finish(f"{len(wanted):,} of {len(volume):,}, {explainer.describe()}")
    # Grad-CAM's maps of two slices cannot be compared; the strongest slice that has evidence then speaks.
    told = [index for index in key_slices if heats[index].max() > 0]
    strongest = (
        max(key_slices, key=lambda index: float(heats[index].max())) if UNITS[method] or not told else told[0]
    )
    row, column = np.unravel_index(int(heats[strongest].argmax()), heats[strongest].shape)
    return StudyExplanation(
        volume=volume,
        probs=probs,
        key_slices=tuple(key_slices),
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
    point = found.finding or (found.key_slices[0], size[1] // 2, size[2] // 2)
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


def draw_key_slices(found: StudyExplanation, folder: Path, *, singly: bool = True) -> list[Path]:
    """A sheet of the slices that carry the answer, and where asked one picture for each, into a folder."""
    heats = [found.heats[index] for index in found.key_slices]
    views = [
        SliceView(
            pixels=apply_window(found.volume.hu[index], _WINDOW.center_hu, _WINDOW.width_hu),
            heat=heat,
            caption=f"slice {index + 1} of {len(found.volume)}, p = {found.probs[index]:.3f}",
            spacing_mm=found.volume.spacing_mm[1:],
            scale=scale,
            sides=tuple(AXIAL_SIDES.items()),
        )
        for index, heat, scale in zip(found.key_slices, heats, choose_scales(heats), strict=True)
    ]
    title = "Slices with the highest probability of a fracture, the highest first"
    paths = [draw_slice_sheet(views, folder / SHEET_PICTURE, method=found.words, title=title)]
    for index, view in zip(found.key_slices, views, strict=True) if singly else ():
        name = f"{SLICES_FOLDER}/{index + 1:04d}.png"
        paths.append(draw_slice_picture(view, folder / name, method=found.words))
    return paths


DICOM_FOLDER = "dicom"
MOST_POINTED = 4
"""Slices of a study whose maps are scored: evenly among those with a known fracture, whatever the model says."""

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class AnswerArtifacts:
    """Makes what goes with an answer on request, for one series after the other.

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
        if self.dicom:
            try:
                import cspine.dicom_out.objects  # noqa: F401
            except ImportError:
                raise MissingExtraError("DICOM output", "studies") from None

    def make(self, item: CtSeries, answer: StudyAnswer) -> dict[str, Any]:
        """Make what was asked for; returns the scores of the maps, JSON-able, by slice id.

        Raises:
            InputError: DICOM objects cannot be made of this series, or Grad-CAM cannot read the backbone.
            MissingExtraError: captum or highdicom is not installed.
            OutputError: something cannot be written.
        """
        found, scores = None, {}
        if self.method is not None and item.volume is not None and answer.key_slices:
            found = explain_series(
                self.predictor,
                item.volume,
                answer.probs,
                answer.key_slices,
                method=self.method,
                watcher=Silent(),
            )
            self._draw(found, answer, name_folder(item.key))
            scores = self._score(item, item.volume)
        if self.dicom and item.intake.format == "dicom" and item.frames and is_referable(item.frames):
            self._write_dicom(item, answer, found)
        return scores

    def _draw(self, found: StudyExplanation, answer: StudyAnswer, name: str) -> None:
        height_mm = answer.positions_mm[found.key_slices[0]] - answer.positions_mm[0]
        title = f"{answer.call.capitalize()}, probability {answer.prob:.3f}"
        lines = [
            f"Strongest slice: {found.key_slices[0] + 1} of {len(answer.slice_ids)}, "
            f"{height_mm:.0f} mm above the lowest."
        ]
        with atomic_folder(_clear(self.folder / PICTURES_FOLDER / name)) as folder:
            draw_study(found, folder / STUDY_PICTURE, title=title, lines=lines)
            draw_key_slices(found, folder, singly=False)

    def _score(self, item: CtSeries, volume: Volume) -> dict[str, Any]:
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
        masked = item.annotations is not None and item.annotations.fractures is not None
        scores = {}
        for (index, one), heat in zip(
            items.items(), explainer.explain_slices(list(items.values())), strict=True
        ):
            ground = find_ground(one, self.predictor.recipe.locate(one))
            found = score_slice(heat, regions[index], ground, one.spacing_mm)
            scores[one.slice_id] = {**asdict(found), "mask": masked}
        return scores

    def _name_objects(self, key: str) -> str:
        """As the file of the series; under another identity by the secret key, or the name would give the UID away."""
        if self.deidentify is None:
            return name_folder(key)
        return self.deidentify.derive("folder", key).hex()[:16]

    def _write_dicom(self, item: CtSeries, answer: StudyAnswer, found: StudyExplanation | None) -> None:
        from cspine.dicom_out.objects import write_dicom_outputs

        source = make_source(DicomSeries(Path(item.intake.source), item.frames), answer, self.policy)
        heat, overlays = None, None
        if found is not None and item.volume is not None:
            heats = found.comparable
            largest = max(float(one.max()) for one in heats.values())
            if largest > 0 and source.has_place:
                maps = np.stack([one / largest for one in heats.values()]).astype(np.float32)
                heat = HeatMaps(tuple(heats), maps.clip(0, 1), found.words)
            overlays = draw_overlays(found, item.volume)
        write_dicom_outputs(
            _clear(self.folder / DICOM_FOLDER / self._name_objects(item.key)),
            source,
            answer,
            heat,
            overlays,
            deidentify=self.deidentify,
        )


def prepare_artifacts(
    folder: Path,
    predictor: Predictor,
    explain: str | None,
    dicom: bool,
    deidentify: Deidentify | None,
    policy: IntakePolicy,
) -> MakeExtras:
    """What makes maps by a method (its name) and DICOM objects beside answers; errors as of `AnswerArtifacts`."""
    method = next((name for name in METHODS if name == explain), None)
    return AnswerArtifacts(folder, predictor, method, dicom, deidentify, policy).make


def _clear(folder: Path) -> Path:
    """What an interrupted run left of a series that it kept no answer of is in the way."""
    shutil.rmtree(folder, ignore_errors=True)
    return folder


def find_regions(item: CtSeries, volume: Volume) -> dict[int, Mask]:
    """Where fractures are known to be: slice number to (H, W), from the mask where there is one, else from boxes."""
    known = item.annotations
    if known is None:
        return {}
    if known.fractures is not None:
        there = np.flatnonzero(known.fractures.any(axis=(1, 2)))
        return {int(index): known.fractures[index] > 0 for index in there}
    boxes: dict[int, list[tuple[float, float, float, float]]] = {}
    for box in known.boxes:
        boxes.setdefault(box.index, []).append((box.x_px, box.y_px, box.width_px, box.height_px))
    shape = volume.hu.shape[1], volume.hu.shape[2]
    regions = {index: fill_boxes(some, shape) for index, some in boxes.items()}
    return {index: mask for index, mask in regions.items() if mask.any()}


def draw_overlays(found: StudyExplanation, volume: Volume) -> dict[int, npt.NDArray[np.uint8]]:
    """The slices that carry the answer with their maps over them, on the grid of the volume."""
    heats = [found.heats[index] for index in found.key_slices]
    side = max(volume.hu.shape[1:])
    return {
        index: draw_tile(show_slice(volume.slice(index), Window()), heat, scale, side_px=side)
        for index, heat, scale in zip(found.key_slices, heats, choose_scales(heats), strict=True)
    }
