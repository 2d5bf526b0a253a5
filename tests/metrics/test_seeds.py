"""Several seeds: the parts of the variance come back from data made with known ones."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from cspine.core.errors import PredictionsError
from cspine.metrics.seeds import UNKNOWN, SeedSummary, summarise_seeds
from tests.metrics.builders import make_logits, make_table


def make_seeds(
    data_seed: int, seeds: int, *, units: int = 30, seed_sd: float = 0.0, noise: float = 0.0
) -> list[pl.DataFrame]:
    """Seeds that differ by their skill (`seed_sd`, of the shift) and by noise of their own in every slice."""
    y, z, unit = make_logits(data_seed, units, 6, shift=0.0, mixed=True)
    rng = np.random.default_rng(9000 + data_seed)
    return [
        make_table(
            y,
            z + (0.8 + seed_sd * rng.normal()) * (2 * y - 1) + noise * rng.normal(size=z.size),
            unit,
            checkpoint=f"c{number}",
        )
        for number in range(seeds)
    ]


def test_one_seed_says_that_the_spread_is_unknown() -> None:
    found = summarise_seeds(make_seeds(1, 1)).metrics[0]
    assert found.mean.low is not None
    assert (found.between_sd.value, found.between_sd.reason) == (None, UNKNOWN)
    assert (found.combined.low, found.combined.reason) == (None, UNKNOWN)
    assert found.seed_sd is None
    assert found.sampling_se > 0


def test_the_values_and_their_spread_are_those_of_numpy() -> None:
    tables = make_seeds(2, 5, seed_sd=0.3)
    found = summarise_seeds(tables, ("accuracy",)).metrics[0]
    values = [float(((t["prob"] >= 0.5) == (t["y_true"] == 1)).mean()) for t in tables]
    assert found.values == pytest.approx(values)
    assert found.mean.value == pytest.approx(np.mean(values))
    assert found.between_sd.value == pytest.approx(np.std(values, ddof=1))
    # Chi-square with 4 degrees of freedom: 0.4844 and 11.1433.
    assert found.between_sd.low == pytest.approx(found.between_sd.value * np.sqrt(4 / 11.143287), rel=1e-6)
    assert found.between_sd.high == pytest.approx(found.between_sd.value * np.sqrt(4 / 0.484419), rel=1e-6)
    assert (found.between_sd.unit, found.between_sd.n) == ("seed", 5)
    assert found.combined.high - found.combined.low > found.mean.high - found.mean.low


def test_noise_of_slices_is_no_spread_between_seeds() -> None:
    """Seeds of equal skill differ on a finite set of cases; that is sampling, and is told apart."""
    squares = {"raw": 0.0, "freed": 0.0}
    for data_seed in range(40):
        found = summarise_seeds(make_seeds(data_seed, 4, noise=0.8), ("accuracy",)).metrics[0]
        squares["raw"] += found.between_sd.value**2
        squares["freed"] += found.seed_sd**2
    assert squares["freed"] < 0.5 * squares["raw"]


def test_a_real_spread_stays() -> None:
    freed = raw = 0.0
    for data_seed in range(20):
        found = summarise_seeds(make_seeds(data_seed, 4, seed_sd=0.5), ("accuracy",)).metrics[0]
        freed, raw = freed + found.seed_sd**2, raw + found.between_sd.value**2
    assert freed > 0.8 * raw


def test_the_combined_interval_covers_new_seeds_and_new_cases() -> None:
    """Skill 0.8 +- 0.3 over seeds; truth by 60 seeds on many cases. Three seeds, 20 units."""
    options = {"seed_sd": 0.3, "noise": 0.5}
    large = make_seeds(10**6, 60, units=400, **options)
    truth = np.mean([((t["prob"] >= 0.5) == (t["y_true"] == 1)).mean() for t in large])
    combined = cases_only = 0
    sets = 60
    for data_seed in range(sets):
        found = summarise_seeds(make_seeds(data_seed, 3, units=20, **options), ("accuracy",)).metrics[0]
        combined += found.combined.low <= truth <= found.combined.high
        cases_only += found.mean.low <= truth <= found.mean.high
    assert combined / sets >= 0.89  # 2 standard errors of 60 sets below 0.95
    assert cases_only < combined


def test_what_has_no_spread_says_why() -> None:
    y = np.tile([0, 1], 10)
    perfect = [
        make_table(y, 8.0 * y - 4 + number, np.arange(20) // 2, checkpoint=f"c{number}") for number in (0, 1)
    ]
    found = summarise_seeds(perfect, ("auroc",)).metrics[0]
    assert found.between_sd.reason == "all seeds gave the same value"
    assert found.mean.reason == found.combined.reason
    assert "at the end of its range" in found.mean.reason
    one_class = [make_table([1] * 6, np.arange(6.0) + i, checkpoint=f"c{i}") for i in (0, 1)]
    found = summarise_seeds(one_class, ("auroc",)).metrics[0]
    assert (found.values, found.mean.reason) == ((None, None), "the slices are of one class only")


def test_rounding_is_no_spread() -> None:
    """Every patient has one of three slices right, so that leaving one out changes nothing but the last bit."""
    y, z, unit = np.tile([0, 1, 1], 10), np.tile([1.0, 1.0, -1.0], 10), np.arange(30) // 3
    seeds = [make_table(y, z * (1 + number), unit, checkpoint=f"c{number}") for number in range(3)]
    found = summarise_seeds(seeds, ("accuracy",)).metrics[0]
    assert found.mean.value == pytest.approx(1 / 3)
    assert (found.mean.low, found.combined.low) == (None, None)
    assert "nothing varies" in found.mean.reason


def test_what_are_no_seeds_of_one_model_is_refused() -> None:
    first, second = make_seeds(3, 2)
    with pytest.raises(PredictionsError, match="no seeds"):
        summarise_seeds([])
    with pytest.raises(PredictionsError, match="given twice"):
        summarise_seeds([first, first])
    with pytest.raises(PredictionsError, match="of one model"):
        summarise_seeds([first, second.with_columns(model=pl.lit("other"))])
    with pytest.raises(PredictionsError, match="different slices"):
        summarise_seeds([first, second.head(20)])


def test_the_summary_is_stored_and_read_whole() -> None:
    found = summarise_seeds(make_seeds(4, 3, seed_sd=0.2))
    assert (found.model, found.split, found.seeds, found.unit, found.units) == ("m", "test", 3, "patient", 30)
    assert SeedSummary.model_validate_json(found.model_dump_json()) == found
