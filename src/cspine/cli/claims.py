"""`cspine claims` and `cspine rsna-score`: tables and submissions of others."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cspine.core.errors import InputError

if TYPE_CHECKING:
    from cspine.metrics.rsna import RsnaScore

_VALUES, _TOTALS, _READING = "Values, as printed", "Totals: 200, or 180..220", "How to read them"
_SHOWN, _WRITTEN = 3, 1000


def _value(text: str) -> typer.models.OptionInfo:
    option: typer.models.OptionInfo = typer.Option(metavar="TEXT", rich_help_panel=_VALUES, help=text)
    return option


def _total(text: str) -> typer.models.OptionInfo:
    option: typer.models.OptionInfo = typer.Option(metavar="COUNT", rich_help_panel=_TOTALS, help=text)
    return option


def _choice(words: str, text: str) -> typer.models.OptionInfo:
    option: typer.models.OptionInfo = typer.Option(metavar=words, rich_help_panel=_READING, help=text)
    return option


def claims(
    table: Annotated[Path | None, typer.Argument(help="A TOML file with rows of a table.")] = None,
    positives: Annotated[str | None, _total("Cases with a fracture.")] = None,
    negatives: Annotated[str | None, _total("Normal cases.")] = None,
    total: Annotated[str | None, _total("All cases.")] = None,
    accuracy: Annotated[str | None, _value("With the decimals of the table: 97.50, 97.50%, 0.975.")] = None,
    precision: Annotated[str | None, _value("Positive predictive value.")] = None,
    recall: Annotated[str | None, _value("Sensitivity.")] = None,
    f1: Annotated[str | None, _value("F1 score.")] = None,
    specificity: Annotated[str | None, _value("True negative rate.")] = None,
    fpr: Annotated[str | None, _value("False positive rate.")] = None,
    npv: Annotated[str | None, _value("Negative predictive value.")] = None,
    balanced_accuracy: Annotated[str | None, _value("Mean of recall and specificity.")] = None,
    mcc: Annotated[str | None, _value("Matthews correlation coefficient.")] = None,
    rounding: Annotated[
        str | None, _choice("any|half-up|half-even|truncate", "How values were rounded.")
    ] = None,
    scale: Annotated[
        str | None, _choice("auto|percent|fraction", "auto: with a % sign, or above 1, it is percent.")
    ] = None,
    averaging: Annotated[
        str | None, _choice("any|binary|macro|weighted|micro", "Of precision, recall and F1.")
    ] = None,
    positive_class: Annotated[str | None, _choice("any|fracture|normal", "Whose metrics they are.")] = None,
    macro_f1: Annotated[
        str | None, _choice("any|mean-of-f1|f1-of-means", "Which of the two macro F1 scores.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one object (docs/claims.md).")] = False,
    limit: Annotated[
        int | None,
        typer.Option(min=1, max=100_000, help="Matrices to list in a reading: 3, with --json 1000."),
    ] = None,
) -> None:
    """Is a published table possible? Finds the confusion matrices that fit it, or proves that there are none.

    The table must be of one test set, scored once. Exit code: 0 every row fits some matrix, 1 a row fits none.
    """
    from cspine.claims.check import check_claims
    from cspine.claims.table import make_policy

    policy = make_policy(
        rounding=rounding, scale=scale, averaging=averaging, positive_class=positive_class, macro_f1=macro_f1
    )
    values = {
        "accuracy": accuracy,
        "precision": precision,
        "recall": recall,
        "f1": f1,
        "specificity": specificity,
        "fpr": fpr,
        "npv": npv,
        "balanced_accuracy": balanced_accuracy,
        "mcc": mcc,
    }
    given = {metric: text for metric, text in values.items() if text is not None}
    if table and (given or positives or negatives or total):
        raise InputError(
            "values and totals come from the file or from options, not from both",
            where=str(table),
            fix="leave out the file, or the values and totals",
        )
    row = {
        "name": "the values given",
        "positives": positives,
        "negatives": negatives,
        "total": total,
        **given,
    }
    verdict = check_claims(table or row, policy=policy, limit=limit or (_WRITTEN if as_json else _SHOWN))
    if as_json:
        typer.echo(verdict.model_dump_json(indent=2))
    else:
        from cspine.cli.screen import show_claims

        show_claims(verdict)
    raise typer.Exit(0 if verdict.possible else 1)


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
    from cspine.core.files import refuse_to_replace, write_json
    from cspine.data.tables import read_study_labels
    from cspine.metrics.intervals import IntervalOptions
    from cspine.metrics.rsna import read_submission, score_rsna

    if output:
        refuse_to_replace(output, submission, labels)
    score = score_rsna(read_study_labels(labels), read_submission(submission), IntervalOptions(draws, seed))
    _show_score(score)
    if output:
        write_json(output, score.model_dump(mode="json"))


def _show_score(score: RsnaScore) -> None:
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from cspine.report.text import count_noun, format_estimate

    title = f"RSNA 2022 loss of {count_noun(score.studies, 'study')}; lower is better"
    table = Table(title=title, title_justify="left", box=box.SIMPLE)
    table.add_column("")
    table.add_column(f"loss, 95% interval by {score.loss.unit}", justify="right")
    table.add_row("challenge's metric (weighted)", escape(format_estimate(score.loss)))
    table.add_section()
    for name, estimate in score.by_target.items():
        table.add_row(f"{name} (plain log loss)", escape(format_estimate(estimate)))
    Console().print(table)
