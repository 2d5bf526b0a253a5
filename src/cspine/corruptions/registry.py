"""Every corruption by name: what it is, in which unit, how strong at severities 1 to 5, and how a slice gets it.

    corrupted = apply_corruption(item, "noise", 3, seed=1)

A corruption is a pure function of a slice as it is stored, before the recipe sees it. Its random part depends on seed,
kind and slice only: not on order, batch, process or severity, so a curve over severities shows the severity and not
the draw. docs/robustness.md has what each models, and the sources.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from cspine.corruptions.picture import (
    apply_blur,
    apply_contrast,
    apply_crop,
    apply_jpeg,
    apply_resolution,
    apply_rotation,
    apply_window,
)
from cspine.corruptions.scanner import (
    apply_beam_hardening,
    apply_metal,
    apply_motion,
    apply_noise,
    apply_ring,
)
from cspine.corruptions.scene import Field, PixelMeaning, Scene, make_scene, store_hu
from cspine.corruptions.slab import average_slab
from cspine.data.types import Slice
from cspine.errors import InputError

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
        slab: For "thickness": all slices within the thick one, `item` among them; see `slab.Neighbours`.

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
