"""Fractures: lucent, slightly wavy planes through bone, with the fragment on one side moved.

Unlike a nutrient channel or a joint, the edges of a fracture have no cortex: the gap is cut after the shell is laid
on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from cspine.core.errors import InputError
from cspine.phantom.anatomy import (
    FIRST_THORACIC,
    Field,
    Point,
    SoftTissue,
    Vertebra,
    compute_bone_distance,
    wave,
)

FRACTURE_KINDS = ("jefferson", "dens", "hangman", "burst", "compression", "lamina", "spinous", "facet")

_BLOOD_HU, _GAS_HU, _DARKER_HU = 45.0, -700.0, 500.0
_VISIBLE_MM2 = 6.0
_SUBAXIAL = ("burst", "compression", "lamina", "spinous", "facet")
KINDS_BY_LEVEL: dict[int, tuple[str, ...]] = {
    1: ("jefferson",),
    2: ("dens", "hangman", "lamina"),
    **{number: _SUBAXIAL for number in range(3, 8)},
}
"""Which fractures each vertebra can have, by number."""


@dataclass(frozen=True)
class Crack:
    """One break, in the frame of its vertebra (mm of a neck of size 1).

    Attributes:
        centre: A point of the plane.
        normal: Its unit normal; the fragment lies on the side it points to.
        radius: The break ends at this distance from the centre.
        half_gap: Half the width of the gap.
        shift: How far the fragment is moved.
        phases: Three phases of the waviness.
    """

    centre: Point
    normal: Point
    radius: float
    half_gap: float
    shift: Point
    phases: tuple[float, float, float]


@dataclass(frozen=True)
class Fracture:
    """A fracture of one vertebra.

    Attributes:
        kind: One of FRACTURE_KINDS.
        number: Of the vertebra, 1..7.
        cracks: Its breaks.
        gap_hu: What fills them: blood at conspicuity 1, towards gas above it, half-crushed bone below.
        visible_mm2: How much of the gaps an axial plane must cut for the fracture to count as visible in it.
    """

    kind: str
    number: int
    cracks: tuple[Crack, ...]
    gap_hu: float
    visible_mm2: float


def apply_cracks(
    cracks: tuple[Crack, ...], u: Field, v: Field, w: Field
) -> tuple[Field, Field, Field, Field]:
    """Where the bone at each point was before the break (u, v, w), and the distance to the gap."""
    gap = np.full_like(u, 1e3)
    moved_u, moved_v, moved_w = u, v, w
    for crack in cracks:
        du, dv, dw = u - crack.centre[0], v - crack.centre[1], w - crack.centre[2]
        n = crack.normal
        across = du * n[0] + dv * n[1] + dw * n[2]
        across = across + 0.5 * wave(du + dv, dw - du, crack.phases, 9.0)
        away = np.sqrt(du * du + dv * dv + dw * dw)
        ends = away - np.float32(crack.radius)
        # The fragment is moved whole near the break and not at all far from it: bone bends, and joints hold.
        pull = np.clip(across / (2 * crack.half_gap), 0.0, 1.0) * np.clip(-ends / 3.0, 0.0, 1.0)
        moved_u = moved_u - pull * np.float32(crack.shift[0])
        moved_v = moved_v - pull * np.float32(crack.shift[1])
        moved_w = moved_w - pull * np.float32(crack.shift[2])
        gap = np.minimum(gap, np.maximum(np.abs(across) - np.float32(crack.half_gap), ends))
    return moved_u, moved_v, moved_w, gap


def draw_fracture(
    rng: np.random.Generator, vertebra: Vertebra, conspicuity: float, kind: str | None = None
) -> Fracture:
    """Draw one fracture of a vertebra: of `kind`, or of any kind that it can have.

    A draw that axial planes would hardly show (it missed the bone, or lies flat in the plane) is drawn again.
    """
    while True:
        drawn = kind or str(rng.choice(KINDS_BY_LEVEL[vertebra.number]))
        cracks = tuple(_DRAW[drawn](_Pen(rng, conspicuity), vertebra.body_half))
        gap_hu = max(_BLOOD_HU - _DARKER_HU * (conspicuity - 1.0), _GAS_HU)
        fracture = Fracture(drawn, vertebra.number, cracks, gap_hu, _VISIBLE_MM2 * conspicuity)
        if _is_seen(vertebra, fracture):
            return fracture


def _is_seen(vertebra: Vertebra, fracture: Fracture) -> bool:
    """Whether at least two of three planes around the middle of the first break cut it well."""
    crack = fracture.cracks[0]
    steps = np.arange(-13.0, 13.1, 1.3, dtype=np.float32)
    w, v, u = np.meshgrid(np.array([-2.5, 0.0, 2.5], np.float32), steps, steps, indexing="ij")
    u, v, w = (a + np.float32(c) for a, c in zip((u, v, w), crack.centre, strict=True))
    seen_mm2 = _open_gap(vertebra, fracture, u, v, w).sum(axis=(1, 2)) * 1.3**2
    return int((seen_mm2 > 1.5 * fracture.visible_mm2).sum()) >= 2


def compute_seen_mm2(vertebra: Vertebra, fracture: Fracture, z_mm: float) -> float:
    """How much of a fracture's gaps the plane at `z_mm` cuts, from a look at the breaks alone."""
    reach = max(crack.radius for crack in fracture.cracks)
    places = np.array([vertebra.to_neck(crack.centre) for crack in fracture.cracks]) / vertebra.scale
    if np.abs(places[:, 2] - z_mm / vertebra.scale).min() > reach:
        return 0.0
    (left, front, _), (right, back, _) = places.min(axis=0) - reach, places.max(axis=0) + reach
    x, y = np.meshgrid(
        np.arange(left, right, dtype=np.float32) * np.float32(vertebra.scale),
        np.arange(front, back, dtype=np.float32) * np.float32(vertebra.scale),
    )
    gap = _open_gap(vertebra, fracture, *vertebra.to_local(x, y, z_mm))
    return float(gap.sum()) * vertebra.scale**2


def _open_gap(vertebra: Vertebra, fracture: Fracture, u: Field, v: Field, w: Field) -> npt.NDArray[np.bool_]:
    """Where a gap runs through bone."""
    *point, gap = apply_cracks(fracture.cracks, u, v, w)
    return np.asarray((gap < 0) & (np.minimum(*compute_bone_distance(vertebra, *point)) < 0))


class _Pen:
    """Draws cracks of one fracture with a common width."""

    def __init__(self, rng: np.random.Generator, conspicuity: float) -> None:
        self.rng = rng
        self.half_gap = rng.uniform(0.5, 1.0) * conspicuity
        self.move = rng.uniform(0.5, 2.6) * conspicuity
        self.side = float(rng.choice([-1.0, 1.0]))

    def near(self, value: float, spread: float) -> float:
        return float(value + self.rng.uniform(-spread, spread))

    def crack(self, centre: Point, normal: Point, radius: float, shift: Point) -> Crack:
        """A crack whose normal is `normal` give or take some degrees; `shift` is only a direction."""
        tilted = np.asarray(normal) / np.linalg.norm(normal) + self.rng.normal(0.0, 0.14, 3)
        tilted = tilted / np.linalg.norm(tilted)
        direction = np.asarray(shift) / np.linalg.norm(shift) * self.move
        phases = self.rng.uniform(0, 2 * np.pi, 3)
        return Crack(
            centre,
            (float(tilted[0]), float(tilted[1]), float(tilted[2])),
            radius,
            float(self.half_gap),
            (float(direction[0]), float(direction[1]), float(direction[2])),
            (float(phases[0]), float(phases[1]), float(phases[2])),
        )


def _jefferson(pen: _Pen, half: Point) -> list[Crack]:
    cracks = []
    sides = (pen.side,) if pen.rng.random() < 0.4 else (pen.side, -pen.side)
    for side in sides:
        u = pen.near(6.5, 3.0) * side
        cracks.append(pen.crack((u, -9.0, 0.0), (side, 0.0, 0.15), 8.0, (side, -0.3, 0.0)))
        u = pen.near(12.5, 4.0)
        cracks.append(
            pen.crack((u * side, 20.5 + 0.5 * (13.5 - u), 0.5), (side, -0.5, 0.15), 8.0, (side, 0.4, 0.0))
        )
    return cracks


def _dens(pen: _Pen, half: Point) -> list[Crack]:
    forwards = pen.side
    normal = (pen.near(0.0, 0.5), forwards * pen.near(0.75, 0.2), 1.0)
    return [pen.crack((0.0, 0.0, pen.near(9.5, 2.5)), normal, 15.0, (0.2, forwards, 0.1))]


def _hangman(pen: _Pen, half: Point) -> list[Crack]:
    return [
        pen.crack(
            (side * 13.2, pen.near(8.5, 1.6), pen.near(-2.0, 1.0)),
            (side * 0.25, 1.0, 0.25),
            10.0,
            (0.0, 1.0, -0.3),
        )
        for side in (-1.0, 1.0)
    ]


def _burst(pen: _Pen, half: Point) -> list[Crack]:
    split = pen.crack(
        (pen.near(0.0, 3.5), 0.0, 0.0), (pen.side, 0.0, 0.0), half[0] + 2.5, (pen.side, 0.0, 0.0)
    )
    back = pen.crack(
        (pen.near(0.0, 2.0), pen.near(2.0, 1.5), 1.0), (pen.near(0, 0.4), 1.0, 0.2), half[0] + 1.0, (0, 1, 0)
    )
    third = pen.crack((-pen.side * 4.0, -2.0, 0.0), (-pen.side, -0.9, 0.0), half[0], (-pen.side, -0.8, 0.0))
    return [split, back, third] if pen.rng.random() < 0.6 else [split, back]


def _compression(pen: _Pen, half: Point) -> list[Crack]:
    centre = (pen.near(0.0, 2.0), -half[1] * pen.near(0.35, 0.15), half[2] * pen.near(0.3, 0.3))
    return [
        pen.crack(centre, (pen.near(0.0, 0.45), -1.0, pen.near(0.65, 0.2)), half[0] + 1.5, (0.0, -1.0, -0.5))
    ]


def _lamina(pen: _Pen, half: Point) -> list[Crack]:
    part = pen.rng.uniform(0.25, 0.8)
    outer, inner = (half[0] + 5.2, half[1] + 8.6), (1.2, half[1] + 15.8)
    centre = (
        pen.side * (inner[0] + part * (outer[0] - inner[0])),
        inner[1] + part * (outer[1] - inner[1]),
        pen.near(-1.5, 1.5),
    )
    return [pen.crack(centre, (-pen.side, pen.near(0.35, 0.5), 0.1), 8.5, (0.3 * -pen.side, -0.8, 0.0))]


def _spinous(pen: _Pen, half: Point) -> list[Crack]:
    length = float(np.interp(half[0], [9.0, 10.2, 11.3], [11.5, 18.0, 26.0]))
    part = pen.rng.uniform(0.2, 0.6)
    centre = (0.0, half[1] + 15.2 + part * length, -1.5 - 0.38 * part * length)
    return [pen.crack(centre, (pen.near(0.0, 0.6), 1.0, -0.1), 10.0, (pen.side * 0.5, 0.8, -0.6))]


def _facet(pen: _Pen, half: Point) -> list[Crack]:
    centre = (pen.side * pen.near(half[0] + 6.2, 1.5), half[1] + pen.near(5.6, 1.5), pen.near(0.0, 2.0))
    across = pen.rng.uniform(-0.9, 0.9)
    return [pen.crack(centre, (pen.side, float(across), 0.15), 9.5, (pen.side, float(across), 0.0))]


_DRAW: dict[str, Callable[[_Pen, Point], list[Crack]]] = {
    "jefferson": _jefferson,
    "dens": _dens,
    "hangman": _hangman,
    "burst": _burst,
    "compression": _compression,
    "lamina": _lamina,
    "spinous": _spinous,
    "facet": _facet,
}


# Settings of a phantom set, and the patients drawn from them.


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
