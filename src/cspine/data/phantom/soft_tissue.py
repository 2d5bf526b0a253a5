"""Everything in the neck that is not a vertebra, painted in layers onto one axial plane.

Coordinates are the neck's, relative to the spine at that height: x to the left, y backwards from the middle of the
vertebral bodies. Positions and sizes are given at a few levels (0 the skull base, 1..7 the middle of C1..C7, 8 T1) and
interpolated.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cspine.data.phantom.geometry import Field, Point, coverage, ellipse, texture

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
