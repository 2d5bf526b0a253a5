"""How accuracy falls as images get worse: seeded corruptions of display slices, and the curves they give.

A corruption is a pure function of a slice, before the recipe sees it. Lengths in pixels are given for a slice
224 pixels high and grow with the height, so that a severity means the same on a 512-pixel original. The
random part
depends on seed, kind, severity and slice only: not on order, batch or process.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import cv2
import numpy as np
import numpy.typing as npt
import polars as pl

from cspine.errors import InputError, PredictionsError
from cspine.evaluation.evaluate import estimate_metrics
from cspine.evaluation.results import RobustnessPoint

Pixels = npt.NDArray[np.uint8]

REFERENCE_HEIGHT = 224
SEVERITIES = (1, 2, 3, 4, 5)
CLEAN = "clean"


def apply_noise(pixels: Pixels, sigma: float, rng: np.random.Generator) -> Pixels:
    """Add Gaussian noise of standard deviation `sigma` grey levels (of 255).

    Its grain is that of a reconstructed CT image, correlated over about one pixel at the reference height, so
    that resizing does not average it away from large slices.
    """
    field = rng.standard_normal(pixels.shape, dtype=np.float32)
    field = _smooth(field, 0.5 * pixels.shape[0] / REFERENCE_HEIGHT)
    spread = float(field.std())
    scale = sigma / spread if spread > 0 else 0.0
    return _to_grey(pixels + scale * field)


def apply_blur(pixels: Pixels, sigma_px: float, rng: np.random.Generator) -> Pixels:
    """Blur by a Gaussian of standard deviation `sigma_px` pixels at the reference height."""
    return _to_grey(_smooth(pixels.astype(np.float32), sigma_px * pixels.shape[0] / REFERENCE_HEIGHT))


def apply_rotation(pixels: Pixels, degrees: float, rng: np.random.Generator) -> Pixels:
    """Turn by `degrees` about the centre, to a random side; what comes in from outside is black, like air."""
    height, width = pixels.shape
    side = 1.0 if rng.random() < 0.5 else -1.0
    turn = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), side * degrees, 1.0)
    turned = cv2.warpAffine(
        pixels, turn, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT
    )
    return np.asarray(turned, dtype=np.uint8)


def apply_contrast(pixels: Pixels, factor: float, rng: np.random.Generator) -> Pixels:
    """Shrink every pixel's distance from the slice's mean to `factor` of it, so that brightness stays."""
    mean = float(pixels.mean())
    return _to_grey(mean + factor * (pixels.astype(np.float32) - mean))


@dataclass(frozen=True, slots=True)
class Corruption:
    """One kind of corruption.

    Attributes:
        label: As figures show it.
        parameter, unit: What `values` are, and in what unit; "px" means pixels of a slice 224 high.
        values: The parameter at severities 1 to 5.
        apply: (pixels, value, rng) -> pixels of the same shape.
    """

    label: str
    parameter: str
    unit: str
    values: tuple[float, float, float, float, float]
    apply: Callable[[Pixels, float, np.random.Generator], Pixels]


CORRUPTIONS: Mapping[str, Corruption] = MappingProxyType(
    {
        "noise": Corruption(
            "Noise", "standard deviation", "grey levels of 255", (5.0, 10.0, 20.0, 35.0, 50.0), apply_noise
        ),
        "blur": Corruption("Blur", "standard deviation", "px", (0.5, 1.0, 1.5, 2.5, 4.0), apply_blur),
        "rotation": Corruption("Rotation", "angle", "degrees", (5.0, 10.0, 15.0, 20.0, 30.0), apply_rotation),
        "contrast": Corruption(
            "Contrast", "factor", "of the original", (0.8, 0.65, 0.5, 0.35, 0.2), apply_contrast
        ),
    }
)


def apply_corruption(pixels: Pixels, kind: str, severity: int, key: str, seed: int = 0) -> Pixels:
    """Corrupt one slice.

    Args:
        pixels: (H, W) uint8, domain "display8"; left as it is.
        kind: A key of `CORRUPTIONS`.
        severity: 1 to 5; 0 returns an equal copy.
        key: The slice's id; with seed, kind and severity it fixes the random part.
        seed: Any integer.

    Returns:
        (H, W) uint8.

    Raises:
        InputError: an unknown kind, a severity outside 0..5, or pixels that are not (H, W) uint8.
    """
    if kind not in CORRUPTIONS:
        raise InputError(f"no such corruption: {kind}", fix=f"choose one of {', '.join(CORRUPTIONS)}")
    if severity not in (0, *SEVERITIES):
        raise InputError(f"severity {severity} does not exist", fix="give 0 (clean) to 5")
    if pixels.ndim != 2 or pixels.dtype != np.uint8 or pixels.size == 0:
        raise InputError(
            f"corruptions are of (H, W) uint8 slices, not {pixels.shape} {pixels.dtype}", where=key
        )
    if severity == 0:
        return pixels.copy()
    corruption = CORRUPTIONS[kind]
    digest = hashlib.sha256(f"{seed}/{kind}/{severity}/{key}".encode()).digest()
    rng = np.random.default_rng(int.from_bytes(digest[:16], "big"))
    return corruption.apply(pixels, corruption.values[severity - 1], rng)


def summarise_robustness(
    tables: Iterable[tuple[str, int, pl.DataFrame]],
    *,
    threshold: float = 0.5,
    draws: int = 1000,
    seed: int = 0,
    level: float = 0.95,
    by: str = "auto",
) -> tuple[RobustnessPoint, ...]:
    """Accuracy and AUROC, with intervals, of each (corruption, severity, predictions).

    Args:
        tables: Predictions of any number of models; the model's name is read from the table. Clean slices are
            severity 0 and begin every curve: give them once a model, under the name `CLEAN` ("clean"), and
            they are repeated for each corruption of that model.
        threshold, draws, seed, level, by: See `evaluate`. All points share the draws, so curves move
            together.

    Returns:
        Points of every model with at least one corruption, sorted by model, corruption (order of
        `CORRUPTIONS`) and severity.

    Raises:
        PredictionsError: see `evaluate`; or the points of a model are not of the same slices, a point is
            there twice.
        InputError: an unknown corruption or severity.
    """
    points: dict[tuple[str, str, int], RobustnessPoint] = {}
    clean: dict[str, RobustnessPoint] = {}
    slices: dict[str, pl.Series] = {}
    for corruption, severity, table in tables:
        _check_point(corruption, severity)
        found = estimate_metrics(
            table, ("accuracy", "auroc"), threshold=threshold, draws=draws, seed=seed, level=level, by=by
        )
        model = str(table["model"][0])
        _check_same_slices(slices.setdefault(model, table["slice_id"].sort()), table, model)
        point = RobustnessPoint(model=model, corruption=corruption, severity=severity, **found)
        if (model, corruption, severity) in points or (severity == 0 and model in clean):
            raise PredictionsError(
                f"{corruption} at severity {severity} was given twice", where=f"model {model}"
            )
        if severity == 0:
            clean[model] = point
        else:
            points[model, corruption, severity] = point
    for model, corruption in {(model, corruption) for model, corruption, _ in points}:
        if model in clean:
            points[model, corruption, 0] = clean[model].model_copy(update={"corruption": corruption})
    order = {kind: place for place, kind in enumerate(CORRUPTIONS)}
    return tuple(points[key] for key in sorted(points, key=lambda key: (key[0], order[key[1]], key[2])))


def check_points(corruptions: Sequence[str], severities: Sequence[int]) -> None:
    """Raise `InputError` for an unknown corruption or severity, or one that is named twice."""
    for corruption in corruptions:
        for severity in severities:
            _check_point(corruption, severity)
            if corruption == CLEAN:
                raise InputError(
                    "the clean slices are part of every robustness curve",
                    where="robustness.corruptions",
                    fix=f"leave {CLEAN} out of the list",
                )
    for name, values in (("corruptions", corruptions), ("severities", severities)):
        if len(set(values)) < len(values):
            raise InputError("a value is named twice", where=f"robustness.{name}", fix="name each once")


def _check_point(corruption: str, severity: int) -> None:
    lawful = severity == 0 if corruption == CLEAN else corruption in CORRUPTIONS and severity in SEVERITIES
    if not lawful:
        raise InputError(
            f"no such point of a robustness curve: {corruption} at severity {severity}",
            fix=f"give {CLEAN} at 0, or one of {', '.join(CORRUPTIONS)} at 1 to 5",
        )


def _check_same_slices(wanted: pl.Series, table: pl.DataFrame, model: str) -> None:
    if not wanted.equals(table["slice_id"].sort()):
        raise PredictionsError(
            "the points of a robustness curve are of different slices",
            where=f"model {model}",
            fix="predict the same slices at every severity",
        )


def _smooth(image: npt.NDArray[np.float32], sigma: float) -> npt.NDArray[np.float32]:
    return np.asarray(
        cv2.GaussianBlur(image, (0, 0), sigma, borderType=cv2.BORDER_REPLICATE), dtype=np.float32
    )


def _to_grey(values: npt.NDArray[np.float32]) -> Pixels:
    return np.asarray(np.clip(np.rint(values), 0, 255), dtype=np.uint8)
