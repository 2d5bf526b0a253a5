"""Tables that people make: CSV, TSV or parquet, every cell read as text, and errors that name the row.

A cell is text until its column says otherwise, so that an id "001" stays "001".
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import polars as pl

from cspine.core.errors import InputError

_MAY_BE_SHOWN = ("label", "split", "path")


def read_text_table(path: Path, needed: Sequence[str], *, what: str, row: str) -> pl.DataFrame:
    """Every column as text, stripped; empty cells are null. Names of columns in lower case.

    Args:
        path: A .csv, .tsv (UTF-8 text) or .parquet file.
        needed: Columns that it must have, in lower case.
        what: What the table is called in messages, such as "labels table".
        row: What one row is of, such as "slice".

    Raises:
        InputError: it cannot be read, lacks a column, has one twice, or has no rows.
    """
    try:
        if path.suffix.lower() == ".parquet":
            table = pl.read_parquet(path).cast(pl.String)
            header = table.columns
        else:
            separator = "\t" if path.suffix.lower() == ".tsv" else ","
            table = pl.read_csv(path, infer_schema=False, separator=separator)
            # As a header, a name that is there twice would have been given another one; as cells, it is not.
            line = pl.read_csv(path, infer_schema=False, separator=separator, has_header=False, n_rows=1)
            header = [cell or name for cell, name in zip(line.row(0), table.columns, strict=True)]
    except (pl.exceptions.PolarsError, OSError, UnicodeDecodeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"the {what} cannot be read: {reason}",
            where=str(path),
            fix=f"name a .csv, .tsv (UTF-8 text) or .parquet file with one row for each {row}",
        ) from None
    names = [name.strip().lower() for name in header]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise InputError(
            f"the {what} has the column {twice[0]} twice", where=str(path), fix="leave one of the two"
        )
    table.columns = names
    missing = [name for name in needed if name not in names]
    if missing:
        raise InputError(
            f"the {what} lacks {' and '.join(missing)}; its columns: {', '.join(table.columns)}",
            where=str(path),
            fix=f"its first line must name at least {' and '.join(needed)}, "
            "separated by commas (.csv) or tabs (.tsv)",
        )
    if table.is_empty():
        raise InputError(f"the {what} has no rows", where=str(path), fix=f"give it one row for each {row}")
    text = pl.all().str.strip_chars()
    return table.select(pl.when(text != "").then(text).name.keep())


def number_rows(table: pl.DataFrame, path: Path) -> pl.DataFrame:
    """Add the column `row`: where each row stands in its file, as a person counts (a CSV's header is line 1)."""
    first = 1 if path.suffix.lower() == ".parquet" else 2
    return table.with_columns(row=pl.int_range(first, first + pl.len()))


def refuse_cells(table: pl.DataFrame, wrong: pl.Expr | pl.Series, column: str, what: str, path: Path) -> None:
    """Raise `InputError` where `wrong` holds; the message names the first rows (of `number_rows`).

    A label or split is the table's own word, so it is shown; an id may be a patient's and is not.
    """
    rows = table.filter(wrong)
    if not rows.is_empty():
        shown = f" ('{rows[column][0]}')" if column in _MAY_BE_SHOWN and rows[column][0] else ""
        numbers = ", ".join(str(number) for number in rows["row"][:5])
        more = f" and {rows.height - 5:,} more" if rows.height > 5 else ""
        raise InputError(
            f"{what}{shown} in row {numbers}{more}", where=f"{path}, column {column}", fix="mend the table"
        )


def cast_numbers(
    table: pl.DataFrame, column: str, kind: type[pl.Float64] | type[pl.Int64], path: Path
) -> pl.DataFrame:
    """Turn a column of text into numbers; empty cells stay null.

    Raises:
        InputError: a cell is not a (finite, for Int64 whole) number; the message names its row.
    """
    numbers = pl.col(column).cast(pl.Float64, strict=False)
    good = numbers.is_finite() & (numbers == numbers.round()) if kind is pl.Int64 else numbers.is_finite()
    wrong = pl.col(column).is_not_null() & ~good.fill_null(False)
    article = "a whole number" if kind is pl.Int64 else "a number"
    refuse_cells(table, wrong, column, f"a {column} that is not {article}", path)
    return table.with_columns(numbers.cast(kind))


# The tables of the RSNA 2022 Cervical Spine Fracture Detection challenge: what they name, and how they are read.
#
# After the challenge's published description (Lin et al., "The RSNA Cervical Spine Fracture CT Dataset", Radiology:
# Artificial Intelligence 2023, doi 10.1148/ryai.230034): `train.csv` has a row a study, with 0 or 1 for each target;
# a submission has a row a study and target, whose `row_id` is "<StudyInstanceUID>_<target>".


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
