"""Anomalies planted in drawn slices, one kind at a time and several at once; a clean set has none."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
import numpy.typing as npt
import polars as pl
import pytest

from cspine.auditing.anomalies import SCHEMA, find_anomalies, measure_pixels, shrink_pixels
from cspine.auditing.findings import Finding
from cspine.auditing.shortcuts import find_telling_metadata, score_metadata
from tests.auditing.sets import make_phantom, read_set

Pixels = npt.NDArray[np.uint8]
COUNT = 144


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> list[Pixels]:
    folder = make_phantom(tmp_path_factory.mktemp("anomalies") / "phantom")
    manifest = read_set(folder)
    return [np.asarray(manifest.read_row(row).pixels, np.uint8) for row in range(len(manifest))]


def find(pixels: list[Pixels], **columns: object) -> dict[str, Finding]:
    """The findings by code; slices are named by their number."""
    measures = [measure_pixels(one) for one in pixels]
    base: dict[str, object] = {
        "path": [str(row) for row in range(len(pixels))],
        "label": [row % 2 for row in range(len(pixels))],
        "split": ["train"] * len(pixels),
        "patient_id": [f"p{row // 6}" for row in range(len(pixels))],
        "series_uid": [f"x{row // 6}" for row in range(len(pixels))],
        "family": list(range(len(pixels))),
        "width_px": [one.shape[1] for one in pixels],
        "height_px": [one.shape[0] for one in pixels],
        "mode": ["L"] * len(pixels),
        "bits_stored": [8] * len(pixels),
        "channels_differ": [False] * len(pixels),
        **columns,
    }
    kinds = {name: kind for name, kind in SCHEMA.items() if name not in ("slice_id", "unreadable")}
    table = pl.DataFrame(base).hstack(pl.DataFrame(measures, schema=kinds))
    table = table.with_columns(unreadable=pl.lit(None, pl.String))
    thumbnails = np.stack([shrink_pixels(one) for one in pixels])
    return {one.code: one for one in find_anomalies(table, thumbnails)}


def plant(clean: list[Pixels], count: int, change: Callable[[Pixels, int], Pixels]) -> list[Pixels]:
    """`clean` with its first slices changed."""
    return [change(one, row) if row < count else one for row, one in enumerate(clean)]


def draw_magnetic(pixels: Pixels, seed: int) -> Pixels:
    """A bright blob that fades, with stripes and noise: no CT, though dark at its edges."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:64, :64]
    radius = np.hypot(y - 32, x - 32 + rng.uniform(-3, 3))
    stripes = 40 * np.sin(x / 3) * (radius < 28)
    values = 180 * np.exp(-((radius / 18) ** 2)) + stripes + rng.normal(0, 6, (64, 64))
    return np.clip(values, 0, 255).astype(np.uint8)


def draw_radiograph(pixels: Pixels, seed: int) -> Pixels:
    rng = np.random.default_rng(seed)
    ramp = np.linspace(60, 220, 64) + 30 * np.sin(np.arange(64)[:, None] / 4)
    return np.clip(ramp + rng.normal(0, 5, (64, 64)), 0, 255).astype(np.uint8)


def test_a_clean_set_has_no_anomaly(clean: list[Pixels]) -> None:
    assert find(clean) == {}


@pytest.mark.parametrize("count", [1, 8, 14])
@pytest.mark.parametrize("draw", [draw_magnetic, draw_radiograph])
def test_another_modality_is_found_among_slices_like_it(
    clean: list[Pixels], draw: Callable[[Pixels, int], Pixels], count: int
) -> None:
    found = find(plant(clean, count, draw))
    assert set(found) == {"unlike-the-set"}
    assert found["unlike-the-set"].files == tuple(str(row) for row in range(count))


@pytest.mark.parametrize("count", [1, 5, 20])
def test_inverted_slices_are_found_where_the_body_fills_them(clean: list[Pixels], count: int) -> None:
    found = find(plant(clean, count, lambda one, row: np.asarray(255 - one, np.uint8)))
    assert set(found) == {"inverted"}
    assert len(set(found["inverted"].files) & {str(row) for row in range(count)}) == len(
        found["inverted"].files
    )
    assert len(found["inverted"].files) >= 0.9 * count


@pytest.mark.parametrize("top", [255, 200])
def test_saturation_is_found_at_any_largest_value(clean: list[Pixels], top: int) -> None:
    found = find(plant(clean, 2, lambda one, row: np.clip(one.astype(int) * 4, 0, top).astype(np.uint8)))
    assert found["saturated"].files == ("0", "1")
    assert "inverted" not in found


@pytest.mark.parametrize("scale", [0.5, 0.8])
@pytest.mark.parametrize("place", ["top", "bottom", "left", "right"])
def test_text_in_a_black_margin_is_found_on_every_side(clean: list[Pixels], scale: float, place: str) -> None:
    def write(one: Pixels, row: int) -> Pixels:
        framed = cv2.copyMakeBorder(cv2.resize(one, (256, 256)), 120, 120, 120, 120, cv2.BORDER_CONSTANT)
        corner = {"top": (10, 30), "bottom": (10, 480), "left": (2, 250), "right": (410, 250)}[place]
        cv2.putText(framed, "ANON 12", corner, cv2.FONT_HERSHEY_SIMPLEX, scale, 255, 1)
        return np.asarray(framed, np.uint8)

    found = find(plant(clean, 1, write))
    assert found["burnt-in-text"].files == ("0",)


@pytest.mark.parametrize("value", [0, 128, 255])
def test_a_frame_of_one_value_is_found(clean: list[Pixels], value: int) -> None:
    def frame(one: Pixels, row: int) -> Pixels:
        return np.asarray(cv2.copyMakeBorder(one, 4, 4, 4, 4, cv2.BORDER_CONSTANT, value=value), np.uint8)

    assert find(plant(clean, 1, frame))["border"].files == ("0",)


def test_rare_sizes_depths_and_lone_channels_are_found(clean: list[Pixels]) -> None:
    larger = plant(clean, 2, lambda one, row: np.asarray(cv2.resize(one, (80, 80)), np.uint8))
    kinds = {"bits_stored": [16] + [8] * (COUNT - 1), "channels_differ": [True] + [False] * (COUNT - 1)}
    found = find(larger, **kinds)
    assert found["odd-size"].files == ("0", "1")
    assert found["odd-depth"].files == ("0",)
    assert found["colour"].files == ("0",)


def test_imbalance_of_classes_and_sizes_is_found(clean: list[Pixels]) -> None:
    splits = ["train"] * 100 + ["val"] * 40 + ["test"] * 4
    patients = ["large"] * 70 + [f"p{row}" for row in range(74)]
    found = find(clean, label=[int(row % 10 == 0) for row in range(COUNT)], split=splits, patient_id=patients)
    assert found["class-imbalance"].evidence["split"] in ("train", "val", "test")
    texts = " ".join(one.text for one in find_all_sizes(clean, splits, patients))
    assert "Split test has 4 slices, train 100" in texts
    assert "One of the 31 patients of train has 70% of its slices" in texts


def find_all_sizes(clean: list[Pixels], splits: list[str], patients: list[str]) -> list[Finding]:
    both = [find(clean, split=splits), find(clean, split=["train"] * 100 + [None] * 44, patient_id=patients)]  # type: ignore[list-item]
    return [one["size-imbalance"] for one in both]


def make_files(**columns: object) -> pl.DataFrame:
    """240 slices of 60 patients whose label goes with nothing but what is planted."""
    rng = np.random.default_rng(3)
    label = np.arange(240) % 2
    base = {
        "label": label,
        "patient_id": [f"p{row // 4}" for row in range(240)],
        "path": ["a.png"] * 240,
        "mode": ["L"] * 240,
        "series_uid": [f"x{row // 4}" for row in range(240)],
        "file_bytes": rng.integers(1000, 2000, 240),
        "width_px": [64] * 240,
        "height_px": [64] * 240,
        "bits_stored": [8] * 240,
        "position": rng.permutation(240).astype(float),
        "mean": rng.normal(90, 9, 240),
        "std": rng.normal(50, 5, 240),
        "sharpness": rng.normal(9, 1, 240),
    }
    return pl.DataFrame({**base, **columns})


LABEL = np.arange(240) % 2
NOISE = np.random.default_rng(8).normal(size=240)


def find_telling(table: pl.DataFrame) -> set[str]:
    return {
        str(one.evidence["property"]) for one in find_telling_metadata(score_metadata(table, "patient_id"))
    }


def test_metadata_that_goes_with_nothing_is_no_finding() -> None:
    assert find_telling(make_files()) == set()


@pytest.mark.parametrize(
    ("name", "columns"),
    [
        ("file_bytes", {"file_bytes": 5000 - 900 * LABEL}),
        ("pixels", {"width_px": 64 + 64 * LABEL, "height_px": 64 + 64 * LABEL}),
        ("aspect", {"width_px": 64 + 8 * LABEL, "height_px": 64 - 7 * LABEL}),
        ("bits_stored", {"bits_stored": 8 + 8 * LABEL}),
        ("position", {"position": 3.0 * LABEL + NOISE}),
        ("place", {"position": 1000.0 * (np.arange(240) // 4) + 10.0 * LABEL + NOISE}),
        ("mean", {"mean": 90 + 3.0 * LABEL + NOISE}),
        ("mode", {"mode": np.where(LABEL == 1, "RGB", "L")}),
        ("file_type", {"path": np.where(LABEL == 1, "a.jpg", "b.PNG")}),
        ("series_uid", {"series_uid": np.where(LABEL + NOISE > 0.5, "one", "two")}),
    ],
)
def test_every_property_that_tells_the_class_is_found(name: str, columns: dict[str, object]) -> None:
    assert name in find_telling(make_files(**columns))


@pytest.mark.parametrize("slices_a_series", [2, 4, 10])
def test_many_small_series_tell_no_unrelated_label(slices_a_series: int) -> None:
    """By the share of fractures among all slices of a series, series of two would have an AUROC of 0.875."""
    labels = np.random.default_rng(4).integers(0, 2, 240)
    table = make_files(
        label=labels,
        patient_id=[f"p{row}" for row in range(240)],
        series_uid=[f"x{row // slices_a_series}" for row in range(240)],
    )
    (series,) = [one for one in score_metadata(table, "patient_id") if one.name == "series_uid"]
    assert series.auroc.value == pytest.approx(0.5, abs=0.1)
    assert find_telling(table) == set()


def test_series_that_tell_every_label_are_found_however_small() -> None:
    table = make_files(
        label=np.arange(240) // 4 % 2,
        patient_id=[f"p{row}" for row in range(240)],
        series_uid=[f"x{row // 4}" for row in range(240)],
    )
    scores = {one.name: one.auroc.value for one in score_metadata(table, "patient_id")}
    assert scores["series_uid"] == 1


def test_one_label_a_patient_is_no_finding_by_series() -> None:
    labels = np.random.default_rng(1).integers(0, 2, 60)
    table = make_files(label=np.repeat(labels, 4), series_uid=[f"x{row // 8}" for row in range(240)])
    assert find_telling(table) == set()


def test_a_number_that_one_slice_lacks_is_scored_on_the_others() -> None:
    position = np.where(np.arange(240) == 7, np.nan, 3.0 * LABEL + NOISE)
    table = make_files(position=position).with_columns(pl.col("position").fill_nan(None))
    assert "position" in find_telling(table)
