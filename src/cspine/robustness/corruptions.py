"""Thicker slices, where the neighbours are known: the mean of the slices that lie within one thick slice."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import polars as pl

from cspine.core.errors import InputError
from cspine.core.types import Slice
from cspine.data.manifest import Manifest
from cspine.robustness.scanner import (
    Field,
    PixelMeaning,
    Scene,
    apply_beam_hardening,
    apply_blur,
    apply_contrast,
    apply_crop,
    apply_jpeg,
    apply_metal,
    apply_motion,
    apply_noise,
    apply_resolution,
    apply_ring,
    apply_rotation,
    apply_window,
    make_scene,
    store_hu,
)

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


# Every corruption by name: what it is, in which unit, how strong at severities 1 to 5, and how a slice gets it.
#
#     corrupted = apply_corruption(item, "noise", 3, seed=1)
#
# A corruption is a pure function of a slice as it is stored, before the recipe sees it. Its random part depends on
# seed,
# kind and slice only: not on order, batch, process or severity, so a curve over severities shows the severity and not
# the draw. docs/robustness.md has what each models, and the sources.


SEVERITIES = (1, 2, 3, 4, 5)
THICKNESS = "thickness"
VERSION = 1
"""Raise it when a corruption computes something else: predictions that were kept are then made again."""


@dataclass(frozen=True, slots=True)
class Corruption:
    """One kind of corruption.

    Attributes:
        label: As figures show it.
        parameter, unit: What `values` are, and in what unit.
        values: The parameter at severities 1 to 5.
        apply: (scene, value) -> (H, W) HU; None where it takes the neighbours of a slice.
        where: In what it is made: "projections", "image" or "volume".
    """

    label: str
    parameter: str
    unit: str
    values: tuple[float, float, float, float, float]
    apply: Callable[[Scene, float], Field] | None
    where: str = "image"


CORRUPTIONS: Mapping[str, Corruption] = MappingProxyType(
    {
        "noise": Corruption(
            "Quantum noise",
            "dose",
            "of the full dose",
            (0.5, 0.25, 0.1, 0.04, 0.02),
            apply_noise,
            "projections",
        ),
        "beam_hardening": Corruption(
            "Beam hardening",
            "strength",
            "times that of 120 kV",
            (2, 4, 8, 16, 32),
            apply_beam_hardening,
            "projections",
        ),
        "metal": Corruption(
            "Metal", "diameter of two discs", "mm", (1, 2, 3, 5, 8), apply_metal, "projections"
        ),
        "ring": Corruption(
            "Rings", "error of detector gain", "%", (1, 2, 3, 5, 8), apply_ring, "projections"
        ),
        "motion": Corruption(
            "Motion", "jump during the scan", "mm", (1, 2, 3, 5, 8), apply_motion, "projections"
        ),
        "blur": Corruption("Soft kernel", "point spread (FWHM)", "mm", (1, 2, 3, 4, 6), apply_blur),
        THICKNESS: Corruption("Slice thickness", "thickness", "mm", (2, 3, 5, 7.5, 10), None, "volume"),
        "resolution": Corruption("Resolution", "pixel", "mm", (1, 1.5, 2, 3, 4), apply_resolution),
        "window": Corruption("Window level", "shift", "HU", (75, 150, 300, 450, 600), apply_window),
        "contrast": Corruption(
            "Window width", "width", "times the window", (1.25, 1.5, 2, 3, 5), apply_contrast
        ),
        "rotation": Corruption("Rotation", "angle", "degrees", (5, 10, 15, 20, 30), apply_rotation),
        "crop": Corruption(
            "Crop", "side kept", "of the field of view", (0.9, 0.8, 0.7, 0.6, 0.5), apply_crop
        ),
        "jpeg": Corruption("JPEG", "quality", "of 100", (50, 25, 15, 10, 5), apply_jpeg),
    }
)


def apply_corruption(
    item: Slice,
    kind: str,
    severity: int,
    seed: int = 0,
    meaning: PixelMeaning | None = None,
    slab: Sequence[Slice] = (),
) -> Slice:
    """Corrupt one slice.

    Args:
        item: Of either domain; left as it is.
        kind: A key of `CORRUPTIONS`.
        severity: 1 to 5; 0 returns the slice.
        seed: Any integer; with the kind and the slice's id it fixes the random part.
        meaning: What 8-bit values and pixels without a spacing stand for; the default where None.
        slab: For "thickness": all slices within the thick one, `item` among them; see `Neighbours`.

    Returns:
        A slice of the same shape and domain.

    Raises:
        InputError: an unknown kind or severity, or thickness without a slab of slices like this one.
    """
    if kind not in CORRUPTIONS:
        raise InputError(f"no such corruption: {kind}", fix=f"choose one of {', '.join(CORRUPTIONS)}")
    if severity not in (0, *SEVERITIES):
        raise InputError(f"severity {severity} does not exist", fix="give 0 (clean) to 5")
    if item.pixels.size == 0:
        raise InputError("a slice without pixels cannot be corrupted", where=item.slice_id)
    if severity == 0:
        return item
    meaning = meaning or PixelMeaning()
    digest = hashlib.sha256(f"{seed}/{kind}/{item.slice_id}".encode()).digest()
    scene = make_scene(item, meaning, np.random.default_rng(int.from_bytes(digest[:16], "big")))
    corruption = CORRUPTIONS[kind]
    if corruption.apply is not None:
        return store_hu(item, corruption.apply(scene, corruption.values[severity - 1]), meaning)
    if not slab or any((o.domain, o.pixels.shape) != (item.domain, item.pixels.shape) for o in slab):
        raise InputError(
            "a thicker slice is made of slices of one size in one domain", where=item.slice_id,
            fix=f"leave {THICKNESS} out of robustness.corruptions",
        )  # fmt: skip
    return store_hu(item, average_slab([make_scene(o, meaning, scene.rng).hu for o in slab]), meaning)
