"""What a stored slice is to a corruption: Hounsfield units, a pixel size, and where its random part comes from.

    Slice ──to HU──▶ Scene ──corruption──▶ (H, W) float32 HU ──back──▶ Slice of the same domain

A slice in domain "hu" is what it is. An 8-bit one says neither its window nor its pixel size, so both are assumed,
and stated: `PixelMeaning`. The way there and back leaves every grey level as it was.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import cv2
import numpy as np
import numpy.typing as npt
from scipy import fft

from cspine.core.types import Slice

Field = npt.NDArray[np.float32]

AIR_HU = -1000.0
LOWEST_HU, HIGHEST_HU = -1024, 3071
"""What 12 bits of a CT image hold."""


@dataclass(frozen=True, slots=True)
class PixelMeaning:
    """What is taken as known of slices that do not say it.

    Attributes:
        center_hu, width_hu: The window through which 8-bit slices were made: black is center - width / 2 and less,
            white is center + width / 2 and more.
        field_of_view_mm: Length of a slice's longer side, where it has no spacing.
    """

    center_hu: float = 400.0
    width_hu: float = 1800.0
    field_of_view_mm: float = 180.0

    @property
    def black_hu(self) -> float:
        """The number of Hounsfield units that is shown as 0, with all below it."""
        return self.center_hu - self.width_hu / 2

    def read_grey(self, grey: npt.NDArray[np.uint8]) -> Field:
        """(H, W) grey levels as HU."""
        return np.asarray(self.black_hu + grey.astype(np.float32) * (self.width_hu / 255), np.float32)

    def show_grey(self, hu: Field) -> npt.NDArray[np.uint8]:
        """(H, W) HU as grey levels; what lies outside the window is clipped."""
        return np.asarray(np.clip(np.rint((hu - self.black_hu) * (255 / self.width_hu)), 0, 255), np.uint8)


@dataclass(frozen=True, slots=True)
class Scene:
    """One slice as a corruption sees it.

    Attributes:
        hu: (H, W) float32.
        pixel_mm: Side of a pixel.
        black_hu: What comes in from outside the picture, and what is taken for air together with all below it.
        meaning: The window of 8-bit slices; also the one through which a lossy copy of HU is made.
        rng: The random part: the same for one seed, kind and slice at every severity.
    """

    hu: Field
    pixel_mm: float
    black_hu: float
    meaning: PixelMeaning
    rng: np.random.Generator

    @property
    def size_px(self) -> tuple[int, int]:
        """(height, width)."""
        height, width = self.hu.shape
        return height, width


def make_scene(item: Slice, meaning: PixelMeaning, rng: np.random.Generator) -> Scene:
    """The scene of a slice of either domain."""
    pixel_mm = item.spacing_mm[0] if item.spacing_mm else meaning.field_of_view_mm / max(item.pixels.shape)
    if item.domain == "hu":
        return Scene(item.pixels.astype(np.float32), pixel_mm, AIR_HU, meaning, rng)
    return Scene(
        meaning.read_grey(np.asarray(item.pixels, np.uint8)), pixel_mm, meaning.black_hu, meaning, rng
    )


def store_hu(item: Slice, hu: Field, meaning: PixelMeaning) -> Slice:
    """The slice with other pixels, in its own domain; values outside what it can hold are clipped."""
    if item.domain == "hu":
        whole = np.clip(np.rint(hu), LOWEST_HU, HIGHEST_HU).astype(np.int16)
        return replace(item, pixels=whole)
    return replace(item, pixels=meaning.show_grey(hu))


# Parallel-beam projections of a slice, and filtered backprojection of what goes wrong in them.
#
# A corruption of the projections is computed as a difference: what the detector would have seen less what it should
# have
# seen. Filtered backprojection is linear, so its image is the artefact, which is added to the slice as it is stored
# (as noise is in Yu et al. 2012, J Comput Assist Tomogr 36:477). Nothing else of the slice changes: no difference, no
# change, whatever the method's own errors.
#
# Lengths are in pixels of the projection grid and attenuation is relative to water (1; air 0), until
# `Projections.scale`
# (attenuation of one grid pixel of water) makes a line integral of them. The filter is Kak and Slaney's ("Principles
# of
# Computerized Tomographic Imaging" 1988, eq. 3.61): the ramp up to the Nyquist frequency, as a sharp kernel has it.


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


# What goes wrong while a slice is scanned: noise, hardening of the beam, metal, detector gain, motion.
#
# All of it is made in the projections (see `cspine.robustness.scanner`) and comes back as an artefact in HU.
# Each function takes a scene and one number, the parameter of its severity, and returns (H, W) float32 HU.


REFERENCE_NOISE_HU = 30.0
"""Noise of a full-dose slice at its centre, with a sharp kernel: what the tube current is taken to be set for."""

_SPECTRUM = np.array([0.15, 0.40, 0.30, 0.15])  # of a filtered 120 kV beam at 40, 60, 80, 100 keV
# Linear attenuation over that at 70 keV (NIST, Hubbell and Seltzer: water, ICRU-44 cortical bone), the same energies.
_WATER = np.array([0.2683, 0.2059, 0.1837, 0.1707]) / 0.193
_BONE = np.array([0.6655, 0.3148, 0.2229, 0.1855]) / 0.260
_BONE_FROM_HU, _ALL_BONE_HU = 150.0, 600.0

_METAL_TIMES_WATER = 40.0  # between titanium and dental amalgam at 70 keV
_SCATTER = 2e-3  # of the unattenuated beam reaches the detector behind anything
_METAL_APART_MM = 36.0
_METAL_TRIES = 24
_BAD_ELEMENTS = 0.08
_JUMP_VIEWS = 0.1


def apply_noise(scene: Scene, dose: float) -> Field:
    """Add the quantum noise that a slice at `dose` (0..1) of its own dose has more.

    A ray with the line integral p has a count of N exp(-p), so log data of variance exp(p) / N; at a fraction f of the
    dose, (1 / f - 1) times as much is missing (Yu et al. 2012). N is that of automatic exposure control: the full-dose
    slice has `REFERENCE_NOISE_HU` at its centre.
    """
    seen = project_scene(scene)
    variance = np.exp(np.minimum(seen.sinogram * seen.scale, 20.0))
    views, bins = variance.shape
    middle = slice(3 * bins // 8, max(3 * bins // 8 + 1, 5 * bins // 8))
    unit = _find_noise_gain(bins) * float(variance[:, middle].mean()) / views
    spread = np.sqrt(variance * ((1 / dose - 1) / unit)) * (REFERENCE_NOISE_HU / 1000)
    draw = scene.rng.standard_normal(variance.shape, dtype=np.float32)
    return scene.hu + reconstruct_hu(np.asarray(draw * spread, np.float32), seen, scene)


def _find_noise_gain(bins: int) -> float:
    """Variance of a backprojected pixel, over that of a ray, times the number of views.

    Pixels lie anywhere between two rays, so the mean over linear interpolation is taken.
    """
    ramp = make_ramp(bins).astype(np.float64)
    alone, beside = float(ramp @ ramp), float(ramp[1:] @ ramp[:-1])
    return float(np.pi**2) * (2 / 3 * alone + 1 / 3 * beside)


def apply_beam_hardening(scene: Scene, strength: float) -> Field:
    """Add what a scanner that corrects for water only leaves of the hardening of its beam by bone.

    A beam of four energies goes through the slice's water and bone (Joseph and Spital 1978, J Comput Assist Tomogr
    2:100); what it measures is corrected as if all were water, so rays through much bone measure too little.

    Args:
        scene: The slice.
        strength: 1 is a 120 kV beam and the bone in the picture. More is as many times that artefact, as with lower
            voltages, and with the bone of jaw and shoulders, which a narrow picture does not show.
    """
    seen = project_scene(scene)
    share = np.clip((seen.image - 1 - _BONE_FROM_HU / 1000) * 1000 / (_ALL_BONE_HU - _BONE_FROM_HU), 0, 1)
    bone = project(np.asarray(seen.image * share, np.float32)) * seen.scale
    water = np.maximum(seen.sinogram * seen.scale - bone, 0)
    beyond_water = _correct_for_water(_measure(water, bone)) - water
    # Bone is shown about as bright as it is, which is a matter of calibration; what is left has no linear part.
    amount = float(np.sum(bone * bone))
    as_bone = float(np.sum(bone * beyond_water)) / amount if amount > 0 else 0.0
    missing = strength * (beyond_water - as_bone * bone) / seen.scale
    return scene.hu + reconstruct_hu(np.asarray(missing, np.float32), seen, scene)


def _measure(water: Field, bone: Field) -> Field:
    """-log of what passes through water and bone, given as line integrals at 70 keV."""
    passed = sum(
        part * np.exp(-w * water - b * bone) for part, w, b in zip(_SPECTRUM, _WATER, _BONE, strict=True)
    )
    return np.asarray(-np.log(passed), np.float32)


def _correct_for_water(measured: Field) -> Field:
    """The line integral of water that would have measured the same."""
    table = np.linspace(0, 60, 6001, dtype=np.float32)
    return np.asarray(np.interp(measured, _measure(table, np.zeros_like(table)), table), np.float32)


def apply_metal(scene: Scene, diameter_mm: float) -> Field:
    """Put two metal discs into the tissue in front, such as fillings, with the streaks that they cause.

    Rays through metal are all but stopped: what the detector counts there is scatter (too little attenuation: dark
    bands between the two) and few quanta (noise: streaks from either). De Man et al. 1999, IEEE Trans Nucl Sci 46:691.
    """
    seen = project_scene(scene)
    metal, stored = _place_metal(scene, seen, diameter_mm)
    through = project(metal)
    ideal = (seen.sinogram + through) * seen.scale
    passed = np.exp(-np.minimum(ideal, 60.0))
    without = np.exp(-seen.sinogram * seen.scale)
    # Scatter is there without the metal too, and corrected for: only what it adds behind metal is an artefact.
    counts = passed + _SCATTER * (1 - passed / without)
    noise = scene.rng.standard_normal(counts.shape, dtype=np.float32) * np.sqrt(counts / 1e5) / counts
    wrong = np.where(through > 1e-3, -np.log(counts) - ideal + np.clip(noise, -1, 1), 0) / seen.scale
    streaks = reconstruct_hu(np.asarray(wrong, np.float32), seen, scene)
    return np.asarray(scene.hu + streaks * (1 - stored) + stored * (HIGHEST_HU - scene.hu), np.float32)


def _place_metal(scene: Scene, seen: Projections, diameter_mm: float) -> tuple[Field, Field]:
    """Relative attenuation of the discs on the grid, and their coverage (0..1) of the stored pixels."""
    height, width = scene.size_px
    apart = min(_METAL_APART_MM / scene.pixel_mm, 0.45 * width)
    y, x = np.mgrid[:height, :width].astype(np.float32)
    places = _choose_place(scene, apart)
    distance = np.min([np.hypot(x - column, y - row) for column, row in places], axis=0)
    stored = np.clip(diameter_mm / 2 / scene.pixel_mm - distance + 0.5, 0, 1).astype(np.float32)
    bins = len(seen.image)
    small = cv2.resize(stored, seen.grid_px[::-1], interpolation=cv2.INTER_AREA)
    metal = np.zeros((bins, bins), np.float32)
    top, left = (bins - small.shape[0]) // 2, (bins - small.shape[1]) // 2
    metal[top : top + small.shape[0], left : left + small.shape[1]] = small * _METAL_TIMES_WATER
    return metal, stored


def _choose_place(scene: Scene, apart: float) -> list[tuple[float, float]]:
    """(column, row) of the two discs: of some places in front, the one with soft tissue and no bone under it.

    Metal must not cover what the label is about.
    """
    height, width = scene.size_px
    smooth = cv2.blur(scene.hu, (max(1, width // 20), max(1, height // 20)))
    candidates = []
    for _ in range(_METAL_TRIES):
        column = (width - 1) / 2 + float(scene.rng.uniform(-0.15, 0.15)) * width
        row = float(scene.rng.uniform(0.15, 0.45)) * (height - 1)
        tilt = float(scene.rng.uniform(-0.05, 0.05)) * height
        places = [(column + side * apart, row + side * tilt) for side in (-0.5, 0.5)]
        under = [smooth[int(np.clip(y, 0, height - 1)), int(np.clip(x, 0, width - 1))] for x, y in places]
        candidates.append((sum(abs(float(hu) - 50.0) for hu in under), places))
    return min(candidates, key=lambda candidate: candidate[0])[1]


def apply_ring(scene: Scene, gain_percent: float) -> Field:
    """Give some detector elements a gain that is wrong by `gain_percent` (standard deviation): rings about the centre.

    An element sees, over a whole turn, all rays at one distance from the centre, so its error has no angle and the
    artefact is one function of the radius: that of the filtered rows, which are even.
    """
    pixel_mm = scene.pixel_mm * max(1.0, max(scene.size_px) / GRID_PX)
    height, width = scene.size_px
    radius = np.hypot(
        np.arange(height, dtype=np.float32)[:, None] - (height - 1) / 2,
        np.arange(width, dtype=np.float32)[None, :] - (width - 1) / 2,
    ) * (scene.pixel_mm / pixel_mm)
    half = int(np.ceil(float(radius.max()))) + 2
    wrong = scene.rng.random(half) < _BAD_ELEMENTS
    wrong[int(scene.rng.integers(half // 8, max(half // 8 + 1, half // 2)))] = True
    error = scene.rng.standard_normal(half) * wrong * gain_percent / 100
    # -log(1 + gain) of attenuation, on both sides of the centre.
    row = np.asarray(-np.log1p(np.maximum(error, -0.5))[np.abs(np.arange(-half + 1, half))], np.float32)
    filtered = filter_rows(row[np.newaxis] / np.float32(WATER_PER_MM * pixel_mm))[0]
    angles = np.arange(4 * half) * (np.pi / (4 * half))
    steps = np.arange(0, half, 0.25)
    profile = np.pi * np.interp(
        steps[:, None] * np.cos(angles)[None, :], np.arange(-half + 1, half), filtered
    ).mean(axis=1)
    return np.asarray(scene.hu + 1000 * np.interp(radius, steps, profile), np.float32)


def apply_motion(scene: Scene, shift_mm: float) -> Field:
    """Let the neck jump by `shift_mm` halfway through the scan, as a swallow does.

    A body that has moved by d casts the same projections, each shifted by d's part along the detector (Fourier's shift
    theorem), so half the views contradict the others: double edges, and streaks along them.
    """
    seen = project_scene(scene)
    direction = float(scene.rng.uniform(0, 2 * np.pi))
    when = float(scene.rng.uniform(0.4, 0.6))
    views, bins = seen.sinogram.shape
    time = (np.arange(views) / views - when) / _JUMP_VIEWS
    place = shift_mm / seen.pixel_mm * np.clip(time, -0.5, 0.5)
    shift = place * np.cos(seen.angles - direction)
    spectrum = np.fft.rfft(seen.sinogram, 2 * bins, axis=1)
    turned = spectrum * np.exp(-2j * np.pi * np.fft.rfftfreq(2 * bins)[None, :] * shift[:, None])
    moved = np.fft.irfft(turned, 2 * bins, axis=1)[:, :bins]
    return scene.hu + reconstruct_hu(np.asarray(moved - seen.sinogram, np.float32), seen, scene)


# What happens to a slice after it was scanned: kernel, slab, matrix, window, framing, compression.
#
# Each function takes a scene and one number, the parameter of its severity, and returns (H, W) float32 HU.


_FWHM_OF_SIGMA = 2.3548


def apply_blur(scene: Scene, fwhm_mm: float) -> Field:
    """Reconstruct with a softer kernel: a Gaussian point spread of `fwhm_mm` more.

    A kernel multiplies the spectrum of the projections, so by the slice theorem it is a round filter of the slice.
    """
    sigma_px = fwhm_mm / _FWHM_OF_SIGMA / scene.pixel_mm
    blurred = cv2.GaussianBlur(scene.hu, (0, 0), sigma_px, borderType=cv2.BORDER_REPLICATE)
    return np.asarray(blurred, np.float32)


def apply_resolution(scene: Scene, pixel_mm: float) -> Field:
    """Store on pixels of `pixel_mm` and show at the old size; a slice whose pixels are as large stays as it is."""
    height, width = scene.size_px
    shrink = scene.pixel_mm / pixel_mm
    if shrink >= 1:
        return scene.hu.copy()
    size = (max(1, round(width * shrink)), max(1, round(height * shrink)))
    small = cv2.resize(scene.hu, size, interpolation=cv2.INTER_AREA)
    return np.asarray(cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR), np.float32)


def apply_window(scene: Scene, shift_hu: float) -> Field:
    """Move the window by `shift_hu` up or down: the slice gets darker or brighter."""
    side = 1.0 if scene.rng.random() < 0.5 else -1.0
    return np.asarray(scene.hu + side * shift_hu, np.float32)


def apply_contrast(scene: Scene, times: float) -> Field:
    """Widen the window `times` about its centre: less contrast."""
    center = scene.meaning.center_hu
    return np.asarray(center + (scene.hu - center) / times, np.float32)


def apply_rotation(scene: Scene, degrees: float) -> Field:
    """Turn the neck by `degrees` to a random side; what comes in from outside is black."""
    height, width = scene.size_px
    side = 1.0 if scene.rng.random() < 0.5 else -1.0
    turn = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), side * degrees, 1.0)
    return _warp(scene, np.asarray(turn, np.float64))


def apply_crop(scene: Scene, fraction: float) -> Field:
    """Frame only `fraction` of the field of view, up to a fifth of what is cut away off the middle."""
    height, width = scene.size_px
    away = scene.rng.uniform(-0.2, 0.2, 2) * (1 - fraction)
    x = (width - 1) / 2 + away[0] * width
    y = (height - 1) / 2 + away[1] * height
    zoom = 1 / fraction
    move = np.array([[zoom, 0, (width - 1) / 2 - zoom * x], [0, zoom, (height - 1) / 2 - zoom * y]])
    return _warp(scene, move)


def apply_jpeg(scene: Scene, quality: float) -> Field:
    """Keep the slice as an 8-bit JPEG of `quality` (0..100, libjpeg) through the window; ITU-T T.81.

    What lies outside the window, in a slice of HU, gets the error of what it is shown as.
    """
    grey = scene.meaning.show_grey(scene.hu)
    _, data = cv2.imencode(".jpg", grey, [cv2.IMWRITE_JPEG_QUALITY, int(quality)])
    lossy = np.asarray(cv2.imdecode(data, cv2.IMREAD_GRAYSCALE), np.float32)
    return np.asarray(scene.hu + (lossy - grey) * (scene.meaning.width_hu / 255), np.float32)


def _warp(scene: Scene, move: npt.NDArray[np.float64]) -> Field:
    height, width = scene.size_px
    moved = cv2.warpAffine(
        scene.hu,
        move,
        (width, height),
        flags=cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_CONSTANT,
        borderValue=scene.black_hu,
    )
    return np.asarray(moved, np.float32)
