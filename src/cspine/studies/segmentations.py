"""Vertebrae that another program segmented: found by the name of the series or study, on the grid of its volume.

    <UID>.nii or .nii.gz            one label map: 1 to 7 are C1 to C7 (RSNA 2022, the phantom); or TotalSegmentator's
                                    (`--ml`), whose class map calls C7 to C1 44 to 50
    <UID>/vertebrae_C1.nii.gz ...   TotalSegmentator's folder of one structure a file

<UID> is a Series or Study Instance UID, or for a NIfTI volume the name of its file. A folder that holds structures
itself is taken for every series whose grid it fits.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cspine.data.rsna_tables import VERTEBRAE
from cspine.errors import InputError
from cspine.studies.nifti import SUFFIXES, read_nifti_labels
from cspine.studies.volume import Volume

Mask = npt.NDArray[np.uint8]

TOTALSEGMENTATOR = {44 + place: 7 - place for place in range(7)}
"""Labels of the task `total`, version 2, to those here (its class map: 44 is vertebrae_C7, 50 is vertebrae_C1)."""

_MOST_BY_VERTEBRA = 28
"""The highest label of a numbering that counts vertebrae down from C1 (VerSe's: a thirteenth thoracic one)."""


@dataclass(frozen=True)
class Segmentations:
    """A folder of them.

    Attributes:
        root: The folder.
        unusable: What was wrong with those that are called after a volume and do not fit it, in words.
    """

    root: Path
    unusable: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not self.root.is_dir():
            raise InputError(
                "there is no such folder of segmentations", where=str(self.root), fix="name a folder"
            )

    def find(self, volume: Volume) -> Mask | None:
        """(slice, row, column) uint8, 1 to 7 where C1 to C7 are; None where no segmentation is of this volume.

        One that is called after it and cannot be used is noted in `unusable`: an answer needs no levels.
        """
        for name in _list_names(volume):
            try:
                found = _read(self.root, name, volume)
            except InputError as error:
                self.unusable.append(f"{error.where}: {error.what}")
                return None
            if found is not None:
                return found
        try:
            return _read_structures(self.root, volume)
        except InputError:
            return None  # not called after this volume, and of another one


def _list_names(volume: Volume) -> Iterator[str]:
    stem = Path(volume.source).name.removesuffix(".gz").removesuffix(".nii")
    yield from dict.fromkeys(name for name in (volume.series_uid, volume.study_uid, stem) if name)


def _read(root: Path, name: str, volume: Volume) -> Mask | None:
    # A UID or a file's name may hold what leads out of the folder.
    if Path(name).name != name:
        return None
    for suffix in SUFFIXES:
        path = root / f"{name}{suffix}"
        if path.is_file():
            return translate_labels(read_nifti_labels(path, volume))
    return _read_structures(root / name, volume)


def _read_structures(folder: Path, volume: Volume) -> Mask | None:
    whole: Mask | None = None
    for number, vertebra in enumerate(VERTEBRAE, start=1):
        path = next(
            (p for p in (folder / f"vertebrae_{vertebra}{suffix}" for suffix in SUFFIXES) if p.is_file()),
            None,
        )
        if path is None:
            continue
        mask = read_nifti_labels(path, volume)
        whole = np.zeros_like(mask) if whole is None else whole
        whole[mask > 0] = number
    return whole


def translate_labels(labels: Mask) -> Mask:
    """Labels of either numbering as 1 to 7 for C1 to C7, 0 elsewhere.

    TotalSegmentator's is known by any label that no vertebra has: its own 1 to 7 are organs, from the spleen on.
    """
    table = np.zeros(256, np.uint8)
    if labels.max() > _MOST_BY_VERTEBRA:
        for theirs, ours in TOTALSEGMENTATOR.items():
            table[theirs] = ours
    else:
        table[1:8] = range(1, 8)
    return table[labels]
