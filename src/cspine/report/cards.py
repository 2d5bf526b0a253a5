"""Model cards after Mitchell et al. 2019 ("Model Cards for Model Reporting", FAT* 2019), filled from what a run knows.

card = make_card(results, model)
render_card_markdown(card), render_card_page(card)
"""

from __future__ import annotations

from dataclasses import dataclass

from markupsafe import Markup

from cspine.core.estimates import choose_strongest
from cspine.report import run_summary
from cspine.report.figures import list_entries
from cspine.report.markdown import clean_text, render_reasons, render_table
from cspine.report.page import Table, format_date, make_environment
from cspine.report.results import ComparisonResults, ModelResult
from cspine.report.run_summary import Answer, leave
from cspine.report.tables import tabulate_comparison, tabulate_subgroups
from cspine.report.text import SEVERITY_WORDS, Reason, group_findings

RESEARCH = "Research software. Nothing here shows clinical performance."


@dataclass(frozen=True, slots=True)
class Fact:
    """One line of a card: what is asked, and the answer, which may be left to the author."""

    term: str
    answer: Answer


@dataclass(frozen=True, slots=True)
class Section:
    """One of the nine sections of a model card, with the tables and reasons that stand in it."""

    title: str
    facts: tuple[Fact, ...]
    tables: tuple[tuple[str, Table], ...] = ()
    reasons: tuple[Reason, ...] = ()


@dataclass(frozen=True, slots=True)
class Card:
    """A model card; `verdict` is that of the comparison, in its words."""

    model: str
    results: ComparisonResults
    verdict: str | None
    sections: tuple[Section, ...]


def make_card(results: ComparisonResults, model: ModelResult) -> Card:
    """The card of one model of a comparison."""
    return Card(
        model=model.name,
        results=results,
        verdict=run_summary.describe_verdict(results),
        sections=(
            Section("Model details", tuple(_list_details(results, model))),
            Section("Intended use", tuple(_list_uses())),
            Section("Factors", tuple(_list_factors(results))),
            Section("Metrics", tuple(_list_metrics(results, model))),
            Section("Evaluation data", tuple(_list_evaluation_data(results, model))),
            Section("Training data", tuple(_list_training_data(results, model))),
            Section(
                "Quantitative analyses", tuple(_list_analyses(results, model)), _list_tables(results, model)
            ),
            Section("Ethical considerations", tuple(_list_ethics(results))),
            Section(
                "Caveats and recommendations",
                (
                    Fact(
                        "Verdict",
                        _say(
                            (run_summary.describe_verdict(results) or "").removeprefix("Verdict: "),
                            "results.json: verdict, findings",
                        ),
                    ),
                    Fact(
                        "Further caveats",
                        leave("what no audit of files can see, such as whom the data stand for"),
                    ),
                ),
                reasons=group_findings(run_summary.list_caveats(results, model.name)),
            ),
        ),
    )


def _say(text: str | None, source: str, author: str | None = None, otherwise: str = "") -> Answer:
    return Answer(text, source, author) if text else leave(otherwise or author or "not kept by this run")


def _list_details(results: ComparisonResults, model: ModelResult) -> list[Fact]:
    facts, version = model.checkpoint, results.run.versions.get("cspine")
    made = f"cspine {version}, " if version else ""
    return [
        Fact("Developed by", leave("person or organisation, and whom to write to")),
        Fact("Date", Answer(f"{made}run of {format_date(results.run.started)}.", "results.json: run")),
        Fact(
            "Version",
            Answer(f"Checkpoint {model.checkpoint_hash}.", "hash of models/NAME/checkpoint.safetensors"),
        ),
        Fact("Type", Answer(run_summary.describe_network(model), "results.json: models")),
        Fact("Output", Answer(run_summary.describe_output(model), "results.json: models; checkpoint header")),
        Fact("Recipe", Answer(f"{model.recipe}.", "checkpoint header: recipe")),
        Fact(
            "Weights at start",
            Answer(f"{run_summary.describe_weights(model)}.", "checkpoint header: weights"),
        ),
        Fact(
            "Training",
            Answer(
                run_summary.describe_training(model),
                "checkpoint header: training; results.json: models.history",
                None if facts else "settings that this run did not keep: see the experiment file",
            ),
        ),
        Fact(
            "Choice of weights",
            Answer(run_summary.describe_selection(model, results), "results.json: models.best_epoch"),
        ),
        Fact("Paper or other resource", leave("a reference to cite")),
        Fact(
            "Licence", leave("of these weights, which may follow from the data and from the weights at start")
        ),
    ]


def _list_uses() -> list[Fact]:
    return [
        Fact(
            "Primary use",
            Answer(
                f"Comparing classifiers of cervical spine fractures on CT slices. {RESEARCH}",
                "cspine",
                "any use beyond that, and what supports it",
            ),
        ),
        Fact("Primary users", leave("who is meant to use it")),
        Fact(
            "Out of scope",
            Answer(
                "Any decision about a patient; slices without the recipe above; other parts of the body.",
                "cspine",
                "further uses to warn of",
            ),
        ),
    ]


def _list_factors(results: ComparisonResults) -> list[Fact]:
    return [
        Fact("Relevant factors", leave("groups of patients, scanners and protocols that may matter")),
        Fact(
            "Evaluated: properties of slices",
            _say(
                run_summary.describe_subgroups(results),
                "report, What is missed",
                "groups of patients, such as by age and sex: the run knows none",
                "the labels name no property of slices or patients, so none was evaluated",
            ),
        ),
        Fact(
            "Evaluated: image quality",
            _say(
                run_summary.describe_robustness(results),
                "robustness.html",
                otherwise="no robustness was measured in this run",
            ),
        ),
    ]


def _list_metrics(results: ComparisonResults, model: ModelResult) -> list[Fact]:
    return [
        Fact("Measures", Answer("Those of the table below, each with its interval.", "report, definitions")),
        Fact(
            "Decision thresholds",
            Answer(run_summary.describe_thresholds(results), "results.json: models, in_use"),
        ),
        Fact("Variation", Answer(run_summary.describe_intervals(results), "results.json: models.evaluation")),
    ]


def _list_evaluation_data(results: ComparisonResults, model: ModelResult) -> list[Fact]:
    split = run_summary.find_split(results, results.reported_split)
    shown = run_summary.describe_split(split) if split else results.reported_split
    evaluation = model.evaluation
    return [
        Fact(
            "Data",
            Answer(
                f"{run_summary.join_sentences([shown])} {evaluation.slices} slices were scored, {evaluation.positives} "
                f"of them {evaluation.positive_class}.",
                "results.json: data.splits, models.evaluation",
                "where they come from, and whom they stand for",
            ),
        ),
        Fact("Kept apart from training", run_summary.describe_disjointness(results)),
        Fact("Preprocessing", Answer("The recipe above, as in training.", "checkpoint header: recipe")),
        Fact("Why these data", leave("why this set was chosen")),
    ]


def _list_training_data(results: ComparisonResults, model: ModelResult) -> list[Fact]:
    others = [split for split in results.data.splits if split.split != results.reported_split]
    text = run_summary.join_sentences(run_summary.describe_split(split) for split in others)
    weights = run_summary.describe_class_weights(model)
    return [
        Fact(
            "Data",
            Answer(
                f"{run_summary.describe_division(results)} {text}".strip(),
                "results.json: data.splits",
                "where they come from, and whom they stand for",
            ),
        ),
        Fact(
            "Augmentation",
            _say(
                run_summary.describe_augmentation(results),
                "results.json: run.settings",
                otherwise="not kept by this run: see the experiment file",
            ),
        ),
        Fact(
            "Class imbalance",
            _say(
                f"{weights[0].upper()}{weights[1:]}." if weights else None,
                "checkpoint header: training",
                otherwise="not kept by this run: see the experiment file",
            ),
        ),
    ]


def _list_analyses(results: ComparisonResults, model: ModelResult) -> list[Fact]:
    words = [
        f"{pair.first} and {pair.second}: {found.words} ({found.metric.replace('auroc', 'AUROC')})"
        for pair in (results.pairs.pairs if results.pairs else ())
        if model.name in (pair.first, pair.second)
        for found in pair.metrics
    ]
    counts = model.evaluation.confusion
    return [
        Fact(
            "Errors",
            Answer(
                f"{counts.fn} fractures missed and {counts.fp} false alarms.",
                "results.json: models.evaluation",
            ),
        ),
        Fact(
            "Beside the other models and the strongest baseline",
            _say(
                f"{'; '.join(words)}." if words else None,
                "results.json: pairs",
                otherwise="nothing stood beside it in this run",
            ),
        ),
        Fact(
            "With whole groups held out",
            _say(
                run_summary.describe_folds(results),
                "report, Folds",
                otherwise="no folds were made in this run: performance on unseen groups is unknown",
            ),
        ),
        Fact(
            "Calibration",
            _say(
                run_summary.describe_updating(results, model.name),
                "report, Probabilities in use",
                otherwise="not looked at in this run",
            ),
        ),
    ]


def _list_tables(results: ComparisonResults, model: ModelResult) -> tuple[tuple[str, Table], ...]:
    bar = choose_strongest(results.baselines)
    shown = {model.name, *([bar.name] if bar else [])}
    entries = [entry for entry in list_entries(results) if entry.name in shown]
    beside = " and the strongest baseline that sees no anatomy" if bar else ""
    evaluation = model.evaluation
    tables = [
        (
            f"{model.name}{beside} on {results.reported_split}: {evaluation.slices} slices, {evaluation.units} "
            "independent units; intervals beneath or beside.",
            tabulate_comparison(entries),
        )
    ]
    parts = [part for part in results.subgroups if part.model == model.name]
    if parts:
        tables.append(("Recall and specificity by properties of the slices.", tabulate_subgroups(parts)))
    return tuple(tables)


def _list_ethics(results: ComparisonResults) -> list[Fact]:
    audit = results.audit
    found = [one.text for one in audit.findings if one.code == "burnt-in-text"] if audit else []
    looked = "The audit found no burnt-in text in the margins of the slices." if audit else None
    return [
        Fact(
            "Sensitive data",
            _say(
                " ".join(found) or looked,
                "audit.html",
                "consent, ethics approval and de-identification of the data",
            ),
        ),
        Fact("Risks and harms", leave("what a missed fracture or a false alarm would do, and to whom")),
        Fact("Fairness", leave("performance by age, sex and origin: the run knows none of these")),
    ]


def render_card_markdown(card: Card) -> str:
    """A card as GitHub's Markdown."""
    parts = [f"# Model card: {clean_text(card.model)}", f"**{RESEARCH}**"]
    parts.append(
        f'Of the comparison "{clean_text(card.results.title)}". What says *for the author* no run can know.'
    )
    if card.verdict:
        parts.append(f"**{clean_text(card.verdict)}**")
    for section in card.sections:
        parts.append(f"## {section.title}")
        parts.append("\n".join(f"- **{fact.term}**: {render_answer(fact.answer)}" for fact in section.facts))
        for caption, table in section.tables:
            parts += [clean_text(caption), render_table(table)]
        parts += render_reasons(section.reasons)
    return "\n\n".join(parts) + "\n"


def render_answer(answer: Answer) -> str:
    """An answer as Markdown, in one line."""
    said = f"{clean_text(answer.text)} ({clean_text(answer.source or '')})" if answer.text else ""
    if answer.author is None:
        return said
    wanted = f"*for the author{': ' if answer.author else ''}{clean_text(answer.author)}*"
    return f"{said} {wanted}".strip()


def render_card_page(card: Card, report: str | None = None) -> str:
    """A card as one HTML text; `report` is the way to the report from there, its one reference to the outside."""
    environment = make_environment()
    return environment.get_template("card.html.j2").render(
        card=card,
        results=card.results,
        research=RESEARCH,
        report=report,
        severity_words=SEVERITY_WORDS,
        css=Markup(environment.get_template("report.css").render()),
    )
