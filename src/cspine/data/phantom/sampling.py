"""Which planes of a neck become slices, chosen so that nothing but the fracture tells the classes apart.

A fracture slice is cut where a break is seen. A normal slice is cut where a break *would* be seen: an imaginary
fracture, drawn like a real one, gives the height, and is then left out. So both classes have the same levels and the
same heights within a level. A plane in which a real break is present but too faint to be called visible is used for
neither.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from cspine.data.phantom.anatomy import LEVELS
from cspine.data.phantom.fractures import Fracture, draw_fracture
from cspine.data.phantom.patient import PhantomPatient, PhantomSettings
from cspine.data.phantom.scanner import compute_fracture_mask, render_plane

_TRIES = 60
_PROBE_PX = 80


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
        yield _sample_one(patient, settings, rng, real if broken else imagined, bool(broken))


def _deal(rng: np.random.Generator, numbers: list[int]) -> Iterator[int]:
    """The numbers over and over, each round in a new order."""
    while numbers:
        yield from (int(n) for n in rng.permutation(numbers))


def _sample_one(
    patient: PhantomPatient,
    settings: PhantomSettings,
    rng: np.random.Generator,
    deck: Iterator[int],
    broken: bool,
) -> PhantomSlice:
    for _ in range(_TRIES):
        number = next(deck)
        if broken:
            fracture = next(f for f in patient.fractures if f.number == number)
        else:
            fracture = draw_fracture(rng, patient.vertebrae[number - 1], settings.fracture_conspicuity)
        z_mm = _visible_height(patient, fracture, rng)
        if z_mm is None or (not broken and _seen_mm2(patient, z_mm) > 0):
            continue
        # The technologist's hand: no two crops are centred alike.
        span = 0.035 * patient.field_of_view_mm
        shift = (float(rng.uniform(-span, span)), float(rng.uniform(-span, span)))
        hu, vertebra_mask, fracture_mask = render_plane(
            patient, z_mm, size_px=settings.size_px, shift_mm=shift
        )
        pixel_mm2 = (patient.field_of_view_mm / settings.size_px) ** 2
        seen = float(fracture_mask.sum()) * pixel_mm2
        if (seen >= fracture.visible_mm2) if broken else (seen == 0):
            kind = fracture.kind if broken else ""
            return PhantomSlice(hu, vertebra_mask, fracture_mask, z_mm, LEVELS[number - 1], kind)
    raise RuntimeError(f"no plane of patient {patient.patient_id} fits; this seed cannot be used")


def _visible_height(patient: PhantomPatient, fracture: Fracture, rng: np.random.Generator) -> float | None:
    """A height at which `fracture` would be visible, or None if the one that was tried is not."""
    vertebra = patient.vertebrae[fracture.number - 1]
    crack = fracture.cracks[int(rng.integers(len(fracture.cracks)))]
    z_mm = (
        vertebra.to_neck(crack.centre)[2]
        + float(rng.uniform(-1, 1)) * min(crack.radius, 11.0) * vertebra.scale
    )
    z_mm = round(z_mm, 2)
    seen = _seen_mm2(replace(patient, fractures=(fracture,)), z_mm)
    return z_mm if seen >= 1.15 * fracture.visible_mm2 else None


def _seen_mm2(patient: PhantomPatient, z_mm: float) -> float:
    """Area of the breaks in a plane, from a coarse look."""
    if not patient.fractures:
        return 0.0
    mask = compute_fracture_mask(patient, z_mm, size_px=2 * _PROBE_PX, field_of_view_mm=1.5 * _PROBE_PX)
    return float(mask.sum()) * 0.75**2
