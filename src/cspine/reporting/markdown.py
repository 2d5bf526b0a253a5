"""The report's tables as Markdown, to paste into a paper's supplement, a README or a review."""

from __future__ import annotations

from collections.abc import Sequence

from cspine.audit.findings import VERDICT_WORDS, list_reasons
from cspine.reporting.figures import list_entries
from cspine.reporting.fold_tables import (
    FURTHER,
    MAIN,
    describe_copies,
    tabulate_beside,
    tabulate_folds,
    tabulate_seeds,
)
from cspine.reporting.folded import FoldedResult
from cspine.reporting.in_use import list_use_tables
from cspine.reporting.reasons import group_findings
from cspine.reporting.results import ComparisonResults, EvaluationResult, ModelResult
from cspine.reporting.robustness_page import view_robustness
from cspine.reporting.tables import (
    Cell,
    Table,
    find_usual_interval,
    format_duration,
    tabulate_comparison,
    tabulate_pairs,
    tabulate_subgroups,
)
from cspine.reporting.text import count_noun, drop_controls, format_count


def render_markdown(results: ComparisonResults) -> str:
    """The comparison, the trainings, what is missed and the robustness of a comparison, as GitHub's Markdown."""
    entries = list_entries(results)
    parts = [f"# {_clean(results.title)}", f"`{_clean(results.run.command)}`"]
    if results.verdict:
        audited = "" if results.audit else " The data were not audited."
        parts.append(f"**Verdict: {results.verdict}.** {VERDICT_WORDS[results.verdict]}{audited}")
    for reason in group_findings(list_reasons(results.findings or ())):
        lines = [f"- **{reason.severity}** (`{reason.code}`): {_clean(text)}" for text in reason.texts]
        parts.append("\n".join([*lines, f"  - What to do: {_clean(reason.remedy)}"]))
    parts += [f"- **{note.severity}**: {_clean(note.text)}" for note in results.notes]
    if entries:
        parts += ["## Comparison", _caption(entries[0].evaluation), _render(tabulate_comparison(entries))]
        usual = find_usual_interval(entries)
        if usual is not None:
            method, level, unit, n = usual
            parts.append(f"Intervals: {level:.0%}, {method}, over {count_noun(n, unit)}.")
    if results.pairs:
        parts += ["## Differences between models", _render(tabulate_pairs(results.pairs))]
        parts.append(
            f"Permutation test by {results.pairs.unit}; Holm's correction over {results.pairs.family}."
        )
    if results.folded:
        parts += _render_folds(results, results.folded)
    parts += ["## Trainings", _render_trainings(results.models)]
    if results.subgroups:
        parts += ["## What is missed", _render(tabulate_subgroups(results.subgroups))]
    if results.robustness:
        view = view_robustness(results)
        for name, table in view.tables:
            parts += [f"## {name} by severity of a corruption", _render(table)]
        if view.means and view.errors:
            parts += ["## Mean corruption error", _render(view.means), _render(view.errors)]
        parts += [f"- not applicable: {_clean(label)}: {_clean(why)}" for label, why in view.missing]
    for heading, words, table in list_use_tables(results):
        parts += [f"## {heading}", _clean(words), _render(table)]
    return "\n\n".join(parts) + "\n"


def _render_folds(results: ComparisonResults, folded: FoldedResult) -> list[str]:
    beside, seeds = tabulate_beside(results, (*MAIN, *FURTHER)), tabulate_seeds(folded)
    parts = [f"## {folded.words.capitalize()}", *([_render(beside)] if beside else [])]
    parts += ["### Fold by fold", describe_copies(folded), _render(tabulate_folds(results, folded))]
    return parts + (["### Seeds", _render(seeds)] if seeds else [])


def _caption(evaluation: EvaluationResult) -> str:
    return (
        f"Split `{_clean(evaluation.split)}`: {format_count(evaluation.slices)} slices, "
        f"{format_count(evaluation.positives)} of them {evaluation.positive_class}, which is the positive class."
    )


def _render(table: Table) -> str:
    """One Markdown table; a group's title is a line of its own in bold."""
    lines = [_line(["", *table.columns]), _line(["---"] * (len(table.columns) + 1))]
    for title, rows in table.groups:
        lines.append(_line([f"**{title}**", *[""] * len(table.columns)]))
        for row in rows:
            cells = [" ".join(filter(None, (cell.value, cell.interval, _mark(cell)))) for cell in row.cells]
            lines.append(_line([row.label, *cells]))
    notes = [f"- ({mark}) {_clean(reason)}" for reason, mark in table.footnotes.items()]
    return "\n".join([*lines, *([""] if notes else []), *notes])


def _render_trainings(models: Sequence[ModelResult]) -> str:
    columns = ("model", "backbone", "weights at start", "precision", "epochs", "best", "time")
    lines = [_line(columns), _line(["---"] * len(columns))]
    for model in models:
        epochs = f"{len(model.history)}{', stopped early' if model.stopped_early else ''}"
        cells = (model.name, model.backbone, model.weights, model.precision, epochs, str(model.best_epoch))
        lines.append(_line([*cells, format_duration(model.train_s)]))
    return "\n".join(lines)


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(_clean(cell) or " " for cell in cells) + " |"


def _mark(cell: Cell) -> str:
    return f"({cell.mark})" if cell.mark else ""


def _clean(text: str) -> str:
    """One line that ends no cell and starts no HTML."""
    return " ".join(drop_controls(text).split()).replace("|", "\\|").replace("<", "&lt;")
