"""The RSNA 2022 metric against values by hand, scikit-learn, and tables that must be refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import log_loss

from cspine.core.errors import InputError
from cspine.data.tables import TARGETS, read_study_labels
from cspine.metrics.rsna import (
    NEGATIVE_WEIGHT,
    POSITIVE_WEIGHT,
    compute_rsna_losses,
    read_submission,
    score_rsna,
)

BROKEN = [0, 1, 0, 0, 0, 0, 0, 1]
"""C2 and the neck are broken."""
WHOLE = [0] * 8


def write_tables(folder: Path, labels: list[list[int]], probs: list[list[float]]) -> tuple[Path, Path]:
    """`train.csv` and a submission of studies "s0", "s1", ..., the submission's rows in a muddled order."""
    train, submission = folder / "train.csv", folder / "submission.csv"
    order = ["patient_overall", *TARGETS[:7]]
    lines = [f"StudyInstanceUID,{','.join(order)}"]
    for number, row in enumerate(labels):
        named = dict(zip(TARGETS, row, strict=True))
        lines.append(",".join([f"1.2.{number}", *(str(named[name]) for name in order)]))
    train.write_text("\n".join(lines) + "\n")
    rows = [
        f"1.2.{number}_{name},{value}"
        for number, row in enumerate(probs)
        for name, value in zip(TARGETS, row, strict=True)
    ]
    np.random.default_rng(0).shuffle(rows)
    submission.write_text("\n".join(["row_id,fractured", *rows]) + "\n")
    return train, submission


def test_the_loss_by_hand() -> None:
    probs = [[0.1, 0.4, 0.1, 0.1, 0.1, 0.1, 0.1, 0.8], [0.2] * 7 + [0.3]]
    # 14 for the broken neck, 2 for C2, 1 for each of the six whole vertebrae: 22 in all.
    first = (14 * 0.22314355 + 2 * 0.91629073 + 6 * 0.10536052) / 22
    # 7 for the whole neck, 1 for each of seven vertebrae.
    second = (7 * 0.35667494 + 7 * 0.22314355) / 14
    np.testing.assert_allclose(compute_rsna_losses([BROKEN, WHOLE], probs), [first, second], atol=1e-7)
    np.testing.assert_allclose([first, second], [0.2540343, 0.2899092], atol=1e-7)


@given(st.lists(st.lists(st.booleans(), min_size=8, max_size=8), min_size=1, max_size=5))
def test_one_half_everywhere_scores_ln_2_whatever_the_labels(labels: list[list[bool]]) -> None:
    np.testing.assert_allclose(compute_rsna_losses(labels, np.full((len(labels), 8), 0.5)), np.log(2))


@given(
    st.lists(
        st.tuples(
            st.lists(st.integers(0, 1), min_size=8, max_size=8),
            st.lists(st.floats(0.001, 0.999), min_size=8, max_size=8),
        ),
        min_size=1,
        max_size=4,
    )
)
def test_each_study_is_the_weighted_log_loss_of_scikit_learn(
    studies: list[tuple[list[int], list[float]]],
) -> None:
    for y, p in studies:
        weights = [POSITIVE_WEIGHT[j] if y[j] else NEGATIVE_WEIGHT[j] for j in range(8)]
        wanted = log_loss(y, p, sample_weight=weights, labels=[0, 1])
        np.testing.assert_allclose(compute_rsna_losses([y], [p]), [wanted], rtol=1e-9)


def test_a_sure_mistake_costs_much_and_not_all() -> None:
    loss = compute_rsna_losses([WHOLE], [[1.0] * 8])
    assert 34 < loss[0] < 35  # -ln(1e-15)


def test_scores_are_joined_by_study_and_target_never_by_order(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    labels = [[int(v) for v in row] for row in rng.integers(0, 2, (30, 8))]
    probs = rng.uniform(0.05, 0.95, (30, 8)).round(3).tolist()
    train, submission = write_tables(tmp_path, labels, probs)
    result = score_rsna(read_study_labels(train), read_submission(submission))
    assert result.studies == 30
    assert result.loss.value == pytest.approx(compute_rsna_losses(labels, probs).mean())
    assert result.loss.low is not None
    assert result.loss.high is not None
    assert result.loss.low < result.loss.value < result.loss.high
    assert (result.loss.unit, result.loss.n) == ("study", 30)
    c3 = [row[2] for row in labels], [row[2] for row in probs]
    assert result.by_target["C3"].value == pytest.approx(log_loss(*c3, labels=[0, 1]))


def test_the_interval_is_over_patients_where_they_are_known(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    labels = [[int(v) for v in row] for row in np.repeat(rng.integers(0, 2, (20, 8)), 3, axis=0)]
    probs = np.repeat(rng.uniform(0.05, 0.95, (20, 8)).round(3), 3, axis=0).tolist()
    train, submission = write_tables(tmp_path, labels, probs)
    table, scores = read_study_labels(train), read_submission(submission)
    by_study = score_rsna(table, scores).loss
    patients = table.with_columns(patient_id=pl.Series([f"p{index // 3}" for index in range(60)]))
    by_patient = score_rsna(patients, scores).loss
    assert by_patient.value == pytest.approx(by_study.value)
    assert (by_patient.unit, by_patient.n) == ("patient", 20)
    # Three equal studies a patient know as much as one: the interval is about sqrt(3) wider.
    width = [estimate.high - estimate.low for estimate in (by_patient, by_study)]  # type: ignore[operator]
    assert 1.6 < width[0] / width[1] < 1.95


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.replace("1.2.0_C4,", "1.2.0_C9,"), "not a study"),
        (lambda text: text.replace("1.2.0_C4,", "1.2.0_C5,"), "twice"),
        (lambda text: text.replace("1.2.0_C4,0.5", "1.2.0_C4,1.5"), "no probability"),
        (lambda text: text.replace("1.2.0_C4,0.5", "1.2.0_C4,"), "no probability"),
        (lambda text: text.replace("1.2.0_C4,0.5", "1.2.0_C4,high"), "not a number"),
        (lambda text: text.replace("1.2.0_C4,0.5\n", ""), "1 study of the submission lack a target"),
        (lambda text: text.replace("1.2.0_", "1.2.7_"), "have no score"),
        (lambda text: text + "\n".join(f"9.9_{name},0.5" for name in TARGETS), "have no label"),
        (lambda text: text.replace("fractured", "score"), "lacks fractured"),
    ],
)
def test_a_submission_that_does_not_fit_is_refused(tmp_path: Path, change, message: str) -> None:  # type: ignore[no-untyped-def]
    train, submission = write_tables(tmp_path, [BROKEN, WHOLE], [[0.5] * 8] * 2)
    submission.write_text(change(submission.read_text()))
    with pytest.raises(InputError, match=message):
        score_rsna(read_study_labels(train), read_submission(submission))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.replace("1.2.1,0", "1.2.1,2"), "neither 0 nor 1 in row 3"),
        (lambda text: text.replace("1.2.1,0", "1.2.0,0"), "twice"),
        (lambda text: text.replace("C7", "C8"), "lacks c7"),
        (lambda text: text.splitlines()[0] + "\n", "no rows"),
    ],
)
def test_a_table_of_studies_that_does_not_fit_is_refused(tmp_path: Path, change, message: str) -> None:  # type: ignore[no-untyped-def]
    train, _ = write_tables(tmp_path, [BROKEN, WHOLE], [[0.5] * 8] * 2)
    train.write_text(change(train.read_text()))
    with pytest.raises(InputError, match=message):
        read_study_labels(train)
