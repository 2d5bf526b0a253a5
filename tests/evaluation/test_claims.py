"""Possible and impossible tables: by hand, by brute force over all matrices, and beside mlscorecheck."""

from __future__ import annotations

import itertools
import logging
import math
import random
import time
from collections.abc import Callable, Iterator, Mapping
from decimal import ROUND_DOWN, ROUND_HALF_EVEN, ROUND_HALF_UP, Decimal
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cspine.errors import InputError
from cspine.evaluation.claims import (
    Reading,
    ReadingVerdict,
    RowVerdict,
    check_row,
    check_table,
    find_formula,
    list_readings,
)
from cspine.evaluation.claims_input import (
    CLAIMED,
    Policy,
    Row,
    Sizes,
    find_interval,
    make_policy,
    make_row,
    read_table,
)
from cspine.evaluation.claims_search import MOST_ROWS, make_search
from cspine.evaluation.metrics import METRICS, compute_metrics

PAPER = Path(__file__).parents[2] / "experiments/claims-paper.toml"
MODES = {"half-up": ROUND_HALF_UP, "half-even": ROUND_HALF_EVEN, "truncate": ROUND_DOWN}


class Matrix(NamedTuple):
    tp: int
    fp: int
    fn: int
    tn: int


def ratio(above: int | Fraction, below: int | Fraction) -> Fraction:
    return Fraction(above) / Fraction(below) if below else Fraction(0)


def name_classes(m: Matrix, reading: Reading) -> tuple[Matrix, Matrix]:
    """The matrix as the positive class of the reading sees it, and as the other does."""
    turned = Matrix(m.tn, m.fn, m.fp, m.tp)
    return (turned, m) if reading.positive_class == "normal" else (m, turned)


PLAIN: Mapping[str, Callable[[Matrix], Fraction]] = {
    "precision": lambda m: ratio(m.tp, m.tp + m.fp),
    "recall": lambda m: ratio(m.tp, m.tp + m.fn),
    "f1": lambda m: ratio(2 * m.tp, 2 * m.tp + m.fp + m.fn),
}


def take(metric: str, m: Matrix, reading: Reading) -> Fraction | float:
    """A metric written down again, plainly, for one matrix. MCC is a float, all else exact."""
    one, other = name_classes(m, reading)
    match metric:
        case "accuracy":
            return ratio(m.tp + m.tn, sum(m))
        case "balanced_accuracy":
            return (PLAIN["recall"](one) + PLAIN["recall"](other)) / 2
        case "specificity":
            return PLAIN["recall"](other)
        case "fpr":
            return ratio(one.fp, one.fp + one.tn)
        case "npv":
            return PLAIN["precision"](other)
        case "mcc":
            below = (m.tp + m.fp) * (m.tp + m.fn) * (m.tn + m.fp) * (m.tn + m.fn)
            return (m.tp * m.tn - m.fp * m.fn) / math.sqrt(below) if below else 0.0
    of_one, of_other = PLAIN[metric](one), PLAIN[metric](other)
    match reading.averaging:
        case "binary":
            return of_one
        case "micro":
            return ratio(m.tp + m.tn, sum(m))
        case "weighted":
            sizes = one.tp + one.fn, other.tp + other.fn
            return (sizes[0] * of_one + sizes[1] * of_other) / sum(sizes)
    if metric == "f1" and reading.macro_f1 == "f1-of-means":
        p, r = ((PLAIN[name](one) + PLAIN[name](other)) / 2 for name in ("precision", "recall"))
        return ratio(2 * p * r, p + r)
    return (of_one + of_other) / 2


def list_all(sizes: Sizes) -> Iterator[Matrix]:
    for p, n in itertools.product(range(1, sizes.positives[1] + 1), range(1, sizes.negatives[1] + 1)):
        inside = sizes.positives[0] <= p and sizes.negatives[0] <= n
        if inside and sizes.total[0] <= p + n <= sizes.total[1]:
            yield from (Matrix(tp, n - tn, p - tp, tn) for tp in range(p + 1) for tn in range(n + 1))


def fits(row: Row, m: Matrix, reading: Reading) -> bool:
    for value in row.values:
        true, inside = take(value.metric, m, reading), value.interval
        if isinstance(true, float):  # decided exactly, in squares
            above = m.tp * m.tn - m.fp * m.fn
            below = max((m.tp + m.fp) * (m.tp + m.fn) * (m.tn + m.fp) * (m.tn + m.fn), 1)
            true = Fraction(above * abs(above), below)
            low, high = inside.low * abs(inside.low), inside.high * abs(inside.high)
        else:
            low, high = inside.low, inside.high
        if true < low or true > high or (true == low and not inside.low_included):
            return False
        if true == high and not inside.high_included:
            return False
    return True


def as_matrices(verdict: ReadingVerdict) -> set[Matrix]:
    return {Matrix(m.tp, m.fp, m.fn, m.tn) for m in verdict.matrices}


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


def test_an_accuracy_that_is_no_k_over_n_is_refuted_by_itself_with_its_neighbours() -> None:
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


def test_three_values_that_only_together_exclude_each_other_are_the_smallest_set() -> None:
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


def test_where_nothing_is_called_fracture_precision_is_zero_as_tables_print_it() -> None:
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


def test_the_papers_table_is_refuted_row_by_row_in_under_a_second() -> None:
    table = read_table(PAPER)
    start = time.process_time()
    verdict = check_table(table)
    assert time.process_time() - start < 1
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


def test_the_papers_table_is_refuted_even_where_the_classes_are_not_taken_to_be_equal() -> None:
    for row in read_table(PAPER).rows:
        values = {value.metric: value.text for value in row.values}
        assert not check_row(make_row(values, total="400")).possible


# Against brute force.

READINGS = [
    Reading(averaging=averaging, positive_class=side, macro_f1=kind)
    for averaging, side, kind in itertools.product(
        ("binary", "macro", "weighted", "micro"), ("fracture", "normal"), ("mean-of-f1", "f1-of-means")
    )
]


@pytest.mark.parametrize("metric", CLAIMED)
@pytest.mark.parametrize("reading", READINGS, ids=lambda reading: reading.label)
def test_every_metric_is_what_it_should_be_and_rises_as_the_search_relies_on(
    metric: str, reading: Reading
) -> None:
    sizes = Sizes((4, 6), (3, 7), (7, 13))
    search = make_search(sizes)
    for runs in search.find([]):
        for index in range(runs.p.size):
            row = runs.keep([index])  # type: ignore[arg-type]
            before = -math.inf
            for hits in range(int(row.high[0])):
                cells = search.place(row, row.low + hits)
                value = float(find_formula(metric, reading).compute(cells)[0])
                tp, tn, p, n = (int(part[0]) for part in cells)
                assert value == pytest.approx(float(take(metric, Matrix(tp, n - tn, p - tp, tn), reading)))
                rising = -value if metric == "fpr" else value
                assert rising >= before - 1e-12
                before = rising


@pytest.mark.parametrize("metric", [metric for metric in CLAIMED if metric in METRICS])
def test_the_binary_reading_is_the_registry_of_evaluation(metric: str) -> None:
    y, prob = [1] * 7 + [0] * 9, [0.9] * 5 + [0.1] * 2 + [0.9] * 3 + [0.1] * 6
    ours = take(metric, Matrix(5, 3, 2, 6), Reading(averaging="binary", positive_class="fracture"))
    assert compute_metrics(y, prob, 0.5)[metric].value == pytest.approx(float(ours))


def write(value: float | Fraction, decimals: int, percent: bool, mode: str) -> str:
    """Print a true value as a table would."""
    exact = (
        Decimal(value) if isinstance(value, float) else Decimal(value.numerator) / Decimal(value.denominator)
    )
    shown = (exact * (100 if percent else 1)).quantize(Decimal(1).scaleb(-decimals), rounding=MODES[mode])
    return f"{shown:f}" + ("%" if percent else "")


def move(text: str, steps: int, decimals: int, lowest: int = 0) -> str:
    """A printed value with its last digit moved, within what can be printed."""
    unit = Decimal(1).scaleb(-decimals)
    moved = min(max(Decimal(text) + steps * unit, Decimal(lowest)), Decimal(1))
    return f"{moved.quantize(unit):f}"


matrices = st.tuples(*[st.integers(0, 60)] * 4).map(lambda m: Matrix(*m)).filter(
    lambda m: m.tp + m.fn > 0 and m.fp + m.tn > 0
)  # fmt: skip
given_metrics = st.sets(st.sampled_from(CLAIMED), min_size=1, max_size=5)


@settings(max_examples=150, deadline=None)
@given(
    m=matrices,
    names=given_metrics,
    reading=st.sampled_from(READINGS),
    decimals=st.integers(0, 5),
    percent=st.booleans(),
    mode=st.sampled_from(sorted(MODES)),
    told=st.booleans(),
)
def test_a_true_matrix_is_always_among_those_found(
    m: Matrix, names: set[str], reading: Reading, decimals: int, percent: bool, mode: str, told: bool
) -> None:
    values = {name: write(take(name, m, reading), decimals, percent, mode) for name in names}
    policy = make_policy(
        rounding=mode if told else "any",
        averaging=reading.averaging,
        positive_class=reading.positive_class,
        macro_f1=reading.macro_f1,
        scale="percent" if percent else "fraction",
    )
    row = make_row(values, positives=str(m.tp + m.fn), negatives=str(m.fp + m.tn), policy=policy)
    (found,) = check_row(row, limit=100_000).readings
    assert m in as_matrices(found)
    assert found.count == len(found.matrices)


@settings(max_examples=120, deadline=None)
@given(
    m=st.tuples(*[st.integers(1, 4)] * 4).map(lambda m: Matrix(*m)),
    names=given_metrics,
    nudges=st.lists(st.sampled_from([0, 0, 1, -1, 7]), min_size=9, max_size=9),
    decimals=st.integers(1, 3),
    slack=st.integers(0, 2),
    rounding=st.sampled_from(["any", *MODES]),
)
def test_exactly_the_matrices_of_brute_force_are_found(
    m: Matrix, names: set[str], nudges: list[int], decimals: int, slack: int, rounding: str
) -> None:
    """Also where the table is false: some printed values are moved by steps of their last digit."""
    start = Reading(averaging="binary", positive_class="fracture")
    values = {}
    for name, nudge in zip(CLAIMED, nudges, strict=True):
        if name in names:
            values[name] = move(write(take(name, m, start), decimals, False, "half-up"), nudge, decimals)
    p, n = m.tp + m.fn, m.fp + m.tn
    row = make_row(
        values,
        positives=f"{p}..{p + slack}",
        negatives=f"{n}..{n + slack}",
        policy=make_policy(rounding=rounding),
    )
    for verdict in check_row(row, limit=100_000).readings:
        wanted = {m for m in list_all(row.sizes) if fits(row, m, verdict.reading)}
        assert as_matrices(verdict) == wanted
        assert verdict.count == len(wanted)
        for item in verdict.refutations:
            assert_smallest(row, verdict.reading, item.metrics)


def assert_smallest(row: Row, reading: Reading, metrics: tuple[str, ...]) -> None:
    """No matrix has these values; one has any smaller choice of them."""
    values = {value.metric: value for value in row.values}

    def possible(names: tuple[str, ...]) -> bool:
        part = Row(**{**vars_of(row), "values": tuple(values[name] for name in names)})
        return any(fits(part, m, reading) for m in list_all(row.sizes))

    assert not possible(metrics)
    assert all(possible(part) for part in itertools.combinations(metrics, len(metrics) - 1) if part)


def vars_of(row: Row) -> dict[str, object]:
    return {name: getattr(row, name) for name in Row.__slots__}  # type: ignore[attr-defined]


# Against mlscorecheck.

FRACTURE = Reading(averaging="binary", positive_class="fracture")
THEIRS = {
    "accuracy": "acc", "precision": "ppv", "recall": "sens", "specificity": "spec", "npv": "npv",
    "f1": "f1", "mcc": "mcc", "balanced_accuracy": "bacc",
}  # fmt: skip


def draw_table(draw: random.Random) -> tuple[int, int, dict[str, str]]:
    """A table of a true matrix; in some of its values the last digit is moved, so that many are impossible."""
    p, n = draw.randint(20, 300), draw.randint(20, 300)
    tp, tn = draw.randint(1, p), draw.randint(1, n)
    decimals = draw.randint(2, 4)
    values = {}
    for name in draw.sample(sorted(THEIRS), draw.randint(2, 4)):
        true = write(take(name, Matrix(tp, n - tn, p - tp, tn), FRACTURE), decimals, False, "half-up")
        values[name] = move(true, draw.choice([0, 0, 1, -2]), decimals, -1 if name == "mcc" else 0)
    return p, n, values


def test_mlscorecheck_agrees_on_200_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    """But for MCC, which it solves loosely in intervals: where it finds one possible, its own witness is tried."""
    from mlscorecheck.check.binary import check_1_testset_no_kfold

    monkeypatch.setattr(logging.getLogger("mlscorecheck"), "disabled", True)
    policy = Policy(averaging="binary", positive_class="fracture", rounding="half-up", scale="fraction")
    draw = random.Random(20)
    verdicts, beyond = [], 0
    for _ in range(200):
        p, n, values = draw_table(draw)
        row = make_row(values, positives=str(p), negatives=str(n), policy=policy)
        ours = check_row(row).possible
        # Half a unit and next to no tolerance: the same intervals but for their ends, on which no value here lies.
        theirs = check_1_testset_no_kfold(
            testset={"p": p, "n": n},
            scores={THEIRS[name]: float(text) for name, text in values.items()},
            eps=float(row.values[0].interval.high - row.values[0].interval.low) / 2,
            numerical_tolerance=1e-10,
        )
        if ours == theirs["inconsistency"]:
            witness = theirs["evidence"]["tp"], theirs["evidence"]["tn"]
            assert "mcc" in values, (p, n, values)
            assert not ours, (p, n, values)
            assert not fits(row, Matrix(witness[0], n - witness[1], p - witness[0], witness[1]), FRACTURE)
            beyond += 1
        verdicts.append(ours)
    assert min(verdicts.count(True), verdicts.count(False)) >= 50
    assert beyond <= 8


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


def test_decimals_and_percent_are_taken_from_how_a_value_is_written() -> None:
    row = make_row({"accuracy": "97.5", "recall": "0.470", "f1": "0.9%", "mcc": "-.5"}, total="10")
    assert [(v.metric, v.percent, v.decimals) for v in row.values] == [
        ("accuracy", True, 1), ("recall", False, 3), ("f1", True, 1), ("mcc", False, 1),
    ]  # fmt: skip
    assert row.values[0].interval.low == Fraction("0.9745")
    assert check(4, 4, accuracy="1").values[0].low == "0.5"


def test_a_file_keeps_the_decimals_of_its_numbers_and_a_row_overrides_the_file(tmp_path: Path) -> None:
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
