"""Answers about drawn necks, for every test of what is written as DICOM."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cspine.core.answers import Action, Reason, StudyAnswer
from cspine.ct.annotations import CtSeries
from cspine.ct.intake import IntakePolicy
from cspine.ct.volume import Volume
from cspine.dicom_out.source import HeatMaps, SourceSeries, find_source
from cspine.phantom.patient import PhantomPatient
from cspine.phantom.scanner import render_volume
from tests.ct.reading import read_dicom
from tests.phantom.faults import HABIT_BY_NAME, scan_with_faults, write_with_faults

POLICY = IntakePolicy(actions={Reason.UNEVEN_SPACING: Action.CORRECT})
SPACING_MM = (5.0, 2.75, 2.75)
POINT = (13, 20, 9)
"""(slice, row, column) of the volume: off the middle, so that a turned or moved picture cannot hide."""


@dataclass(frozen=True)
class Case:
    """A neck as DICOM in `folder`, what was read from it, what a model says of it, and where the model looked."""

    folder: Path
    volume: Volume
    answer: StudyAnswer
    source: SourceSeries
    heat: HeatMaps
    overlays: dict[int, np.ndarray]


def make_answer(result: CtSeries) -> StudyAnswer:
    volume = result.volume
    count = len(volume) if volume is not None else 0
    probs = np.linspace(0.1, 0.9, count)
    return StudyAnswer(
        intake=result.intake,
        slice_ids=tuple(volume.slice_id(index) for index in range(count)) if volume else (),
        positions_mm=volume.positions_mm if volume else np.empty(0),
        logits=np.log(probs / (1 - probs)),
        probs=probs,
        levels=(),
        logit=1.2 if count else None,
        prob=0.768525 if count else None,
        threshold=0.5,
        key_slices=(14, 13) if count else (),
        level_probs={"C2": 0.75, "C7": 0.125} if count else {},
        abstentions=(),
        distance=None,
        distance_limit=None,
        aggregation="mean of the 3 highest",
        checkpoint_hashes=("0123456789abcdef", "fedcba9876543210"),
    )


def make_case(folder: Path, neck: PhantomPatient, habit_name: str, faults: Sequence[Reason] = ()) -> Case:
    """Write a neck as a scanner of this habit does, read it, and make up an answer."""
    habit = HABIT_BY_NAME[habit_name]
    parts = scan_with_faults(neck, render_volume(neck, SPACING_MM), habit, faults)
    write_with_faults(folder, parts, habit, faults)
    (result,) = read_dicom(folder, POLICY)
    volume, answer = result.volume, make_answer(result)
    index, row, column = POINT
    maps = np.zeros((2, *volume.hu.shape[1:]), np.float32)
    maps[0, row, column] = 1.0
    maps[1] = 0.25
    pictures = {}
    for key_slice in answer.key_slices:
        grey = np.clip((volume.hu[key_slice] + 500) / 8, 0, 255).astype(np.uint8)
        pictures[key_slice] = np.repeat(grey[:, :, None], 3, axis=2)
    pictures[index][row, column] = (255, 0, 0)
    heat = HeatMaps((index, index + 1), maps, "Grad-CAM")
    return Case(folder, volume, answer, find_source(folder, answer), heat, pictures)
