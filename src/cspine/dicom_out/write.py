"""Write the standard objects of one answer into a folder."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

import cspine
from cspine.core.answers import StudyAnswer
from cspine.core.errors import MissingExtraError
from cspine.core.files import atomic_folder

if TYPE_CHECKING:
    from cspine.dicom_out.source import Deidentify, HeatMaps, SourceSeries


def write_dicom_outputs(
    folder: Path,
    source: SourceSeries,
    answer: StudyAnswer,
    heat: HeatMaps | None = None,
    overlays: Mapping[int, npt.NDArray[np.uint8]] | None = None,
    *,
    deidentify: Deidentify | None = None,
) -> list[Path]:
    """Write an answer as standard objects: `report.dcm`, `heat.dcm`, `overlay-001.dcm` and on.

    Args:
        folder: A new or empty one; it appears whole, or not at all.
        source: The series that the answer is about (`find_source`).
        answer: Of that series.
        heat: Where the model looked; None writes no map.
        overlays: Slice of the volume to (rows, columns, 3) RGB, the whole slice at any size; nothing of it may
            identify the patient. None writes none.
        deidentify: Replace the identity of the source in all objects.

    Returns:
        The files: the report, then the map, then the overlays from feet to head.

    Raises:
        InputError: heat of a series that does not say where its slices lie.
        MissingExtraError: highdicom is not installed.
        OutputError: the folder is not empty or cannot be written.
        ValueError: heat or overlays are not of the volume's slices.
    """
    try:
        from cspine.ct.dicom_files import hush_pydicom
        from cspine.dicom_out.objects import make_heat_map, make_overlays, make_report
        from cspine.dicom_out.source import make_identity
    except ImportError:
        raise MissingExtraError("DICOM output", "studies") from None
    # Names and values that pydicom and highdicom warn of are the source's.
    with hush_pydicom(), atomic_folder(folder) as temporary:
        identity = make_identity(source.header, deidentify, _digest(answer, heat, overlays))
        made = {"report.dcm": make_report(identity, source, answer)}
        if heat is not None:
            made["heat.dcm"] = make_heat_map(identity, source, heat)
        pictures = make_overlays(identity, source, overlays or {})
        made |= {f"overlay-{place:03d}.dcm": picture for place, picture in enumerate(pictures, start=1)}
        for name, dataset in made.items():
            dataset.save_as(temporary / name, enforce_file_format=True)
    return [Path(folder) / name for name in made]


def _digest(
    answer: StudyAnswer, heat: HeatMaps | None, overlays: Mapping[int, npt.NDArray[np.uint8]] | None
) -> str:
    """Return what UIDs of a de-identified run follow from: all that is written, but not where the source lay."""
    said = answer.as_dict()
    del said["source"], said["intake"]
    digest = hashlib.sha256(json.dumps([said, cspine.__version__], sort_keys=True).encode())
    if heat is not None:
        digest.update(json.dumps([heat.slices, heat.method]).encode())
        digest.update(np.ascontiguousarray(heat.maps, np.float32).data)
    for index, picture in sorted((overlays or {}).items()):
        digest.update(str((index, picture.shape)).encode())
        digest.update(np.ascontiguousarray(picture).data)
    return digest.hexdigest()
