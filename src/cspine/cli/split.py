"""`cspine split`: one set, divided by whole groups into manifests of train, val and test. No torch here."""

from __future__ import annotations

from pathlib import Path

import polars as pl
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cspine.audit.grouping import settle_groups
from cspine.cli.screen import Bars
from cspine.data.folds import Fold, Scheme, find_fold_column, make_folds
from cspine.data.layouts import import_dataset
from cspine.data.manifest import write_manifest
from cspine.files import atomic_folder


def run_split(
    source: Path,
    folder: Path,
    *,
    scheme: Scheme,
    folds: int,
    test_fraction: float,
    by: str,
    seed: int,
    repeats: int,
    positive_class: str,
    negative_class: str,
) -> None:
    """Divide a set and write one manifest a fold into a new folder.

    Raises:
        InputError: the set cannot be read, or cannot be divided in this way; the message has the counts.
        OutputError: the folder exists and is not empty.
    """
    with Bars() as bars:
        bars.start("Reading slices", 0)
        manifest, _ = import_dataset(
            source, positive_class=positive_class, negative_class=negative_class, progress=bars.advance
        )
        bars.finish(f"{len(manifest):,} slices")
        bars.start("Finding groups", 0)
        grouped, column = settle_groups(manifest, by, lambda _, done, total: bars.advance(done, total))
        bars.finish(f"by {column}")
    found = make_folds(
        grouped,
        scheme=scheme,
        folds=folds,
        test_fraction=test_fraction,
        by=column,
        seed=seed,
        repeats=repeats,
    )
    with atomic_folder(folder) as staging:
        for fold in found:
            write_manifest(fold.manifest, staging / f"{fold.name}.parquet")
    known = find_fold_column(manifest.table.filter(pl.col("label").is_not_null()))
    show_folds(found, column if known or by != "auto" else f"{column} (copies found from pixels)", folder)


def show_folds(found: list[Fold], column: str, folder: Path) -> None:
    """Counts of every part of every fold."""
    table = Table(title=f"whole groups by {column}; fracture + normal slices", title_justify="left", box=None)
    for name in ("fold", "train", "val", "test", "groups held out"):
        table.add_column(name, justify="left" if name == "fold" else "right")
    for fold in found:
        counts = []
        for split in ("train", "val", "test"):
            labels = fold.manifest.select(split).table["label"]
            counts.append(f"{int((labels == 1).sum()):,} + {int((labels == 0).sum()):,}")
        table.add_row(fold.name, *counts, f"{fold.groups:,}")
    console = Console()
    console.print(table)
    console.print(f"{len(found)} manifests in {escape(str(folder))}", soft_wrap=True, highlight=False)
