"""Whether two slices are copies: do they share the noise?

The anatomy of neighbouring slices is nearly the same, and so are all their edges. Noise is not: every slice has its
own, and a copy has that of its source, turned and smoothed as it may be. So what is compared is the finest detail,
where the picture is otherwise flat, after one picture was laid on the other and both were made equally smooth.

Where pictures are smooth or small, little noise is left and fine detail is anatomy: then much more agreement is asked
for. The limits were set on series B12 of the Kaggle set and on phantoms (docs/log.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from cspine.audit.alignment import Guess, Pixels, Template, Transform, get_disk, warp
from cspine.audit.signatures import blur, compute_detail, shrink

_FINE_PX = (0.5, 1.0, 2.0)  # widths of three blurs; their differences are the fine and the middle band
_FLAT_PART = 0.4
_FAINTEST = 0.25  # grey levels; below it there is rounding only
_LEAST_PART = 0.01  # of all pixels, that must be flat and not empty
_CLIP = 2.0
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
    a, b = (np.clip(bands.fine[flat] / (bands.strength[flat] + 0.2), -_CLIP, _CLIP) for bands in (one, other))
    a, b = a - a.mean(), b - b.mean()
    return float(a @ b / np.sqrt((a @ a) * (b @ b) + 1e-9))
