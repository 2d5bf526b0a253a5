"""What happens to a slice after it was scanned: kernel, slab, matrix, window, framing, compression.

Each function takes a scene and one number, the parameter of its severity, and returns (H, W) float32 HU.
"""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

from cspine.corruptions.scene import Field, Scene

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
