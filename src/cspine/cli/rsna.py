"""`cspine rsna-score`: a submission to the RSNA 2022 challenge against its labels."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from cspine.evaluation.rsna import RsnaScore


def rsna_score(
    submission: Annotated[
        Path, typer.Argument(help="A table: row_id (<StudyInstanceUID>_<target>), fractured.")
    ],
    labels: Annotated[
        Path, typer.Option("--labels", "-l", help="The challenge's train.csv, or one like it.")
    ],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Also write JSON here.")] = None,
    draws: Annotated[int, typer.Option(min=40, max=100_000, help="Bootstrap draws.")] = 2000,
    seed: int = 0,
) -> None:
    """Print the RSNA 2022 challenge's weighted log loss of a submission, with its 95% interval."""
    from cspine.data.rsna_tables import read_study_labels
    from cspine.evaluation.rsna import read_submission, score_rsna
    from cspine.files import refuse_to_replace, write_json

    if output:
        refuse_to_replace(output, submission, labels)
    score = score_rsna(read_study_labels(labels), read_submission(submission), draws=draws, seed=seed)
    _show(score)
    if output:
        write_json(output, score.model_dump(mode="json"))


def _show(score: RsnaScore) -> None:
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from cspine.reporting.text import count_noun, format_estimate

    title = f"RSNA 2022 loss of {count_noun(score.studies, 'study')}; lower is better"
    table = Table(title=title, title_justify="left", box=box.SIMPLE)
    table.add_column("")
    table.add_column(f"loss, 95% interval by {score.loss.unit}", justify="right")
    table.add_row("challenge's metric (weighted)", escape(format_estimate(score.loss)))
    table.add_section()
    for name, estimate in score.by_target.items():
        table.add_row(f"{name} (plain log loss)", escape(format_estimate(estimate)))
    Console().print(table)
