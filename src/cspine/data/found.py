"""What a layout finds before any image is opened: rows of the manifest that is to be."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl

from cspine.data.types import Split

# What folders and tables call the splits, in lower case.
SPLIT_NAMES = {
    "train": Split.TRAIN,
    "val": Split.VAL,
    "valid": Split.VAL,
    "validation": Split.VAL,
    "test": Split.TEST,
    "external": Split.EXTERNAL,
}
# The columns of the manifest that a layout may fill; the others come from the image files.
ROW_COLUMNS = (
    "path",
    "label",
    "slice_id",
    "split",
    "patient_id",
    "study_uid",
    "series_uid",
    "source_id",
    "position",
    "vertebra_level",
    "fracture_type",
    "mask_path",
)


@dataclass(frozen=True, slots=True)
class Classes:
    """What the two classes are called in the source; upper and lower case are the same."""

    positive: str
    negative: str

    def find_label(self, name: str) -> int | None:
        """The label of a class name: 1 or 0; None for any other name."""
        return {self.positive.casefold(): 1, self.negative.casefold(): 0}.get(name.strip().casefold())

    def name_label(self, label: int) -> str:
        """The class name of a label."""
        return self.positive if label == 1 else self.negative


@dataclass(frozen=True, slots=True)
class Found:
    """Rows that a layout names.

    Attributes:
        layout: The layout's name; of an imported CT set, its format.
        root: The folder that the paths start from.
        classes: What its classes are called.
        table: `ROW_COLUMNS`, in the manifest's types.
        skipped: What kind of file was passed over, to how many.
        notes: Sentences for the report.
    """

    layout: str
    root: Path
    classes: Classes
    table: pl.DataFrame
    skipped: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)
