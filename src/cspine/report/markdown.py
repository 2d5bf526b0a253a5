"""The report's tables as Markdown, to paste into a paper's supplement, a README or a review."""

from __future__ import annotations

from collections.abc import Sequence

from cspine.auditing.findings import VERDICT_WORDS, list_reasons
from cspine.core.estimates import EvaluationResult
from cspine.report.calibration import list_use_tables
from cspine.report.explanations import tabulate_pointing, tabulate_sanity
from cspine.report.figures import list_entries
from cspine.report.page import Cell, Table, format_duration
from cspine.report.results import ComparisonResults, FoldedResult, ModelResult
from cspine.report.robustness import view_robustness
from cspine.report.tables import (
    FURTHER,
    MAIN,
    describe_copies,
    find_usual_interval,
    list_study_entries,
    tabulate_beside,
    tabulate_comparison,
    tabulate_folds,
    tabulate_pairs,
    tabulate_seeds,
    tabulate_study_metrics,
    tabulate_subgroups,
)
from cspine.report.text import Reason, count_noun, drop_controls, format_count, group_findings


def render_markdown(results: ComparisonResults) -> str:
    """The comparison, the trainings, what is missed and the robustness of a comparison, as GitHub's Markdown."""
    entries = list_entries(results)
    parts = [f"# {clean_text(results.title)}", f"`{clean_text(results.run.command)}`"]
    if results.verdict:
        audited = "" if results.audit else " The data were not audited."
        parts.append(f"**Verdict: {results.verdict}.** {VERDICT_WORDS[results.verdict]}{audited}")
    parts += render_reasons(group_findings(list_reasons(results.findings or ())))
    parts += [f"- **{note.severity}**: {clean_text(note.text)}" for note in results.notes]
    if entries:
        parts += [
            "## Comparison",
            _caption(entries[0].evaluation),
            render_table(tabulate_comparison(entries)),
        ]
        usual = find_usual_interval(entries)
        if usual is not None:
            method, level, unit, n = usual
            parts.append(f"Intervals: {level:.0%}, {method}, over {count_noun(n, unit)}.")
    if results.pairs:
        parts += ["## Differences between models", render_table(tabulate_pairs(results.pairs))]
        parts.append(
            f"Permutation test by {results.pairs.unit}; Holm's correction over {results.pairs.family}."
        )
    if results.folded:
        parts += _render_folds(results, results.folded)
    parts += ["## Trainings", _render_trainings(results.models)]
    if results.subgroups:
        parts += ["## What is missed", render_table(tabulate_subgroups(results.subgroups))]
    if results.robustness:
        view = view_robustness(results)
        for name, table in view.tables:
            parts += [f"## {name} by severity of a corruption", render_table(table)]
        if view.means and view.errors:
            parts += ["## Mean corruption error", render_table(view.means), render_table(view.errors)]
        parts += [f"- not applicable: {clean_text(label)}: {clean_text(why)}" for label, why in view.missing]
    pointing = tabulate_pointing(results.explanations)
    if pointing is not None:
        parts += ["## Where the models look", render_table(pointing)]
    sanity = tabulate_sanity(results.explanations)
    if sanity is not None:
        parts += ["Likeness of maps to those of random weights:", render_table(sanity)]
    if results.studies:
        words = "; ".join(f"{one.model}: {one.fit.aggregation}" for one in results.studies)
        parts += ["## Studies", clean_text(f"Slices became studies by {words}.")]
        parts.append(render_table(tabulate_study_metrics(list_study_entries(results.studies))))
    for heading, words, table in list_use_tables(results):
        parts += [f"## {heading}", clean_text(words), render_table(table)]
    return "\n\n".join(parts) + "\n"


def _render_folds(results: ComparisonResults, folded: FoldedResult) -> list[str]:
    beside, seeds = tabulate_beside(results, (*MAIN, *FURTHER)), tabulate_seeds(folded)
    parts = [f"## {folded.words.capitalize()}", *([render_table(beside)] if beside else [])]
    parts += ["### Fold by fold", describe_copies(folded), render_table(tabulate_folds(results, folded))]
    return parts + (["### Seeds", render_table(seeds)] if seeds else [])


def _caption(evaluation: EvaluationResult) -> str:
    return (
        f"Split `{clean_text(evaluation.split)}`: {format_count(evaluation.slices)} slices, "
        f"{format_count(evaluation.positives)} of them {evaluation.positive_class}, which is the positive class."
    )


def render_reasons(reasons: Sequence[Reason]) -> list[str]:
    """Findings of one code each: every one a line, then what to do."""
    parts = []
    for reason in reasons:
        lines = [f"- **{reason.severity}** (`{reason.code}`): {clean_text(text)}" for text in reason.texts]
        parts.append("\n".join([*lines, f"  - What to do: {clean_text(reason.remedy)}"]))
    return parts


def render_table(table: Table) -> str:
    """One Markdown table; a group's title is a line of its own in bold."""
    lines = [_line(["", *table.columns]), _line(["---"] * (len(table.columns) + 1))]
    for title, rows in table.groups:
        lines.append(_line([f"**{title}**", *[""] * len(table.columns)]))
        for row in rows:
            cells = [" ".join(filter(None, (cell.value, cell.interval, _mark(cell)))) for cell in row.cells]
            lines.append(_line([row.label, *cells]))
    notes = [f"- ({mark}) {clean_text(reason)}" for reason, mark in table.footnotes.items()]
    return "\n".join([*lines, *([""] if notes else []), *notes])


def _render_trainings(models: Sequence[ModelResult]) -> str:
    columns = ("model", "backbone", "weights at start", "precision", "epochs", "best", "time")
    rows = []
    for model in models:
        epochs = f"{len(model.history)}{', stopped early' if model.stopped_early else ''}"
        cells = (model.name, model.backbone, model.weights, model.precision, epochs, str(model.best_epoch))
        rows.append((*cells, format_duration(model.train_s)))
    return render_rows(columns, rows)


def render_rows(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A plain Markdown table: a head and rows of text."""
    return "\n".join([_line(columns), _line(["---"] * len(columns)), *map(_line, rows)])


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(clean_text(cell) or " " for cell in cells) + " |"


def _mark(cell: Cell) -> str:
    return f"({cell.mark})" if cell.mark else ""


def clean_text(text: str) -> str:
    """One line that ends no cell and starts no HTML."""
    return " ".join(drop_controls(text).split()).replace("|", "\\|").replace("<", "&lt;")
