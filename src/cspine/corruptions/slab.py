"""Thicker slices, where the neighbours are known: the mean of the slices that lie within one thick slice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from cspine.corruptions.scene import Field
from cspine.data.manifest import Manifest

_BY_MM = ("labels-table", "dicom", "nifti", "rsna")
"""Layouts whose positions are millimetres: class folders number their slices, and a manifest may be of such."""


@dataclass(frozen=True)
class Neighbours:
    """Where the slices of each series lie.

    Attributes:
        members: Series -> (position_mm, slice_id) of each slice, by position.
        series: slice_id -> its series; of all slices of those series, as neighbours are thickened too.
    """

    members: Mapping[str, tuple[tuple[float, str], ...]]
    series: Mapping[str, str]

    def find_slab(self, slice_id: str, thickness_mm: float) -> list[str]:
        """The slices whose middle lies within a slab of `thickness_mm` about a slice, itself among them."""
        members = self.members[self.series[slice_id]]
        middle = next(place for place, other in members if other == slice_id)
        return [other for place, other in members if abs(place - middle) <= thickness_mm / 2 + 1e-6]


def find_neighbours(manifest: Manifest, slice_ids: Sequence[str], largest_mm: float) -> Neighbours | str:
    """The neighbours of slices, or in words why a thicker slice cannot be made of them."""
    if manifest.source not in _BY_MM:
        return "the positions of the slices are not known to be millimetres"
    table = manifest.table.select("slice_id", "series_uid", "position", "height_px", "width_px")
    wanted = table.filter(pl.col("slice_id").is_in(list(slice_ids)))
    if wanted["series_uid"].null_count() or wanted["position"].null_count():
        return "not every slice has a series and a position"
    table = table.filter(pl.col("series_uid").is_in(wanted["series_uid"].unique().to_list())).drop_nulls()
    if table.select("series_uid", "position").is_duplicated().any():
        return "two slices of a series are at one position: copies, or several reconstructions"
    if (
        table.group_by("series_uid").agg(pl.struct("height_px", "width_px").n_unique())["height_px"] > 1
    ).any():
        return "the slices of a series differ in size"
    members = {
        str(key[0]): tuple(part.sort("position").select("position", "slice_id").iter_rows())
        for key, part in table.group_by("series_uid")
    }
    found = Neighbours(members, dict(table.select("slice_id", "series_uid").iter_rows()))
    lonely = sum(len(found.find_slab(slice_id, largest_mm)) < 2 for slice_id in slice_ids)
    if lonely:
        return (
            f"{lonely} of {len(slice_ids)} slices have no neighbour within {largest_mm / 2:g} mm in the set"
        )
    return found


def average_slab(slices: Sequence[Field]) -> Field:
    """The mean of (H, W) HU of equal shape: what a detector row as thick as all of them measures, to first order."""
    return np.asarray(np.mean(np.stack(slices), axis=0, dtype=np.float32), np.float32)
