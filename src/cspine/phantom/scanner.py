"""From a patient to pictures: one axial plane, a volume, an 8-bit slice.

A plane is drawn straight from the shapes, so a slice costs the same whether or not its neighbours are wanted; a volume
is a stack of planes. Patient axes are DICOM's: x to the left, y backwards, and z upwards.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import cv2
import numpy as np
import numpy.typing as npt

from cspine.phantom.anatomy import (
    BLOOD_HU,
    CORD_HU,
    DISC_HU,
    FAT_HU,
    FIRST_THORACIC,
    FLUID_HU,
    LEVELS,
    SKIN_HU,
    Canvas,
    Field,
    Vertebra,
    body_outline,
    compute_bone_distance,
    compute_skull_distance,
    coverage,
    ellipse,
    paint_soft_tissue,
    texture,
)
from cspine.phantom.patient import (
    Fracture,
    PhantomPatient,
    PhantomSettings,
    apply_cracks,
    compute_seen_mm2,
    draw_fracture,
)


@dataclass(frozen=True)
class PhantomVolume:
    """A rendered neck.

    Attributes:
        hu: (Z, Y, X) int16 Hounsfield units, -1024..3071; z upwards, y backwards, x to the left.
        vertebra_mask: (Z, Y, X) uint8, 1..7 where C1..C7 is, 0 elsewhere.
        fracture_mask: (Z, Y, X) uint8, 1 in the gaps of fractures.
        spacing_mm: Distance of voxels (z, y, x).
        first_z_mm: Height of the lowest plane in the patient.
    """

    hu: npt.NDArray[np.int16]
    vertebra_mask: npt.NDArray[np.uint8]
    fracture_mask: npt.NDArray[np.uint8]
    spacing_mm: tuple[float, float, float]
    first_z_mm: float


Plane = tuple[npt.NDArray[np.int16], npt.NDArray[np.uint8], npt.NDArray[np.uint8]]


def render_plane(
    patient: PhantomPatient,
    z_mm: float,
    *,
    size_px: int,
    field_of_view_mm: float | None = None,
    shift_mm: tuple[float, float] = (0.0, 0.0),
    follow_spine: bool = True,
    noise: bool = True,
) -> Plane:
    """Scan one axial plane.

    Args:
        patient: Whom.
        z_mm: Height in the patient; 0 is the middle of C4.
        size_px: Rows and columns of the square result.
        field_of_view_mm: Side of the square; the patient's own if None.
        shift_mm: Moves the square's middle (x, y).
        follow_spine: Whether the square's middle goes with the curve of the spine, as a crop does, or stays, as a
            scan does.
        noise: Whether to add the scan's noise.

    Returns:
        hu (size_px, size_px) int16, vertebra mask uint8 (0, 1..7) and fracture mask uint8 (0, 1), all alike.
    """
    view_mm = patient.field_of_view_mm if field_of_view_mm is None else field_of_view_mm
    pixel_mm = view_mm / size_px
    x, y = _plane_grid(patient, z_mm, size_px, view_mm, shift_mm, follow_spine)
    spine_x, spine_y = patient.spine_at(z_mm)
    canvas = Canvas(x - np.float32(spine_x), y - np.float32(spine_y), pixel_mm)
    skull = _cut_skull(x, y, z_mm, patient)
    if patient.table:
        _paint_headrest(canvas, patient)
    if skull is not None:
        _paint_scalp(canvas, patient, skull[0])
    paint_soft_tissue(canvas, patient.soft_tissue, patient.level_at(z_mm), z_mm)
    canvas.x, canvas.y = x, y
    shape = x.shape
    vertebra_mask, fracture_mask = np.zeros(shape, np.uint8), np.zeros(shape, np.uint8)
    grain = texture(x, y, z_mm, patient.soft_tissue.offset, 1.3)
    if skull is not None:
        _paint_skull(canvas, patient, skull, grain)
    _paint_canal(canvas, patient, z_mm)
    for vertebra in patient.vertebrae:
        cut = _cut_vertebra(x, y, z_mm, patient, vertebra)
        if cut is None:
            continue
        _paint_vertebra(canvas, patient, vertebra, cut, grain)
        if vertebra.number < FIRST_THORACIC:
            vertebra_mask[cut.box][cut.bone < 0] = vertebra.number
        if cut.gap is not None:
            fracture_mask[cut.box][(cut.gap < 0) & (cut.bone < 0)] = 1
    hu = _detect(canvas.hu, patient, z_mm, pixel_mm, noise)
    return hu, vertebra_mask, fracture_mask


def render_volume(
    patient: PhantomPatient, spacing_mm: tuple[float, float, float] = (1.0, 0.6, 0.6), *, noise: bool = True
) -> PhantomVolume:
    """Scan the whole neck, from below C7 to above C1, at (z, y, x) `spacing_mm`; y and x must be equal."""
    if min(spacing_mm) <= 0 or spacing_mm[1] != spacing_mm[2]:
        raise ValueError(f"spacing must be positive and equal in y and x, not {spacing_mm}")
    size_px = max(16, round(patient.field_of_view_mm / spacing_mm[1]))
    bottom, top = scan_range_mm(patient)
    heights = np.arange(bottom, top, spacing_mm[0])
    planes = [
        render_plane(
            patient,
            float(z),
            size_px=size_px,
            field_of_view_mm=size_px * spacing_mm[1],
            follow_spine=False,
            noise=noise,
        )
        for z in heights
    ]
    hu, vertebra_mask, fracture_mask = (np.stack(part) for part in zip(*planes, strict=True))
    return PhantomVolume(hu, vertebra_mask, fracture_mask, spacing_mm, bottom)


def scan_range_mm(patient: PhantomPatient) -> tuple[float, float]:
    """Lowest and highest z of a scan of the whole cervical spine."""
    return patient.vertebrae[6].centre_mm[2] - 14.0, patient.vertebrae[0].centre_mm[2] + 16.0


def without_fractures(patient: PhantomPatient) -> PhantomPatient:
    """The same neck and the same scan, had nothing been broken."""
    return replace(patient, fractures=())


def to_display8(
    hu: npt.NDArray[np.int16], window_center_hu: float = 400.0, window_width_hu: float = 1800.0
) -> npt.NDArray[np.uint8]:
    """Window HU into 0..255; what lies outside the window is clipped."""
    low = window_center_hu - window_width_hu / 2
    scaled = (hu.astype(np.float32) - low) * (255.0 / window_width_hu)
    return np.asarray(np.clip(np.rint(scaled), 0, 255), np.uint8)


def _plane_grid(
    patient: PhantomPatient,
    z_mm: float,
    size_px: int,
    view_mm: float,
    shift_mm: tuple[float, float],
    follow: bool,
) -> tuple[Field, Field]:
    """Neck coordinates of the pixels: a square turned by the patient's roll, centred on the spine or the neck."""
    axis = (np.arange(size_px, dtype=np.float32) + np.float32(0.5)) * np.float32(
        view_mm / size_px
    ) - view_mm / 2
    # A narrow view is centred on the canal, a wide one on the neck, whose middle lies in front of it.
    ahead = float(np.interp(view_mm, [110.0, 200.0], [14.0, -2.0]))
    spine_x, spine_y = patient.spine_at(z_mm if follow else 0.0)
    column = axis[None, :] + np.float32(shift_mm[0] + patient.offset_mm[0])
    row = axis[:, None] + np.float32(shift_mm[1] + patient.offset_mm[1])
    cos, sin = np.cos(np.radians(patient.roll_deg)), np.sin(np.radians(patient.roll_deg))
    x = cos * column + sin * row + spine_x
    y = cos * row - sin * column + spine_y + ahead
    return np.asarray(x, np.float32), np.asarray(y, np.float32)


def _paint_headrest(canvas: Canvas, patient: PhantomPatient) -> None:
    size = patient.soft_tissue.size
    shell = ellipse(canvas.x, canvas.y, (0.0, -10.0), (112 * size, 100 * size))
    shell = np.maximum(np.abs(shell) - 3.0, 25.0 - canvas.y)
    canvas.paint(shell, -850.0)
    canvas.paint(np.abs(shell + 0.6) - 0.5, -200.0)


def _cut_skull(x: Field, y: Field, z_mm: float, patient: PhantomPatient) -> tuple[Field, Field] | None:
    """Distances to the bone of the skull and to the brain, or None below it."""
    atlas = patient.vertebrae[0]
    if z_mm < atlas.centre_mm[2] - 15:
        return None
    bone, brain = compute_skull_distance(*atlas.to_frame(x, y, z_mm))
    return bone * np.float32(atlas.scale), brain * np.float32(atlas.scale)


def _paint_scalp(canvas: Canvas, patient: PhantomPatient, bone: Field) -> None:
    """A tilted head brings the back of the skull out of the neck's outline, and its skin with it."""
    depth = 5.0 + 0.5 * patient.soft_tissue.fat_mm
    canvas.paint(bone - depth, SKIN_HU)
    canvas.paint(bone - depth + 2.0, FAT_HU)


def _paint_skull(canvas: Canvas, patient: PhantomPatient, skull: tuple[Field, Field], grain: Field) -> None:
    bone, brain = skull
    canvas.paint(brain, 34.0)
    canvas.paint(bone, patient.cortical_hu)
    canvas.paint(bone + 1.6, patient.trabecular_hu + 180 + 90 * grain)


def _paint_canal(canvas: Canvas, patient: PhantomPatient, z_mm: float) -> None:
    """Epidural fat, fluid and cord; in the foramina, the vertebral arteries."""
    heights = [-v.centre_mm[2] for v in patient.vertebrae]
    middles = [v.to_neck((0.0, v.canal_centre, 0.0)) for v in patient.vertebrae]
    x, y = (float(np.interp(-z_mm, heights, [m[i] for m in middles])) for i in range(2))
    size = patient.vertebrae[0].scale
    canvas.paint_ellipse((x, y), (12.5 * size, 8.0 * size), FAT_HU * 0.3)
    canvas.paint_ellipse((x, y - 0.3), (9.6 * size, 6.6 * size), FLUID_HU)
    canvas.paint_ellipse((x, y - 0.3), (6.6 * size, 4.0 * size), CORD_HU)
    for side in (-1.0, 1.0):
        ways = [
            v.to_neck((side * (v.body_half[0] + 4.6), v.body_half[1] - 5.2, 0.0))
            for v in patient.vertebrae[2:6]
        ]
        if patient.vertebrae[6].centre_mm[2] < z_mm < patient.vertebrae[1].centre_mm[2]:
            x, y = (float(np.interp(-z_mm, heights[2:6], [p[i] for p in ways])) for i in range(2))
            canvas.paint_ellipse((x, y), (4.0, 4.0), FAT_HU + 40)
            canvas.paint_ellipse((x, y), (1.9, 1.8), BLOOD_HU + patient.soft_tissue.contrast_hu)


@dataclass(frozen=True)
class _Cut:
    """A vertebra cut by a plane: its place in the picture, its coordinates, distances to bone and gap (mm)."""

    box: tuple[slice, slice]
    point: tuple[Field, Field, Field]
    body: Field
    arch: Field
    bone: Field
    gap: Field | None
    gap_hu: float


def _cut_vertebra(
    x: Field, y: Field, z_mm: float, patient: PhantomPatient, vertebra: Vertebra
) -> _Cut | None:
    """Cut one vertebra; None where the plane misses it, as most do."""
    low, high = vertebra.reach
    lean = 45.0 * (abs(vertebra.axes[2][0]) + abs(vertebra.axes[2][1]))
    if not low * vertebra.scale - lean < z_mm - vertebra.centre_mm[2] < high * vertebra.scale + lean:
        return None
    box = _window(x, y, vertebra)
    if box is None:
        return None
    u, v, w = vertebra.to_local(x[box], y[box], z_mm)
    fracture = next((f for f in patient.fractures if f.number == vertebra.number), None)
    gap, gap_hu = None, 0.0
    if fracture is not None:
        u, v, w, gap = apply_cracks(fracture.cracks, u, v, w)
        gap, gap_hu = gap * np.float32(vertebra.scale), fracture.gap_hu
    body, arch = compute_bone_distance(vertebra, u, v, w)
    return _Cut(box, (u, v, w), body, arch, np.minimum(body, arch) * np.float32(vertebra.scale), gap, gap_hu)


def _paint_vertebra(
    canvas: Canvas, patient: PhantomPatient, vertebra: Vertebra, cut: _Cut, grain: Field
) -> None:
    """Paint one vertebra, the disc below it and its breaks."""
    view = Canvas(canvas.x[cut.box], canvas.y[cut.box], canvas.pixel_mm)
    view.hu = canvas.hu[cut.box]
    u, v, w = cut.point
    if vertebra.number > 1:
        disc = np.maximum(body_outline(vertebra, u, v), -vertebra.body_half[2] - vertebra.disc_mm - 1.0 - w)
        view.paint(np.maximum(disc, w), DISC_HU)
    hu = _bone_hu(patient, vertebra, cut, grain[cut.box])
    if cut.gap is not None:
        hu += coverage(cut.gap, canvas.pixel_mm) * 0.92 * (cut.gap_hu - hu)
    view.paint(cut.bone, hu)


def _bone_hu(patient: PhantomPatient, vertebra: Vertebra, cut: _Cut, grain: Field) -> Field:
    """Cortex, spongy bone with its grain, and the channels of its vessels."""
    shell_mm = np.where(cut.body < cut.arch, 0.75 * patient.cortex_mm, 1.25 * patient.cortex_mm)
    depth = -np.minimum(cut.body, cut.arch)
    spongy = coverage(shell_mm - depth, 1.0)
    # Spongy bone is denser towards its shell, so the edge of the marrow is not a step.
    inner = patient.trabecular_hu * (1.0 + 0.28 * grain + 0.55 * np.exp(-(depth - shell_mm) / 1.6))
    hu = patient.cortical_hu * (1.0 + 0.05 * grain) * (1 - spongy) + inner * spongy
    if vertebra.number > 1:
        hu += _channel(vertebra, *cut.point) * spongy * (60.0 - hu)
    return np.asarray(hu, np.float32)


def _channel(vertebra: Vertebra, u: Field, v: Field, w: Field) -> Field:
    """Basivertebral vein: a Y in the middle of the body, open to the canal. In every neck, broken or whole."""
    half_v = vertebra.body_half[1]
    trunk = np.maximum(
        np.hypot(u - 0.6 * np.sin(vertebra.wobble[0]), 0.7 * w) - 0.9,
        np.abs(v - 0.55 * half_v) - 0.5 * half_v,
    )
    branch = np.abs(np.abs(u) - 0.8 * (0.3 * half_v - v)) / 1.28
    branches = np.maximum(np.maximum(np.hypot(branch, 0.7 * w) - 0.65, v - 0.3 * half_v), -0.35 * half_v - v)
    return 0.75 * coverage(np.minimum(trunk, branches), 0.8)


def _window(x: Field, y: Field, vertebra: Vertebra) -> tuple[slice, slice] | None:
    """The part of the picture that a vertebra can reach, or None."""
    reach = (48.0 if vertebra.number != 1 else 38.0) * vertebra.scale
    cx, cy, _ = vertebra.to_neck((0.0, 12.0, 0.0))
    near = (np.abs(x - cx) < reach) & (np.abs(y - cy) < reach + 10)
    rows, columns = np.flatnonzero(near.any(axis=1)), np.flatnonzero(near.any(axis=0))
    if not rows.size:
        return None
    return slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)


def _detect(
    ideal_hu: Field, patient: PhantomPatient, z_mm: float, pixel_mm: float, noise: bool
) -> npt.NDArray[np.int16]:
    """Blur, sharpening and noise of the scanner; the same plane of the same patient gets the same noise."""
    sigma_px = max(patient.blur_mm / pixel_mm, 0.3)
    hu = np.asarray(cv2.GaussianBlur(np.asarray(ideal_hu, np.float32), (0, 0), sigma_px))
    if patient.sharpening:
        hu = hu + patient.sharpening * (hu - cv2.GaussianBlur(hu, (0, 0), 1.6 * sigma_px))
    if noise and patient.noise_hu > 0:
        rng = np.random.default_rng([patient.seed, round((z_mm + 1000.0) * 1000)])
        grain = _smooth_noise(rng, hu.shape, 0.75, 0.75)
        # Rays that cross both shoulders starve: streaks from side to side.
        streak = _smooth_noise(rng, hu.shape, 9.0, 0.7)
        starved = float(np.interp(patient.level_at(z_mm), [5.0, 7.5], [0.0, 1.0]))
        hu = hu + patient.noise_hu * (grain + starved * streak)
    return np.clip(np.rint(hu), -1024, 3071).astype(np.int16)


def _smooth_noise(
    rng: np.random.Generator, shape: tuple[int, ...], sigma_x_px: float, sigma_y_px: float
) -> Field:
    """Noise of deviation 1 whose grains are as large as the blur."""
    white = np.asarray(rng.standard_normal(shape), np.float32)
    blurred = cv2.GaussianBlur(white, (0, 0), sigmaX=sigma_x_px, sigmaY=sigma_y_px)
    return np.asarray(blurred / blurred.std(), np.float32)


# Which planes of a neck become slices, chosen so that nothing but the fracture tells the classes apart.
#
# A fracture slice is cut where a break is seen. A normal slice is cut where a break *would* be seen: an imaginary
# fracture, drawn like a real one, gives the height, and is then left out. So both classes have the same levels and
# the
# same heights within a level. A plane in which a real break is present but too faint to be called visible is used for
# neither.


_TRIES = 25


@dataclass(frozen=True)
class PhantomSlice:
    """One labelled slice.

    Attributes:
        hu, vertebra_mask, fracture_mask: (size_px, size_px), as `render_plane` gives them.
        z_mm: Its height in the patient.
        level: "C1" .. "C7": the vertebra that it was cut for.
        fracture_type: One of FRACTURE_KINDS; empty for a normal slice.
    """

    hu: npt.NDArray[np.int16]
    vertebra_mask: npt.NDArray[np.uint8]
    fracture_mask: npt.NDArray[np.uint8]
    z_mm: float
    level: str
    fracture_type: str

    @property
    def label(self) -> str:
        """The class: "fracture" or "normal"."""
        return "fracture" if self.fracture_type else "normal"


def sample_slices(patient: PhantomPatient, settings: PhantomSettings) -> Iterator[PhantomSlice]:
    """The `slices_per_patient` labelled slices of a patient, in no particular order of class."""
    rng = np.random.default_rng([settings.seed, 4, patient.index])
    total = settings.slices_per_patient
    wanted_fractures = total // 2 if patient.fractures else 0
    plan = rng.permutation(np.arange(total) < wanted_fractures)
    real, imagined = _deal(rng, [f.number for f in patient.fractures]), _deal(rng, list(range(1, 8)))
    for broken in plan:
        # A break that this view never shows well, such as the tip of a long spinous process in a tight crop, is
        # replaced by a normal slice, so that the set has the size it was asked for.
        drawn = _sample_one(patient, settings, rng, real, broken=True) if broken else None
        yield drawn or _sample_normal(patient, settings, rng, imagined)


def _sample_normal(
    patient: PhantomPatient, settings: PhantomSettings, rng: np.random.Generator, deck: Iterator[int]
) -> PhantomSlice:
    for _ in range(7):
        drawn = _sample_one(patient, settings, rng, deck, broken=False)
        if drawn:
            return drawn
    raise RuntimeError(f"no plane of patient {patient.patient_id} is free of fractures; use another seed")


def _deal(rng: np.random.Generator, numbers: list[int]) -> Iterator[int]:
    """The numbers over and over, each round in a new order."""
    while numbers:
        yield from (int(n) for n in rng.permutation(numbers))


def _sample_one(
    patient: PhantomPatient,
    settings: PhantomSettings,
    rng: np.random.Generator,
    deck: Iterator[int],
    *,
    broken: bool,
) -> PhantomSlice | None:
    """A slice through the next vertebra of the deck, or None if none of many tries would do."""
    number = next(deck)
    for _ in range(_TRIES):
        if broken:
            fracture = next(f for f in patient.fractures if f.number == number)
        else:
            fracture = draw_fracture(rng, patient.vertebrae[number - 1], settings.fracture_conspicuity)
        z_mm = _visible_height(patient, fracture, rng)
        if z_mm is None or (not broken and _shows_a_break(patient, z_mm)):
            continue
        # The technologist's hand: no two crops are centred alike.
        span = 0.035 * patient.field_of_view_mm
        shift = (float(rng.uniform(-span, span)), float(rng.uniform(-span, span)))
        hu, vertebra_mask, fracture_mask = render_plane(
            patient, z_mm, size_px=settings.size_px, shift_mm=shift
        )
        pixel_mm2 = (patient.field_of_view_mm / settings.size_px) ** 2
        seen = (
            float(fracture_mask[vertebra_mask == number].sum() if broken else fracture_mask.sum()) * pixel_mm2
        )
        if (seen >= fracture.visible_mm2) if broken else (seen == 0):
            kind = fracture.kind if broken else ""
            return PhantomSlice(hu, vertebra_mask, fracture_mask, z_mm, LEVELS[number - 1], kind)
    return None


def _visible_height(patient: PhantomPatient, fracture: Fracture, rng: np.random.Generator) -> float | None:
    """A height at which `fracture` would be visible, or None if the one that was tried is not."""
    vertebra = patient.vertebrae[fracture.number - 1]
    crack = fracture.cracks[int(rng.integers(len(fracture.cracks)))]
    z_mm = (
        vertebra.to_neck(crack.centre)[2]
        + float(rng.uniform(-1, 1)) * min(crack.radius, 11.0) * vertebra.scale
    )
    z_mm = round(z_mm, 2)
    return z_mm if compute_seen_mm2(vertebra, fracture, z_mm) >= 1.15 * fracture.visible_mm2 else None


def _shows_a_break(patient: PhantomPatient, z_mm: float) -> bool:
    return any(compute_seen_mm2(patient.vertebrae[f.number - 1], f, z_mm) > 0 for f in patient.fractures)
