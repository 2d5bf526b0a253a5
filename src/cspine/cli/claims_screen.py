"""What the terminal shows of `cspine claims`."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cspine.evaluation.claims import ReadingVerdict, ReadValue, RowVerdict, TableVerdict, name_metric
from cspine.evaluation.claims_search import name_range
from cspine.evaluation.results import Confusion


def show_claims(verdict: TableVerdict) -> None:
    """Each row with its readings, then the verdict in plain words."""
    console = Console(highlight=False)
    for text in (verdict.title, verdict.source):
        if text:
            console.print(escape(text))
    for row in verdict.rows:
        _show_row(console, row)
    impossible = [row for row in verdict.rows if not row.possible]
    console.print(_conclude(len(impossible), len(verdict.rows)))


def _show_row(console: Console, row: RowVerdict) -> None:
    word = "[green]possible[/green]" if row.possible else "[red]impossible[/red]"
    console.print(f"\n[bold]{escape(row.name)}[/bold]: {word}")
    console.print("  " + ", ".join(map(_name_value, row.values)))
    rounding = "rounded or cut off in any way" if row.rounding == "any" else f"rounding: {row.rounding}"
    console.print(f"  {_name_sizes(row)}; {rounding}")
    table = Table(box=box.SIMPLE, pad_edge=False)
    table.add_column("read as", max_width=28)
    if row.possible:
        table.add_column("matrices", justify="right", no_wrap=True)
    table.add_column("which fit, or why none does" if row.possible else "why no matrix fits", ratio=1)
    for labels, reading in _group(row.readings):
        count = [f"{reading.count:,}"] if row.possible else []
        table.add_row("\n".join(labels), *count, escape(_explain(reading)))
    console.print(table)


def _name_value(value: ReadValue) -> str:
    mark = "%" if value.percent and not value.printed.endswith("%") else ""
    return f"{name_metric(value.metric)} {escape(value.printed)}{mark}"


def _group(readings: Sequence[ReadingVerdict]) -> list[tuple[list[str], ReadingVerdict]]:
    """Readings of which the same is to be said, together."""
    groups: dict[str, list[ReadingVerdict]] = {}
    for reading in readings:
        groups.setdefault(f"{reading.count} {_explain(reading)}", []).append(reading)
    if len(groups) == 1 and len(readings) > 1:
        return [(["every reading"], readings[0])]
    return [([reading.reading.label for reading in group], group[0]) for group in groups.values()]


def _explain(reading: ReadingVerdict) -> str:
    if reading.possible:
        more = "\n..." if reading.count > len(reading.matrices) else ""
        return "\n".join(map(_name_matrix, reading.matrices)) + more
    first, *others = reading.refutations
    text = first.text
    if others:
        sets = "; ".join(" and ".join(name_metric(metric) for metric in other.metrics) for other in others)
        text += f"\nalso collide: {sets}" if len(first.metrics) > 1 else f"\nalso impossible: {sets}"
    return text


def _name_matrix(matrix: Confusion) -> str:
    return f"TP {matrix.tp:,}  FP {matrix.fp:,}  FN {matrix.fn:,}  TN {matrix.tn:,}"


def _name_sizes(row: RowVerdict) -> str:
    text = f"{name_range(row.positives)} fracture, {name_range(row.negatives)} normal"
    both = (row.positives[0] + row.negatives[0], row.positives[1] + row.negatives[1])
    return text if row.total == both else f"{text}, {name_range(row.total)} in all"


def _conclude(impossible: int, rows: int) -> str:
    if not impossible:
        start = "Every row fits" if rows > 1 else "The values fit"
        return f"{start} some confusion matrix. That they are possible does not show that they are right."
    start = "No confusion matrix of these totals has these values"
    if rows > 1:
        start = f"{impossible} of {rows} rows fit no confusion matrix of these totals"
    return (
        f"{start}, in any reading that was tried. They are not the metrics of one such test set, scored once. "
        "(Means over folds or runs are not metrics of one matrix: of those this says nothing.)"
    )
