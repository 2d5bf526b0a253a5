"""The tables of the RSNA 2022 Cervical Spine Fracture Detection challenge: what they name, and how they are read.

After the challenge's published description (Lin et al., "The RSNA Cervical Spine Fracture CT Dataset", Radiology:
Artificial Intelligence 2023, doi 10.1148/ryai.230034): `train.csv` has a row a study, with 0 or 1 for each target;
a submission has a row a study and target, whose `row_id` is "<StudyInstanceUID>_<target>".
"""

from __future__ import annotations

from pathlib import Path

import polars as pl

from cspine.data.text_table import number_rows, read_text_table, refuse_cells

VERTEBRAE = ("C1", "C2", "C3", "C4", "C5", "C6", "C7")
OVERALL = "patient_overall"
TARGETS = (*VERTEBRAE, OVERALL)
"""What the challenge asks about a study: a fracture of each cervical vertebra, and of any."""


def read_study_labels(path: Path) -> pl.DataFrame:
    """Read `train.csv`.

    Returns:
        One row a study: `study_uid` (text), `patient_id` (text; null where the table has no such column, as the
        challenge's has not) and the `TARGETS` (Int8, 0 or 1).

    Raises:
        InputError: it lacks a column, has a study twice, or a cell is not 0 or 1; the message names the row.
    """
    path = Path(path)
    needed = ("studyinstanceuid", *(name.lower() for name in TARGETS))
    table = number_rows(read_text_table(path, needed, what="table of studies", row="study"), path)
    table = table.rename({"studyinstanceuid": "study_uid", **{name.lower(): name for name in VERTEBRAE}})
    refuse_cells(table, pl.col("study_uid").is_null(), "study_uid", "no study", path)
    refuse_cells(table, pl.col("study_uid").is_duplicated(), "study_uid", "a study that is there twice", path)
    for name in TARGETS:
        wrong = ~pl.col(name).is_in(["0", "1"]).fill_null(False)
        refuse_cells(table, wrong, name, "neither 0 nor 1", path)
    patient = pl.col("patient_id") if "patient_id" in table.columns else pl.lit(None, pl.String)
    return table.select(
        "study_uid", patient.alias("patient_id"), *(pl.col(name).cast(pl.Int8) for name in TARGETS)
    )
