"""Which planes of a neck become slices, chosen so that nothing but the fracture tells the classes apart.

A fracture slice is cut where a break is seen. A normal slice is cut where a break *would* be seen: an imaginary
fracture, drawn like a real one, gives the height, and is then left out. So both classes have the same levels and the
same heights within a level. A plane in which a real break is present but too faint to be called visible is used for
neither.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cspine.data.phantom.anatomy import LEVELS
from cspine.data.phantom.fractures import Fracture, compute_seen_mm2, draw_fracture
from cspine.data.phantom.patient import PhantomPatient, PhantomSettings
from cspine.data.phantom.scanner import render_plane

_TRIES = 25


@dataclass(frozen=True)
class PhantomSlice:
    """One labelled slice.

    Attributes:
        hu, vertebra_mask, fracture_mask: (size_px, size_px), as `render_plane` gives them.
        z_mm: Its height in the patient.
        level: "C1" .. "C7": the vertebra that it was cut for.
        fracture_type: One of FRACTURE_KINDS; empty for a normal slice.
    """

    hu: npt.NDArray[np.int16]
    vertebra_mask: npt.NDArray[np.uint8]
    fracture_mask: npt.NDArray[np.uint8]
    z_mm: float
    level: str
    fracture_type: str

    @property
    def label(self) -> str:
        """The class: "fracture" or "normal"."""
        return "fracture" if self.fracture_type else "normal"


def sample_slices(patient: PhantomPatient, settings: PhantomSettings) -> Iterator[PhantomSlice]:
    """The `slices_per_patient` labelled slices of a patient, in no particular order of class."""
    rng = np.random.default_rng([settings.seed, 4, patient.index])
    total = settings.slices_per_patient
    wanted_fractures = total // 2 if patient.fractures else 0
    plan = rng.permutation(np.arange(total) < wanted_fractures)
    real, imagined = _deal(rng, [f.number for f in patient.fractures]), _deal(rng, list(range(1, 8)))
    for broken in plan:
        # A break that this view never shows well, such as the tip of a long spinous process in a tight crop, is
        # replaced by a normal slice, so that the set has the size it was asked for.
        drawn = _sample_one(patient, settings, rng, real, broken=True) if broken else None
        yield drawn or _sample_normal(patient, settings, rng, imagined)


def _sample_normal(
    patient: PhantomPatient, settings: PhantomSettings, rng: np.random.Generator, deck: Iterator[int]
) -> PhantomSlice:
    for _ in range(7):
        drawn = _sample_one(patient, settings, rng, deck, broken=False)
        if drawn:
            return drawn
    raise RuntimeError(f"no plane of patient {patient.patient_id} is free of fractures; use another seed")


def _deal(rng: np.random.Generator, numbers: list[int]) -> Iterator[int]:
    """The numbers over and over, each round in a new order."""
    while numbers:
        yield from (int(n) for n in rng.permutation(numbers))


def _sample_one(
    patient: PhantomPatient,
    settings: PhantomSettings,
    rng: np.random.Generator,
    deck: Iterator[int],
    *,
    broken: bool,
) -> PhantomSlice | None:
    """A slice through the next vertebra of the deck, or None if none of many tries would do."""
    number = next(deck)
    for _ in range(_TRIES):
        if broken:
            fracture = next(f for f in patient.fractures if f.number == number)
        else:
            fracture = draw_fracture(rng, patient.vertebrae[number - 1], settings.fracture_conspicuity)
        z_mm = _visible_height(patient, fracture, rng)
        if z_mm is None or (not broken and _shows_a_break(patient, z_mm)):
            continue
        # The technologist's hand: no two crops are centred alike.
        span = 0.035 * patient.field_of_view_mm
        shift = (float(rng.uniform(-span, span)), float(rng.uniform(-span, span)))
        hu, vertebra_mask, fracture_mask = render_plane(
            patient, z_mm, size_px=settings.size_px, shift_mm=shift
        )
        pixel_mm2 = (patient.field_of_view_mm / settings.size_px) ** 2
        seen = (
            float(fracture_mask[vertebra_mask == number].sum() if broken else fracture_mask.sum()) * pixel_mm2
        )
        if (seen >= fracture.visible_mm2) if broken else (seen == 0):
            kind = fracture.kind if broken else ""
            return PhantomSlice(hu, vertebra_mask, fracture_mask, z_mm, LEVELS[number - 1], kind)
    return None


def _visible_height(patient: PhantomPatient, fracture: Fracture, rng: np.random.Generator) -> float | None:
    """A height at which `fracture` would be visible, or None if the one that was tried is not."""
    vertebra = patient.vertebrae[fracture.number - 1]
    crack = fracture.cracks[int(rng.integers(len(fracture.cracks)))]
    z_mm = (
        vertebra.to_neck(crack.centre)[2]
        + float(rng.uniform(-1, 1)) * min(crack.radius, 11.0) * vertebra.scale
    )
    z_mm = round(z_mm, 2)
    return z_mm if compute_seen_mm2(vertebra, fracture, z_mm) >= 1.15 * fracture.visible_mm2 else None


def _shows_a_break(patient: PhantomPatient, z_mm: float) -> bool:
    return any(compute_seen_mm2(patient.vertebrae[f.number - 1], f, z_mm) > 0 for f in patient.fractures)
