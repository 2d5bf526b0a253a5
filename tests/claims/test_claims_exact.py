"""Claims are exact: beside brute force over all matrices, and beside mlscorecheck."""

from __future__ import annotations

import itertools
import logging
import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cspine.claims.check import Reading, check_row, find_formula
from cspine.claims.search import make_search
from cspine.claims.table import CLAIMED, Policy, Row, Sizes, make_policy, make_row
from cspine.metrics.scores import METRICS, compute_metrics
from tests.metrics.matrices import MODES, Matrix, as_matrices, fits, list_all, move, take, write

READINGS = [
    Reading(averaging=averaging, positive_class=side, macro_f1=kind)
    for averaging, side, kind in itertools.product(
        ("binary", "macro", "weighted", "micro"), ("fracture", "normal"), ("mean-of-f1", "f1-of-means")
    )
]


@pytest.mark.parametrize("metric", CLAIMED)
@pytest.mark.parametrize("reading", READINGS, ids=lambda reading: reading.label)
def test_every_metric_is_right_and_rises_as_the_search_needs(metric: str, reading: Reading) -> None:
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
