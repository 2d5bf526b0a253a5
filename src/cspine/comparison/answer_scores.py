"""What stands in a folder of answers beside them: where its pictures lie, and what the scores of its maps come to."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import polars as pl

from cspine.evaluation.pointing import PointingResult, SlicePointing, evaluate_pointing
from cspine.files import compute_hash
from cspine.studies.answers_folder import Answered

PICTURES_FOLDER, STUDY_PICTURE = "pictures", "study.png"


def name_folder(key: str) -> str:
    """What the pictures and objects of a series lie in: as its file among the answers is called."""
    return compute_hash(key)


def evaluate_answers_pointing(answered: list[Answered]) -> PointingResult | None:
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
    return evaluate_pointing(scores, table, masks=masks, by="patient_id")


def read_pictures(folder: Path, answered: list[Answered]) -> dict[str, bytes]:
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
