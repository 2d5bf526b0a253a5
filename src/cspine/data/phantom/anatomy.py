"""The bones of the neck: where each vertebra lies, and how far a point is from its surface.

Each vertebra has its own frame (u, v, w), in mm of a neck of size 1: u to the patient's left, v backwards, w upwards,
origin in the middle of the body (for C1 at the dens, level with the lateral masses). Shapes are signed distances, so
one axial plane can be drawn without a volume, at any pixel size.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cspine.data.phantom.geometry import Field, Point, capsule, ellipse, ellipsoid, smooth_union, wave

LEVELS = ("C1", "C2", "C3", "C4", "C5", "C6", "C7")
FIRST_THORACIC = 8
"""T1 is drawn below C7 but carries no label: the masks hold 1..7."""

# Half width, half depth, half height of the body; spinous length from the canal; mm, in a neck of size 1.
_BODY: dict[int, tuple[float, float, float, float]] = {
    2: (8.6, 7.6, 9.0, 15.0),
    3: (8.6, 7.3, 6.3, 11.0),
    4: (8.9, 7.5, 6.2, 11.0),
    5: (9.4, 7.7, 6.1, 12.5),
    6: (10.2, 8.0, 6.2, 18.0),
    7: (11.3, 8.4, 6.9, 26.0),
    8: (13.0, 8.8, 8.0, 28.0),
}


@dataclass(frozen=True)
class Vertebra:
    """One vertebra: its pose in the neck and what makes it this patient's.

    Attributes:
        number: 1..7 for C1..C7, 8 for T1.
        centre_mm: Origin of its frame in the neck, (x, y, z).
        axes: Rows are the directions of u, v and w in the neck.
        scale: Size relative to an average neck.
        wobble: Nine phases of the irregularities of its surface.
        disc_mm: Height of the disc below it.
        bifid: Whether the spinous process ends in two tips.
        osteophyte_mm: How far spurs stand out from the rims of the body.
        joint_mm: Width of its facet joint spaces.
        cleft: Whether the posterior arch of C1 stayed open in the midline: a normal variant, smooth-edged.
    """

    number: int
    centre_mm: Point
    axes: tuple[Point, Point, Point]
    scale: float
    wobble: tuple[float, ...]
    disc_mm: float
    bifid: bool
    osteophyte_mm: float
    joint_mm: float
    cleft: bool = False

    @property
    def body_half(self) -> tuple[float, float, float]:
        """Half width, depth and height of the body (u, v, w); the dens' surroundings for C1."""
        return (9.0, 7.5, 7.0) if self.number == 1 else _BODY[self.number][:3]

    @property
    def canal_centre(self) -> float:
        """Where, along v, the middle of the spinal canal lies."""
        return 14.0 if self.number == 1 else self.body_half[1] + 7.2

    @property
    def reach(self) -> tuple[float, float]:
        """Lowest and highest w that its bone can reach."""
        return {1: (-14.0, 14.0), 2: (-19.0, 27.0)}.get(self.number, (-19.0, 16.0))

    def to_frame(self, x: Field, y: Field, z_mm: float) -> tuple[Field, Field, Field]:
        """Neck coordinates to this vertebra's frame."""
        dx, dy, dz = x - self.centre_mm[0], y - self.centre_mm[1], z_mm - self.centre_mm[2]
        u, v, w = ((a[0] * dx + a[1] * dy + a[2] * dz) / np.float32(self.scale) for a in self.axes)
        return u, v, w

    def to_local(self, x: Field, y: Field, z_mm: float) -> tuple[Field, Field, Field]:
        """The same, with the small irregularities of living bone."""
        u, v, w = self.to_frame(x, y, z_mm)
        p = self.wobble
        return (
            u + 0.55 * wave(v, w, p[0:3], 15.0) + 0.22 * wave(v, u, p[3:6], 5.3),
            v + 0.55 * wave(w, u, p[3:6], 15.0) + 0.22 * wave(u, w, p[6:9], 5.3),
            w + 0.45 * wave(u, v, p[6:9], 17.0),
        )

    def to_neck(self, point: Point) -> Point:
        """A point of this vertebra's frame in neck coordinates, mm."""
        moved = self.scale * (np.asarray(point) @ np.asarray(self.axes)) + np.asarray(self.centre_mm)
        return (float(moved[0]), float(moved[1]), float(moved[2]))


def compute_bone_distance(vertebra: Vertebra, u: Field, v: Field, w: Field) -> tuple[Field, Field]:
    """Distance to the body and to the arch with its processes: apart, because their cortex differs in thickness."""
    if vertebra.number == 1:
        return _atlas(vertebra, u, v, w)
    if vertebra.number == 2:
        return _axis(vertebra, u, v, w)
    return _body(vertebra, u, v, w), _arch(vertebra, u, v, w)


def body_outline(vertebra: Vertebra, u: Field, v: Field) -> Field:
    """The body seen from above: wider than deep, flattened and slightly hollow towards the canal."""
    half_u, half_v, _ = vertebra.body_half
    hollow = 0.14 * np.exp(-((u / 5.0) ** 2)) * (v > 0)
    depth = half_v * (1.0 - hollow)
    ratio = ((np.abs(u) / half_u) ** 2.5 + (np.abs(v) / depth) ** 2.5) ** np.float32(0.4)
    return np.asarray((ratio - 1.0) * np.float32(half_v), np.float32)


def _body(vertebra: Vertebra, u: Field, v: Field, w: Field) -> Field:
    half_u, half_v, half_w = vertebra.body_half
    rim = np.clip(np.abs(w) / half_w, 0.0, 1.3) ** 2
    outline = (
        body_outline(vertebra, u, v) + 1.1 * (1.0 - rim) - vertebra.osteophyte_mm * np.clip(rim - 0.45, 0, 1)
    )
    side = np.clip(np.abs(u) / half_u, 0.0, 1.15)
    uncinate = 0.0 if vertebra.number == FIRST_THORACIC else 4.2
    top = half_w - 0.9 * (1.0 - side**2) + uncinate * side**6 * np.clip(0.65 + 0.05 * v, 0.2, 1.0)
    bottom = -half_w + 1.2 * (1.0 - side**2) - 1.5 * np.clip(-v / half_v, 0.0, 1.0) + 1.8 * side**4
    return np.asarray(np.maximum(np.maximum(outline, (w - top) * 0.9), (bottom - w) * 0.9), np.float32)


def _arch(vertebra: Vertebra, u: Field, v: Field, w: Field) -> Field:
    """Pedicles, articular pillars, transverse processes with their foramina, laminae and spinous process."""
    half_u, half_v, _ = vertebra.body_half
    au = np.abs(u)
    pillar_u = half_u + 6.2
    back = vertebra.canal_centre
    pedicle = capsule(au, v, w, (half_u - 3.0, half_v - 2.5, 1.5), (pillar_u, half_v + 3.8, 1.0), 2.3, 1.35)
    distance = smooth_union(pedicle, _pillar(vertebra, au, v, w, pillar_u, half_v + 5.6), 1.5)
    distance = smooth_union(distance, _transverse(vertebra, au, v, w), 1.2)
    lamina = capsule(
        au, v + 0.28 * w, w, (pillar_u - 1.0, half_v + 8.6, -1.5), (1.2, back + 8.6, -1.5), 1.75, 3.0
    )
    distance = smooth_union(distance, lamina, 1.8)
    distance = smooth_union(distance, _spinous(vertebra, au, v, w, back + 8.0), 1.8)
    if vertebra.number != FIRST_THORACIC:
        foramen = ellipse(au, v, (half_u + 4.6, half_v - 5.2), (3.0, 2.7))
        distance = np.maximum(distance, -foramen)
    return np.maximum(distance, -_canal(vertebra, u, v))


def _canal(vertebra: Vertebra, u: Field, v: Field) -> Field:
    """A rounded triangle, its base on the body and its apex between the laminae."""
    half_v = vertebra.body_half[1]
    back = vertebra.canal_centre
    narrowing = np.clip((v - back) / 8.0, -0.6, 1.0)
    width = 11.4 - 4.0 * narrowing
    triangle = np.maximum(np.abs(u) - width, np.abs(v - back) - 7.3) * 0.8
    rounded = ellipse(u, v, (0.0, back - 0.6), (11.9, 7.6))
    return np.asarray(np.maximum(np.maximum(triangle, rounded), half_v * 0.72 - v), np.float32)


def _pillar(vertebra: Vertebra, au: Field, v: Field, w: Field, pillar_u: float, pillar_v: float) -> Field:
    """An oblique prism: its upper facet looks back and up, its lower one forward and down, at some 45 degrees."""
    flat = ellipse(au, v + 0.25 * w, (pillar_u, pillar_v), (5.6, 5.4))
    slope = w + 0.85 * (v - pillar_v)
    half = 0.5 * (2 * vertebra.body_half[2] + vertebra.disc_mm / vertebra.scale - vertebra.joint_mm)
    return np.maximum(np.maximum(flat, (np.abs(slope - 0.6) - half) * 0.76), np.abs(w) - 12.5)


def _transverse(vertebra: Vertebra, au: Field, v: Field, w: Field) -> Field:
    half_u, half_v, _ = vertebra.body_half
    centre_u, centre_v = half_u + 4.6, half_v - 5.2
    tip_u = centre_u + (6.5 if vertebra.number < 7 else 11.0)
    rear = capsule(au, v, w, (centre_u - 1.0, centre_v + 6.0, 0.5), (tip_u, centre_v + 3.0, -1.5), 2.0, 1.5)
    if vertebra.number == FIRST_THORACIC:
        return rear
    strut = 1.3 if vertebra.number == 7 else 1.9
    front = capsule(
        au, v, w, (half_u - 2.0, centre_v - 3.0, 0.0), (centre_u + 3.0, centre_v - 4.6, -0.5), strut, 1.5
    )
    bar = capsule(
        au, v, w, (centre_u + 3.4, centre_v - 4.0, -1.0), (tip_u - 1.6, centre_v + 3.0, -2.0), 1.5, 1.3
    )
    return smooth_union(smooth_union(rear, front, 1.0), bar, 1.0)


def _spinous(vertebra: Vertebra, au: Field, v: Field, w: Field, root_v: float) -> Field:
    length = _BODY[vertebra.number][3]
    drop = 0.38 * length
    end = (0.0, root_v + length, -1.5 - drop)
    if not vertebra.bifid:
        rod = capsule(au, v, w, (0.0, root_v, -1.5), end, 2.4, 1.9)
        return smooth_union(rod, capsule(au, v, w, (0.0, end[1] - 2, end[2]), end, 3.4, 1.4), 2.0)
    neck = (0.0, root_v + 0.55 * length, -1.5 - 0.5 * drop)
    rod = capsule(au, v, w, (0.0, root_v, -1.5), neck, 2.0, 2.1)
    tip = capsule(au, v, w, (0.6, neck[1], neck[2] - 0.5), (4.4, end[1], end[2]), 1.8, 1.5)
    return smooth_union(rod, tip, 1.4)


def _axis(vertebra: Vertebra, u: Field, v: Field, w: Field) -> tuple[Field, Field]:
    """C2: a C3-like body below, the dens above, sloping shoulders under C1, a large bifid spinous process."""
    half_u, half_v, _ = vertebra.body_half
    au = np.abs(u)
    outline = body_outline(vertebra, u * (1.0 + 0.018 * np.clip(w, 0, 8)), v)
    body = np.maximum(
        np.maximum(outline, (w - 8.0) * 0.9), (-9.0 + 1.2 * (1 - (u / half_u) ** 2) + 0.12 * v - w) * 0.9
    )
    waist = 0.9 * np.exp(-(((w - 10.5) / 2.5) ** 2))
    dens = capsule(u, v + 0.06 * w, w, (0.0, 0.4, 5.0), (0.0, -0.6, 20.5), 5.3) + waist
    body = smooth_union(body, dens, 3.0)
    shoulder = ellipsoid(au, v, w + 0.45 * (au - 12.0), (13.0, 1.5, 4.5), (8.5, 8.0, 5.2))
    body = smooth_union(body, shoulder, 2.0)
    pillar_u, back = half_u + 6.2, vertebra.canal_centre
    pars = capsule(au, v, w, (11.5, 4.5, 2.0), (pillar_u, half_v + 6.0, -5.5), 3.4, 1.3)
    flat = ellipse(au, v + 0.2 * w, (pillar_u, half_v + 6.6), (5.4, 5.0))
    facet = np.maximum(
        flat, np.maximum(-(w + 0.85 * (v - half_v - 6.6) + 9.0 - vertebra.joint_mm), w + 1.0) * 0.76
    )
    arch = smooth_union(pars, facet, 1.5)
    lamina = capsule(
        au, v + 0.25 * w, w, (pillar_u - 1.5, half_v + 8.0, -3.0), (1.0, back + 9.2, -3.0), 2.4, 2.9
    )
    arch = smooth_union(arch, lamina, 2.0)
    arch = smooth_union(arch, _spinous(vertebra, au, v, w + 1.5, back + 9.0) - 0.6, 2.0)
    process = capsule(au, v, w, (16.0, 4.0, 0.0), (22.5, 6.0, -4.0), 2.3, 1.2)
    arch = smooth_union(arch, process, 1.2)
    hole = ellipse(au - 0.35 * w, v, (16.8, 2.6), (2.9, 2.8))
    arch = np.maximum(np.maximum(arch, -hole), -_canal(vertebra, u, v))
    return np.maximum(body, -hole), arch


def _atlas(vertebra: Vertebra, u: Field, v: Field, w: Field) -> tuple[Field, Field]:
    """C1: no body; a ring of anterior arch, lateral masses and posterior arch, with wide transverse processes."""
    au = np.abs(u)
    slant = 0.45 * (au - 16.0)
    mass = ellipsoid(au + 0.2 * w, v - 0.3 * (au - 16.0), w, (16.0, 1.0, 0.0), (7.2, 10.0, 11.5))
    cup = np.maximum(w - (4.5 + 1.1 * slant), -(6.5 - 0.8 * slant) - w) * 0.9
    masses = np.maximum(mass, cup)
    front = smooth_union(
        capsule(au, v, w, (14.0, -5.5, 0.0), (6.0, -9.3, 0.0), 2.6, 2.0),
        capsule(au, v, w, (6.0, -9.3, 0.0), (0.0, -10.4, 0.0), 2.7, 2.1),
        1.0,
    )
    rear = smooth_union(
        capsule(au, v, w, (17.5, 8.5, 0.5), (13.5, 20.0, 0.5), 2.7, 1.5),
        capsule(au, v, w, (13.5, 20.0, 0.5), (0.0, 27.5, 0.0), 2.8, 1.6),
        2.0,
    )
    if vertebra.cleft:
        rear = np.maximum(rear, 1.4 - np.hypot(u, 0.0))
    process = smooth_union(
        capsule(au, v, w, (20.0, -2.5, -0.5), (33.0, 3.0, -2.0), 2.0, 1.6),
        capsule(au, v, w, (20.0, 7.5, -0.5), (33.0, 4.5, -2.0), 2.1, 1.6),
        2.0,
    )
    arch = smooth_union(smooth_union(front, rear, 1.0), process, 1.5)
    arch = np.maximum(arch, -ellipse(au, v, (25.6, 2.6), (3.3, 3.0)))
    ring = smooth_union(masses, arch, 1.5)
    inside = np.maximum(ellipse(u, v, (0.0, 12.0), (12.6, 13.4)), 1.5 - v)
    return np.maximum(masses, -inside), np.maximum(ring, -inside)


def compute_skull_distance(u: Field, v: Field, w: Field) -> tuple[Field, Field]:
    """Occiput, in the frame of C1: bone (condyles, a shell around the foramen magnum), and the brain inside."""
    au = np.abs(u)
    inner = ellipsoid(u, v, w, (0.0, 26.0, 54.0), (66.0, 66.0, 46.0))
    thick = 3.5 + 2.5 * np.clip(1.0 - au / 18.0, 0.0, 1.0)
    shell = np.maximum(inner - thick, -inner)
    foramen = ellipse(u, v, (0.0, 13.0), (14.5, 17.0))
    shell = np.maximum(shell, np.maximum(-foramen, -5.0 - v))
    condyle = ellipsoid(
        au, v - 0.35 * (au - 16.0), w - 0.35 * (au - 16.0), (16.5, 0.0, 11.5), (5.6, 10.5, 5.8)
    )
    clivus = capsule(u, v, w, (0.0, -9.0, 17.0), (0.0, -22.0, 40.0), 5.5)
    return smooth_union(smooth_union(shell, condyle, 2.0), clivus, 2.0), inner
