"""The table of predictions: joined by id, strict on the way out and on the way in."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from cspine.core.errors import PredictionsError
from cspine.core.predictions import (
    SCHEMA,
    check_predictions,
    compute_sigmoid,
    make_predictions,
    read_predictions,
    write_predictions,
)

ORIGIN = {"model": "m", "checkpoint_hash": "c", "recipe_hash": "r", "manifest_hash": "d"}


def make_slices(n: int = 6) -> pl.DataFrame:
    nothing = pl.lit(None, dtype=pl.String)
    return pl.DataFrame(
        {"slice_id": [f"s{i}" for i in range(n)], "label": [i % 2 for i in range(n)], "path": ["x"] * n},
        schema_overrides={"label": pl.Int8},
    ).with_columns(
        split=pl.lit("val"),
        patient_id=nothing,
        study_uid=nothing,
        series_uid=pl.lit("B10"),
        source_id=pl.col("slice_id"),
    )


def make_table(n: int = 6) -> pl.DataFrame:
    slices = make_slices(n)
    return make_predictions(slices, slices["slice_id"].to_list(), np.linspace(-2, 3, n), **ORIGIN)


def test_scores_join_by_id_whatever_their_order() -> None:
    slices = make_slices()
    ids = slices["slice_id"].to_list()
    logits = np.arange(6.0)
    straight = make_predictions(slices, ids, logits, **ORIGIN)
    turned = make_predictions(slices.reverse(), ids[::-1], logits[::-1], **ORIGIN)
    assert straight.equals(turned)
    assert dict(straight.schema) == SCHEMA
    assert straight["logit"].to_list() == logits.tolist()
    assert straight["y_true"].to_list() == slices["label"].to_list()


def test_unlabelled_slices_keep_a_null_label() -> None:
    slices = make_slices().with_columns(label=pl.lit(None, dtype=pl.Int8))
    table = make_predictions(slices, slices["slice_id"].to_list(), np.zeros(6), **ORIGIN)
    assert table["y_true"].null_count() == 6


def test_sigmoid_is_stable_at_both_ends() -> None:
    with np.errstate(all="raise", under="ignore"):
        found = compute_sigmoid([-1e4, -40.0, 0.0, 40.0, 1e4])
    assert found[0] == 0.0
    assert found[1] == pytest.approx(np.exp(-40.0), rel=1e-12)
    assert found[2:].tolist() == [0.5, 1.0, 1.0]


@pytest.mark.parametrize(
    ("ids", "logits", "what"),
    [
        (["s0", "s1", "s1"], [0.0, 1.0, 2.0], "1 slices occur more than once: s1"),
        (["s0", "s1"], [0.0, 1.0], "1 slices of the manifest have no prediction: s2"),
        (
            ["s0", "s1", "s2", "zz"],
            [0.0, 1.0, 2.0, 3.0],
            "1 slices with a prediction are not in the manifest: zz",
        ),
        (["s0", "s1", "s2"], [0.0, float("nan"), 2.0], "1 slices have a score that is NaN or infinite: s1"),
        (["s0", "s1", "s2"], [0.0, float("inf"), 2.0], "1 slices have a score that is NaN or infinite: s1"),
        (["s0", "s1", "s2"], [0.0, 1.0], "2 scores for 3 slices"),
    ],
)
def test_scores_that_do_not_fit_the_manifest_are_refused(
    ids: list[str], logits: list[float], what: str
) -> None:
    with pytest.raises(PredictionsError) as caught:
        make_predictions(make_slices(3), ids, logits, **ORIGIN)
    assert caught.value.what == what
    assert caught.value.where == "model m"


def test_a_slice_twice_in_the_manifest_is_refused() -> None:
    slices = pl.concat([make_slices(3), make_slices(1)])
    with pytest.raises(PredictionsError, match="occur more than once: s0") as caught:
        make_predictions(slices, ["s0", "s1", "s2"], np.zeros(3), **ORIGIN)
    assert caught.value.where == "the manifest"


def test_a_long_list_of_faults_names_the_first_three() -> None:
    with pytest.raises(PredictionsError, match=r"9 slices .*: s1, s2, s3 and 6 more"):
        make_predictions(make_slices(10), ["s0"], [0.0], **ORIGIN)


def test_written_predictions_read_back_equal(tmp_path: Path) -> None:
    table = make_table()
    path = write_predictions(table, tmp_path / "deep" / "p.parquet")
    assert read_predictions(path).equals(table)
    assert read_predictions(path, expected=make_slices()).equals(table)
    assert [p.name for p in path.parent.iterdir()] == ["p.parquet"]


def test_a_calibrated_probability_is_lawful(tmp_path: Path) -> None:
    table = make_table().with_columns(prob=pl.col("prob") * 0.5)
    assert read_predictions(write_predictions(table, tmp_path / "p.parquet")).equals(table)


FAULTS = {
    "twice": (lambda t: pl.concat([t, t.head(1)]), "occur more than once: s0"),
    "nan": (lambda t: t.with_columns(prob=pl.lit(float("nan"))), "6 slices have a score that is NaN"),
    "null": (lambda t: t.with_columns(logit=pl.lit(None, dtype=pl.Float64)), "6 slices have no logit"),
    "outside": (lambda t: t.with_columns(prob=pl.lit(1.5)), "6 slices have a probability outside 0..1"),
    "label": (lambda t: t.with_columns(y_true=pl.lit(2, dtype=pl.Int8)), "neither 0 nor 1"),
    "models": (lambda t: t.with_columns(model=pl.col("slice_id")), "mix 6 values of model: s0, s1, s2"),
    "hashes": (
        lambda t: pl.concat([t.head(3), t.tail(3).with_columns(recipe_hash=pl.lit("other"))]),
        "mix 2 values of recipe_hash",
    ),
    "column": (lambda t: t.drop("split"), "no column split"),
    "extra": (lambda t: t.with_columns(age=pl.lit(70)), "unknown column age"),
    "type": (lambda t: t.with_columns(pl.col("prob").cast(pl.Float32)), "prob is Float32, not Float64"),
    "empty": (lambda t: t.clear(), "empty"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_the_reader_and_the_writer_refuse(fault: str, tmp_path: Path) -> None:
    spoil, what = FAULTS[fault]
    bad = spoil(make_table())
    path = tmp_path / "p.parquet"
    with pytest.raises(PredictionsError, match=what):
        write_predictions(bad, path)
    assert not path.exists()
    bad.write_parquet(path)
    with pytest.raises(PredictionsError, match=what) as caught:
        read_predictions(path)
    assert caught.value.where == str(path)
    assert caught.value.fix


def test_rows_that_differ_from_the_manifest_are_refused(tmp_path: Path) -> None:
    path = write_predictions(make_table(6), tmp_path / "p.parquet")
    with pytest.raises(PredictionsError, match="2 slices of the manifest have no prediction: s6, s7"):
        read_predictions(path, expected=make_slices(8))
    with pytest.raises(PredictionsError, match="2 slices with a prediction are not in the manifest: s4, s5"):
        read_predictions(path, expected=make_slices(4))
    flipped = make_slices(6).with_columns(label=(1 - pl.col("label")).cast(pl.Int8))
    with pytest.raises(PredictionsError, match="6 slices have another label"):
        read_predictions(path, expected=flipped)


def test_files_that_are_no_parquet_are_refused(tmp_path: Path) -> None:
    with pytest.raises(PredictionsError, match="no such file"):
        read_predictions(tmp_path / "none.parquet")
    (tmp_path / "text.parquet").write_text("slice_id,prob\n")
    (tmp_path / "zero.parquet").touch()
    for name in ("text.parquet", "zero.parquet"):
        with pytest.raises(PredictionsError, match="not a readable parquet file"):
            read_predictions(tmp_path / name)


def test_a_checked_table_comes_back_as_it_was() -> None:
    table = make_table()
    assert check_predictions(table) is table
