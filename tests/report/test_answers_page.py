"""The page of a prediction over studies."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np

from cspine.core.answers import (
    Abstention,
    AbstentionReason,
    Action,
    IntakeFinding,
    IntakeRow,
    Reason,
    StudyAnswer,
)
from cspine.report.answers_page import AnswersPage, answer_key, draw_profile, render_answers_page


def make_answer(name: str, logit: float | None, *, refused: bool = False) -> StudyAnswer:
    finding = IntakeFinding(reason=Reason.MISSING_SLICES, action=Action.REFUSE, detail="a gap of 12 mm")
    row = IntakeRow(
        source=f"studies/{name}",
        format="dicom",
        study_uid=f"1.2.{name}",
        series_uid=f"1.2.{name}.1",
        patient_id="Doe^Jane",
        slices_found=3,
        slices=0 if refused else 3,
        findings=(finding,) if refused else (),
    )
    logits = np.empty(0) if logit is None else np.array([-3.0, logit, -2.0])
    probs = 1 / (1 + np.exp(-logits))
    return StudyAnswer(
        intake=row,
        slice_ids=tuple(f"{name}-{index}" for index in range(len(logits))),
        positions_mm=np.arange(len(logits)) * 2.0,
        logits=logits,
        probs=probs,
        levels=(),
        logit=logit,
        prob=None if logit is None else float(probs.max()),
        threshold=0.5,
        key_slices=() if logit is None else (1,),
        level_probs={},
        abstentions=(AbstentionReason(Abstention.INTAKE_REFUSED, "a gap of 12 mm"),) if refused else (),
        distance=None,
        distance_limit=None,
        aggregation="the highest",
        checkpoint_hashes=("abc",),
    )


def render(*answers: StudyAnswer, **more: object) -> str:
    page = AnswersPage(answers, [one.intake for one in answers], {"small": "m.safetensors"}, **more)  # type: ignore[arg-type]
    return render_answers_page(page)


def test_fractures_come_first_then_what_nobody_answered() -> None:
    html = render(make_answer("20", -1.0), make_answer("30", None, refused=True), make_answer("10", 2.0))
    assert re.findall(r'title="1\.2\.(\d+)">', html)[:3] == ["10", "30", "20"]
    assert "3 series answered" in html
    assert "1 called fracture, 1 called no fracture, 1 without a call" in html
    assert "intake-refused" in html
    assert "missing-slices" in html


def test_no_patient_is_named_and_nothing_is_fetched() -> None:
    html = render(make_answer("10", 2.0))
    assert "Doe" not in html
    assert not re.search(r'(?:src|href)="(?!#|data:)', html)
    assert "Not for clinical use" in html


def test_a_wrong_call_stands_out_and_an_abstention_does_not() -> None:
    wrong = make_answer("10", 2.0)
    abstained = replace(
        make_answer("20", 2.0), abstentions=(AbstentionReason(Abstention.OUT_OF_DISTRIBUTION, "far"),)
    )
    html = render(wrong, abstained, truth={answer_key(wrong): 0, answer_key(abstained): 0})
    assert html.count('class="words call wrong') == 1


def test_a_profile_has_a_bar_a_slice_and_marks_key_slices() -> None:
    svg = draw_profile(make_answer("10", 2.0))
    assert svg.count('stroke-width="1"') == 2
    assert svg.count('stroke-width="2"') == 1
    # 28 px high at a probability of 1: sigmoid(2) = 0.881.
    assert 'y2="3.3"' in svg
