"""The nearest neighbour that sees no anatomy, against scikit-learn's."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import polars as pl
import pytest
from PIL import Image
from sklearn.neighbors import KNeighborsClassifier

from cspine.auditing.anomalies import THUMBNAIL_PX
from cspine.auditing.shortcuts import (
    Features,
    find_shortcuts,
    fit_nearest_neighbour,
    fit_rows,
    score_given_split,
    score_held_out,
    shrink_slices,
)
from cspine.data.cache import SliceCache
from tests.auditing.sets import make_rows

COUNT = 60


def make_cache(size_px: int, seed: int = 0) -> SliceCache:
    coarse = np.random.default_rng(seed).integers(0, 256, (COUNT, 6, 6), dtype=np.uint8)
    pixels = np.stack([cv2.resize(one, (size_px, size_px)) for one in coarse])
    return SliceCache(pixels, tuple(f"s{number:02}" for number in range(COUNT)), Path())


def score(
    cache: SliceCache, known: list[str], labels: list[int], asked: list[str]
) -> npt.NDArray[np.float64]:
    def read(ids: list[str]) -> Features:
        return shrink_slices(cache, ids).reshape(len(ids), -1).astype(np.float32)

    return fit_nearest_neighbour(read(known), np.array(labels), read(asked))


@pytest.mark.parametrize("size_px", [32, 64, 48])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_sign_is_the_class_of_the_nearest_neighbour(size_px: int, seed: int) -> None:
    cache = make_cache(size_px, seed)
    order = np.random.default_rng(seed + 9).permutation(COUNT)
    known, asked = order[:40], order[40:]
    labels = np.random.default_rng(seed).integers(0, 2, 40)
    small = np.stack(
        [
            np.asarray(Image.fromarray(one).resize((THUMBNAIL_PX,) * 2, Image.Resampling.BILINEAR)).ravel()
            for one in cache.pixels
        ]
    ).astype(float)
    wanted = KNeighborsClassifier(1).fit(small[known], labels).predict(small[asked])
    ids = cache.slice_ids
    logits = score(cache, [ids[n] for n in known], labels.tolist(), [ids[n] for n in asked])
    assert (logits > 0).astype(int).tolist() == wanted.tolist()
    assert 0 < wanted.sum() < len(wanted)


def test_the_logit_is_the_log_of_the_two_distances() -> None:
    levels = np.array([0, 100, 30], dtype=np.uint8)
    pixels = np.broadcast_to(levels[:, None, None], (3, 32, 32)).copy()
    cache = SliceCache(pixels, ("normal", "fracture", "asked"), Path())
    logit = score(cache, ["normal", "fracture"], [0, 1], ["asked"])
    assert logit == pytest.approx([np.log(30 / 70)], rel=1e-4)


def test_a_copy_of_a_known_slice_gets_a_large_and_finite_logit() -> None:
    cache = make_cache(32)
    ids = list(cache.slice_ids)
    logits = score(cache, ids[:2], [0, 1], ids[:2])
    assert np.isfinite(logits).all()
    assert logits[0] < -5
    assert logits[1] > 5


def test_more_slices_than_the_limit_are_drawn_with_a_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cspine.auditing.shortcuts.MAX_TRAINING", 5)
    seen: list[int] = []

    def fit(known: Features, labels: npt.NDArray[np.integer], asked: Features) -> npt.NDArray[np.float64]:
        seen.append(len(known))
        return known[: len(asked), 0].astype(float)

    features = np.arange(20, dtype=np.float32)[:, None]
    rows = np.arange(18)
    first = fit_rows(features, fit, np.zeros(20, int), rows, np.array([18, 19]))
    again = fit_rows(features, fit, np.zeros(20, int), rows, np.array([18, 19]))
    assert seen == [5, 5]
    assert first.tolist() == again.tolist()


def make_slices(split: list[str], label: list[int], family: list[int], level: list[int]) -> pl.DataFrame:
    count = len(split)
    return make_rows(split=split, label=label, family=family, mode=["L"] * count).with_columns(
        pl.lit(64).alias("width_px"),
        pl.lit(64).alias("height_px"),
        pl.lit(8).alias("bits_stored"),
        pl.lit(100).alias("file_bytes"),
        pl.Series("mean", level),
    )


def test_baselines_are_scored_with_and_without_copies() -> None:
    """Only copies tell the class here: without them, the nearest to 10 (normal) is 12, and to 100 (fracture) is 98."""
    split = ["train"] * 4 + ["val"] * 2
    labels, levels = [0, 1, 1, 0, 0, 1], [10, 100, 12, 98, 10, 100]
    table = make_slices(split, labels, [1, 2, 3, 4, 1, 2], levels)
    thumbnails = np.broadcast_to(np.array(levels, np.uint8)[:, None, None], (6, 32, 32)).copy()
    found = {
        one.protocol: one.accuracy.value
        for one in score_given_split(table, thumbnails, "train", "val")
        if one.name == "nearest neighbour"
    }
    assert found == {"train to val": 1.0, "train without copies to val": 0.0}


def test_without_copies_each_baseline_is_scored_once() -> None:
    levels = [10, 100, 12, 98, 10, 100]
    table = make_slices(["train"] * 4 + ["val"] * 2, [0, 1, 1, 0, 0, 1], [1, 2, 3, 4, 5, 6], levels)
    thumbnails = np.broadcast_to(np.array(levels, np.uint8)[:, None, None], (6, 32, 32)).copy()
    found = score_given_split(table, thumbnails, "train", "val")
    assert {one.protocol for one in found} == {"train to val"}
    assert [one.name for one in found] == [
        "nearest neighbour",
        "logistic regression",
        "mean intensity",
        "file metadata",
    ]


POSITIONS = [float(row % 2 * 10 + row // 2 % 5) for row in range(80)]


def make_scored(**told: object) -> tuple[pl.DataFrame, npt.NDArray[np.uint8]]:
    """Eighty noise slices of twenty patients, of which only what is `told` goes with the class."""
    rng = np.random.default_rng(11)
    labels = [row % 2 for row in range(80)]
    table = make_slices(
        ["train"] * 48 + ["val"] * 32, labels, list(range(80)), rng.integers(80, 120, 80).tolist()
    ).with_columns(
        patient_id=pl.Series([f"p{row // 4}" for row in range(80)]),
        file_bytes=pl.Series(rng.integers(900, 1100, 80)),
        position=pl.Series(rng.permutation(80).astype(float)),
    )
    thumbnails = rng.integers(0, 256, (80, 32, 32), dtype=np.uint8)
    if told.pop("pixels", False):
        thumbnails[:, :4] = np.array(labels, np.uint8)[:, None, None] * 200
    return table.with_columns(**{name: pl.Series(values) for name, values in told.items()}), thumbnails


def find_told(table: pl.DataFrame, thumbnails: npt.NDArray[np.uint8]) -> dict[str, str]:
    scored = (*score_given_split(table, thumbnails, "train", "val"), *score_held_out(table, thumbnails)[0])
    assert {one.protocol for one in scored} == {"train to val", "5 folds by patient"}
    return {str(one.evidence["baseline"]): one.severity for one in find_shortcuts(scored)}


def test_what_goes_with_nothing_is_no_shortcut() -> None:
    assert find_told(*make_scored()) == {}


@pytest.mark.parametrize(
    ("told", "baseline"),
    [
        ({"pixels": True}, "nearest neighbour"),
        ({"pixels": True}, "logistic regression"),
        ({"mean": [90 + 20 * (row % 2) for row in range(80)]}, "mean intensity"),
        ({"position": POSITIONS}, "slice position"),
        ({"file_bytes": [900 + 300 * (row % 2) for row in range(80)]}, "file metadata"),
        ({"mode": ["RGB" if row % 2 else "L" for row in range(80)]}, "file metadata"),
    ],
)
def test_every_baseline_finds_what_is_planted_for_it(told: dict[str, object], baseline: str) -> None:
    assert find_told(*make_scored(**told))[baseline] == "invalidates"


def test_slice_position_is_no_baseline_where_places_are_unknown() -> None:
    table, thumbnails = make_scored()
    unknown = table.with_columns(position=pl.lit(None, pl.Float64))
    names = {one.name for one in score_given_split(unknown, thumbnails, "train", "val")}
    assert "slice position" not in names


def test_of_large_sets_whole_patients_are_drawn_and_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twenty patients of four slices: 14 of them fill up to 57 slices, and none is torn apart."""
    monkeypatch.setattr("cspine.auditing.shortcuts.MOST_SLICES", 57)
    held, _ = score_held_out(*make_scored(pixels=True))
    assert {(one.protocol, one.slices) for one in held} == {
        ("5 folds by patient, on 56 of 80 slices, drawn by whole groups", 56)
    }
    assert {one.accuracy.n for one in held} == {14}
    again, _ = score_held_out(*make_scored(pixels=True))
    assert again == held


def test_where_a_side_has_few_patients_none_of_them_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cspine.auditing.shortcuts.MOST_SLICES", 30)
    given = score_given_split(*make_scored(), "train", "val")
    assert {(one.protocol, one.slices) for one in given} == {
        ("train to val, on 60 of 80 slices, drawn by whole groups", 30)
    }
    assert {one.accuracy.n for one in given} == {8}
