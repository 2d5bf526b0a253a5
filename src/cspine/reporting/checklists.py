"""Two checklists for papers, CLAIM 2024 and TRIPOD+AI 2024, filled as far as a run can fill them.

checklists = answer_checklists(results)

The items are package data (`checklists/*.toml`), paraphrased. An item without an answer is the author's.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from importlib.resources import files

from markupsafe import Markup

from cspine.reporting import known
from cspine.reporting.cards import render_answer
from cspine.reporting.checklist_answers import CLAIM, TRIPOD_AI
from cspine.reporting.known import Answer, leave
from cspine.reporting.markdown import clean_text
from cspine.reporting.page import make_environment
from cspine.reporting.results import ComparisonResults

ANSWERS = {"claim-2024": CLAIM, "tripod-ai-2024": TRIPOD_AI}
WORDS = (
    "What this run can answer, with where the answer comes from. What no run can know is left to the author. Items are "
    "in words of ours: check them against the published checklists before you submit."
)
STATUSES = ("from the run", "in part", "for the author")


@dataclass(frozen=True, slots=True)
class Item:
    """One item: its number in the checklist, what it asks in words of ours, and the answer."""

    number: str
    topic: str
    answer: Answer


@dataclass(frozen=True, slots=True)
class Checklist:
    """A checklist, filled: `sections` are (title, items)."""

    name: str
    title: str
    source: str
    sections: tuple[tuple[str, tuple[Item, ...]], ...]

    def count(self, status: str) -> int:
        """How many items have a status, one of `STATUSES`."""
        return sum(item.answer.status == status for _, items in self.sections for item in items)


def answer_checklists(results: ComparisonResults) -> tuple[Checklist, ...]:
    """Both checklists, each item with what the run says to it."""
    return tuple(_fill(name, results) for name in ANSWERS)


def _fill(name: str, results: ComparisonResults) -> Checklist:
    text = (files("cspine.reporting") / "checklists" / f"{name}.toml").read_text(encoding="utf-8")
    content = tomllib.loads(text)
    answers = ANSWERS[name]
    return Checklist(
        name=content["name"],
        title=content["title"],
        source=content["source"],
        sections=tuple(
            (
                section["title"],
                tuple(
                    Item(number, topic, answers[number](results) if number in answers else leave(""))
                    for number, topic in section["items"]
                ),
            )
            for section in content["sections"]
        ),
    )


def render_checklists_markdown(results: ComparisonResults) -> str:
    """Both checklists as GitHub's Markdown."""
    parts = [f"# Reporting checklists: {clean_text(results.title)}", WORDS]
    if verdict := known.describe_verdict(results):
        parts.append(f"**{verdict}**")
    for checklist in answer_checklists(results):
        counts = ", ".join(f"{status}: {checklist.count(status)}" for status in STATUSES)
        parts += [f"## {checklist.title}", f"{checklist.source}. Items {counts}."]
        for title, items in checklist.sections:
            rows = (f"- **{item.number}** {item.topic}: {render_answer(item.answer)}" for item in items)
            parts += [f"### {title}", "\n".join(rows)]
    return "\n\n".join(parts) + "\n"


def render_checklists_page(results: ComparisonResults, report: str | None = None) -> str:
    """Both checklists as one HTML text; `report` is the way to the report, its one reference to the outside."""
    environment = make_environment()
    return environment.get_template("checklists.html.j2").render(
        results=results,
        checklists=answer_checklists(results),
        statuses=STATUSES,
        verdict=known.describe_verdict(results),
        words=WORDS,
        report=report,
        css=Markup(environment.get_template("report.css").render()),
    )
