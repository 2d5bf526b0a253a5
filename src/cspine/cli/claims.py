"""`cspine claims`: the options, and which words of a table they become."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cspine.errors import InputError

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
    from cspine.evaluation.claims import check_table
    from cspine.evaluation.claims_input import Table, make_policy, make_row, read_table

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
    if table:
        found = read_table(table, policy)
    else:
        row = make_row(given, positives=positives, negatives=negatives, total=total, policy=policy)
        found = Table("", "", (row,))
    verdict = check_table(found, limit or (_WRITTEN if as_json else _SHOWN))
    if as_json:
        typer.echo(verdict.model_dump_json(indent=2))
    else:
        from cspine.cli.claims_screen import show_claims

        show_claims(verdict)
    raise typer.Exit(0 if verdict.possible else 1)
