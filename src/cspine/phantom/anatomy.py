"""Signed distances: the few shapes that everything in the phantom is made of.

Negative inside, positive outside, zero on the surface, in the unit of the coordinates (mm, or mm of a neck of
size 1). All functions take and give arrays of one shape.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

Field = npt.NDArray[np.floating[Any]]
"""float32 in practice; NumPy's types cannot tell float32 * 1.0 from float64."""
Point = tuple[float, float, float]

_NOISE_SHAPE = (64, 128, 128)


def smooth_union(first: Field, second: Field, radius: float) -> Field:
    """Union whose seam is filleted over `radius`, as bone grows into bone."""
    blend = np.clip(0.5 + 0.5 * (second - first) / radius, 0.0, 1.0)
    mixed: Field = second + (first - second) * blend - radius * blend * (1.0 - blend)
    return mixed


def capsule(
    u: Field, v: Field, w: Field, start: Point, end: Point, radius: float, height: float = 1.0
) -> Field:
    """A rounded rod from `start` to `end`; its cross-section is `height` times as tall (w) as it is thick."""
    wu, wv, ww = end[0] - start[0], end[1] - start[1], (end[2] - start[2]) / height
    pu, pv, pw = u - start[0], v - start[1], (w - start[2]) / height
    along = np.clip((pu * wu + pv * wv + pw * ww) / (wu * wu + wv * wv + ww * ww), 0.0, 1.0)
    du, dv, dw = pu - along * wu, pv - along * wv, pw - along * ww
    return np.asarray(np.sqrt(du * du + dv * dv + dw * dw) - np.float32(radius), np.float32)


def ellipse(
    x: Field, y: Field, centre: tuple[float, float], half: tuple[float, float], angle_deg: float = 0.0
) -> Field:
    """A flat ellipse, turned by `angle_deg` from x towards y. Exact on the surface, approximate elsewhere."""
    dx, dy = x - centre[0], y - centre[1]
    if angle_deg:
        cos, sin = float(np.cos(np.radians(angle_deg))), float(np.sin(np.radians(angle_deg)))
        dx, dy = cos * dx + sin * dy, cos * dy - sin * dx
    ratio = np.sqrt((dx / half[0]) ** 2 + (dy / half[1]) ** 2)
    return (ratio - 1.0) * np.float32(min(half))


def ellipsoid(u: Field, v: Field, w: Field, centre: Point, half: Point) -> Field:
    """An ellipsoid along the axes. Exact on the surface, approximate away from it."""
    ratio = np.sqrt(
        ((u - centre[0]) / half[0]) ** 2 + ((v - centre[1]) / half[1]) ** 2 + ((w - centre[2]) / half[2]) ** 2
    )
    return np.asarray((ratio - 1.0) * np.float32(min(half)), np.float32)


def coverage(distance: Field, pixel_mm: float) -> Field:
    """How much of a pixel lies inside the surface, 0..1: the partial volume effect, in the plane."""
    return np.asarray(np.clip(0.5 - distance / np.float32(pixel_mm), 0.0, 1.0), np.float32)


def wave(a: Field, b: Field, phase: tuple[float, ...], wavelength: float) -> Field:
    """A smooth irregular surface of height about -1..1: three sines that do not share a period."""
    k = np.float32(2.0 * np.pi / wavelength)
    first = np.sin(k * a + phase[0])
    second = np.sin(0.83 * k * b + 0.4 * k * a + phase[1])
    third = np.sin(1.31 * k * (a - b) + phase[2])
    return np.asarray((first + second + third) * np.float32(1 / 2.2), np.float32)


@lru_cache(maxsize=4)
def _texture_block(coarse_px: float) -> npt.NDArray[np.float32]:
    """A periodic block of band-limited noise, mean 0 and deviation 1; the same in every process."""
    white = np.random.default_rng(20220907).standard_normal(_NOISE_SHAPE)
    frequency = np.sqrt(
        sum(f**2 for f in np.meshgrid(*(np.fft.fftfreq(n) for n in _NOISE_SHAPE), indexing="ij"))
    )
    band = np.exp(-0.5 * (2 * np.pi * frequency * coarse_px * 0.5) ** 2)
    band *= 1.0 - np.exp(-0.5 * (2 * np.pi * frequency * coarse_px * 2.0) ** 2)
    block = np.fft.ifftn(np.fft.fftn(white) * band).real
    return np.asarray(block / block.std(), np.float32)


def texture(x: Field, y: Field, z_mm: float, offset: Point, grain_mm: float) -> Field:
    """Solid texture cut by the plane at `z_mm`: mean 0, deviation about 1, grains of about `grain_mm`."""
    block = _texture_block(2.0)
    scale = 2.0 / grain_mm
    depth = ((z_mm + offset[2]) * scale) % block.shape[0]
    low = int(depth)
    part = np.float32(depth - low)
    plane = block[low] * (1 - part) + block[(low + 1) % block.shape[0]] * part
    map_x = np.asarray((x + offset[0]) * scale, np.float32)
    map_y = np.asarray((y + offset[1]) * scale, np.float32)
    return np.asarray(
        cv2.remap(plane, map_x, map_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP), np.float32
    )


# The bones of the neck: where each vertebra lies, and how far a point is from its surface.
#
# Each vertebra has its own frame (u, v, w), in mm of a neck of size 1: u to the patient's left, v backwards, w
# upwards,
# origin in the middle of the body (for C1 at the dens, level with the lateral masses). Shapes are signed distances,
# so
# one axial plane can be drawn without a volume, at any pixel size.


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


# Everything in the neck that is not a vertebra, painted in layers onto one axial plane.
#
# Coordinates are the neck's, relative to the spine at that height: x to the left, y backwards from the middle of the
# vertebral bodies. Positions and sizes are given at a few levels (0 the skull base, 1..7 the middle of C1..C7, 8 T1)
# and
# interpolated.


AIR_HU, FAT_HU, MUSCLE_HU, SKIN_HU, FLUID_HU, CORD_HU, DISC_HU, BLOOD_HU = -1000, -100, 55, 30, 12, 38, 85, 45

Table = tuple[tuple[float, ...], tuple[float, ...]]

_WIDTH: Table = ((-1, 0, 1, 2, 3, 4, 5, 6, 7, 8), (76, 74, 70, 66, 61, 58, 58, 63, 85, 130))
_FRONT: Table = ((-1, 0, 1, 2, 3, 4, 5, 6, 7, 8), (98, 96, 92, 84, 64, 51, 47, 45, 46, 52))
_BACK: Table = ((-1, 0, 1, 2, 3, 4, 5, 6, 7, 8), (90, 84, 68, 60, 57, 57, 59, 62, 68, 74))


@dataclass(frozen=True)
class SoftTissue:
    """What a patient's soft tissue is like.

    Attributes:
        size: Relative to an average neck.
        fat_mm: Thickness of the fat under the skin, at the side.
        contrast_hu: Added to the vessels by a contrast agent.
        airway: Width of the airway relative to the average.
        calcified: How much of the laryngeal cartilage is bone, 0..1.
        teeth: Whether there are any.
        offset: Where the textures start, mm.
        phases: Six phases of the irregularities of the outline and the muscles.
    """

    size: float
    fat_mm: float
    contrast_hu: float
    airway: float
    calcified: float
    teeth: bool
    offset: Point
    phases: tuple[float, ...]


class Canvas:
    """HU of one plane while it is being painted, with the coordinates of its pixels."""

    def __init__(self, x: Field, y: Field, pixel_mm: float) -> None:
        self.x, self.y, self.pixel_mm = x, y, pixel_mm
        self.hu: Field = np.full_like(x, AIR_HU)

    def paint(self, distance: Field, value_hu: float | Field) -> None:
        """Lay `value_hu` wherever `distance` is negative, mixed in the pixels of the edge."""
        self.hu += coverage(distance, self.pixel_mm) * (value_hu - self.hu)

    def paint_ellipse(
        self, centre: tuple[float, float], half: tuple[float, float], value_hu: float, angle_deg: float = 0.0
    ) -> None:
        """Paint a flat ellipse."""
        self.paint(ellipse(self.x, self.y, centre, half, angle_deg), value_hu)


def at_level(level: float, table: Table) -> float:
    """The table's value at a height."""
    return float(np.interp(level, *table))


def paint_soft_tissue(canvas: Canvas, tissue: SoftTissue, level: float, z_mm: float) -> None:
    """Paint skin, fat, muscles, vessels, airway, larynx, mandible and tongue at the height of `level`."""
    skin = _outline(canvas, tissue, level)
    behind = np.clip(canvas.y / 60.0, -0.4, 1.0)
    fascia = skin + tissue.fat_mm * (0.75 + 0.9 * behind) + 2.0
    grain = texture(canvas.x, canvas.y, z_mm, tissue.offset, 5.0)
    canvas.paint(skin, SKIN_HU)
    canvas.paint(skin + 1.8, FAT_HU + 9 * grain)
    canvas.paint(fascia, FAT_HU + 16 * grain + 12)
    _paint_muscles(canvas, tissue, level, fascia, grain)
    _paint_front(canvas, tissue, level, fascia, grain)
    _paint_vessels(canvas, tissue, level)
    if level < 3.2:
        _paint_jaw(canvas, tissue, level)
    _paint_airway(canvas, tissue, level)


def _outline(canvas: Canvas, tissue: SoftTissue, level: float) -> Field:
    """Distance to the skin: a rounded box, deeper in front at the face, wide at the shoulders."""
    size = tissue.size
    width, front, back = (at_level(level, table) * size for table in (_WIDTH, _FRONT, _BACK))
    grow = tissue.fat_mm - 7.0
    front_part = np.clip(-canvas.y / front, 0.0, 1.2)
    taper = at_level(level, ((0, 2, 3.5, 5, 6.5, 8), (0.28, 0.32, 0.2, 0.1, 0.25, 0.45)))
    half_x = (width + grow) * (1.0 - taper * front_part**2)
    half_y = np.where(canvas.y < 0, front + 0.5 * grow, back + 1.3 * grow)
    p = tissue.phases
    angle = np.arctan2(canvas.y, canvas.x)
    bumps = 1.0 + 0.012 * np.sin(3 * angle + p[0]) + 0.010 * np.sin(5 * angle + p[1])
    ratio = ((np.abs(canvas.x) / half_x) ** 2.3 + (np.abs(canvas.y) / half_y) ** 2.3) ** np.float32(
        1 / 2.3
    ) * bumps
    return np.asarray((ratio - 1.0) * np.minimum(half_x, half_y), np.float32)


# (x, y, half x, half y, angle) at the given levels; one of each pair, mirrored.
_MUSCLES: dict[str, tuple[tuple[float, ...], tuple[tuple[float, ...], ...]]] = {
    "longus": ((1, 4, 7), ((9, -13, 6, 3, 20), (7, -11.5, 6.5, 3.2, 15), (9, -11.5, 6, 3, 25))),
    "sternomastoid": (
        (0, 2, 4, 7),
        ((54, 12, 8, 13, 10), (48, -2, 8, 15, 25), (41, -17, 8, 15, 40), (24, -36, 15, 6, -15)),
    ),
    "scalenes": ((3, 5, 7), ((26, -1, 5, 5, 30), (27, 1, 7, 9, 30), (31, -1, 9, 12, 40))),
    "levator": (
        (1, 3, 5, 7),
        ((33, 14, 7, 9, 20), (34, 15, 8, 11, 25), (35, 18, 8, 12, 30), (37, 22, 8, 13, 30)),
    ),
    "multifidus": ((1, 3, 7), ((11, 37, 8, 7, 30), (10.5, 32, 8, 7, 35), (12, 33, 9, 8, 35))),
    "semispinalis": ((0, 3, 7), ((15, 53, 12, 8, 10), (14, 43, 11, 5.5, 15), (15, 45, 12, 5.5, 15))),
    "splenius": ((0, 3, 7), ((35, 43, 13, 6, -35), (29, 38, 14, 6, -30), (28, 44, 15, 5, -25))),
    "trapezius": (
        (1, 3, 5, 7),
        ((15, 62, 14, 3, -5), (18, 51, 20, 3.5, -18), (24, 51, 26, 4.5, -25), (38, 50, 42, 7, -22)),
    ),
}


def _paint_muscles(canvas: Canvas, tissue: SoftTissue, level: float, fascia: Field, grain: Field) -> None:
    """Muscles fill what is inside the fascia; where two meet, a thin seam of fat stays."""
    x, y, p = np.abs(canvas.x) / tissue.size, canvas.y / tissue.size, tissue.phases
    x = x + 0.9 * np.sin(y / 5.5 + p[2]) + 0.5 * np.sin(y / 2.3 + p[3])
    y = y + 0.9 * np.sin(x / 6.5 + p[4]) + 0.5 * np.sin(x / 2.6 + p[5])
    nearest = np.full_like(x, 1e3)
    second = nearest
    for levels, shapes in _MUSCLES.values():
        column = [float(np.interp(level, levels, [shape[i] for shape in shapes])) for i in range(5)]
        if level < levels[0] - 0.8:
            continue
        distance = ellipse(x, y, (column[0], column[1]), (column[2], column[3]), column[4])
        second = np.minimum(second, np.maximum(nearest, distance))
        nearest = np.minimum(nearest, distance)
    seam = 0.45 - 0.5 * (second - nearest)
    body = np.maximum(np.maximum(nearest - 2.6, seam), fascia + 1.0)
    canvas.paint(np.asarray(body * tissue.size, np.float32), MUSCLE_HU + 11 * grain)


def _paint_front(canvas: Canvas, tissue: SoftTissue, level: float, fascia: Field, grain: Field) -> None:
    """What lies in front of the spine: pharynx wall, thyroid, oesophagus, strap muscles; tongue and glands above."""
    x, y = canvas.x / tissue.size, canvas.y / tissue.size
    if level < 4.0:
        gland = np.maximum(ellipse(np.abs(x), y, (38, -33), (8.5, 12)), fascia + 2)
        canvas.paint(gland, at_level(level, ((0, 1.4, 2, 3), (-25, -15, 35, 38))))
    if level < 3.4:
        centre = at_level(level, ((0, 2, 3), (-52, -52, -44)))
        tongue = np.maximum(ellipse(x, y, (0, centre), (25, 28)), fascia + 3)
        canvas.paint(tongue, MUSCLE_HU + 14 * grain)
        canvas.paint(np.maximum(ellipse(x, y, (0, -19), (26, 9)), fascia), MUSCLE_HU - 5 + 6 * grain)
    else:
        front = at_level(level, ((3.4, 5, 7), (-30, -28, -28)))
        sheath = np.maximum(ellipse(x, y, (0, front), (17.5, 15.5)), fascia + 2)
        canvas.paint(sheath, MUSCLE_HU - 6 + 9 * grain)
    if level > 5.3:
        for side in (-1.0, 1.0):
            half = (7.5, at_level(level, ((5.3, 6.3, 7.6), (5, 11, 4))))
            canvas.paint(ellipse(x, y, (side * 15.5, -27), half, side * 15), 105 + 0.4 * tissue.contrast_hu)
    if level > 5.6:
        canvas.paint(ellipse(x, y, (3.5, -15.5), (6.5, 4.0)), 42.0)
        canvas.paint(ellipse(x, y, (3.5, -15.5), (2.4, 0.8)), -350.0)


def _paint_vessels(canvas: Canvas, tissue: SoftTissue, level: float) -> None:
    size, blood = tissue.size, BLOOD_HU + tissue.contrast_hu
    for side in (-1.0, 1.0):
        carotid = at_level(level, ((0, 3, 7), (26, 25, 21))), at_level(level, ((0, 3, 7), (-14, -17, -24)))
        canvas.paint_ellipse((side * carotid[0] * size, carotid[1] * size), (4.2, 4.2), FAT_HU + 25)
        canvas.paint_ellipse((side * carotid[0] * size, carotid[1] * size), (3.2, 3.2), blood)
        wide = 5.6 if side > 0 else 6.6
        jugular = (side * (carotid[0] + 8.5) * size, (carotid[1] + 4) * size)
        canvas.paint_ellipse(jugular, (wide + 0.9, 4.9), FAT_HU + 25, side * 20)
        canvas.paint_ellipse(jugular, (wide, 4.2), BLOOD_HU + 0.6 * tissue.contrast_hu, side * 20)


def _horseshoe(
    canvas: Canvas, size: float, centre_y: float, half: tuple[float, float], cut_y: float, thick: float
) -> Field:
    """A U open backwards: jaw, hyoid, cricoid and tracheal rings."""
    ring = np.abs(ellipse(canvas.x / size, canvas.y / size, (0.0, centre_y), half))
    beyond = np.maximum(canvas.y / size - cut_y + thick, 0.0)
    return np.asarray((np.hypot(ring, beyond) - thick) * size, np.float32)


def _paint_bone(canvas: Canvas, distance: Field, inside_hu: float, shell_mm: float = 1.6) -> None:
    canvas.paint(distance, 1250.0)
    canvas.paint(distance + shell_mm, inside_hu)


def _paint_jaw(canvas: Canvas, tissue: SoftTissue, level: float) -> None:
    """Mandible: two rami beside the spine above, the arch with its teeth below, then only the chin."""
    size = tissue.size
    x, y = np.abs(canvas.x) / size, canvas.y / size
    if level < 1.7:
        masseter = ellipse(x, y, (53, -38), (6.5, 16), -8)
        canvas.paint(masseter, MUSCLE_HU)
        canvas.paint(ellipse(x, y, (37, -38), (7, 14), -5), MUSCLE_HU - 5)
        _paint_bone(canvas, ellipse(x, y, (46, -36 + 4 * level), (3.6, 14 - 2 * level), -8), 420)
        _paint_bone(canvas, ellipse(x, y, (31, -8), (2.3, 2.3)), 700, 1.2)
    if level < 2.9:
        cut = at_level(level, ((0.6, 1.7, 2.2, 2.9), (-58, -34, -38, -62)))
        thick = at_level(level, ((0, 1, 2, 2.9), (5.0, 5.5, 5.2, 3.5)))
        arch = _horseshoe(canvas, size, -30.0, (42.0, 48.0), cut, thick)
        if level > 0.7:
            _paint_bone(canvas, arch, 380)
        if tissue.teeth and level < 1.9:
            angle = np.arctan2(canvas.x, -(y + 30.0) * size)
            tooth = np.maximum(
                _horseshoe(canvas, size, -30.0, (42.0, 48.0), -45, 3.9),
                0.5 - 2.6 * np.abs(np.sin(9.5 * angle)),
            )
            canvas.paint(np.asarray(tooth, np.float32), 1900.0)


def _paint_airway(canvas: Canvas, tissue: SoftTissue, level: float) -> None:
    size, wide = tissue.size, tissue.airway
    x, y = canvas.x / size, canvas.y / size
    if level < 3.6:
        half = (
            at_level(level, ((0, 1.5, 2.5, 3.6), (14, 12, 13, 11))) * wide,
            at_level(level, ((0, 2, 3.6), (5.5, 5.0, 7.0))),
        )
        centre = at_level(level, ((0, 2, 3.6), (-24.5, -23.0, -25.0)))
        canvas.paint(ellipse(x, y, (0.0, centre), half), AIR_HU)
        if level > 2.7:
            _paint_bone(canvas, _horseshoe(canvas, size, -28.0, (19.0, 18.0), -26.0, 1.9), 450, 1.0)
            canvas.paint(ellipse(x, y, (0.0, centre - 2), (1.4 + half[0] * 0.45, 1.1)), 40.0)
    elif level < 5.4:
        plate = np.abs(np.abs(x) * 0.72 - (y + 42.0) * 0.55) - 1.6
        plate = np.maximum(np.maximum(plate, y + 18.0), np.abs(x) - 18.0)
        grain = texture(canvas.x, canvas.y, level * 8, tissue.offset, 3.0)
        canvas.paint(np.asarray(plate * size, np.float32), 110 + tissue.calcified * (330 + 330 * grain))
        half = (
            at_level(level, ((3.6, 4.6, 5.4), (9, 3.0, 7.5))) * wide,
            at_level(level, ((3.6, 5.4), (9, 9.5))),
        )
        canvas.paint(ellipse(x, y, (0.0, -29.0), half), AIR_HU)
    else:
        ring = np.abs(ellipse(x, y, (0.0, -28.5), (9.6 * wide, 9.6))) - (2.0 if level < 5.9 else 1.1)
        ring = ring if level < 5.9 else np.maximum(ring, y + 22.5)
        canvas.paint(np.asarray(ring * size, np.float32), 90 + 300 * tissue.calcified)
        canvas.paint(ellipse(x, y, (0.0, -28.5), (8.6 * wide, 8.6)), AIR_HU)
