"""The documents beside a report: a card for every model, and the reporting checklists.

write_documents(results, folder)   # folder/models/NAME/card.md and card.html, folder/checklists.md and checklists.html
"""

from __future__ import annotations

import re
from pathlib import Path

from cspine.files import write_text
from cspine.reporting.cards import make_card, render_card_markdown, render_card_page
from cspine.reporting.checklists import render_checklists_markdown, render_checklists_page
from cspine.reporting.figures import list_entries
from cspine.reporting.results import ComparisonResults

CHECKLISTS_PAGE = "checklists.html"
CARD_PAGE = "card.html"
_PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._ -]{0,99}")


def list_card_folders(results: ComparisonResults) -> tuple[str, ...]:
    """Where the card of each model goes, within a run: beside its checkpoint, unless its name is no plain one."""
    entries = list_entries(results)[: len(results.models)]
    names = (entry.name if _PLAIN_NAME.fullmatch(entry.name) else entry.slug for entry in entries)
    return tuple(f"models/{name}" for name in names)


def render_documents(results: ComparisonResults, report: str | None = None) -> dict[str, str]:
    """Every document by its path within the folder of a run; `report` is the name of the report there, to be linked."""
    found = {}
    for model, folder in zip(results.models, list_card_folders(results), strict=True):
        card = make_card(results, model)
        found[f"{folder}/card.md"] = render_card_markdown(card)
        found[f"{folder}/{CARD_PAGE}"] = render_card_page(card, f"../../{report}" if report else None)
    found["checklists.md"] = render_checklists_markdown(results)
    found[CHECKLISTS_PAGE] = render_checklists_page(results, report)
    return found


def write_documents(results: ComparisonResults, folder: Path, report: str | None = None) -> tuple[Path, ...]:
    """Write every document, each atomically, after all were made; returns their paths.

    Raises:
        OutputError: the folder cannot be written.
    """
    made = render_documents(results, report)
    return tuple(write_text(Path(folder) / name, text) for name, text in made.items())
