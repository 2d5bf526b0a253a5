"""Tables of studies: how models do on them, and the rules that made studies out of slices."""

from __future__ import annotations

from collections.abc import Sequence

from cspine.evaluation.study_level import StudyResult
from cspine.reporting.figures import Entry
from cspine.reporting.svg import choose_look
from cspine.reporting.tables import Row, Table, tabulate_comparison


def tabulate_study_metrics(entries: Sequence[Entry]) -> Table:
    """As a comparison's table; its cases are studies."""
    table = tabulate_comparison(entries)
    table.groups = [
        (
            title,
            [
                Row("Studies", row.cells)
                if row.label == "Slices"
                else Row(row.label, row.cells, row.equation)
                for row in rows
            ],
        )
        for title, rows in table.groups
    ]
    return table


def list_study_entries(studies: Sequence[StudyResult]) -> list[Entry]:
    """Models in their order, in the looks that they have in the comparison."""
    return [
        Entry(one.model, f"studies-{place}", choose_look(place), one.evaluation)
        for place, one in enumerate(studies)
    ]


def tabulate_rules(studies: Sequence[StudyResult]) -> Table:
    """Every rule that was tried, for each model: log loss and AUROC on studies that it was not fitted on."""
    table = Table(("Log loss", "AUROC"))
    for one in studies:
        rows = [
            Row(rule.rule.replace("_", " "), (table.fill(rule.log_loss), table.fill(rule.auroc)))
            for rule in one.fit.rules
        ]
        table.groups.append((one.model, rows))
    return table
