"""What a split must keep together, where nothing but the pixels says it: the copies of a slice.

manifest, column = settle_groups(manifest)
folds = make_folds(manifest, scheme="kfold", by=column)
"""

from __future__ import annotations

import polars as pl

from cspine.audit.audit import number_families
from cspine.audit.copies import Families, Progress, find_copies
from cspine.audit.repair import number_groups
from cspine.data.folds import choose_fold_column, find_fold_column, select_labelled
from cspine.data.manifest import Manifest


def settle_groups(
    manifest: Manifest, by: str = "auto", progress: Progress | None = None
) -> tuple[Manifest, str]:
    """The labelled slices and the column to divide them by: the patient, else study, series or source slice.

    Where `by` is "auto" and none of these is known for all slices, copies are found from pixels and every slice gets a
    `source_id`, which its copies share. So no copy stands on both sides, but neighbours and patients may.

    Args:
        manifest: The set; its files are read where copies have to be found.
        by: See `cspine.data.folds.choose_fold_column`.
        progress: Of `find_copies`.

    Raises:
        InputError: `by` is no such column or has nulls; no slice has a label.
    """
    labelled = select_labelled(manifest)
    if by != "auto" or find_fold_column(labelled.table) is not None:
        return labelled, choose_fold_column(labelled.table, by)
    return name_sources(labelled, find_copies(labelled, progress=progress)), "source_id"


def name_sources(manifest: Manifest, found: Families) -> Manifest:
    """Give every slice a `source_id`: that of its group where one is known, else one after the group's first slice."""
    table = manifest.table.with_columns(family=number_families(manifest.slice_ids, dict(found.family_of)))
    table = table.with_columns(group=number_groups(table))
    known = pl.col("source_id").sort(nulls_last=True).first().over("group")
    own = pl.format("family-{}", pl.col("slice_id").sort().first().over("group"))
    named = table.with_columns(source_id=pl.coalesce(known, own))
    return manifest.with_table(named.select(manifest.table.columns))
