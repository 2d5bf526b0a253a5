"""What a slice is found by: a small picture of it, and how its detail is spread over rings around its middle.

    pixels ──shrink──▶ picture (224 px at most) ──detail──▶ log-polar rings ──Fourier over the angle──▶ spectrum

A turn moves a ring's values along it and a flip reverses them: both leave the magnitudes of its Fourier coefficients
alone, so those are the keys by which copies are looked up. A zoom moves all rings outwards: the keys of a zoomed copy
are those of the slice, read some rings further in. The phases are kept for `alignment`, which finds turn and flip from
them. The detail is divided by its own local contrast first, so that brightness, contrast, gamma and equalisation
change little.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from cspine.core.files import explain_os_error

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


# How one picture lies on another: turn, flip, zoom and shift.
#
# Turn, flip and zoom come from the spectra of `signatures`: a correlation over the angle, for both flips and a few
# shifts of the rings. Gauss-Newton steps on the pixels then refine all of it, with six parameters, so that a
# stretched
# copy fits too.


_ALIGNMENT_ANGLES = 512
_STEPS = 8
_SMALL_STEP_PX = 0.02
# Part of the pixels that takes part: those with the steepest detail hold nearly all that says where things are.
_STEEPEST = 0.15
_ROBUST = 0.5
# The disk that all pictures share whatever their turn; the rim of a round field of view lies outside it.
DISK_RADIUS = 0.93

Pixels = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Transform:
    """What turns the first picture into the second, about the middle.

    Attributes:
        rotation_deg: -180..180, as seen, counter-clockwise.
        flipped: Mirrored left to right, before the turn.
        zoom: Above 1 where the second shows things larger.
        shift: (x, y) of the middle, in parts of the side.
    """

    rotation_deg: float
    flipped: bool
    zoom: float
    shift: tuple[float, float]


@dataclass(frozen=True, eq=False)
class Placement:
    """Where the pixels of the first picture lie in the second: `matrix` @ offset from the middle + `shift_px`.

    Attributes:
        matrix: (2, 2).
        shift_px: (2,).
    """

    matrix: npt.NDArray[np.float64]
    shift_px: npt.NDArray[np.float64]

    def describe(self, size_px: int) -> Transform:
        """In the words of a reader, for pictures of `size_px` a side."""
        determinant = float(np.linalg.det(self.matrix))
        flipped = determinant < 0
        turn = self.matrix @ np.diag([-1.0, 1.0]) if flipped else self.matrix
        # y points down, so a turn that is counter-clockwise as seen has a negative angle in these axes.
        angle = -np.degrees(np.arctan2(turn[1, 0] - turn[0, 1], turn[0, 0] + turn[1, 1]))
        x, y = (float(value) / size_px for value in self.shift_px)
        return Transform(
            round(float(angle), 2), flipped, round(abs(determinant) ** 0.5, 4), (round(x, 4), round(y, 4))
        )


@dataclass(frozen=True)
class Guess:
    """A placement about the middle, from the spectra alone; `zoom_rings` 0 is the same scale."""

    angle_deg: float
    flipped: bool
    zoom_rings: int
    correlation: float

    @property
    def placement(self) -> Placement:
        """The guess as a placement without shift."""
        angle = np.radians(self.angle_deg)
        cos, sin = np.cos(angle), np.sin(angle)
        zoom = 2.0 ** (self.zoom_rings / RINGS_PER_OCTAVE)
        matrix = np.array([[cos, -sin], [sin, cos]]) * zoom
        return Placement(matrix @ np.diag([1.0, -1.0]) if self.flipped else matrix, np.zeros(2))


def guess_placement(
    first: npt.NDArray[np.complex64], second: npt.NDArray[np.complex64], *, zoom: bool
) -> Guess:
    """The turn and flip (and zoom, up to MAX_ZOOM_RINGS either way) at which two spectra agree best."""
    shifts = range(-MAX_ZOOM_RINGS, MAX_ZOOM_RINGS + 1) if zoom else (0,)
    energies = [(spectrum.real**2 + spectrum.imag**2).sum(axis=1) for spectrum in (first, second)]
    products, scales = [], []
    for shift in shifts:
        rings = slice(max(0, -shift), RINGS - max(0, shift))
        others = slice(rings.start + shift, rings.stop + shift)
        products += [
            np.einsum("rf,rf->f", one, second[others]) for one in (first[rings].conj(), first[rings])
        ]
        scales += [energies[0][rings].sum() * energies[1][others].sum()] * 2
    # The coefficient 0 is 0, and each of the others stands for two: hence the half.
    curves = np.fft.irfft(np.stack(products), _ALIGNMENT_ANGLES, axis=1)
    curves *= (_ALIGNMENT_ANGLES / 2) / (np.sqrt(scales)[:, None] + 1e-9)
    row, peak = divmod(int(curves.argmax()), _ALIGNMENT_ANGLES)
    angle_deg = _refine_peak(curves[row], peak) * 360 / _ALIGNMENT_ANGLES
    return Guess(angle_deg, bool(row % 2), shifts[row // 2], float(curves[row, peak]))


def _refine_peak(curve: npt.NDArray[np.floating], peak: int) -> float:
    """The place of a peak between the samples of a periodic curve, by a parabola through three of them."""
    left, middle, right = (float(curve[(peak + step) % len(curve)]) for step in (-1, 0, 1))
    bend = left - 2 * middle + right
    return peak + ((left - right) / (2 * bend) if bend < 0 else 0.0)


class Template:
    """A picture that others are laid on: its steep pixels and how they change when it moves."""

    def __init__(self, picture: npt.NDArray[np.uint8]) -> None:
        size_px = picture.shape[0]
        self.picture = picture
        self._size_px = size_px
        detail = compute_detail(picture)
        slope_x = cv2.Sobel(detail, cv2.CV_32F, 1, 0, scale=1 / 8)
        slope_y = cv2.Sobel(detail, cv2.CV_32F, 0, 1, scale=1 / 8)
        steepness = (slope_x**2 + slope_y**2) * get_disk(size_px)
        # A sample tells where the steepest part begins, at a fraction of the time of a sort.
        limit = np.quantile(steepness[::3, ::3], 1 - _STEEPEST)
        chosen = np.flatnonzero(steepness > limit)
        y, x = np.divmod(chosen, size_px)
        middle, half = (size_px - 1) / 2, size_px / 2
        self._x, self._y = (x - middle).astype(np.float32), (y - middle).astype(np.float32)
        self._values = detail.ravel()[chosen]
        in_x, in_y = slope_x.ravel()[chosen], slope_y.ravel()[chosen]
        # In units of half the side, so that all six parameters are pixels at the rim.
        u, v = self._x / half, self._y / half
        self._slopes = np.stack([in_x * u, in_x * v, in_x, in_y * u, in_y * v, in_y], axis=1)

    def refine(self, other_detail: Pixels, start: Placement) -> Placement:
        """Move a placement to where the detail of another picture of the same size fits best."""
        matrix, shift = start.matrix, start.shift_px
        middle, half, limit = (self._size_px - 1) / 2, self._size_px / 2, self._size_px - 1
        for _ in range(_STEPS):
            x = (matrix[0, 0] * self._x + matrix[0, 1] * self._y + (shift[0] + middle)).astype(np.float32)
            y = (matrix[1, 0] * self._x + matrix[1, 1] * self._y + (shift[1] + middle)).astype(np.float32)
            seen = cv2.remap(other_detail, x[None], y[None], cv2.INTER_LINEAR)[0]
            inside = (x > 0) & (x < limit) & (y > 0) & (y < limit)
            residual = seen - self._values
            weights = inside / np.maximum(1, np.abs(residual) / _ROBUST)
            weighted = self._slopes * weights[:, None].astype(np.float32)
            step = np.linalg.solve(weighted.T @ self._slopes + 1e-3 * np.eye(6), weighted.T @ residual)
            inverse = np.linalg.inv(np.eye(2) + step[[0, 1, 3, 4]].reshape(2, 2) / half)
            matrix = matrix @ inverse
            shift = shift - matrix @ step[[2, 5]]
            if np.abs(step).max() < _SMALL_STEP_PX:
                break
        return Placement(matrix, shift)


def warp(picture: npt.NDArray[np.uint8], placement: Placement) -> tuple[Pixels, npt.NDArray[np.bool_]]:
    """A picture laid under the first one, and which of its pixels are inside the picture."""
    size_px = picture.shape[0]
    middle = np.full(2, (size_px - 1) / 2)
    offset = middle + placement.shift_px - placement.matrix @ middle
    matrix = np.column_stack([placement.matrix, offset])
    size = (size_px, size_px)
    flags = cv2.WARP_INVERSE_MAP
    moved = cv2.warpAffine(picture.astype(np.float32), matrix, size, flags=flags | cv2.INTER_CUBIC)
    inside = cv2.warpAffine(np.ones(size, np.uint8), matrix, size, flags=flags | cv2.INTER_NEAREST)
    # What is near the edge has been mixed with the black outside.
    return np.asarray(moved, np.float32), cv2.erode(inside, np.ones((9, 9), np.uint8), borderValue=0) > 0


@lru_cache(maxsize=16)
def get_disk(size_px: int) -> npt.NDArray[np.bool_]:
    """The disk of `DISK_RADIUS` in a square."""
    offsets = np.arange(size_px) - (size_px - 1) / 2
    return np.asarray(np.hypot(offsets[:, None], offsets) < DISK_RADIUS * size_px / 2)


# Signatures of many slices in a temporary file, so that memory does not grow with their pixels.


_SPECTRUM_BYTES = RINGS * FREQUENCIES * np.dtype(np.complex64).itemsize


class SignatureStore:
    """Write signatures one after the other, then read them by number. The file goes when the store is closed.

    Args:
        largest_px: Side of the largest picture to come; every slice takes `largest_px`**2 + 9,216 bytes.
        folder: Where the file lies; None is the system's folder for temporary files.
    """

    def __init__(self, largest_px: int, folder: Path | None = None) -> None:
        self._folder = folder or Path(tempfile.gettempdir())
        self._slot_bytes = largest_px**2
        self._sides_px: list[int] = []
        try:
            self._file = tempfile.TemporaryFile(prefix="cspine-copies-", dir=folder)  # noqa: SIM115
        except OSError as error:
            raise explain_os_error(error, self._folder) from error

    def __enter__(self) -> SignatureStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def __len__(self) -> int:
        return len(self._sides_px)

    def append(self, signature: Signature) -> None:
        """Add one at the end.

        Raises:
            OutputError: the disk is full.
        """
        picture = signature.picture
        padding = bytes(self._slot_bytes - picture.size)
        try:
            self._file.write(signature.spectrum.tobytes() + picture.tobytes() + padding)
        except OSError as error:
            raise explain_os_error(error, self._folder) from error
        self._sides_px.append(picture.shape[0])

    def open_map(self) -> SignatureMap:
        """Read access to all that has been written; nothing may be appended any more."""
        try:
            self._file.flush()
        except OSError as error:
            raise explain_os_error(error, self._folder) from error
        shape = (len(self), _SPECTRUM_BYTES + self._slot_bytes)
        return SignatureMap(np.memmap(self._file, np.uint8, "r", shape=shape), self._sides_px)


class SignatureMap:
    """Pictures and spectra by number; threads may read at the same time."""

    def __init__(self, data: npt.NDArray[np.uint8], sides_px: list[int]) -> None:
        self._data = data
        self._sides_px = sides_px

    def read_spectrum(self, number: int) -> npt.NDArray[np.complex64]:
        """(RINGS, FREQUENCIES) complex64."""
        values = np.frombuffer(self._data[number, :_SPECTRUM_BYTES].tobytes(), np.complex64)
        return values.reshape(RINGS, FREQUENCIES)

    def read_picture(self, number: int) -> npt.NDArray[np.uint8]:
        """(n, n) uint8."""
        side_px = self._sides_px[number]
        values = self._data[number, _SPECTRUM_BYTES : _SPECTRUM_BYTES + side_px**2]
        return np.array(values).reshape(side_px, side_px)


# Whether two slices are copies: do they share the noise?
#
# The anatomy of neighbouring slices is nearly the same, and so are all their edges. Noise is not: every slice has its
# own, and a copy has that of its source, turned and smoothed as it may be. So what is compared is the finest detail,
# where the picture is otherwise flat, after one picture was laid on the other and both were made equally smooth.
#
# Where pictures are smooth or small, little noise is left and fine detail is anatomy: then much more agreement is
# asked
# for. The limits were set on series B12 of the Kaggle set and on phantoms (docs/log.md).


_FINE_PX = (0.5, 1.0, 2.0)  # widths of three blurs; their differences are the fine and the middle band
_FLAT_PART = 0.4
_FAINTEST = 0.25  # grey levels; below it there is rounding only
_LEAST_PART = 0.01  # of all pixels, that must be flat and not empty
_CORRELATION_CLIP = 2.0
_BLURS_PX, _BLUR_STEPS = (0.25, 2.4), 4  # the widths that are searched, halved at each step
_EQUAL_ROUGHNESS = 0.1  # in ln
# Agreement that a copy needs, by the roughness of the smoother picture, and what is added for small pictures.
_ROUGHNESS, _NEEDED = (0.33, 0.4, 0.55, 0.7, 0.95), (0.92, 0.87, 0.76, 0.69, 0.65)
_SIZES_PX, _ADDED = (96, 128, 224), (0.32, 0.22, 0.0)
_MOST_NEEDED = 0.97


@dataclass(frozen=True)
class Match:
    """How well two slices agree.

    Attributes:
        correlation: Of their fine detail in flat places, -1..1.
        needed: What it has to reach for the two to count as copies: 0.65 for noisy pictures of full size, up to 0.97
            for smooth or small ones.
        transform: From the first to the second.
    """

    correlation: float
    needed: float
    transform: Transform

    @property
    def is_copy(self) -> bool:
        """The two are copies."""
        return self.correlation >= self.needed


@dataclass(frozen=True, eq=False)
class _Bands:
    """Detail of 0.5 to 1 px, its local root mean square, and detail of 1 to 2 px; (n, n) float32 each."""

    fine: Pixels
    strength: Pixels
    middle: Pixels


def match_pictures(first: npt.NDArray[np.uint8], second: npt.NDArray[np.uint8], guess: Guess) -> Match:
    """Lay the second picture on the first, starting from a guess, and compare their fine detail.

    Args:
        first, second: (n, n) uint8 each; where the sizes differ, the larger one is made as small as the other.
        guess: From their spectra.
    """
    size_px = min(first.shape[0], second.shape[0])
    first, second = shrink(first, size_px), shrink(second, size_px)
    placement = Template(first).refine(compute_detail(second), guess.placement)
    moved, inside = warp(second, placement)
    correlation, roughness = _compare(first.astype(np.float32), moved, inside & get_disk(size_px), size_px)
    needed = _compute_needed(roughness, size_px)
    return Match(round(correlation, 4), round(needed, 4), placement.describe(size_px))


def _compute_needed(roughness: float, size_px: int) -> float:
    needed = np.interp(roughness, _ROUGHNESS, _NEEDED) + np.interp(size_px, _SIZES_PX, _ADDED)
    return float(min(needed, _MOST_NEEDED))


def _compare(
    first: Pixels, second: Pixels, inside: npt.NDArray[np.bool_], size_px: int
) -> tuple[float, float]:
    """(correlation, roughness of the smoother one) of pictures that lie on each other."""
    one, other = _split_bands(first), _split_bands(second)
    flat = _find_flat(one, other, inside)
    if flat is None:
        return 0.0, 0.0
    rough_one, rough_other = _compute_roughness(one, flat), _compute_roughness(other, flat)
    roughness = min(rough_one, rough_other)
    correlation = _correlate(one, other, flat)
    alike = abs(np.log(rough_one / rough_other)) <= _EQUAL_ROUGHNESS
    if alike or correlation >= _compute_needed(roughness, size_px):
        return correlation, roughness
    if rough_one > rough_other:
        one = _split_bands(_smooth_until(first, rough_other, flat))
    else:
        other = _split_bands(_smooth_until(second, rough_one, flat))
    flat = _find_flat(one, other, inside)
    return (0.0 if flat is None else _correlate(one, other, flat)), roughness


def _split_bands(picture: Pixels) -> _Bands:
    fine, middle = (a - b for a, b in pairwise(blur(picture, width) for width in _FINE_PX))
    return _Bands(fine, np.sqrt(blur(fine * fine, _FINE_PX[-1])), middle)


def _find_flat(one: _Bands, other: _Bands, inside: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_] | None:
    """Where both pictures have fine detail, but little of it: away from edges. None where that is nowhere."""
    usable = inside & (one.strength > _FAINTEST) & (other.strength > _FAINTEST)
    if usable.sum() < _LEAST_PART * usable.size / _FLAT_PART:
        return None
    strongest = np.maximum(
        one.strength / one.strength[usable].mean(), other.strength / other.strength[usable].mean()
    )
    return np.asarray(usable & (strongest <= np.quantile(strongest[usable], _FLAT_PART)))


def _compute_roughness(bands: _Bands, flat: npt.NDArray[np.bool_]) -> float:
    """Fine against middle detail: about 1.4 for the noise of a sharp scan, 0.3 for a picture that was much blurred."""
    fine, middle = bands.fine[flat], bands.middle[flat]
    return float(np.sqrt((fine @ fine + 1e-6) / (middle @ middle + 1e-6)))


def _smooth_until(picture: Pixels, roughness: float, flat: npt.NDArray[np.bool_]) -> Pixels:
    """A picture after the blur that brings it down to a roughness; the more blur, the less rough."""
    low, high = _BLURS_PX
    for _ in range(_BLUR_STEPS):
        width = (low + high) / 2
        if _compute_roughness(_split_bands(blur(picture, width)), flat) > roughness:
            low = width
        else:
            high = width
    return blur(picture, (low + high) / 2)


def _correlate(one: _Bands, other: _Bands, flat: npt.NDArray[np.bool_]) -> float:
    a, b = (
        np.clip(bands.fine[flat] / (bands.strength[flat] + 0.2), -_CORRELATION_CLIP, _CORRELATION_CLIP)
        for bands in (one, other)
    )
    a, b = a - a.mean(), b - b.mean()
    return float(a @ b / np.sqrt((a @ a) * (b @ b) + 1e-9))
