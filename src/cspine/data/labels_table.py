"""A labels table: `path,label[,patient_id,...]` as CSV, TSV or parquet, beside the images or elsewhere.

Every cell is read as text, so that an id "001" stays "001". A cell that does not fit is an error that names
its row.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import polars as pl

from cspine.data.found import ROW_COLUMNS, SPLIT_NAMES, Classes, Found
from cspine.data.manifest import SCHEMA, complete_table, make_relative
from cspine.data.text_table import cast_numbers, number_rows, read_text_table, refuse_cells
from cspine.errors import InputError

TABLE_NAMES = ("labels.csv", "labels.tsv", "labels.parquet")


def read_labels_table(source: Path, classes: Classes, root: Path | None) -> Found:
    """Read the rows of a table, or of the one labels table in a folder.

    Args:
        source: The table; or the folder that has it, under one of `TABLE_NAMES`.
        classes: What the labels are called; 1 and 0, true and false are understood too.
        root: The folder that the paths start from; None is the table's own.

    Raises:
        InputError: the table cannot be read, or a cell does not fit; the message names the row.
    """
    path = _find_table(source)
    root = Path(root) if root is not None else path.parent
    table = read_text_table(path, ("path", "label"), what="labels table", row="slice")
    kept = [name for name in ROW_COLUMNS if name in table.columns]
    unknown = [name for name in table.columns if name not in kept]
    notes = [f"Columns of the table that were not kept: {', '.join(unknown)}."] if unknown else []
    table = number_rows(table.select(kept), path)
    table = _convert_cells(table, classes, root, path)
    if "slice_id" not in table.columns:
        table = table.with_columns(slice_id=pl.col("path"))
    refuse_cells(table, pl.col("slice_id").is_null(), "slice_id", "no slice_id", path)
    for name in ("path", "slice_id"):
        refuse_cells(table, pl.col(name).is_duplicated(), name, f"a {name} that another row has too", path)
    table, missing_masks = _drop_missing_masks(complete_table(table.drop("row")), root)
    if missing_masks:
        notes.append(f"{missing_masks:,} mask files are missing; their slices have no mask.")
    return Found("labels-table", root, classes, table.select(ROW_COLUMNS), notes=notes)


def _find_table(source: Path) -> Path:
    if not source.is_dir():
        return source
    tables = [source / name for name in TABLE_NAMES if (source / name).is_file()]
    if len(tables) != 1:
        what = "several labels tables" if tables else "no labels table"
        raise InputError(
            f"{what} ({', '.join(TABLE_NAMES)}) in the folder", where=str(source), fix="name the table"
        )
    return tables[0]


def _convert_cells(table: pl.DataFrame, classes: Classes, root: Path, path: Path) -> pl.DataFrame:
    """Bring paths, labels, splits and positions from text to what the manifest has."""
    refuse_cells(table, pl.col("path").is_null(), "path", "no path", path)
    table = table.with_columns(
        pl.Series("path", [_make_posix(text, root) for text in table["path"]], dtype=pl.String),
        _map_cells(table, "label", _label_words(classes), path),
    )
    if "split" in table.columns:
        words = {name: split.value for name, split in SPLIT_NAMES.items()}
        table = table.with_columns(_map_cells(table, "split", words, path))
    if "position" in table.columns:
        table = cast_numbers(table, "position", pl.Float64, path)
    return table


def _label_words(classes: Classes) -> dict[str, int]:
    words = {classes.positive.casefold(): 1, classes.negative.casefold(): 0}
    plain = {"1": 1, "0": 0, "1.0": 1, "0.0": 0, "true": 1, "false": 0}
    # Where a class is itself called "0" or "true", such words are names and nothing else.
    return words if words.keys() & plain.keys() else {**plain, **words}


def _map_cells(table: pl.DataFrame, name: str, words: dict[str, Any], path: Path) -> pl.Series:
    cells = [cell if cell is None else cell.casefold() for cell in table[name]]
    wrong = pl.Series([cell is not None and cell not in words for cell in cells])
    refuse_cells(table, wrong, name, f"a {name} that is none of {', '.join(words)}", path)
    return pl.Series(name, [None if cell is None else words[cell] for cell in cells], dtype=SCHEMA[name])


def _make_posix(text: str, root: Path) -> str:
    return make_relative(Path(text.replace("\\", "/")), root)


def _drop_missing_masks(table: pl.DataFrame, root: Path) -> tuple[pl.DataFrame, int]:
    masks = [None if text is None else _make_posix(text, root) for text in table["mask_path"]]
    there = [mask if mask is not None and os.path.isfile(root / mask) else None for mask in masks]
    series = pl.Series("mask_path", there, dtype=pl.String)
    return table.with_columns(series), series.null_count() - table["mask_path"].null_count()
