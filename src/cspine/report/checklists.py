"""What a run says to the items of CLAIM 2024 and TRIPOD+AI 2024, by number; nothing that a run cannot know."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from markupsafe import Markup

from cspine.core.files import write_text
from cspine.report import run_summary
from cspine.report.cards import make_card, render_answer, render_card_markdown, render_card_page
from cspine.report.figures import list_entries
from cspine.report.markdown import clean_text
from cspine.report.page import make_environment
from cspine.report.results import ComparisonResults, ModelResult
from cspine.report.run_summary import Answer, join_words, leave
from cspine.report.tables import list_definitions


def _say(text: str | None, source: str, author: str | None = None, otherwise: str = "") -> Answer:
    """An answer with its source; where the run has none, what is left to the author."""
    return Answer(text, source, author) if text else leave(otherwise or author or "")


def _of_models(results: ComparisonResults, describe: Callable[[ModelResult], str | None]) -> str | None:
    """One sentence for all models that share it, else one a model; None where a model has none."""
    said: dict[str, list[str]] = {}
    for model in results.models:
        text = describe(model)
        if text is None:
            return None
        said.setdefault(text, []).append(model.name)
    if len(said) == 1:
        return _capitalise(next(iter(said)))
    return " ".join(f"{join_words(names)}: {text}" for text, names in said.items()) or None


def _capitalise(text: str) -> str:
    return text[:1].upper() + text[1:]


def _kind(results: ComparisonResults) -> Answer:
    backbones = join_words(dict.fromkeys(model.backbone for model in results.models))
    return _say(
        f"Deep learning: networks that classify single slices ({backbones})." if backbones else None,
        "results.json: models",
        "say so in the title and the abstract",
    )


def _source(results: ComparisonResults) -> Answer:
    return Answer(
        run_summary.describe_source(results),
        "results.json: data",
        "who collected the data, where, when and for what, and under which licence",
    )


def _preprocessing(results: ComparisonResults) -> Answer:
    return _say(
        _of_models(results, lambda model: f"recipe {model.recipe}."),
        "results.json: models.recipe (the same in training and testing)",
        "what was done to the images before they came to cspine, such as window and export",
    )


def _subsets(results: ComparisonResults) -> Answer:
    details = results.robustness_details
    fewer = details is not None and any(details.slices < model.evaluation.slices for model in results.models)
    part = f" Robustness is of {details.slices} of the reported slices." if details and fewer else ""
    return Answer(
        f"All labelled slices of the splits that are used.{part}",
        "results.json: data",
        "how slices were chosen from their studies",
    )


def _text_in_slices(results: ComparisonResults) -> Answer:
    if results.audit is None:
        return leave("how the data were de-identified")
    found = [one.text for one in results.audit.findings if one.code == "burnt-in-text"]
    return Answer(
        " ".join(found) or "The audit found no burnt-in text in the margins of the slices.",
        "audit.html",
        "how the data were de-identified; text within the body is not looked for",
    )


def _missing(results: ComparisonResults) -> Answer:
    return _say(
        run_summary.describe_unreadable(results),
        "audit.html; results.json: findings",
        "missing labels, studies and patients, before the data came to cspine",
    )


def _partitions(results: ComparisonResults) -> Answer:
    own = results.folded is None or results.folded.group is None or results.folded.beside is not None
    return Answer(
        f"{run_summary.describe_division(results)} {run_summary.describe_splits(results)}",
        "results.json: data.splits, run.settings",
        "how the set came by its own splits" if own else None,
    )


def _network(results: ComparisonResults) -> Answer:
    described = (run_summary.describe_network, run_summary.describe_output)
    text = " ".join(filter(None, (_of_models(results, describe) for describe in described)))
    return _say(text, "results.json: models")


def _software(results: ComparisonResults) -> Answer:
    versions = ", ".join(f"{name} {version}" for name, version in results.run.versions.items())
    return _say(f"{versions}." if versions else None, "results.json: run.versions")


def _initial(results: ComparisonResults) -> Answer:
    return _say(
        _of_models(
            results,
            lambda model: f"backbone: {run_summary.describe_weights(model)}; head: random, from the seed.",
        ),
        "results.json: models.weights",
    )


def _training(results: ComparisonResults) -> Answer:
    text = _of_models(results, run_summary.describe_training)
    augmentation = run_summary.describe_augmentation(results)
    complete = augmentation is not None and all(model.checkpoint for model in results.models)
    return _say(
        " ".join(filter(None, (text, augmentation))),
        "checkpoint header; results.json: run.settings; report, the experiment file",
        None if complete else "settings that this run did not keep: see the experiment file",
    )


def _choice(results: ComparisonResults) -> Answer:
    return _say(
        _of_models(results, lambda model: run_summary.describe_selection(model, results)),
        "results.json: models.best_epoch",
        "whether this run was itself chosen among several, and on what",
    )


def _ensembles(results: ComparisonResults) -> Answer:
    return Answer("None: every model is scored alone.", "cspine compare makes no ensembles")


def _metrics(results: ComparisonResults) -> Answer:
    names = [label for label, _, _ in list_definitions(list_entries(results))]
    return _say(f"{join_words(names)}." if names else None, "report, definitions under the comparison")


def _uncertainty(results: ComparisonResults) -> Answer:
    return Answer(run_summary.describe_intervals(results), "report, Comparison; results.json: pairs")


def _robustness(results: ComparisonResults) -> Answer:
    return _say(
        run_summary.describe_robustness(results),
        "robustness.html; results.json: robustness",
        otherwise="no robustness was measured in this run",
    )


def _internal(results: ComparisonResults) -> Answer:
    if results.reported_split == "external":
        return leave("the reported split is called external: say what was evaluated internally")
    return Answer(
        f"Reported on {results.reported_split}. {run_summary.describe_performance(results, ('accuracy', 'auroc'))}",
        "report, Comparison",
        "whether these slices come from the same institutions as those that were learned from",
    )


def _external(results: ComparisonResults) -> Answer:
    if results.reported_split != "external":
        return leave(
            "no split called external was reported: test on data of another institution, or say why not"
        )
    return Answer(
        run_summary.describe_performance(results, ("accuracy", "auroc")),
        "report, Comparison",
        "where the external data come from",
    )


def _flow(results: ComparisonResults) -> Answer:
    return Answer(
        " ".join(
            filter(None, (run_summary.describe_splits(results), run_summary.describe_unreadable(results)))
        ),
        "results.json: data.splits; audit.html",
        "how many patients and studies were screened and excluded, and why",
    )


def _characteristics(results: ComparisonResults) -> Answer:
    return Answer(
        run_summary.describe_splits(results),
        "results.json: data.splits",
        "age, sex, cause of injury, scanners and kinds of fracture, by partition",
    )


def _performance(results: ComparisonResults) -> Answer:
    return _say(
        run_summary.describe_performance(results, ("accuracy", "auroc", "auprc")) if results.models else None,
        "report, Comparison and each model (loss and accuracy on train and selection split)",
    )


def _diagnostic(results: ComparisonResults) -> Answer:
    return _say(
        run_summary.describe_performance(results, ("recall", "specificity", "precision", "npv"))
        if results.models
        else None,
        "report, Comparison",
    )


def _failures(results: ComparisonResults) -> Answer:
    return _say(
        run_summary.describe_errors(results) if results.models else None,
        "report, Slices and What is missed; figures/missed.png",
        "what these errors have in common, read by somebody who knows the images",
    )


def _limits(results: ComparisonResults) -> Answer:
    return _say(
        run_summary.describe_limits(results),
        "results.json: verdict, findings",
        "limits that no audit of files can see, such as whom the data stand for",
        "the limits of the study",
    )


def _further(results: ComparisonResults) -> Answer:
    hashes = ", ".join(f"{name} {value}" for name, value in results.run.hashes.items())
    return Answer(
        f"The experiment file, the command and the hashes of this run ({hashes}).",
        "report, Run",
        "a reference to the study protocol",
    )


def _software_shared(results: ComparisonResults) -> Answer:
    version = results.run.versions.get("cspine")
    return _say(
        f"cspine {version}, Apache-2.0." if version else None,
        "results.json: run.versions",
        "whether and where your own code, the trained models and the data can be had",
    )


def _aim(results: ComparisonResults) -> Answer:
    return Answer(
        f"{len(results.models)} models, developed and evaluated; the outcome is a fracture, labelled slice by slice.",
        "results.json: models",
        "say in the title for which patients",
    )


def _preparation(results: ComparisonResults) -> Answer:
    checks = "The audit looked for copies, leaks, anomalies and shortcuts." if results.audit else None
    recipes = _of_models(results, lambda model: f"recipe {model.recipe}.")
    return _say(
        " ".join(filter(None, (recipes, checks))),
        "results.json: models.recipe; audit.html",
        "preparation before cspine, and whether it was alike in all groups of patients",
    )


def _outcome(results: ComparisonResults) -> Answer:
    return Answer(
        "A label for each slice, fracture or normal, as it came with the data; no time horizon.",
        "manifest.parquet: label",
        "how, when and by what standard the labels were made",
    )


def _predictor_choice(results: ComparisonResults) -> Answer:
    return Answer(
        "No predictor was chosen: networks see the pixels of a slice.", "results.json: models.recipe"
    )


def _predictors(results: ComparisonResults) -> Answer:
    return Answer(
        "The pixels of a slice, and of its neighbours where the recipe takes them; nothing else about the patient.",
        "results.json: models.recipe",
        "how the images were acquired",
    )


def _predictor_readers(results: ComparisonResults) -> Answer:
    return Answer("No predictor needs a reader's judgement: they are pixels.", "results.json: models.recipe")


def _building(results: ComparisonResults) -> Answer:
    parts = (
        _of_models(results, run_summary.describe_network),
        _of_models(results, run_summary.describe_training),
        run_summary.describe_augmentation(results),
        _of_models(results, lambda model: run_summary.describe_selection(model, results)),
    )
    return _say(
        " ".join(filter(None, parts)),
        "results.json: models; checkpoint header",
        "why these models, and whether settings were tuned in earlier runs",
    )


def _clusters(results: ComparisonResults) -> Answer:
    return _say(
        run_summary.describe_folds(results),
        "report, Folds; results.json: folded",
        "differences between hospitals and scanners",
        "no performance by hospital, scanner or other cluster was measured in this run",
    )


def _plots(results: ComparisonResults) -> Answer:
    plots = ["ROC and precision-recall curves", "confusion matrices"]
    plots += ["reliability diagrams and decision curves"] if results.in_use else []
    plots += ["curves of robustness"] if results.robustness else []
    return Answer(
        f"{_metrics(results).text or ''} Plots: {join_words(plots)}. {run_summary.describe_intervals(results)}".strip(),
        "report",
    )


def _updating(results: ComparisonResults) -> Answer:
    return _say(
        run_summary.describe_updating(results),
        "report, Probabilities in use",
        otherwise="no recalibration was looked at in this run",
    )


def _calculation(results: ComparisonResults) -> Answer:
    return _say(
        _of_models(results, run_summary.describe_output),
        "models/NAME/checkpoint.safetensors and `cspine predict`",
    )


def _imbalance(results: ComparisonResults) -> Answer:
    return _say(
        _of_models(results, run_summary.describe_class_weights),
        "checkpoint header: training.class_weights",
        otherwise="this run did not keep its settings: see the experiment file",
    )


def _output(results: ComparisonResults) -> Answer:
    text = " ".join(
        filter(
            None, (_of_models(results, run_summary.describe_output), run_summary.describe_thresholds(results))
        )
    )
    return _say(text if results.models else None, "results.json: models.evaluation.threshold, in_use")


def _side_by_side(results: ComparisonResults) -> Answer:
    return Answer(
        run_summary.describe_splits(results),
        "results.json: data.splits",
        "differences in setting, eligibility, outcome and acquisition",
    )


def _events(results: ComparisonResults) -> Answer:
    unknown = any(split.patients is None for split in results.data.splits)
    return Answer(
        run_summary.describe_splits(results),
        "results.json: data.splits",
        "the numbers of patients, which are unknown here" if unknown else None,
    )


def _specification(results: ComparisonResults) -> Answer:
    hashes = join_words(f"{model.name} ({model.checkpoint_hash})" for model in results.models)
    return _say(
        f"Weights, recipe, threshold and calibration in one file a model: {hashes}." if hashes else None,
        "models/NAME/checkpoint.safetensors, models/NAME/card.html",
        "where the files can be had, and who may use them",
    )


def _subgroups(results: ComparisonResults) -> Answer:
    text = f"{_performance(results).text or ''} {run_summary.describe_subgroups(results) or ''}".strip()
    return _say(
        text or None,
        "report, Comparison and What is missed",
        "groups of patients, such as by age, sex and origin: the run knows none",
    )


def _code(results: ComparisonResults) -> Answer:
    return _say(
        _software_shared(results).text, "results.json: run.versions", "where your own code can be had"
    )


Answerer = Callable[[ComparisonResults], Answer]

# Items that are not here are the author's.
CLAIM: Mapping[str, Answerer] = {
    "1": _kind,
    "7": _source,
    "9": _preprocessing,
    "10": _subsets,
    "11": _text_in_slices,
    "12": _missing,
    "19": _partitions,
    "20": run_summary.describe_disjointness,
    "22": _network,
    "23": _software,
    "24": _initial,
    "25": _training,
    "26": _choice,
    "27": _ensembles,
    "28": _metrics,
    "29": _uncertainty,
    "30": _robustness,
    "32": _internal,
    "33": _external,
    "35": _flow,
    "36": _characteristics,
    "37": _performance,
    "38": _diagnostic,
    "39": _failures,
    "40": _limits,
    "42": _further,
    "43": _software_shared,
}
TRIPOD_AI: Mapping[str, Answerer] = {
    "1": _aim,
    "5a": _source,
    "7": _preparation,
    "8a": _outcome,
    "9a": _predictor_choice,
    "9b": _predictors,
    "9c": _predictor_readers,
    "11": _missing,
    "12a": _partitions,
    "12b": lambda results: _say(
        _of_models(results, lambda model: f"recipe {model.recipe}."), "results.json: models.recipe"
    ),
    "12c": _building,
    "12d": _clusters,
    "12e": _plots,
    "12f": _updating,
    "12g": _calculation,
    "13": _imbalance,
    "15": _output,
    "16": _side_by_side,
    "18f": _code,
    "20a": _flow,
    "20b": _characteristics,
    "20c": _side_by_side,
    "21": _events,
    "22": _specification,
    "23a": _subgroups,
    "23b": _clusters,
    "24": _updating,
    "26": _limits,
}


# Two checklists for papers, CLAIM 2024 and TRIPOD+AI 2024, filled as far as a run can fill them.
#
# checklists = answer_checklists(results)
#
# The items are package data (`checklists/*.toml`), paraphrased. An item without an answer is the author's.


ANSWERS = {"claim-2024": CLAIM, "tripod-ai-2024": TRIPOD_AI}
WORDS = (
    "What this run can answer, with where the answer comes from. What no run can know is left to the author. Items are "
    "in words of ours: check them against the published checklists before you submit."
)
STATUSES = ("from the run", "in part", "for the author")


@dataclass(frozen=True, slots=True)
class Item:
    """One item: its number in the checklist, what it asks in words of ours, and the answer."""

    number: str
    topic: str
    answer: Answer


@dataclass(frozen=True, slots=True)
class Checklist:
    """A checklist, filled: `sections` are (title, items)."""

    name: str
    title: str
    source: str
    sections: tuple[tuple[str, tuple[Item, ...]], ...]

    def count(self, status: str) -> int:
        """How many items have a status, one of `STATUSES`."""
        return sum(item.answer.status == status for _, items in self.sections for item in items)


def answer_checklists(results: ComparisonResults) -> tuple[Checklist, ...]:
    """Both checklists, each item with what the run says to it."""
    return tuple(_fill(name, results) for name in ANSWERS)


def _fill(name: str, results: ComparisonResults) -> Checklist:
    text = (files("cspine.report") / "checklists" / f"{name}.toml").read_text(encoding="utf-8")
    content = tomllib.loads(text)
    answers = ANSWERS[name]
    return Checklist(
        name=content["name"],
        title=content["title"],
        source=content["source"],
        sections=tuple(
            (
                section["title"],
                tuple(
                    Item(number, topic, answers[number](results) if number in answers else leave(""))
                    for number, topic in section["items"]
                ),
            )
            for section in content["sections"]
        ),
    )


def render_checklists_markdown(results: ComparisonResults) -> str:
    """Both checklists as GitHub's Markdown."""
    parts = [f"# Reporting checklists: {clean_text(results.title)}", WORDS]
    if verdict := run_summary.describe_verdict(results):
        parts.append(f"**{verdict}**")
    for checklist in answer_checklists(results):
        counts = ", ".join(f"{status}: {checklist.count(status)}" for status in STATUSES)
        parts += [f"## {checklist.title}", f"{checklist.source}. Items {counts}."]
        for title, items in checklist.sections:
            rows = (f"- **{item.number}** {item.topic}: {render_answer(item.answer)}" for item in items)
            parts += [f"### {title}", "\n".join(rows)]
    return "\n\n".join(parts) + "\n"


def render_checklists_page(results: ComparisonResults, report: str | None = None) -> str:
    """Both checklists as one HTML text; `report` is the way to the report, its one reference to the outside."""
    environment = make_environment()
    return environment.get_template("checklists.html.j2").render(
        results=results,
        checklists=answer_checklists(results),
        statuses=STATUSES,
        verdict=run_summary.describe_verdict(results),
        words=WORDS,
        report=report,
        css=Markup(environment.get_template("report.css").render()),
    )


# The documents beside a report: a card for every model, and the reporting checklists.
#
# write_documents(results, folder)   # folder/models/NAME/card.md and card.html, folder/checklists.md and
# checklists.html


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
