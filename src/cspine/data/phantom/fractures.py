"""Fractures: lucent, slightly wavy planes through bone, with the fragment on one side moved.

Unlike a nutrient channel or a joint, the edges of a fracture have no cortex: the gap is cut after the shell is laid
on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cspine.data.phantom.anatomy import Vertebra, compute_bone_distance
from cspine.data.phantom.geometry import Field, Point, wave

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
