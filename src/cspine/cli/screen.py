"""What the terminal shows: bars and tables. No torch here."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from cspine.claims.check import ReadingVerdict, ReadValue, RowVerdict, TableVerdict, name_metric
from cspine.claims.search import name_range
from cspine.core.estimates import Confusion
from cspine.models.header import ZOO

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from cspine.auditing.findings import Finding
    from cspine.core.estimates import EvaluationResult
    from cspine.data.layouts import ImportReport
    from cspine.metrics.clinical import ProbabilityUse

_PLAIN_STEP = 0.25
_COLOURS = {"invalidates": "red", "warning": "yellow", "info": "dim"}


class Bars:
    """Shows the stages of long work: bars on a terminal, a few plain lines elsewhere. A `Watcher`."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._console = Console(stderr=True)
        self._live = self._console.is_terminal and not quiet
        self._quiet = quiet
        self._stage = ""
        self._last = 0.0
        self._bars = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=self._console,
            transient=True,
        )
        self._task = self._bars.add_task("", total=None, note="", visible=False)

    def __enter__(self) -> Bars:
        if self._live:
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._bars.stop()

    def start(self, stage: str, total: int) -> None:
        """A stage begins."""
        self._stage, self._last = stage, 0.0
        self._bars.reset(self._task, total=total or None, description=stage, note="", visible=True)

    def advance(self, done: int, total: int, note: str = "") -> None:
        """`done` of `total` steps are done."""
        self._bars.update(self._task, completed=done, total=total, note=note)
        share = done / max(total, 1)
        if not self._live and not self._quiet and share - self._last >= _PLAIN_STEP and share < 1:
            self._last = share
            self._console.print(f"  {self._stage}: {share:.0%} {note}", highlight=False, soft_wrap=True)

    def finish(self, note: str = "") -> None:
        """The stage is over."""
        self._bars.update(self._task, visible=False)
        if not self._quiet:
            self._console.print(
                f"[green]✓[/green] {self._stage}: {escape(note)}", highlight=False, soft_wrap=True
            )


def say(text: str, *, style: str | None = None) -> None:
    """Print a line as it is: neither wrapped nor marked up."""
    Console().print(text, style=style, soft_wrap=True, highlight=False, markup=False)


def show_import(report: ImportReport, output: Path) -> None:
    """What an import found, as tables."""
    console = Console()
    table = Table(title=f"{report.slices:,} slices  ({report.layout})", title_justify="left")
    classes = sorted({name for counts in report.counts.values() for name in counts})
    table.add_column("split")
    for name in classes:
        table.add_column(escape(name), justify="right")
    for split, counts in report.counts.items():
        table.add_row(split, *(f"{counts.get(name, 0):,}" for name in classes))
    console.print(table)
    for title, counts in (("sizes", report.sizes), ("modes", report.modes), ("bits", report.bits)):
        console.print(f"{title:>9}: " + ", ".join(f"{name} ({count:,})" for name, count in counts.items()))
    groups = {
        "patients": report.patients,
        "studies": report.studies,
        "series": report.series,
        "source slices": report.source_slices,
    }
    console.print("   groups: " + ", ".join(f"{n} {v:,}" if v else f"{n} unknown" for n, v in groups.items()))
    if report.skipped:
        console.print(
            "  skipped: " + ", ".join(f"{count:,} {kind}" for kind, count in report.skipped.items())
        )
    for note in report.notes:
        console.print(f"[yellow]note[/yellow] {escape(note)}", soft_wrap=True)
    for path, reason in report.unreadable:
        console.print(f"[red]unreadable[/red] {escape(path)}: {escape(reason)}", soft_wrap=True)
    console.print(f"written to {escape(str(output))}", soft_wrap=True)


def show_evaluations(evaluations: Sequence[EvaluationResult]) -> None:
    """Metrics as rows, models as columns, the interval beside each value."""
    console = Console()
    first = evaluations[0]
    title = f"positive class: {first.positive_class}; threshold {first.threshold:g}"
    table = Table(title=title, title_justify="left", box=box.SIMPLE)
    table.add_column("metric", no_wrap=True)
    for item in evaluations:
        table.add_column(f"{escape(item.model)}\n{item.split}, {item.slices:,} slices", justify="right")
    for name in first.metrics:
        cells = []
        for item in evaluations:
            found = item.metrics[name]
            value = "undefined" if found.value is None else f"{found.value:.3f}"
            interval = (
                "" if found.low is None or found.high is None else f" [{found.low:.3f}, {found.high:.3f}]"
            )
            cells.append(escape(value + interval))
        table.add_row(name, *cells)
    table.add_section()
    for count in ("tp", "fp", "fn", "tn"):
        table.add_row(count, *(f"{getattr(item.confusion, count):,}" for item in evaluations))
    console.print(table)
    units = {f"{item.units:,} {item.unit}s" for item in evaluations}
    levels = {f"{estimate.level:.4g}" for item in evaluations for estimate in item.metrics.values()}
    percents = " and ".join(f"{100 * float(level):g}%" for level in sorted(levels))
    console.print(f"{percents} intervals over {', '.join(sorted(units))}")


def show_uses(uses: Sequence[ProbabilityUse]) -> None:
    """Operating points and ECE of each model; everything else is in the JSON."""
    from cspine.metrics.calibration import name_rule
    from cspine.report.calibration import UNCALIBRATED, describe_fit, format_threshold
    from cspine.report.text import format_estimate, format_value

    console = Console()
    for use in uses:
        title = f"{use.model}: chosen and fitted on {use.fitted_on}, shown on {use.split}"
        points = Table(title=escape(title), title_justify="left", box=box.SIMPLE)
        points.add_column("threshold by")
        for name in ("at", "recall", "specificity"):
            points.add_column(name, justify="right")
        for found in use.points:
            cells = (format_estimate(found.metrics[name]) for name in ("recall", "specificity"))
            threshold = format_threshold(found.point.threshold)
            points.add_row(name_rule(found.point.rule, found.point.target), threshold, *map(escape, cells))
        console.print(points)
        for state in use.states:
            name = describe_fit(state.fit) if state.fit else UNCALIBRATED
            chance = f"by chance {format_value(state.reliability.ece_by_chance)}"
            say(f"ECE {name}: {format_estimate(state.reliability.ece)} ({chance})")
        for note in use.notes:
            say(f"note: {note}")


def show_stages(stages_s: Mapping[str, float], wall_s: float) -> None:
    """Where the time of a comparison went, those of a second and more."""
    long = {stage: seconds for stage, seconds in stages_s.items() if seconds >= 1}
    if not long:
        return
    table = Table(title="where the time went", title_justify="left", box=box.SIMPLE, show_header=False)
    table.add_column(justify="left")
    table.add_column(justify="right")
    for stage, seconds in long.items():
        table.add_row(escape(stage), f"{seconds:,.1f} s")
    table.add_row("all of it, before the report is drawn", f"{wall_s:,.1f} s")
    Console().print(table)


def show_versions() -> None:
    """Versions, without loading what they are of."""
    console = Console()
    packages = (
        "cspine",
        "torch",
        "torchvision",
        "timm",
        "lightning-fabric",
        "polars",
        "opencv-python-headless",
    )
    for name in packages:
        console.print(f"{name:<24} {version(name)}", highlight=False)
    console.print(f"{'python':<24} {platform.python_version()}", highlight=False)
    console.print("\nmore: cspine info models", highlight=False)


def show_models() -> None:
    """The zoo, from its written-down counts."""
    table = Table(title="The paper's models, at 224x224", title_justify="left", box=box.SIMPLE)
    table.add_column("name and pinned weights", overflow="fold")
    table.add_column("head (paper equation)", overflow="fold")
    for name in ("parameters", "GFLOPs"):
        table.add_column(name, justify="right", no_wrap=True)
    for name, entry in ZOO.items():
        counts = (f"{entry.parameters:,}", f"{entry.flops / 1e9:.2f}")
        table.add_row(f"{name}\n  {entry.tag}", f"{entry.head}\n  eq. {entry.equations}", *counts)
    console = Console()
    console.print(table)
    console.print("any other timm name works too, with the softmax head; --diagrams FOLDER draws the layers")


def show_findings(console: Console, findings: Iterable[Finding]) -> None:
    """Each finding as a line, and beneath those of one code what to do about them."""
    from cspine.report.text import group_findings

    for reason in group_findings(findings):
        for text in reason.texts:
            console.print(
                f"[{_COLOURS[reason.severity]}]{reason.severity:>11}[/] {escape(text)} [dim]{reason.code}[/]",
                soft_wrap=True,
                highlight=False,
            )
        console.print(
            f"{'':>11} [dim]what to do:[/] {escape(reason.remedy)}", soft_wrap=True, highlight=False
        )


# What the terminal shows of `cspine claims`.


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
