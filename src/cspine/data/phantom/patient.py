"""Settings of a phantom set, and the patients drawn from them."""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any

import numpy as np

from cspine.data.phantom.anatomy import FIRST_THORACIC, Vertebra
from cspine.data.phantom.fractures import Fracture, draw_fracture
from cspine.data.phantom.geometry import Point
from cspine.data.phantom.soft_tissue import SoftTissue
from cspine.errors import InputError

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class PhantomSettings:
    """What to make.

    Attributes:
        patients: How many, at least 6, so that each split can have both a fractured and a whole neck.
        slices_per_patient: At least 2.
        fracture_fraction: Of the patients, 0.1..0.9. Half the slices of a fractured patient show a fracture.
        size_px: Side of the square slices, 16..1024.
        field_of_view_mm: Side of a slice, 60..400. Below about 150 it is a crop around the spine.
        fracture_conspicuity: 0.3..4. At 1 the gaps are 1 to 2 mm wide; gaps and displacements grow with it.
        noise_hu: Lowest and highest standard deviation of the noise in a patient, 0..300.
        window_center_hu, window_width_hu: The window of the 8-bit slices.
        train_fraction, val_fraction: Of the patients; the rest is the test split.
        seed: Not negative.

    Raises:
        InputError: a value outside its range.
    """

    patients: int = 60
    slices_per_patient: int = 12
    fracture_fraction: float = 0.6
    size_px: int = 224
    field_of_view_mm: float = 130.0
    fracture_conspicuity: float = 1.0
    noise_hu: tuple[float, float] = (15.0, 60.0)
    window_center_hu: float = 400.0
    window_width_hu: float = 1800.0
    train_fraction: float = 0.6
    val_fraction: float = 0.15
    seed: int = 0

    def __post_init__(self) -> None:
        noise = self.noise_hu
        checks = {
            "patients": (self.patients >= 6, "at least 6"),
            "slices_per_patient": (self.slices_per_patient >= 2, "at least 2"),
            "fracture_fraction": (0.1 <= self.fracture_fraction <= 0.9, "0.1 to 0.9"),
            "size_px": (16 <= self.size_px <= 1024, "16 to 1024"),
            "field_of_view_mm": (60 <= self.field_of_view_mm <= 400, "60 to 400"),
            "fracture_conspicuity": (0.3 <= self.fracture_conspicuity <= 4, "0.3 to 4"),
            "noise_hu": (
                0 <= noise[0] <= noise[1] <= 300,
                "two values, 0 to 300, lower first",
            ),
            "window_center_hu": (-1000 <= self.window_center_hu <= 3000, "-1000 to 3000"),
            "window_width_hu": (1 <= self.window_width_hu <= 5000, "1 to 5000"),
            "train_fraction": (0.1 <= self.train_fraction <= 0.9, "0.1 to 0.9"),
            "val_fraction": (
                0.05 <= self.val_fraction <= 0.95 - self.train_fraction,
                "0.05 to 0.95 - train_fraction",
            ),
            "seed": (self.seed >= 0, "0 or more"),
        }
        for name, (good, wanted) in checks.items():
            if not good:
                value = getattr(self, name)
                raise InputError(f"{name} is {value!r}", where=f"phantom.{name}", fix=f"give {wanted}")

    def to_dict(self) -> dict[str, Any]:
        """The settings as plain JSON-able values."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {**values, "noise_hu": list(self.noise_hu)}


@dataclass(frozen=True)
class PhantomPatient:
    """One neck and how it was scanned: all that was drawn, nothing rendered.

    Attributes:
        index: 0 .. patients - 1.
        patient_id, study_uid, series_uid: Invented, the same for the same settings and index.
        split: "train", "val" or "test".
        vertebrae: C1 to C7 and T1, in this order.
        fractures: None for a whole neck, else one or more, each in another vertebra.
        soft_tissue: Shape of the rest.
        cortical_hu, trabecular_hu, cortex_mm: The bone.
        table: Whether a headrest is in the picture.
        noise_hu, blur_mm, sharpening: Noise, blur and edge enhancement of the scan.
        roll_deg, offset_mm: How the patient lies in the scanner.
        field_of_view_mm: Of this patient's scan, the settings' give or take some.
        seed: Of whatever is drawn while rendering.
    """

    index: int
    patient_id: str
    study_uid: str
    series_uid: str
    split: str
    vertebrae: tuple[Vertebra, ...]
    fractures: tuple[Fracture, ...]
    soft_tissue: SoftTissue
    cortical_hu: float
    trabecular_hu: float
    cortex_mm: float
    table: bool
    noise_hu: float
    blur_mm: float
    sharpening: float
    roll_deg: float
    offset_mm: tuple[float, float]
    field_of_view_mm: float
    seed: int

    def level_at(self, z_mm: float) -> float:
        """Height as a level: 1 in the middle of C1, 7 in the middle of C7, fractions between and a little beyond."""
        heights = [v.centre_mm[2] for v in self.vertebrae]
        if z_mm > heights[0]:
            return 1.0 - (z_mm - heights[0]) / 22.0
        return float(np.interp(-z_mm, [-h for h in heights], [v.number for v in self.vertebrae]))

    def spine_at(self, z_mm: float) -> tuple[float, float]:
        """Where the middle of the bodies lies at a height, (x, y) in mm."""
        heights = [-v.centre_mm[2] for v in self.vertebrae]
        x = np.interp(-z_mm, heights, [v.centre_mm[0] for v in self.vertebrae])
        y = np.interp(-z_mm, heights, [v.centre_mm[1] for v in self.vertebrae])
        return float(x), float(y)


@lru_cache(maxsize=16)
def _plan(settings: PhantomSettings) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """Split and fractured vertebrae of every patient.

    Vertebrae are dealt from a shuffled deck, so that each is broken about equally often whatever the number of
    patients, and each split gets its share of broken and of whole necks.
    """
    rng = np.random.default_rng([settings.seed, 1])
    order = rng.permutation(settings.patients)
    broken = min(max(round(settings.fracture_fraction * settings.patients), 3), settings.patients - 3)
    counts = rng.choice([1, 2, 3], size=broken, p=[0.4, 0.4, 0.2])
    deck = np.concatenate([rng.permutation(np.arange(1, 8)) for _ in range(int(counts.sum()) // 7 + 2)])
    plan: dict[int, tuple[str, tuple[int, ...]]] = {}
    dealt = 0
    for group, members in (("broken", order[:broken]), ("whole", order[broken:])):
        train = max(1, round(settings.train_fraction * len(members)))
        val = max(1, round(settings.val_fraction * len(members)))
        train = min(train, len(members) - val - 1)
        for rank, index in enumerate(members):
            split = SPLITS[0 if rank < train else 1 if rank < train + val else 2]
            levels: tuple[int, ...] = ()
            if group == "broken":
                levels = tuple(sorted({int(n) for n in deck[dealt : dealt + counts[rank]]}))
                dealt += int(counts[rank])
            plan[int(index)] = (split, levels)
    return tuple(plan[index] for index in range(settings.patients))


def make_patient(index: int, settings: PhantomSettings) -> PhantomPatient:
    """Draw patient `index` of the set that `settings` describe; the same arguments give the same patient.

    Raises:
        InputError: `index` is not in 0 .. patients - 1.
    """
    if not 0 <= index < settings.patients:
        raise InputError(f"there is no patient {index} among {settings.patients}", fix="count from 0")
    split, broken = _plan(settings)[index]
    # Each thing has its own stream, so that breaking a bone leaves the neck and the scan as they were.
    neck, scan, breaks = (np.random.default_rng([settings.seed, 2, index, stream]) for stream in range(3))
    vertebrae = _draw_vertebrae(neck)
    uid = int.from_bytes(np.random.default_rng([settings.seed, 3, index]).bytes(12), "big")
    return PhantomPatient(
        index=index,
        patient_id=f"P{index:04d}",
        study_uid=f"2.25.{uid * 4}",
        series_uid=f"2.25.{uid * 4 + 1}",
        split=split,
        vertebrae=vertebrae,
        fractures=tuple(
            draw_fracture(breaks, vertebrae[n - 1], settings.fracture_conspicuity) for n in broken
        ),
        soft_tissue=_draw_soft_tissue(neck, vertebrae[0].scale),
        cortical_hu=float(neck.uniform(950, 1350)),
        trabecular_hu=float(neck.uniform(170, 420)),
        cortex_mm=float(neck.uniform(0.9, 1.4)),
        table=bool(scan.random() < 0.7),
        noise_hu=float(scan.uniform(*settings.noise_hu)),
        blur_mm=float(scan.uniform(0.25, 0.6)),
        sharpening=float(scan.choice([0.0, 0.0, 0.5, 0.9])),
        roll_deg=float(scan.normal(0.0, 5.0)),
        offset_mm=(float(scan.uniform(-5, 5)), float(scan.uniform(-5, 5))),
        field_of_view_mm=float(settings.field_of_view_mm * scan.uniform(0.93, 1.07)),
        seed=int(scan.integers(2**31)),
    )


def _draw_vertebrae(rng: np.random.Generator) -> tuple[Vertebra, ...]:
    """Stack T1 to C1 along a curve of the patient's own, C4 at height 0."""
    scale = float(np.clip(rng.normal(1.0, 0.055), 0.86, 1.14))
    lordosis_deg, lean_deg = rng.normal(16, 9), rng.normal(0, 5)
    turn_deg, side_deg = rng.normal(0, 7), rng.normal(0, 3.5)
    wear = float(rng.beta(1.3, 2.2))
    cleft = bool(rng.random() < 0.04)
    joint_mm = float(rng.uniform(1.0, 1.7))
    heights = _stack_heights(rng, scale, wear)
    vertebrae = []
    for number in range(1, FIRST_THORACIC + 1):
        centre_z, disc_mm = heights[number]
        part = (number - 4.0) / 3.0
        tilt = np.radians(lordosis_deg * part * 0.6 + lean_deg + rng.normal(0, 1.5))
        turn = np.radians(turn_deg * (0.4 - 0.6 * part) + rng.normal(0, 1.0))
        side = np.radians(side_deg * (0.5 - 0.5 * part) + rng.normal(0, 0.8))
        curve = (
            0.5 * np.radians(lordosis_deg * 0.6) * centre_z**2 / 52.0
            - np.tan(np.radians(lean_deg)) * centre_z
        )
        worn = wear * (0.35 + 0.65 * (number in (4, 5, 6)))
        vertebrae.append(
            Vertebra(
                number=number,
                centre_mm=(float(np.tan(np.radians(side_deg)) * centre_z * 0.4), float(curve), centre_z),
                axes=_rotation(float(tilt), float(turn), float(side)),
                scale=scale * float(rng.normal(1.0, 0.015)),
                wobble=tuple(float(p) for p in rng.uniform(0, 2 * np.pi, 9)),
                disc_mm=disc_mm,
                bifid=number < 6 or (number == 6 and bool(rng.random() < 0.5)),
                osteophyte_mm=float(worn * rng.uniform(0.0, 3.2)),
                joint_mm=joint_mm * (1.0 - 0.35 * worn),
                cleft=cleft,
            )
        )
    return tuple(vertebrae)


def _stack_heights(rng: np.random.Generator, scale: float, wear: float) -> dict[int, tuple[float, float]]:
    """Height of the middle of every vertebra and of the disc below it, mm; C4 at 0."""
    half = {2: 9.0, 3: 6.3, 4: 6.2, 5: 6.1, 6: 6.2, 7: 6.9, 8: 8.0}
    discs = {n: float(rng.uniform(4.2, 6.0) * (1 - 0.5 * wear * (n in (4, 5, 6)))) for n in range(2, 9)}
    heights = {8: 0.0}
    for number in range(7, 1, -1):
        heights[number] = heights[number + 1] + half[number + 1] + discs[number] + half[number]
    heights[1] = heights[2] + 16.5
    return {n: (float((heights[n] - heights[4]) * scale), discs.get(n, 0.0) * scale) for n in heights}


def _rotation(tilt: float, turn: float, side: float) -> tuple[Point, Point, Point]:
    """Axes of a frame tilted about x, turned about z and bent about y (radians)."""
    ct, st, cz, sz, cy, sy = (
        np.cos(tilt),
        np.sin(tilt),
        np.cos(turn),
        np.sin(turn),
        np.cos(side),
        np.sin(side),
    )
    about_x = np.array([[1, 0, 0], [0, ct, st], [0, -st, ct]])
    about_z = np.array([[cz, sz, 0], [-sz, cz, 0], [0, 0, 1]])
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    rows = (about_x @ about_y @ about_z).tolist()
    return (tuple(rows[0]), tuple(rows[1]), tuple(rows[2]))


def _draw_soft_tissue(rng: np.random.Generator, scale: float) -> SoftTissue:
    offset = rng.uniform(0, 500, 3)
    return SoftTissue(
        size=float(scale * rng.normal(1.0, 0.04)),
        fat_mm=float(np.clip(rng.gamma(4.0, 2.0), 2.5, 20.0)),
        contrast_hu=float(rng.uniform(120, 300)) if rng.random() < 0.25 else 0.0,
        airway=float(rng.uniform(0.8, 1.25)),
        calcified=float(rng.uniform(0, 1)),
        teeth=bool(rng.random() < 0.85),
        offset=(float(offset[0]), float(offset[1]), float(offset[2])),
        phases=tuple(float(p) for p in rng.uniform(0, 2 * np.pi, 6)),
    )
