"""The reporting checklists: all items there, answers only where a run has them, and said where from."""

from __future__ import annotations

import re

import pytest

from cspine.auditing.findings import AuditResult, EffectiveSize, Finding
from cspine.core.estimates import Estimate
from cspine.report.checklists import (
    ANSWERS,
    Checklist,
    Item,
    answer_checklists,
    render_checklists_markdown,
    render_checklists_page,
)
from cspine.report.results import ComparisonResults
from tests.report.builders import make_results

CLAIM_NUMBERS = [str(number) for number in range(1, 45)]
TRIPOD_LETTERS = {3: "abc", 5: "ab", 6: "abc", 8: "abc", 9: "abc", 12: "abcdefg", 18: "abcdef", 20: "abc"}
TRIPOD_LETTERS |= {23: "ab", 27: "abc"}
TRIPOD_NUMBERS = [
    f"{number}{letter}" for number in range(1, 28) for letter in TRIPOD_LETTERS.get(number, [""])
]

# What is about people, intentions, money and law no file of a run can know.
NEVER = {
    "claim-2024": [
        "2",
        "3",
        "4",
        "5",
        "6",
        "8",
        "13",
        "14",
        "15",
        "16",
        "17",
        "18",
        "21",
        "31",
        "34",
        "41",
        "44",
    ],
    "tripod-ai-2024": [
        *["2", "3a", "3b", "3c", "4", "5b", "6a", "6b", "6c", "8b", "8c", "10", "14", "17"],
        *["18a", "18b", "18c", "18d", "18e", "19", "25", "27a", "27b", "27c"],
    ],
}


@pytest.fixture(scope="module")
def results() -> ComparisonResults:
    return make_results()


def find(results: ComparisonResults, name: str, number: str) -> Item:
    checklist = dict(zip(ANSWERS, answer_checklists(results), strict=True))[name]
    return next(item for _, items in checklist.sections for item in items if item.number == number)


def list_items(checklist: Checklist) -> list[Item]:
    return [item for _, items in checklist.sections for item in items]


def make_audit(*findings: Finding, patients: int | None) -> AuditResult:
    interval = Estimate(value=0.95, low=0.9, high=1.0, method="Wilson", unit="patient", n=20)
    size = EffectiveSize(
        files=400,
        distinct_slices=400,
        series=5,
        patients=patients,
        by_split={},
        reported_split="val",
        naive=interval,
        clustered=interval,
    )
    return AuditResult(
        verdict="sound",
        findings=findings,
        families=(),
        baselines=(),
        metadata=(),
        effective_n=size,
        manifest_hash="m",
    )


def test_every_item_stands_once_and_in_its_order(results: ComparisonResults) -> None:
    claim, tripod = answer_checklists(results)
    assert [item.number for item in list_items(claim)] == CLAIM_NUMBERS
    assert [item.number for item in list_items(tripod)] == TRIPOD_NUMBERS
    assert (len(CLAIM_NUMBERS), len(TRIPOD_NUMBERS)) == (44, 52)


@pytest.mark.parametrize("name", ANSWERS)
def test_an_answer_is_for_an_item_that_there_is(results: ComparisonResults, name: str) -> None:
    numbers = CLAIM_NUMBERS if name == "claim-2024" else TRIPOD_NUMBERS
    assert set(ANSWERS[name]) | set(NEVER[name]) == set(numbers)
    assert not set(ANSWERS[name]) & set(NEVER[name])


def test_answers_name_their_source_or_the_author(results: ComparisonResults) -> None:
    for checklist in answer_checklists(results):
        for item in list_items(checklist):
            answer = item.answer
            assert (answer.text is None) == (answer.source is None)
            assert (answer.text is not None) or (answer.author is not None)
        assert sum(map(checklist.count, ("from the run", "in part", "for the author"))) == len(
            list_items(checklist)
        )


def test_numbers_in_answers_are_those_of_the_results(results: ComparisonResults) -> None:
    recall = results.models[2].evaluation.metrics["recall"]
    assert f"{recall.value:.3f} [{recall.low:.3f}, {recall.high:.3f}]" in (
        find(results, "claim-2024", "38").answer.text or ""
    )
    counts = results.models[2].evaluation.confusion
    text = find(results, "claim-2024", "39").answer.text or ""
    assert f"ConvNeXt-Tiny: {counts.fn} missed, {counts.fp} false alarms" in text
    assert "1900 fracture and 1900 normal slices" in (find(results, "claim-2024", "35").answer.text or "")


def test_what_a_run_did_not_do_is_left_to_the_author(results: ComparisonResults) -> None:
    less = results.model_copy(update={"robustness": (), "in_use": (), "audit": None, "folded": None})
    for name, number in (
        ("claim-2024", "12"),
        ("claim-2024", "20"),
        ("claim-2024", "30"),
        ("claim-2024", "33"),
        ("tripod-ai-2024", "12d"),
        ("tripod-ai-2024", "12f"),
        ("tripod-ai-2024", "13"),
        ("tripod-ai-2024", "24"),
    ):
        assert find(less, name, number).answer.status == "for the author", number


def test_an_external_split_answers_its_item_alone(results: ComparisonResults) -> None:
    external = results.model_copy(update={"reported_split": "external"})
    assert find(external, "claim-2024", "33").answer.status == "in part"
    assert find(external, "claim-2024", "32").answer.status == "for the author"


def test_partitions_are_disjoint_by_patient_only_where_known(
    results: ComparisonResults,
) -> None:
    unknown = Finding(
        code="unknown-patients",
        severity="warning",
        text="Some.",
        evidence={"slices_without_patient": 3, "slices_without_series": 3},
    )
    leak = Finding(code="patient-across-splits", severity="invalidates", text="One.")
    known = find(results.model_copy(update={"audit": make_audit(patients=9)}), "claim-2024", "20").answer
    assert known.status == "from the run"
    assert (known.text or "").startswith(
        "In one split each: patients; series; copies of one slice (by pixels)"
    )
    some = find(
        results.model_copy(update={"audit": make_audit(unknown, patients=9)}), "claim-2024", "20"
    ).answer
    assert some.status == "in part"
    assert "patients" not in (some.text or "")
    assert "series" not in (some.text or "")
    leaking = find(
        results.model_copy(update={"audit": make_audit(leak, patients=9)}), "claim-2024", "20"
    ).answer
    assert (leaking.text or "").startswith("Not disjoint: these stand in more than one split: patients.")


def test_limitations_hold_the_verdict_and_its_reasons(results: ComparisonResults) -> None:
    assert results.findings is not None
    for name, number in (("claim-2024", "40"), ("tripod-ai-2024", "26")):
        text = find(results, name, number).answer.text or ""
        assert text.startswith("Verdict: not evidence.")
        for finding in results.findings:
            assert (finding.text in text) == (finding.severity != "info")


def test_both_forms_hold_every_item_and_every_answer(results: ComparisonResults) -> None:
    html, text = render_checklists_page(results), render_checklists_markdown(results)
    assert html.count('<dt class="item">') == text.count("\n- **") == 96
    assert html.count("For the author") == text.count("*for the author")
    assert "Verdict: not evidence." in html
    assert not re.search(r'(src|href)="(?!#)', html)
