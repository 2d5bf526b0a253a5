"""Pointing scores by hand, chance against draws, and maps joined to rows by their id."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from cspine.core.errors import InputError
from cspine.explain.pointing import SlicePointing, estimate_mean, evaluate_pointing, find_near, score_slice

BODY = np.ones((10, 10), bool)


def make_region(rows: slice, columns: slice) -> np.ndarray:
    region = np.zeros((10, 10), bool)
    region[rows, columns] = True
    return region


REGION = make_region(slice(2, 4), slice(2, 4))  # 4 of 100 pixels


def make_heat(values: dict[tuple[int, int], float]) -> np.ndarray:
    heat = np.zeros((10, 10), np.float32)
    for place, value in values.items():
        heat[place] = value
    return heat


def test_every_score_is_as_counted_by_hand() -> None:
    heat = make_heat({(2, 2): 4.0, (2, 3): 1.0, (7, 7): 3.0, (8, 8): 2.0})
    found = score_slice(heat, REGION, BODY, (1.0, 1.0), tolerance_mm=2.0).found
    assert found == pytest.approx(
        {
            "hit": 1.0,
            "hit_near": 1.0,
            "energy": 5 / 10,
            # The four largest: (2, 2), (7, 7), (8, 8), (2, 3); two of them inside, six in either.
            "iou_area": 2 / 6,
            # From 2 on: (2, 2), (7, 7), (8, 8); one inside.
            "iou_half": 1 / 6,
        }
    )


def test_a_peak_just_outside_is_near_by_millimetres_not_pixels() -> None:
    heat = make_heat({(6, 3): 1.0})  # three rows below the region
    for spacing_mm, near in (((1.0, 1.0), 1.0), ((1.5, 1.0), 0.0)):
        found = score_slice(heat, REGION, BODY, spacing_mm, tolerance_mm=4.0).found
        assert (found["hit"], found["hit_near"]) == (0.0, near)
    assert "hit_near" not in score_slice(heat, REGION, BODY, None).found


def test_nearness_is_a_circle() -> None:
    near = find_near(make_region(slice(5, 6), slice(5, 6)), (1.0, 1.0), 2.0)
    assert near.sum() == 13  # of a radius of two pixels
    assert near[7, 5]
    assert not near[7, 6]


def test_of_several_equal_peaks_the_share_inside_counts() -> None:
    assert score_slice(make_heat({(2, 2): 1, (9, 9): 1}), REGION, BODY, None).found["hit"] == 0.5


def test_a_map_without_evidence_scores_nothing_and_is_counted() -> None:
    one = score_slice(make_heat({}), REGION, BODY, (1.0, 1.0))
    assert one.empty
    assert set(one.found.values()) == {0.0}


def test_chance_is_what_random_points_and_maps_get() -> None:
    rng = np.random.default_rng(0)
    body = make_region(slice(0, 10), slice(0, 8))
    got = score_slice(make_heat({}), REGION, body, (1.0, 1.0), tolerance_mm=1.0).chance
    assert got["hit"] == 4 / 80
    assert got["hit_near"] == 12 / 80
    assert got["energy"] == 4 / 80
    drawn = []
    for _ in range(3000):
        heat = np.where(body, rng.uniform(0.001, 1, (10, 10)), 0).astype(np.float32)
        drawn.append(score_slice(heat, REGION, body, None).found)
    for name in ("hit", "energy", "iou_area", "iou_half"):
        assert got[name] == pytest.approx(np.mean([one[name] for one in drawn]), abs=0.01)


def test_the_bell_stands_in_the_middle_of_the_body() -> None:
    body = make_region(slice(0, 5), slice(1, 6))
    one = score_slice(make_heat({}), make_region(slice(2, 3), slice(3, 4)), body, None)
    assert one.centre["hit"] == 1.0
    off = score_slice(make_heat({}), make_region(slice(8, 9), slice(8, 9)), body, None)
    assert off.centre["hit"] == 0.0


def test_sizes_must_agree_and_regions_hold_something() -> None:
    with pytest.raises(ValueError, match="one size"):
        score_slice(make_heat({})[:5], REGION, BODY, None)
    with pytest.raises(ValueError, match="empty"):
        score_slice(make_heat({}), REGION & False, BODY, None)


def make_scores(hits: list[float]) -> dict[str, SlicePointing]:
    return {
        f"s{number}": SlicePointing({"hit": hit}, {"hit": 0.1}, {"hit": 0.5}, hit == 0)
        for number, hit in enumerate(hits)
    }


def make_table(patients: list[str | None]) -> pl.DataFrame:
    count = len(patients)
    return pl.DataFrame(
        {
            "slice_id": [f"s{number}" for number in range(count)],
            "patient_id": patients,
            "study_uid": [f"u{number % 12}" for number in range(count)],
            "series_uid": [f"u{number % 12}" for number in range(count)],
            "source_id": [None] * count,
        },
        schema_overrides={"patient_id": pl.String, "source_id": pl.String},
    )


def test_scores_are_joined_by_id_and_intervals_are_over_patients() -> None:
    scores = make_scores([1.0, 1.0, 1.0, 0.0, 0.0, 0.0])
    table = make_table(["a", "a", "a", "b", "b", "c"])
    result = evaluate_pointing(scores, table, masks=2)
    shuffled = evaluate_pointing(
        dict(reversed(scores.items())), table.sample(fraction=1, shuffle=True, seed=1), masks=2
    )
    assert result == shuffled
    assert (result.unit, result.units, result.masks, result.boxes, result.empty) == ("patient", 3, 2, 4, 3)
    (measure,) = result.measures
    assert measure.found.value == 0.5
    assert measure.beyond_centre.value == pytest.approx(0.0)
    assert measure.found.low is not None
    assert measure.found.high is not None
    assert (
        measure.found.high - measure.found.low > 0.8
    )  # three patients that agree within themselves say little


def test_where_patients_are_unknown_the_study_is_the_unit() -> None:
    result = evaluate_pointing(make_scores([1.0, 0.0] * 12), make_table([None] * 24))
    assert (result.unit, result.units) == ("study", 12)


def test_a_slice_that_is_in_no_table_is_refused() -> None:
    with pytest.raises(InputError, match="1 of 2"):
        evaluate_pointing(make_scores([1.0, 0.0]), make_table(["a"]))


def test_a_mean_is_over_slices_and_its_interval_over_units() -> None:
    values = np.array([0.2, 0.4, 0.6, 0.1, 0.3, 0.5, 0.35, 0.45])
    got = estimate_mean(values, np.arange(8), unit="patient")
    assert got.value == pytest.approx(values.mean())
    # The jackknife of a mean is its standard error; on the logit scale, as every other metric.
    error, mean = values.std(ddof=1) / np.sqrt(8), values.mean()
    step = 2.364624 * error / (mean * (1 - mean))
    odds = mean / (1 - mean)
    ends = [odds * factor / (1 + odds * factor) for factor in np.exp([-step, step])]
    assert (got.low, got.high) == pytest.approx(ends, rel=1e-4)
    scaled = estimate_mean(2 * values - 1, np.arange(8), unit="patient", low=-1.0)
    assert (scaled.low, scaled.high) == pytest.approx([2 * end - 1 for end in ends], rel=1e-4)


def test_a_mean_at_the_end_of_its_range_is_bounded_by_its_units() -> None:
    got = estimate_mean(np.ones(40), np.repeat(np.arange(10), 4), unit="patient")
    assert (got.value, got.high) == (1.0, 1.0)
    assert got.low == pytest.approx(0.025 ** (1 / 10))  # Clopper-Pearson, 10 of 10
    assert estimate_mean([], np.zeros(0, np.int64), unit="patient").value is None
