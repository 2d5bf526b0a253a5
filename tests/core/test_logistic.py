"""The logistic function and its inverse are scipy's, to the bit."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from scipy import special

from cspine.core import logistic
from cspine.core.logistic import expit, logit

RNG = np.random.default_rng(0)
LOGITS = np.array([*RNG.normal(0, 20, 3000), -800.0, -709.7, 800.0, -np.inf, np.inf, np.nan, 0.0])
PROBS = np.array([*RNG.random(3000), *special.expit(RNG.normal(0, 9, 3000)), 0, 1, -0.5, 2, 0.5, np.nan])


@pytest.mark.parametrize("many", [1, 10**9])
def test_arrays_give_the_bits_of_scipy(many: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logistic, "_MANY", many)
    np.testing.assert_array_equal(expit(LOGITS), special.expit(LOGITS))
    np.testing.assert_array_equal(logit(PROBS), special.logit(PROBS))
    assert expit(LOGITS[:0]).shape == (0,)


def test_numbers_give_the_bits_of_scipy() -> None:
    assert [expit(value) for value in LOGITS.tolist()] == pytest.approx(
        special.expit(LOGITS), rel=0, abs=0, nan_ok=True
    )
    assert logit(0.25) == special.logit(0.25)


def test_it_is_imported_without_scipy() -> None:
    code = "import sys, cspine.core.logistic, cspine.core.aggregation; assert 'scipy' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
