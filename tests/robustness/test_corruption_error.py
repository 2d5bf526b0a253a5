"""Mean corruption error against numbers worked out by hand (Hendrycks and Dietterich 2019, section 4.2)."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from cspine.core.errors import PredictionsError
from cspine.core.estimates import CorruptionError, CorruptionErrors
from cspine.core.predictions import make_predictions
from cspine.metrics.intervals import IntervalOptions
from cspine.robustness.curves import CLEAN, MEAN, compare_corruption_errors

N = 20
Named = tuple[str, int, pl.DataFrame]


def make_table(model: str, errors: int, first: int = 0, n: int = N) -> pl.DataFrame:
    """n slices of which `errors` are called wrongly, from the slice `first` on."""
    nothing = pl.lit(None, dtype=pl.String)
    slices = pl.DataFrame(
        {"slice_id": [f"s{i:03d}" for i in range(n)], "label": [i % 2 for i in range(n)]},
        schema_overrides={"label": pl.Int8},
    ).with_columns(
        split=pl.lit("val"), patient_id=nothing, study_uid=nothing, series_uid=nothing, source_id=nothing
    )
    right = np.where(np.arange(n) % 2, 2.0, -2.0)
    wrong = (np.arange(n) - first) % n < errors
    return make_predictions(slices, slices["slice_id"].to_list(), np.where(wrong, -right, right), model=model,
                            checkpoint_hash="c", recipe_hash="r", manifest_hash="d")  # fmt: skip


def make_tables(first: dict[str, tuple[int, ...]], other: dict[str, tuple[int, ...]]) -> list[Named]:
    """Numbers of wrong slices by corruption and severity; "clean" has one."""
    tables: list[Named] = []
    for model, counts in (("first", first), ("other", other)):
        for kind, errors in counts.items():
            start = 0 if kind == CLEAN else 1
            tables += [(kind, start + step, make_table(model, count)) for step, count in enumerate(errors)]
    return tables


def pick(found: CorruptionErrors, model: str, corruption: str) -> CorruptionError:
    return next(row for row in found.rows if (row.model, row.corruption) == (model, corruption))


def test_the_worked_example() -> None:
    # noise: 2 + 4 = 6 errors of the first, 3 + 6 = 9 of the other: 1.5. blur: 4 + 4 = 8 and 2 + 2 = 4: 0.5. Mean: 1.
    # Above the clean ones (1 of the first, 2 of the other), noise: 1 + 3 = 4 and 1 + 4 = 5: 1.25; blur: 3 + 3 = 6 and
    # 0: 0. Mean: 0.625.
    tables = make_tables(
        {CLEAN: (1,), "noise": (2, 4), "blur": (4, 4)}, {CLEAN: (2,), "noise": (3, 6), "blur": (2, 2)}
    )
    found = compare_corruption_errors(tables, options=IntervalOptions(draws=200))
    assert found is not None
    assert found.reference == "first"
    for corruption, error, relative in ((MEAN, 1.0, 0.625), ("noise", 1.5, 1.25), ("blur", 0.5, 0.0)):
        row = pick(found, "other", corruption)
        assert row.error.value == pytest.approx(error, abs=1e-12)
        assert row.relative.value == pytest.approx(relative, abs=1e-12)
        own = pick(found, "first", corruption)
        assert own.error.value == own.error.low == own.error.high == 1
    assert found.left_out == {}
    error = pick(found, "other", MEAN).error
    assert (error.unit, error.n) == ("slice", N)


def test_a_corruption_without_reference_errors_is_left_out() -> None:
    tables = make_tables(
        {CLEAN: (0,), "noise": (0, 0), "blur": (4, 4)}, {CLEAN: (2,), "noise": (3, 6), "blur": (6, 6)}
    )
    found = compare_corruption_errors(tables, options=IntervalOptions(draws=200))
    assert found is not None
    assert found.left_out == {"noise": "first makes no error under it at any severity"}
    assert pick(found, "other", "noise").error.value is None
    assert pick(found, "other", "noise").error.reason == found.left_out["noise"]
    assert pick(found, "first", "noise").error.value is None
    assert pick(found, "other", MEAN).error.value == pytest.approx(1.5)
    assert list(found.relative_left_out) == ["noise"]


def test_where_nothing_can_be_divided_there_is_no_mean() -> None:
    tables = make_tables({CLEAN: (1,), "noise": (1, 1)}, {CLEAN: (2,), "noise": (3, 6)})
    found = compare_corruption_errors(tables, options=IntervalOptions(draws=200))
    assert found is not None
    mean = pick(found, "other", MEAN)
    assert mean.error.value == pytest.approx(4.5)
    assert mean.relative.value is None
    assert "no corruption is left" in str(mean.relative.reason)


def test_models_that_err_alike_have_a_ratio_of_1() -> None:
    counts: dict[str, tuple[int, ...]] = {CLEAN: (1,), "noise": (8, 10)}
    found = compare_corruption_errors(make_tables(counts, counts), options=IntervalOptions(draws=200, seed=4))
    assert found is not None
    error = pick(found, "other", "noise").error
    assert (error.value, error.low, error.high) == (1, 1, 1)


def test_the_interval_narrows_with_more_slices() -> None:
    widths = []
    for n in (40, 640):
        tables: list[Named] = []
        for model, share, first in (("first", 0.25, 0), ("other", 0.3, 5)):
            tables += [(CLEAN, 0, make_table(model, 0, first, n))]
            tables += [("noise", s, make_table(model, round(share * n), first, n)) for s in (1, 2)]
        found = compare_corruption_errors(tables, options=IntervalOptions(draws=400))
        assert found is not None
        error = pick(found, "other", MEAN).error
        assert error.low is not None
        assert error.high is not None
        assert error.low < 1.2 < error.high
        widths.append(error.high - error.low)
    # The standard error goes with the root of n: a quarter.
    assert widths[1] < 0.4 * widths[0]


def test_other_slices_other_points_or_no_clean_ones_are_refused() -> None:
    clean = [(CLEAN, 0, make_table(model, 1)) for model in ("first", "other")]
    noise: list[Named] = [("noise", 1, make_table("first", 2)), ("noise", 1, make_table("other", 2, n=10))]
    with pytest.raises(PredictionsError, match="same slices"):
        compare_corruption_errors([*clean, *noise])
    with pytest.raises(PredictionsError, match="same points"):
        compare_corruption_errors([*clean, noise[0]])
    with pytest.raises(PredictionsError, match="clean"):
        compare_corruption_errors([noise[0]])
    assert compare_corruption_errors(clean) is None
