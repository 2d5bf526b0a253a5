"""What each corruption does, against physics worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from cspine.robustness import scanner
from cspine.robustness import scanner as picture
from cspine.robustness.scanner import (
    AIR_HU,
    REFERENCE_NOISE_HU,
    WATER_PER_MM,
    Field,
    PixelMeaning,
    Scene,
    project_scene,
    reconstruct_hu,
)


def make_scene(hu: Field, pixel_mm: float = 1.0, seed: int = 0) -> Scene:
    return Scene(hu.astype(np.float32), pixel_mm, AIR_HU, PixelMeaning(), np.random.default_rng(seed))


def find_radius(size: int, x: float = 0.0, y: float = 0.0) -> Field:
    middle = (size - 1) / 2
    row, column = np.mgrid[:size, :size]
    return np.asarray(np.hypot(column - middle - x, row - middle - y), np.float32)


def make_water(size: int = 96, radius: float = 40.0, x: float = 0.0, y: float = 0.0) -> Field:
    return np.where(find_radius(size, x, y) < radius, 0.0, AIR_HU).astype(np.float32)


def test_a_disc_is_projected_and_reconstructed_in_place() -> None:
    scene = make_scene(make_water(96, 20, x=15, y=-10))
    seen = project_scene(scene)
    views, bins = seen.sinogram.shape
    assert views % 2 == 0
    for view in (0, views // 3, views // 2):
        # The chord through a disc is 2 sqrt(r^2 - t^2); its middle lies at x cos + y sin.
        angle = view * np.pi / views
        t = np.arange(bins) - (bins - 1) / 2 - (15 * np.cos(angle) - 10 * np.sin(angle))
        chord = 2 * np.sqrt(np.maximum(20**2 - t**2, 0))
        assert np.abs(seen.sinogram[view] - chord).mean() < 0.5  # a disc of pixels has a rough edge
        assert seen.sinogram[view].sum() == pytest.approx(np.pi * 20**2, rel=0.02)
    back = reconstruct_hu(seen.sinogram, seen, scene)
    inside, outside = find_radius(96, 15, -10) < 17, find_radius(96, 15, -10) > 24
    assert back[inside].mean() == pytest.approx(1000, abs=8)
    assert np.abs(back[outside]).mean() < 8


def test_noise_variance_is_that_of_the_dose_that_is_missing() -> None:
    # Yu et al. 2012: at a fraction f of the dose, 1 / f - 1 times the full dose's variance is added.
    hu = make_water()
    middle = find_radius(96) < 12
    for dose in (0.5, 0.25, 0.1, 0.02):
        added = np.stack([scanner.apply_noise(make_scene(hu, seed=seed), dose) - hu for seed in range(6)])
        spread = added[:, middle].std()
        assert spread == pytest.approx(REFERENCE_NOISE_HU * np.sqrt(1 / dose - 1), rel=0.12)
        assert abs(added[:, middle].mean()) < 0.05 * spread


def test_full_dose_adds_no_noise() -> None:
    hu = make_water()
    assert np.array_equal(scanner.apply_noise(make_scene(hu), 1.0), hu)


def test_noise_runs_in_streaks_along_starved_rays() -> None:
    column, row = np.meshgrid(np.arange(96) - 47.5, np.arange(96) - 47.5)
    ellipse = np.where((column / 46) ** 2 + (row / 16) ** 2 < 1, 0.0, AIR_HU).astype(np.float32)
    added = np.stack(
        [scanner.apply_noise(make_scene(ellipse, 4.0, seed), 0.1) - ellipse for seed in range(4)]
    )
    middle = added[:, 40:56, 30:66]
    along = np.mean(middle[:, :, 1:] * middle[:, :, :-1])
    across = np.mean(middle[:, 1:] * middle[:, :-1])
    assert along > across + 0.2 * middle.var()


def test_water_alone_has_no_beam_hardening() -> None:
    hu = make_water()
    assert np.abs(scanner.apply_beam_hardening(make_scene(hu), 8.0) - hu)[find_radius(96) < 36].max() < 2


def test_beam_hardening_darkens_between_two_bones_only() -> None:
    hu = make_water()
    for x in (-18.0, 18.0):
        hu[find_radius(96, x) < 9] = 1200
    artefact = scanner.apply_beam_hardening(make_scene(hu, 2.0), 1.0) - hu
    between = artefact[46:50, 44:52].mean()
    above = artefact[18:24, 44:52].mean()
    assert between < -10
    assert above > between + 10
    assert abs(artefact[find_radius(96, 18.0) < 7].mean()) < 60  # bone is shown about as bright as it is
    doubled = scanner.apply_beam_hardening(make_scene(hu, 2.0), 2.0) - hu
    assert np.allclose(doubled, 2 * artefact, atol=0.5)


def test_water_is_corrected_and_more_bone_measures_less() -> None:
    water = np.array([0.0, 1.0, 3.0, 6.0], np.float32)
    measured = scanner._measure(water, np.zeros_like(water))
    assert np.allclose(scanner._correct_for_water(measured), water, atol=1e-3)
    steps = np.diff(scanner._measure(np.full(3, 2.0, np.float32), np.array([0.0, 1.0, 2.0], np.float32)))
    assert steps[1] < steps[0]


def test_metal_is_white_and_dark_between() -> None:
    hu = make_water(128, 58)
    made = scanner.apply_metal(make_scene(hu), 8.0)
    metal = made > 2500
    assert metal.sum() == pytest.approx(2 * np.pi * 4**2, rel=0.25)
    rows, columns = np.nonzero(metal)
    left = columns < columns.mean()
    row, column = (round((place[left].mean() + place[~left].mean()) / 2) for place in (rows, columns))
    assert made[row - 1 : row + 2, column - 2 : column + 3].mean() < -100
    far = np.abs(np.arange(128) - row) > 40
    assert np.median(np.abs(made - hu)[far]) < 50
    small = scanner.apply_metal(make_scene(hu), 2.0)
    assert np.abs(small - hu).mean() < 0.3 * np.abs(made - hu).mean()


def test_metal_keeps_off_bone() -> None:
    hu = make_water(128, 58)
    hu[20:60, 70:90] = 900  # where one of the discs may go
    for seed in range(5):
        made = scanner.apply_metal(make_scene(hu, seed=seed), 3.0)
        assert not (made > 2500)[24:56, 74:86].any()


def test_rings_have_no_angle_and_grow_with_the_gain() -> None:
    ring = scanner.apply_ring(make_scene(np.zeros((97, 97), np.float32)), 5.0)
    assert ring.std() > 0
    for turned in (ring[::-1], ring[:, ::-1], ring.T, np.rot90(ring)):
        assert np.allclose(ring, turned, atol=1e-2)
    # (18, 24) and (0, 30) are both 30 pixels from the centre.
    assert ring[48 + 18, 48 + 24] == pytest.approx(ring[48, 48 + 30], abs=1e-2)
    tenth = scanner.apply_ring(make_scene(np.zeros((97, 97), np.float32)), 0.5)
    assert np.allclose(10 * tenth, ring, atol=0.12 * np.abs(ring).max())


def test_a_gain_of_all_elements_is_worth_its_attenuation() -> None:
    # A constant row d is the projection of d / (pi sqrt(R^2 - r^2)): d / (pi R) at the middle.
    scene = make_scene(np.zeros((64, 64), np.float32))
    seen = project_scene(make_scene(make_water(64, 30)))
    low = np.full(seen.sinogram.shape, -np.log1p(-0.01) / WATER_PER_MM, np.float32)
    found = reconstruct_hu(low, seen, scene)[28:36, 28:36].mean()
    half = seen.sinogram.shape[1] / 2
    assert found == pytest.approx(1000 * 0.01005 / WATER_PER_MM / (np.pi * half), rel=0.03)


def test_motion_keeps_tissue_and_a_still_neck() -> None:
    hu = make_water(96, 25)
    assert np.allclose(scanner.apply_motion(make_scene(hu), 0.0), hu, atol=0.2)
    moved = scanner.apply_motion(make_scene(hu), 4.0)
    assert np.sum(moved + 1000) == pytest.approx(np.sum(hu + 1000), rel=0.03)
    rim, middle = np.abs(find_radius(96) - 25) < 4, find_radius(96) < 15
    assert np.abs(moved - hu)[rim].mean() > 5 * np.abs(moved - hu)[middle].mean()


@pytest.mark.parametrize(
    ("kind", "value"), [("noise", 0.1), ("beam_hardening", 8.0), ("ring", 3.0), ("motion", 3.0)]
)
def test_the_mean_of_water_is_kept(kind: str, value: float) -> None:
    hu = make_water(96, 42)
    inside = (find_radius(96) < 30) & (find_radius(96) > 4)
    corrupt = getattr(scanner, f"apply_{kind}")
    assert np.mean(
        [corrupt(make_scene(hu, seed=seed), value)[inside].mean() for seed in range(4)]
    ) == pytest.approx(0, abs=6)


def test_a_soft_kernel_has_its_width_and_keeps_water() -> None:
    hu = np.zeros((65, 65), np.float32)
    hu[32, 32] = 1000.0
    blurred = picture.apply_blur(make_scene(hu, 0.5), 4.0)
    assert np.count_nonzero(blurred[32] > blurred.max() / 2) * 0.5 == pytest.approx(4.0, abs=0.6)
    assert blurred.sum() == pytest.approx(1000, rel=1e-3)
    water = np.full((20, 20), 37.0, np.float32)
    assert np.allclose(picture.apply_blur(make_scene(water), 6.0), 37.0, atol=1e-3)


def test_resolution_hides_only_grids_finer_than_its_pixel() -> None:
    grid = np.where(np.arange(64) % 2, 100.0, -100.0).astype(np.float32)[None, :].repeat(64, 0)
    assert np.abs(picture.apply_resolution(make_scene(grid, 1.0), 2.0)).max() < 1
    assert np.array_equal(picture.apply_resolution(make_scene(grid, 4.0), 2.0), grid)


def test_window_and_contrast_are_straight_lines() -> None:
    hu = np.array([[-200.0, 0.0, 400.0, 1000.0]], np.float32)
    shifted = picture.apply_window(make_scene(hu), 150.0) - hu
    assert np.allclose(np.abs(shifted), 150)
    assert np.ptp(shifted) == 0
    # The window's center stays, and all else comes nearer to it by the factor.
    assert np.allclose(picture.apply_contrast(make_scene(hu), 2.0), [[100, 200, 400, 700]])


def test_rotation_turns_by_its_angle_and_fills_with_air() -> None:
    hu = np.full((101, 101), 40.0, np.float32)
    hu[10, 50] = 3000.0
    turned = picture.apply_rotation(make_scene(hu), 30.0)
    assert turned[0, 0] == AIR_HU
    row, column = np.unravel_index(np.argmax(turned), turned.shape)
    assert np.degrees(np.arctan2(abs(column - 50), 50 - row)) == pytest.approx(30, abs=2)


def test_a_crop_to_half_shows_things_twice_as_large() -> None:
    hu = make_water(97, 15)
    half = picture.apply_crop(make_scene(hu), 0.5)
    assert (half > -500).sum() == pytest.approx(4 * (hu > -500).sum(), rel=0.05)


def test_jpeg_keeps_the_mean_and_gets_worse() -> None:
    noise = np.random.default_rng(0).normal(0, 60, (64, 64))
    hu = (make_water(64, 28) + noise).astype(np.float32)
    inside = find_radius(64) < 20
    errors = [(picture.apply_jpeg(make_scene(hu), quality) - hu)[inside] for quality in (95, 50, 10)]
    assert errors[0].std() < errors[1].std() < errors[2].std()
    assert abs(errors[1].mean()) < 8
