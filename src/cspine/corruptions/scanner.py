"""What goes wrong while a slice is scanned: noise, hardening of the beam, metal, detector gain, motion.

All of it is made in the projections (see `cspine.corruptions.projection`) and comes back as an artefact in HU.
Each function takes a scene and one number, the parameter of its severity, and returns (H, W) float32 HU.
"""

from __future__ import annotations

import cv2
import numpy as np

from cspine.corruptions.projection import (
    GRID_PX,
    WATER_PER_MM,
    Projections,
    filter_rows,
    make_ramp,
    project,
    project_scene,
    reconstruct_hu,
)
from cspine.corruptions.scene import HIGHEST_HU, Field, Scene

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
