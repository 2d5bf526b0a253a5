"""What a slice is found by: a small picture of it, and how its detail is spread over rings around its middle.

    pixels ──shrink──▶ picture (224 px at most) ──detail──▶ log-polar rings ──Fourier over the angle──▶ spectrum

A turn moves a ring's values along it and a flip reverses them: both leave the magnitudes of its Fourier coefficients
alone, so those are the keys by which copies are looked up. A zoom moves all rings outwards: the keys of a zoomed copy
are those of the slice, read some rings further in. The phases are kept for `alignment`, which finds turn and flip from
them. The detail is divided by its own local contrast first, so that brightness, contrast, gamma and equalisation
change little.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

PICTURE_PX = 224
RINGS = 24
RINGS_PER_OCTAVE = 8
FREQUENCIES = 48
KEY_FREQUENCIES = 32
# A rotated square that is cropped to its inside, or kept whole in a larger frame, is zoomed by 2**0.5 at most.
MAX_ZOOM_RINGS = RINGS_PER_OCTAVE // 2

_POLAR_PX = 128
_ANGLES = 256
_OUTER_RADIUS = 0.95
_CLIP = 3.0
# Grey levels (root mean square) below which a picture has nothing to be known by.
_FAINTEST_DETAIL = 0.2

RADII = _OUTER_RADIUS * 2.0 ** (
    -np.arange(RINGS)[::-1] / RINGS_PER_OCTAVE
)  # of half the side, inner ring first


@dataclass(frozen=True, eq=False)
class Signature:
    """What is kept of one slice.

    Attributes:
        picture: (n, n) uint8, n at most `PICTURE_PX`; what is not square is padded with black.
        spectrum: (RINGS, FREQUENCIES) complex64, the lowest Fourier coefficients of each ring, from 0 on.
        blank: There is no detail to know the slice by.
    """

    picture: npt.NDArray[np.uint8]
    spectrum: npt.NDArray[np.complex64]
    blank: bool


def make_signature(pixels: npt.NDArray[np.uint8]) -> Signature:
    """Signature the display values (H, W) uint8 of a slice."""
    picture = shrink(pixels, min(PICTURE_PX, max(pixels.shape)))
    small = shrink(picture, _POLAR_PX)
    detail = compute_detail(small)
    rings = cv2.remap(detail, *_POLAR_MAP, interpolation=cv2.INTER_LINEAR)
    # The outer rings cover more of the slice, so they weigh more.
    spectrum = np.fft.rfft(rings * RADII[:, None], axis=1)[:, :FREQUENCIES].astype(np.complex64)
    spectrum[:, 0] = 0
    blank = float(small.std()) < _FAINTEST_DETAIL or not spectrum.any()
    return Signature(picture, spectrum, blank)


def compute_magnitudes(spectrum: npt.NDArray[np.complex64]) -> npt.NDArray[np.float16]:
    """What turn and flip leave of a spectrum: (RINGS, 32) float16, root magnitudes without the mean."""
    return np.sqrt(np.abs(spectrum[:, 1 : KEY_FREQUENCIES + 1])).astype(np.float16)


def compute_keys(magnitudes: npt.NDArray[np.float16], zoom_rings: int = 0) -> npt.NDArray[np.float32]:
    """Unit vectors to look slices up by.

    Args:
        magnitudes: (N, RINGS, 32) of `compute_magnitudes`.
        zoom_rings: 0..MAX_ZOOM_RINGS. The keys as they would be, had the slices been magnified by
            2**(zoom_rings / RINGS_PER_OCTAVE).

    Returns:
        (N, D) float32, comparable over all zooms.
    """
    last = RINGS - zoom_rings
    keys = magnitudes[:, MAX_ZOOM_RINGS - zoom_rings : last].reshape(len(magnitudes), -1).astype(np.float32)
    lengths = np.linalg.norm(keys, axis=1, keepdims=True)
    return np.asarray(keys / np.maximum(lengths, 1e-6), np.float32)


def shrink(pixels: npt.NDArray[np.uint8], size_px: int) -> npt.NDArray[np.uint8]:
    """A square of `size_px` a side that holds the whole slice in its middle, padded with black."""
    height, width = pixels.shape
    if height == width == size_px:
        return pixels
    scale = size_px / max(height, width)
    new_height, new_width = max(1, round(height * scale)), max(1, round(width * scale))
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    small = cv2.resize(pixels, (new_width, new_height), interpolation=method)
    top, left = (size_px - new_height) // 2, (size_px - new_width) // 2
    square = np.zeros((size_px, size_px), np.uint8)
    square[top : top + new_height, left : left + new_width] = small
    return square


def compute_detail(picture: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Edges and structures of 1 to 3 px, divided by their local strength: (n, n) float32, -3..3."""
    values = picture.astype(np.float32)
    detail = blur(values, 1.0) - blur(values, 3.0)
    strength = np.sqrt(blur(detail * detail, 6.0)) + 2  # 2 grey levels: not to blow up rounding in air
    return np.asarray(np.clip(detail / strength, -_CLIP, _CLIP), np.float32)


def blur(values: npt.NDArray[np.float32], sigma_px: float) -> npt.NDArray[np.float32]:
    """Gaussian blur."""
    return np.asarray(cv2.GaussianBlur(values, (0, 0), sigma_px), np.float32)


def _make_polar_map() -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    angles = np.arange(_ANGLES) * (2 * np.pi / _ANGLES)
    middle, radii = (_POLAR_PX - 1) / 2, RADII[:, None] * (_POLAR_PX / 2)
    x, y = middle + radii * np.cos(angles), middle + radii * np.sin(angles)
    return x.astype(np.float32), y.astype(np.float32)


_POLAR_MAP = _make_polar_map()
