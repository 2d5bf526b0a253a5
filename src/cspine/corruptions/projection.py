"""Parallel-beam projections of a slice, and filtered backprojection of what goes wrong in them.

A corruption of the projections is computed as a difference: what the detector would have seen less what it should have
seen. Filtered backprojection is linear, so its image is the artefact, which is added to the slice as it is stored
(as noise is in Yu et al. 2012, J Comput Assist Tomogr 36:477). Nothing else of the slice changes: no difference, no
change, whatever the method's own errors.

Lengths are in pixels of the projection grid and attenuation is relative to water (1; air 0), until `Projections.scale`
(attenuation of one grid pixel of water) makes a line integral of them. The filter is Kak and Slaney's ("Principles of
Computerized Tomographic Imaging" 1988, eq. 3.61): the ramp up to the Nyquist frequency, as a sharp kernel has it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
import numpy.typing as npt
from scipy import fft

from cspine.corruptions.scene import AIR_HU, Field, Scene

GRID_PX = 192
"""Longest side of the projection grid: at a field of view of 180 mm 0.9 mm, about the pitch of a CT detector."""

WATER_PER_MM = 0.0193
"""Linear attenuation of water at 70 keV, the mean of a 120 kV beam behind a neck (NIST, Hubbell and Seltzer)."""

_WIDEN = 1.44  # the square's diagonal and a rim in which the body fades out


@dataclass(frozen=True)
class Projections:
    """The projections of one slice.

    Attributes:
        image: (bins, bins) float32 relative attenuation: the slice on its grid, in a disc of what is beyond its edge.
        sinogram: (views, bins) float32 line integrals in grid pixels of water; view v is at the angle v / views * pi.
        grid_px: (height, width) of the slice on the grid.
        pixel_mm: Side of a grid pixel.
    """

    image: Field
    sinogram: Field
    grid_px: tuple[int, int]
    pixel_mm: float

    @property
    def scale(self) -> float:
        """Attenuation of one grid pixel of water: sinogram * scale is -log of what is transmitted."""
        return WATER_PER_MM * self.pixel_mm

    @property
    def angles(self) -> Field:
        """(views,) radians; 0 is the view whose rays run from top to bottom."""
        return find_angles(len(self.sinogram))


def find_angles(views: int) -> Field:
    """(views,) radians over half a turn."""
    return np.asarray(np.arange(views) * (np.pi / views), np.float32)


def project_scene(scene: Scene) -> Projections:
    """Projections of a slice; the body beyond the picture's edge goes on for a little and fades into air."""
    height, width = scene.size_px
    shrink = min(1.0, GRID_PX / max(height, width))
    grid_px = (max(1, round(height * shrink)), max(1, round(width * shrink)))
    hu = np.where(scene.hu <= scene.black_hu, AIR_HU, np.maximum(scene.hu, AIR_HU)).astype(np.float32)
    if shrink < 1:
        hu = np.asarray(cv2.resize(hu, grid_px[::-1], interpolation=cv2.INTER_AREA), np.float32)
    image = _surround(np.asarray(1 + hu / 1000, np.float32))
    return Projections(image, project(image), grid_px, scene.pixel_mm / shrink)


def _surround(attenuation: Field) -> Field:
    """Put a slice into a larger square: edge pixels go on outwards and fade to nothing towards the inscribed circle."""
    height, width = attenuation.shape
    bins = int(np.ceil(max(height, width) * _WIDEN)) + 4
    top, left = (bins - height) // 2, (bins - width) // 2
    wide = cv2.copyMakeBorder(
        attenuation, top, bins - height - top, left, bins - width - left, cv2.BORDER_REPLICATE
    )
    axis = np.arange(bins, dtype=np.float32)
    beyond = np.hypot(
        np.maximum(np.maximum(top - axis, axis - (top + height - 1)), 0)[:, None],
        np.maximum(np.maximum(left - axis, axis - (left + width - 1)), 0)[None, :],
    )
    rim = max(2.0, 0.2 * max(height, width))
    fade = 0.5 * (1 + np.cos(np.pi * np.minimum(beyond / rim, 1)))
    middle = (bins - 1) / 2
    inside = np.hypot(axis[:, None] - middle, axis[None, :] - middle) < middle - 1
    return np.asarray(wide * fade * inside, np.float32)


def project(image: Field) -> Field:
    """Sums of a (bins, bins) image along parallel rays: (views, bins), as many views as bins, and an even number.

    A quarter turn swaps rows and columns, so each turned image gives two views.
    """
    bins = len(image)
    half = (bins + 1) // 2
    sinogram = np.empty((2 * half, bins), np.float32)
    for view, angle in enumerate(find_angles(2 * half)[:half]):
        turned = cv2.warpAffine(image, _turn(float(angle), image.shape, bins), (bins, bins), flags=_LINEAR)
        sinogram[view] = turned.sum(axis=0)
        sinogram[view + half] = turned.sum(axis=1)
    return sinogram


def backproject(rows: Field, size_px: tuple[int, int]) -> Field:
    """Smear filtered rows (views, bins) over an image of (height, width) about the same centre."""
    views, bins = rows.shape
    half = views // 2
    height, width = size_px
    image = np.zeros(size_px, np.float32)
    for view, angle in enumerate(find_angles(views)[:half]):
        crossed = rows[view][np.newaxis, :] + rows[view + half][:, np.newaxis]
        # The other way round: from a pixel of the slice to where its two rays end.
        back = cv2.invertAffineTransform(_turn(float(angle), size_px, bins))
        image += cv2.warpAffine(crossed, back, (width, height), flags=_LINEAR)
    return image * np.float32(np.pi / views)


_LINEAR = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP


def _turn(angle: float, size_px: tuple[int, ...], bins: int) -> npt.NDArray[np.float64]:
    """(2, 3): from the place (ray, depth) in a turned square to (x, y) in an image, centre to centre."""
    cos, sin = np.cos(angle), np.sin(angle)
    middle = (bins - 1) / 2
    x, y = (size_px[1] - 1) / 2, (size_px[0] - 1) / 2
    return np.array([[cos, -sin, x - (cos - sin) * middle], [sin, cos, y - (sin + cos) * middle]])


@lru_cache(maxsize=16)
def make_ramp(bins: int) -> Field:
    """Spatial ramp filter at -(bins - 1) .. bins - 1, in pixels."""
    place = np.arange(-(bins - 1), bins)
    odd = place % 2 == 1
    kernel = np.zeros(place.shape)
    kernel[place == 0] = 0.25
    kernel[odd] = -1 / (np.pi * place[odd]) ** 2
    return np.asarray(kernel, np.float32)


def filter_rows(rows: Field) -> Field:
    """Convolve each row with the ramp."""
    bins = rows.shape[-1]
    length = fft.next_fast_len(3 * bins, real=True)
    spectrum = fft.rfft(rows, length, axis=-1) * fft.rfft(make_ramp(bins), length)
    return np.asarray(fft.irfft(spectrum, length, axis=-1)[..., bins - 1 : 2 * bins - 1], np.float32)


def reconstruct_hu(difference: Field, projections: Projections, scene: Scene) -> Field:
    """What a difference of the sinogram (grid pixels of water) looks like in the slice: (H, W) HU."""
    artefact = 1000 * backproject(filter_rows(difference), projections.grid_px)
    if artefact.shape == scene.size_px:
        return artefact
    height, width = scene.size_px
    return np.asarray(cv2.resize(artefact, (width, height), interpolation=cv2.INTER_CUBIC), np.float32)
