"""The page of a prediction: what a model says of each study, how good that is where the truth is known, and intake."""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from markupsafe import Markup, escape

from cspine.core.answers import IntakeRow, StudyAnswer
from cspine.core.estimates import EvaluationResult
from cspine.core.files import write_text
from cspine.core.types import plural
from cspine.report.page import Numbering, Row, Table, make_environment
from cspine.report.text import format_value

if TYPE_CHECKING:
    from cspine.explain.pointing import PointingResult

MOST_ROWS = 500
MOST_PICTURES = 24
_PROFILE_PX = (150, 30)
_LIKELY = 0.1
_HEAD_LENGTH, _TAIL_LENGTH = 10, 8


@dataclass(frozen=True)
class AnswersPage:
    """What the page shows.

    Attributes:
        answers: One a series, whatever intake made of it.
        rows: Of intake, for files and series without an answer as well; in the order of the source.
        models: Name of each model, and of its file; no path.
        truth: `answer_key` to 1 or 0, where it is known.
        evaluation: Of the studies whose truth is known; None where there are too few.
        pointing: Where maps were made, and masks or boxes say where the fractures are.
        pictures: `answer_key` to a JPEG of the finding.
        notes: Sentences for the reader.
    """

    answers: Sequence[StudyAnswer]
    rows: Sequence[IntakeRow]
    models: Mapping[str, str]
    truth: Mapping[str, int] = field(default_factory=dict)
    evaluation: EvaluationResult | None = None
    pointing: PointingResult | None = None
    pictures: Mapping[str, bytes] = field(default_factory=dict)
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class _View:
    """One answer as the template shows it."""

    answer: StudyAnswer
    name: str
    truth: int | None
    profile: Markup | None
    levels: str
    picture: str | None

    @property
    def wrong(self) -> bool:
        """Whether a call was made, and is not what is known."""
        return (
            self.truth is not None
            and self.answer.call != "abstained"
            and (self.answer.call == "fracture") != bool(self.truth)
        )


def answer_key(answer: StudyAnswer) -> str:
    """What an answer is joined by: its series, or where it was read from."""
    return answer.intake.series_uid or answer.intake.source


def write_answers_page(page: AnswersPage, path: Path) -> Path:
    """Write the page, atomically, as one HTML file that opens offline.

    Raises:
        OutputError: the file cannot be written.
    """
    return write_text(path, render_answers_page(page))


def render_answers_page(page: AnswersPage) -> str:
    """The page as one text without any reference to the outside; it names no patient."""
    environment = make_environment()
    ordered = sorted(page.answers, key=_order)
    pictured = [answer_key(one) for one in ordered if answer_key(one) in page.pictures][:MOST_PICTURES]
    views = [_view(one, page, answer_key(one) in pictured) for one in ordered[:MOST_ROWS]]
    table, roc = (None, None) if page.evaluation is None else _show_evaluation(page.evaluation)
    return environment.get_template("answers.html.j2").render(
        page=page,
        views=views,
        left=len(ordered) - len(views),
        calls=Counter(one.call for one in page.answers),
        decisions=Counter(row.decision for row in page.rows),
        intake=sorted(page.rows, key=lambda row: _DECISIONS.index(row.decision))[:MOST_ROWS],
        with_levels=any(one.level_probs for one in page.answers),
        table=table,
        pointing=_tabulate_pointing(page.pointing) if page.pointing else None,
        roc=roc,
        aggregations=sorted({one.aggregation for one in page.answers}),
        limits=sorted({one.distance_limit for one in page.answers if one.distance_limit is not None}),
        number=Numbering(),
        shorten=shorten_uid,
        css=Markup(environment.get_template("report.css").render()),
        version=version("cspine"),
    )


_DECISIONS = ("refused", "corrected", "noted", "taken")
_CALLS = ("fracture", "abstained", "no fracture")


def _order(answer: StudyAnswer) -> tuple[int, float, str]:
    """Fractures first, the surest at the top; then what nobody answered, which someone has to look at."""
    return _CALLS.index(answer.call), -(answer.prob or 0.0), answer_key(answer)


def _view(answer: StudyAnswer, page: AnswersPage, pictured: bool) -> _View:
    key = answer_key(answer)
    likely = [pair for pair in answer.level_probs.items() if pair[1] >= _LIKELY]
    strongest = sorted(likely, key=lambda pair: -pair[1])[:3]
    return _View(
        answer=answer,
        name=shorten_uid(answer.intake.study_uid or answer.intake.source),
        truth=page.truth.get(key),
        profile=draw_profile(answer) if answer.slice_ids else None,
        levels=", ".join(f"{level} {format_value(prob, 2)}" for level, prob in strongest),
        picture=base64.b64encode(page.pictures[key]).decode() if pictured else None,
    )


def shorten_uid(text: str) -> str:
    """The two ends of a UID or path, which is how people tell them apart."""
    if len(text) <= _HEAD_LENGTH + _TAIL_LENGTH + 1:
        return text
    return f"{text[:_HEAD_LENGTH]}…{text[-_TAIL_LENGTH:]}"


def draw_profile(answer: StudyAnswer) -> Markup:
    """The probabilities of the slices from feet (left) to head, as a small SVG; those that carry it stand out."""
    width, height = _PROFILE_PX
    positions = answer.positions_mm
    extent = float(positions[-1] - positions[0]) or 1.0
    across = 2 + (positions - positions[0]) / extent * (width - 4)
    key_slices = set(answer.key_slices)
    bars = []
    for index, (x, prob) in enumerate(zip(across, answer.probs, strict=True)):
        colour, thick = ("#b34700", 2) if index in key_slices else ("#9aa5b1", 1)
        top = (height - 2) * (1 - float(prob))
        bars.append(
            f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{height - 1}" y2="{min(top, height - 2):.1f}" '
            f'stroke="{colour}" stroke-width="{thick}"/>'
        )
    title = (
        f"Probabilities of {len(answer.slice_ids)} slices, feet to head; the highest {max(answer.probs):.2f}"
    )
    return Markup(
        f'<svg class="profile" viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img">'
        f"<title>{escape(title)}</title>"
        f'<line x1="0" x2="{width}" y1="{height - 0.5}" y2="{height - 0.5}" stroke="#dcdcdc"/>'
        f"{''.join(bars)}</svg>"
    )


def _show_evaluation(evaluation: EvaluationResult) -> tuple[Table, Markup]:
    # Here, for figures take longer to load than a study takes to answer.
    from cspine.report.figures import Entry, choose_look, draw_roc
    from cspine.report.tables import tabulate_study_metrics

    entry = Entry(evaluation.model, "studies", choose_look(0), evaluation)
    return tabulate_study_metrics([entry]), draw_roc(entry).embed()


def _tabulate_pointing(pointing: PointingResult) -> Table:
    table = Table(("Maps", "Chance", "Centre of the body", "Maps beyond the centre"))
    rows = [
        Row(one.label, tuple(map(table.fill, (one.found, one.chance, one.centre, one.beyond_centre))))
        for one in pointing.measures
    ]
    table.groups.append((f"{pointing.slices} slices, {pointing.units} {plural(pointing.unit)}", rows))
    return table
