"""Tables of predictions made on the spot, with clusters whose slices share a part of their score."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import polars as pl

from cspine.core.predictions import make_predictions

Floats = npt.NDArray[np.float64]


def make_logits(
    seed: int, units: int, size: int, *, shift: float = 1.0, shared: float = 0.5, mixed: bool = False
) -> tuple[npt.NDArray[np.int64], Floats, npt.NDArray[np.int64]]:
    """(labels, logits, unit) of units * size slices; `shared` is the part of the variance that a unit shares."""
    rng = np.random.default_rng(seed)
    unit = np.repeat(np.arange(units), size)
    y = (rng.random(units * size) < 0.5) if mixed else np.repeat(rng.random(units) < 0.5, size)
    if y.all() or not y.any():
        y[:size] = ~y[:size]
    noise = np.sqrt(shared) * rng.normal(size=units)[unit] + np.sqrt(1 - shared) * rng.normal(size=y.size)
    return y.astype(np.int64), shift * (2 * y - 1) + noise, unit


def make_table(
    labels: npt.ArrayLike,
    logits: npt.ArrayLike,
    unit: npt.ArrayLike | None = None,
    *,
    model: str = "m",
    split: str = "test",
    checkpoint: str = "c",
) -> pl.DataFrame:
    """Predictions; patients after `unit`, none known where it is None."""
    y = np.asarray(labels)
    ids = [f"{split}{i:05d}" for i in range(y.size)]
    nothing = pl.lit(None, dtype=pl.String)
    slices = pl.DataFrame({"slice_id": ids, "label": y}, schema_overrides={"label": pl.Int8}).with_columns(
        split=pl.lit(split), study_uid=nothing, series_uid=nothing, source_id=nothing, patient_id=nothing
    )
    if unit is not None:
        patients = pl.Series("patient_id", [f"p{number}" for number in np.asarray(unit)])
        slices = slices.with_columns(patients)
    origin = {"checkpoint_hash": checkpoint, "recipe_hash": "r", "manifest_hash": "d"}
    return make_predictions(slices, ids, logits, model=model, **origin)


def make_clustered_table(seed: int, units: int = 20, size: int = 8, **options: object) -> pl.DataFrame:
    """Predictions of `make_logits`; `shift`, `shared` and `mixed` go there, the rest to `make_table`."""
    drawn = {name: options.pop(name) for name in ("shift", "shared", "mixed") if name in options}
    return make_table(*make_logits(seed, units, size, **drawn), **options)  # type: ignore[arg-type]
