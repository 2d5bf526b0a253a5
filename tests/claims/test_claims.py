"""Possible and impossible tables worked out by hand, the paper's table, and what can be read from text."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import pytest

from cspine.claims.check import ReadingVerdict, RowVerdict, check_row, check_table, list_readings
from cspine.claims.search import MOST_ROWS
from cspine.claims.table import Policy, Sizes, find_interval, make_policy, make_row, read_table
from cspine.core.errors import InputError
from tests.metrics.matrices import Matrix, as_matrices

PAPER = Path(__file__).parents[2] / "experiments/claims-paper.toml"


def find_reading(verdict: RowVerdict, averaging: str, positive: str | None = None) -> ReadingVerdict:
    return next(
        item
        for item in verdict.readings
        if item.reading.averaging == averaging and item.reading.positive_class == positive
    )


def check(
    positives: int | str, negatives: int | str, policy: Policy | None = None, **values: str
) -> RowVerdict:
    return check_row(make_row(values, positives=str(positives), negatives=str(negatives), policy=policy))


# By hand.


def test_a_table_with_one_matrix_behind_it_finds_that_matrix() -> None:
    # TP 7, FN 3, FP 5, TN 15: 22/30 = 0.7333, 7/12 = 0.5833, 7/10, 14/22 = 0.6364
    policy = Policy(averaging="binary", positive_class="fracture")
    found = check(10, 20, policy, accuracy="73.33", precision="0.583", recall="0.70", f1="0.636")
    assert found.possible
    assert [as_matrices(item) for item in found.readings] == [{Matrix(7, 5, 3, 15)}]
    assert found.readings[0].count == 1


def test_an_accuracy_that_is_no_k_over_n_is_refuted_alone() -> None:
    found = check(200, 200, accuracy="97.45")
    assert not found.possible
    (only,) = found.readings
    (refutation,) = only.refutations
    assert refutation.metrics == ("accuracy",)
    assert refutation.below is not None
    assert refutation.above is not None
    assert (refutation.below.value, refutation.above.value) == (389 / 400, 390 / 400)
    assert refutation.below.matrix.tp + refutation.below.matrix.tn == 389
    assert "is not k/400: the nearest are 389/400 = 97.2500% and 390/400 = 97.5000%" in refutation.text


def test_a_pair_that_collides_says_what_was_reachable() -> None:
    # 390 of 400 right: at most 10 fractures missed, so that recall is 0.95 at least.
    found = check(200, 200, Policy(averaging="binary"), accuracy="97.50", recall="0.47")
    (refutation,) = find_reading(found, "binary", "fracture").refutations
    assert refutation.metrics == ("accuracy", "recall")
    assert (refutation.lowest.value, refutation.highest.value) == (0.95, 1.0)
    assert refutation.below is None
    assert refutation.text == "with accuracy 97.50, recall lies in [0.9500, 1.0000]; the table says 0.47"


def test_three_values_that_exclude_each_other_are_one_set() -> None:
    # F1 is the harmonic mean of the other two: 2 * 0.55 * 0.72 / 1.27 = 0.62, but any two of them go together.
    policy = Policy(averaging="binary", positive_class="fracture")
    found = check(200, 200, policy, precision="0.55", recall="0.72", f1="0.68")
    (only,) = found.readings
    assert [item.metrics for item in only.refutations] == [("precision", "recall", "f1")]
    assert "with precision 0.55 and recall 0.72, F1 lies in" in only.refutations[0].text


def test_a_value_in_a_gap_is_told_both_neighbours() -> None:
    policy = Policy(averaging="binary", positive_class="fracture")
    found = check(10, 90, policy, recall="0.50", precision="0.60")
    text = found.readings[0].refutations[0].text  # 3 of 5, 6 of 10, 9 of 15 right
    assert text == "with precision 0.60, the nearest recall values are 0.3000 and 0.6000; the table says 0.50"


def test_a_false_positive_rate_is_refuted_in_its_own_terms() -> None:
    (refutation,) = check(10, 20, Policy(positive_class="fracture"), fpr="0.16").readings[0].refutations
    assert refutation.below is not None
    assert refutation.above is not None
    assert (refutation.below.value, refutation.above.value) == pytest.approx((0.15, 0.2))
    assert refutation.lowest.value == 0
    assert "is not k/20: the nearest are 3/20 = 0.1500 and 4/20 = 0.2000" in refutation.text


def test_either_class_may_be_the_positive_one() -> None:
    found = check(10, 20, recall="0.70", specificity="0.95", accuracy="0.78")
    # fracture positive: (7 + 19) / 30 = 0.87; normal positive: 14 of 20 and 9.5 of 10, which is no count
    assert not found.possible
    found = check(10, 20, recall="0.70", specificity="0.90", accuracy="0.77")
    assert not find_reading(found, "binary", "fracture").possible
    assert as_matrices(find_reading(found, "binary", "normal")) == {Matrix(9, 6, 1, 14)}


def test_the_two_macro_f1_are_told_apart() -> None:
    # TP 1, FN 9, FP 0, TN 10: F1s 2/11 and 20/29, mean 0.436; mean precision 29/38, mean recall 11/20, F1 of them 0.639
    for macro_f1, text in (("mean-of-f1", "0.436"), ("f1-of-means", "0.639")):
        policy = make_policy(averaging="macro", macro_f1=macro_f1)
        found = check(10, 10, policy, precision="0.763", recall="0.550", f1=text)
        assert Matrix(1, 0, 9, 10) in as_matrices(found.readings[0])
        other = make_policy(averaging="macro", macro_f1="f1-of-means" if text == "0.436" else "mean-of-f1")
        assert not check(10, 10, other, precision="0.763", recall="0.550", f1=text).possible


def test_weighted_recall_is_the_accuracy_and_micro_all_three_are() -> None:
    found = check(30, 70, accuracy="0.81", recall="0.81", precision="0.81", f1="0.81")
    assert find_reading(found, "micro").possible
    found = check(30, 70, accuracy="0.81", recall="0.82")
    for averaging in ("weighted", "micro"):
        assert [r.metrics for r in find_reading(found, averaging).refutations] == [("accuracy", "recall")]


def test_precision_is_zero_where_nothing_is_called_fracture() -> None:
    found = check(
        5, 5, Policy(averaging="binary", positive_class="fracture"), precision="0.00", recall="0.00"
    )
    assert Matrix(0, 0, 5, 5) in as_matrices(found.readings[0])


def test_unknown_totals_are_searched_within_their_range() -> None:
    assert not check(200, 200, accuracy="97.45").possible
    found = check("180..220", "180..220", accuracy="97.45").readings[0]
    assert found.possible
    assert all(round(9745 * sum(m), -4) // 10_000 == m.tp + m.tn for m in as_matrices(found))
    only_total = check_row(make_row({"accuracy": "97.45"}, total="392"))
    assert only_total.readings[0].matrices[0].tp >= 0
    assert {sum(m) for m in as_matrices(only_total.readings[0])} == {392}


def test_readings_that_differ_in_nothing_are_one() -> None:
    def label(**values: str) -> list[str]:
        return [item.label for item in list_readings(make_row(values, total="10"))]

    assert label(accuracy="0.9", mcc="0.8") == ["every reading"]
    assert label(fpr="0.1") == ["fracture positive", "normal positive"]
    assert label(recall="0.9") == [
        "binary, fracture positive", "binary, normal positive", "macro", "weighted", "micro",
    ]  # fmt: skip
    assert "macro, F1 of means" in label(f1="0.9")
    pinned = make_policy(averaging="binary", positive_class="normal")
    assert len(list_readings(make_row({"f1": "0.9"}, total="10", policy=pinned))) == 1


# The paper.


def test_the_papers_table_is_refuted_row_by_row() -> None:
    verdict = check_table(read_table(PAPER))
    assert not verdict.possible
    assert [row.possible for row in verdict.rows] == [False] * 4
    mobilenet, resnet, convnext, abstract = verdict.rows
    for row in (mobilenet, convnext):
        assert len(row.readings) == 6
        for reading in row.readings:
            assert ("accuracy", "precision") in [item.metrics for item in reading.refutations]
    for row in (resnet, abstract):
        for reading in row.readings:
            assert [item.metrics for item in reading.refutations] == [("accuracy",)]


def test_the_papers_table_is_refuted_for_classes_of_any_size() -> None:
    for row in read_table(PAPER).rows:
        values = {value.metric: value.text for value in row.values}
        assert not check_row(make_row(values, total="400")).possible


# What is printed.


@pytest.mark.parametrize(
    ("value", "decimals", "rounding", "low", "high", "ends"),
    [
        ("0.49", 2, "half-up", "0.485", "0.495", (True, False)),
        ("0.49", 2, "half-even", "0.485", "0.495", (False, False)),
        ("0.48", 2, "half-even", "0.475", "0.485", (True, True)),
        ("0.49", 2, "truncate", "0.49", "0.50", (True, False)),
        ("0.49", 2, "any", "0.485", "0.50", (True, False)),
        ("-0.49", 2, "any", "-0.50", "-0.485", (False, True)),
        ("0", 1, "truncate", "-0.1", "0.1", (False, False)),
        ("0", 1, "half-even", "-0.05", "0.05", (True, True)),
    ],
)
def test_a_printed_value_is_the_interval_that_is_rounded_to_it(
    value: str, decimals: int, rounding: str, low: str, high: str, ends: tuple[bool, bool]
) -> None:
    found = find_interval(Fraction(value), decimals, rounding)  # type: ignore[arg-type]
    assert (found.low, found.high) == (Fraction(low), Fraction(high))
    assert (found.low_included, found.high_included) == ends


def test_decimals_and_percent_follow_from_the_text() -> None:
    row = make_row({"accuracy": "97.5", "recall": "0.470", "f1": "0.9%", "mcc": "-.5"}, total="10")
    assert [(v.metric, v.percent, v.decimals) for v in row.values] == [
        ("accuracy", True, 1), ("recall", False, 3), ("f1", True, 1), ("mcc", False, 1),
    ]  # fmt: skip
    assert row.values[0].interval.low == Fraction("0.9745")
    assert check(4, 4, accuracy="1").values[0].low == "0.5"


def test_a_file_keeps_decimals_and_a_row_overrides_it(tmp_path: Path) -> None:
    path = tmp_path / "table.toml"
    path.write_text(
        'positives = 20\nnegatives = "10..30"\nrounding = "truncate"\n'
        '[[rows]]\naccuracy = 97.50\n[[rows]]\nname = "b"\nrounding = "half-up"\npositives = 7\nf1 = 1\n'
    )
    first, second = read_table(path).rows
    assert (first.name, first.values[0].text, first.rounding) == ("row 1", "97.50", "truncate")
    assert (first.sizes.positives, first.sizes.negatives) == ((20, 20), (10, 30))
    assert (second.name, second.rounding, second.sizes.positives) == ("b", "half-up", (7, 7))
    assert {row.rounding for row in read_table(path, Policy(rounding="half-even")).rows} == {"half-even"}


def test_totals_narrow_each_other() -> None:
    sizes = make_row({"f1": "1"}, positives="10..20", total="25").sizes
    assert sizes == Sizes((10, 20), (5, 15), (25, 25))
    assert make_row({"f1": "1"}, total="4").sizes.positives == (1, 3)


@pytest.mark.parametrize(
    ("values", "totals", "words"),
    [
        ({}, {"total": "9"}, "no value"),
        ({"accuracy": "0.9"}, {}, "totals are missing"),
        ({"accuracy": "0.9"}, {"positives": "9"}, "totals are missing"),
        ({"accuracy": "0.9"}, {"total": "1"}, "not from 2"),
        ({"accuracy": "0.9"}, {"total": "many"}, "no count"),
        ({"accuracy": "0.9"}, {"total": "9..5"}, "ends before"),
        ({"accuracy": "0.9"}, {"total": "99999999999"}, "not from 2"),
        ({"accuracy": "0.9"}, {"positives": "5", "negatives": "5", "total": "9"}, "contradict"),
        ({"accuracy": "-0.9"}, {"total": "9"}, "negative"),
        ({"accuracy": "1.2"}, {"total": "9"}, "too small"),
        ({"accuracy": "120"}, {"total": "9"}, "beyond 100%"),
        ({"accuracy": "97,5"}, {"total": "9"}, "no number"),
        ({"accuracy": "nan"}, {"total": "9"}, "no number"),
        ({"accuracy": "0." + "9" * 40}, {"total": "9"}, "no number"),
        ({"sensitivity": "0.9"}, {"total": "9"}, "recall"),
        ({"auroc": "0.9"}, {"total": "9"}, "area under a curve"),
    ],
)
def test_what_cannot_be_checked_is_refused(
    values: dict[str, str], totals: dict[str, str], words: str
) -> None:
    with pytest.raises(InputError, match=words) as caught:
        make_row(values, **totals)  # type: ignore[arg-type]
    assert caught.value.where


def test_a_range_that_is_too_large_is_refused_before_the_search() -> None:
    for totals in (
        {"total": "100000"},
        {"total": "2..20000000"},
        {"positives": "5000000", "negatives": "5000000"},
    ):
        with pytest.raises(InputError, match=f"over {MOST_ROWS:,} rows"):
            check_row(make_row({"accuracy": "0.9"}, **totals))  # type: ignore[arg-type]


def test_large_known_totals_are_searched_all_the_same() -> None:
    policy = Policy(averaging="binary", positive_class="fracture")
    found = check(2_000, 900_000, policy, recall="0.91", accuracy="0.9884", precision="0.15")
    m = found.readings[0].matrices[0]
    assert (m.tp + m.fn, m.fp + m.tn) == (2_000, 900_000)
    assert found.possible
