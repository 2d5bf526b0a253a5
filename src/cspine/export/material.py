"""Slices that an export is checked on, or calibrated on: of a manifest, or of a phantom drawn on the spot."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import polars as pl

from cspine.data.manifest import Manifest
from cspine.data.phantom import PhantomSettings, make_patient, render_plane, sample_slices, to_display8
from cspine.data.types import Slice, Split
from cspine.errors import InputError
from cspine.preprocess import Recipe

BATCH = 16
_CHECKED_SPLITS = (Split.VAL, Split.TEST, Split.EXTERNAL)
_PHANTOM = PhantomSettings(patients=6, slices_per_patient=2, field_of_view_mm=180.0, seed=11)

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Material:
    """Slices of a manifest, in an order that a seed gave, and the recipe that they go through.

    Attributes:
        manifest: These slices among others: neighbours are read from it.
        table: Rows of the chosen slices.
        origin: Where they are from, in words.
    """

    manifest: Manifest
    table: pl.DataFrame
    recipe: Recipe
    origin: str

    def __len__(self) -> int:
        return self.table.height

    @property
    def slice_ids(self) -> list[str]:
        """In the order of `read_batches`."""
        return self.table["slice_id"].to_list()

    def read_one(self, slice_id: str) -> Pixels:
        """The pixels that the network is given; errors as for `Manifest.read_slice`."""
        return self.recipe.apply(self.manifest.read_slice(slice_id, self.recipe.offsets_mm))

    def read_batches(self) -> Iterator[Pixels]:
        """All slices, some at a time."""
        ids = self.slice_ids
        for at in range(0, len(ids), BATCH):
            yield np.stack([self.read_one(slice_id) for slice_id in ids[at : at + BATCH]])


def choose_checked(
    manifest: Manifest, recipe: Recipe, split: str | None, *, labelled: bool, limit: int, seed: int
) -> Material:
    """Slices to check an export on.

    Args:
        manifest: Whose slices.
        recipe: Of the checkpoint.
        split: None is val, else test, else external, else slices that are in no split.
        labelled: Only slices with a label, of which there must be both classes.
        limit: At most so many, drawn by `seed`.
        seed: Of the draw.

    Raises:
        InputError: there are none, or they are of one class.
        ManifestError, RecipeError: no such split; slices that the recipe does not take.
    """
    recipe.check_domain(manifest.domain, str(manifest.root))
    split = split or next((name for name in _CHECKED_SPLITS if name in manifest.splits), None)
    table = manifest.select(split).table if split else manifest.table.filter(pl.col("split").is_null())
    if labelled:
        table = table.filter(pl.col("label").is_not_null())
    if table.is_empty() or (labelled and table["label"].n_unique() < 2):
        raise InputError(
            "the manifest has no slices to check the export on"
            if table.is_empty()
            else "the slices to check the export on are of one class",
            where=f"split {split or 'none'}",
            fix="name labelled slices of both classes that were not learned from, by --check-on and --check-split",
        )
    table = _draw(table, limit, seed)
    return Material(manifest, table, recipe, f"{table.height:,} slices of split {split or 'none'}")


def choose_calibration(manifest: Manifest, recipe: Recipe, *, count: int, seed: int) -> Material:
    """Training slices to calibrate a quantisation on, as many of each class as there are and as `count` allows.

    Raises:
        ManifestError: there is no train split.
        RecipeError: the recipe does not take these slices.
    """
    recipe.check_domain(manifest.domain, str(manifest.root))
    train = manifest.select(Split.TRAIN).table
    rest = _draw(train, train.height, seed)
    classes = [rest.filter(pl.col("label") == label) for label in (0, 1)]
    each = min(count // 2, *(part.height for part in classes))
    chosen = pl.concat([part.head(each) for part in classes])
    others = rest.join(chosen, on="slice_id", how="anti").head(count - chosen.height)
    table = pl.concat([chosen, others])
    return Material(manifest, table, recipe, f"{table.height:,} slices of split train, seed {seed}")


def _draw(table: pl.DataFrame, limit: int, seed: int) -> pl.DataFrame:
    order = np.random.default_rng((seed, 7)).permutation(table.height)
    return table.sort("slice_id").select(pl.all().gather(order[:limit]))


@lru_cache(maxsize=1)  # the same for every engine that is checked
def draw_phantom(recipe: Recipe) -> Pixels:
    """(12, *recipe.shape) uint8, read-only: slices of drawn necks, whole and broken, through the recipe."""
    pixels = np.stack([recipe.apply(item) for item in _draw_slices(recipe)])
    pixels.setflags(write=False)
    return pixels


def _draw_slices(recipe: Recipe) -> Iterator[Slice]:
    size = _PHANTOM.size_px
    spacing = (_PHANTOM.field_of_view_mm / size,) * 2
    for index in range(_PHANTOM.patients):
        patient = make_patient(index, _PHANTOM)
        for number, drawn in enumerate(sample_slices(patient, _PHANTOM)):
            name = f"{patient.patient_id}-{number}"
            if recipe.domain == "display8":
                yield Slice(to_display8(drawn.hu), "display8", name, spacing)
                continue
            around = tuple(
                render_plane(patient, drawn.z_mm + offset, size_px=size)[0] for offset in recipe.offsets_mm
            )
            yield Slice(drawn.hu, "hu", name, spacing, around=around)


def draw_random(recipe: Recipe, count: int = BATCH) -> Pixels:
    """(count, *recipe.shape) uint8 of noise, plain black and plain white: what no scanner makes."""
    pixels = np.random.default_rng(5).integers(0, 256, (count, *recipe.shape), dtype=np.uint8)
    pixels[0], pixels[1] = 0, 255
    return pixels
