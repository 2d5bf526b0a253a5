"""Signed distances: the few shapes that everything in the phantom is made of.

Negative inside, positive outside, zero on the surface, in the unit of the coordinates (mm, or mm of a neck of
size 1). All functions take and give arrays of one shape.
"""

from __future__ import annotations

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
