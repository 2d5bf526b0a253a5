"""Predictions: the parquet table between the models and the evaluation, and the only bridge between them.

One row a slice. Labels and scores are joined by `slice_id`, never by order: a loader that shuffles cannot
change a metric. The reader refuses whatever would make a number mean something else than it says.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
from polars.exceptions import PolarsError

from cspine.core.errors import PredictionsError
from cspine.core.files import write_parquet
from cspine.core.logistic import expit
from cspine.core.logistic import logit as log_odds

SCHEMA: dict[str, type[pl.DataType]] = {
    "slice_id": pl.String,
    "patient_id": pl.String,
    "study_uid": pl.String,
    "series_uid": pl.String,
    "source_id": pl.String,
    "split": pl.String,
    "y_true": pl.Int8,
    "logit": pl.Float64,
    "prob": pl.Float64,
    "model": pl.String,
    "checkpoint_hash": pl.String,
    "recipe_hash": pl.String,
    "manifest_hash": pl.String,
}
ORIGIN = ("model", "checkpoint_hash", "recipe_hash", "manifest_hash")
"""Columns that hold one value in a whole table: every score comes from the same model on the same data."""

_NEVER_NULL = ("slice_id", "logit", "prob", *ORIGIN)
_FROM_MANIFEST = ("slice_id", "patient_id", "study_uid", "series_uid", "source_id", "split")
_RUN_AGAIN = "run `cspine predict` again on the whole manifest"
_SHOWN = 3
_SURE = 1e-15  # a probability of 0 or 1 has no log-odds


def compute_sigmoid(logits: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """1 / (1 + exp(-logit)), without overflow at either end."""
    return np.asarray(expit(np.asarray(logits, dtype=np.float64)))


def make_predictions(
    slices: pl.DataFrame,
    slice_ids: Sequence[str],
    logits: npt.ArrayLike,
    *,
    model: str,
    checkpoint_hash: str,
    recipe_hash: str,
    manifest_hash: str,
    prob: npt.ArrayLike | None = None,
) -> pl.DataFrame:
    """Join scores to labels by `slice_id`.

    Args:
        slices: Manifest rows: `slice_id, label, split, patient_id, study_uid, series_uid, source_id`, others
            ignored.
        slice_ids: (n,) ids in the order of `logits`; any order, each row of `slices` exactly once.
        logits: (n,) log-odds of "fracture".
        model: Name of the model, as reports show it.
        checkpoint_hash, recipe_hash, manifest_hash: Where the scores come from.
        prob: (n,) probabilities by a calibration, 0..1; the sigmoid of the logits where None.

    Returns:
        A table of `SCHEMA`, sorted by `slice_id`.

    Raises:
        PredictionsError: ids and logits differ in number, an id is scored twice or unknown, a slice has no
            score, or a logit is not finite.
    """
    scores = np.asarray(logits, dtype=np.float64).reshape(-1)
    ids = pl.Series("slice_id", list(slice_ids), dtype=pl.String)
    if len(ids) != len(scores):
        raise PredictionsError(f"{len(scores)} scores for {len(ids)} slices", where=f"model {model}")
    probabilities = compute_sigmoid(scores) if prob is None else np.asarray(prob, dtype=np.float64)
    scored = pl.DataFrame({"slice_id": ids, "logit": scores, "prob": probabilities})
    wanted = slices.select(
        *(pl.col(name).cast(SCHEMA[name]) for name in _FROM_MANIFEST), y_true=_label(slices)
    )
    where = f"model {model}"
    _refuse_duplicates(wanted, where="the manifest")
    _refuse_duplicates(scored, where=where)
    _refuse_other_rows(scored, wanted, where=where)
    joined = wanted.join(scored, on="slice_id", how="inner").with_columns(
        model=pl.lit(model),
        checkpoint_hash=pl.lit(checkpoint_hash),
        recipe_hash=pl.lit(recipe_hash),
        manifest_hash=pl.lit(manifest_hash),
    )
    return check_predictions(joined.select(*SCHEMA).sort("slice_id"), where=where)


def average_predictions(tables: Sequence[pl.DataFrame]) -> pl.DataFrame:
    """Several models' predictions of the same slices as one table, whose model is all of them.

    Logits are averaged, and so are probabilities on the logit scale, after each model's own calibration.

    Raises:
        PredictionsError: the tables are of different slices.
    """
    if len(tables) == 1:
        return tables[0]
    first = tables[0].sort("slice_id")
    others = [table.sort("slice_id") for table in tables]
    for table in others:
        if not table["slice_id"].equals(first["slice_id"]):
            raise PredictionsError("the tables are of different slices", fix="predict the same set with each")
    calibrated = [log_odds(table["prob"].to_numpy().clip(_SURE, 1 - _SURE)) for table in others]
    joined = {
        name: pl.lit("+".join(dict.fromkeys(str(table[name][0]) for table in others))) for name in ORIGIN
    }
    return check_predictions(
        first.with_columns(
            logit=pl.Series(np.mean([table["logit"].to_numpy() for table in others], axis=0)),
            prob=pl.Series(compute_sigmoid(np.mean(calibrated, axis=0))),
            **joined,
        )
    )


def write_predictions(table: pl.DataFrame, path: Path) -> Path:
    """Check `table` and write it as parquet, atomically.

    Raises:
        PredictionsError: the table breaks the schema or its rules.
        OutputError: the file cannot be written.
    """
    check_predictions(table, where=str(path))
    return write_parquet(path, table)


def read_predictions(path: Path, *, expected: pl.DataFrame | None = None) -> pl.DataFrame:
    """Read predictions and refuse any table that must not be evaluated.

    Args:
        path: A parquet file of `write_predictions`.
        expected: Manifest rows that must be there, all of them and no others; labels must agree too.

    Returns:
        A table of `SCHEMA`, sorted by `slice_id`.

    Raises:
        PredictionsError: not a readable parquet file, another schema, empty, duplicates, nulls, NaN, a
            probability outside 0..1, several models or hashes; with `expected`: missing rows, unknown rows,
            other labels.
    """
    where = str(path)
    if not Path(path).is_file():
        raise PredictionsError(
            "there is no such file of predictions", where=where, fix="make it with `cspine predict`"
        )
    try:
        table = pl.read_parquet(path)
    except (PolarsError, OSError) as error:
        raise PredictionsError(
            "not a readable parquet file", where=where, fix="make it again with `cspine predict`"
        ) from error
    table = check_predictions(table, where=where).sort("slice_id")
    if expected is not None:
        wanted = expected.select(pl.col("slice_id").cast(pl.String), label=_label(expected))
        _refuse_other_rows(table, wanted, where=where)
        joined = table.join(wanted, on="slice_id", how="inner")
        _refuse(
            joined.filter(pl.col("y_true").ne_missing(pl.col("label"))),
            "have another label than in the manifest",
            where=where,
            fix=_RUN_AGAIN,
        )
    return table


def check_predictions(table: pl.DataFrame, *, where: str | None = None) -> pl.DataFrame:
    """Return `table` unchanged if it keeps the schema and its rules.

    `prob` need not be the sigmoid of `logit`: calibration may have moved it. It must lie in 0..1.

    Raises:
        PredictionsError: see `read_predictions`.
    """
    _refuse_other_schema(table, where)
    if table.is_empty():
        raise PredictionsError(
            "the predictions are empty: there is nothing to evaluate", where=where, fix=_RUN_AGAIN
        )
    for name in _NEVER_NULL:
        _refuse(table.filter(pl.col(name).is_null()), f"have no {name}", where=where, fix=_RUN_AGAIN)
    _refuse_duplicates(table, where=where)
    finite = pl.col("logit").is_finite() & pl.col("prob").is_finite()
    _refuse(
        table.filter(~finite),
        "have a score that is NaN or infinite",
        where=where,
        fix="look at the training losses of this model; do not drop the rows",
    )
    outside = ~pl.col("prob").is_between(0.0, 1.0)
    _refuse(table.filter(outside), "have a probability outside 0..1", where=where, fix=_RUN_AGAIN)
    unlawful = pl.col("y_true").is_not_null() & ~pl.col("y_true").is_in([0, 1])
    _refuse(
        table.filter(unlawful),
        "have a label that is neither 0 nor 1",
        where=where,
        fix="correct the manifest",
    )
    for name in ORIGIN:
        found = table[name].unique().sort()
        if len(found) > 1:
            shown = ", ".join(found.head(_SHOWN))
            raise PredictionsError(
                f"the predictions mix {len(found)} values of {name}: {shown}",
                where=where,
                fix="evaluate one model on one manifest at a time",
            )
    return table


def hash_rows(table: pl.DataFrame) -> str:
    """16 hexadecimal digits of what was predicted and how: ids, labels and scores, whatever the order of the rows."""
    digest = hashlib.sha256()
    for row in table.sort("slice_id").select("slice_id", "y_true", "logit", "prob").iter_rows():
        digest.update(repr(row).encode())
    return digest.hexdigest()[:16]


def _label(slices: pl.DataFrame) -> pl.Expr:
    name = "label" if "label" in slices.columns else "y_true"
    return pl.col(name).cast(pl.Int8)


def _refuse(bad: pl.DataFrame, what: str, **context: Any) -> None:
    """Raise for the rows in `bad`, if any, saying how many they are and naming the first few."""
    if bad.is_empty():
        return
    named = ", ".join(str(value) for value in bad["slice_id"].head(_SHOWN))
    more = f" and {bad.height - _SHOWN} more" if bad.height > _SHOWN else ""
    raise PredictionsError(f"{bad.height} slices {what}: {named}{more}", **context)


def _refuse_duplicates(table: pl.DataFrame, **context: Any) -> None:
    twice = table.filter(pl.col("slice_id").is_duplicated()).select("slice_id").unique(maintain_order=True)
    _refuse(twice, "occur more than once", fix="give every slice one id and score it once", **context)


def _refuse_other_rows(table: pl.DataFrame, wanted: pl.DataFrame, **context: Any) -> None:
    missing = wanted.join(table, on="slice_id", how="anti").sort("slice_id")
    _refuse(missing, "of the manifest have no prediction", fix=_RUN_AGAIN, **context)
    unknown = table.join(wanted, on="slice_id", how="anti").sort("slice_id")
    _refuse(
        unknown,
        "with a prediction are not in the manifest",
        fix="evaluate against the manifest that was predicted",
        **context,
    )


def _refuse_other_schema(table: pl.DataFrame, where: str | None) -> None:
    missing = [name for name in SCHEMA if name not in table.columns]
    extra = [name for name in table.columns if name not in SCHEMA]
    wrong = [
        f"{name} is {table.schema[name]}, not {kind.__name__}"
        for name, kind in SCHEMA.items()
        if name in table.columns and table.schema[name] != kind
    ]
    faults = [f"no column {name}" for name in missing] + [f"unknown column {name}" for name in extra] + wrong
    if faults:
        raise PredictionsError(
            f"not a table of predictions: {'; '.join(faults[:_SHOWN])}",
            where=where,
            fix="name a file that `cspine predict` wrote",
        )
