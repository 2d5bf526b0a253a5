"""What a run knows of itself, in words: the answers that model cards and reporting checklists are filled from.

Each function answers from the results alone and says where the answer comes from; what a run cannot know is left to the
author, in words that say what is wanted.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from cspine.auditing.findings import VERDICT_WORDS, Finding, list_reasons
from cspine.metrics.calibration import name_rule
from cspine.metrics.scores import METRICS
from cspine.report.calibration import list_uses, name_kind
from cspine.report.figures import list_entries
from cspine.report.results import CheckpointFacts, ComparisonResults, ModelResult, SplitSummary
from cspine.report.tables import find_usual_interval
from cspine.report.text import count_noun, format_count, format_estimate, format_value, label_corruption


@dataclass(frozen=True, slots=True)
class Answer:
    """What a run says to one question.

    Attributes:
        text: The answer; None where the run knows none.
        source: Where it comes from; None where there is no answer.
        author: What is left to the author; None where nothing is.
    """

    text: str | None = None
    source: str | None = None
    author: str | None = None

    @property
    def status(self) -> str:
        """One of "from the run", "in part" and "for the author"."""
        if self.text is None:
            return "for the author"
        return "from the run" if self.author is None else "in part"


def leave(author: str) -> Answer:
    """An answer that only the author has."""
    return Answer(author=author)


def join_words(parts: Iterable[str]) -> str:
    """Say "a", "a and b" or "a, b and c"."""
    listed = list(parts)
    return " and ".join(filter(None, (", ".join(listed[:-1]), *listed[-1:])))


def join_sentences(parts: Iterable[str]) -> str:
    """Clauses as sentences."""
    return " ".join(f"{part[0].upper()}{part[1:]}." for part in parts)


def setting(results: ComparisonResults, *keys: str) -> object:
    """A setting of the experiment by its path; None where it is not kept."""
    found: object = results.run.settings
    for key in keys:
        found = found.get(key) if isinstance(found, dict) else None
    return found


# --- data


def describe_split(split: SplitSummary) -> str:
    """Counts of one split, and of what they come from."""
    groups = [
        count_noun(number, noun)
        for number, noun in (
            (split.patients, "patient"),
            (split.series, "series"),
            (split.source_slices, "source slice"),
        )
        if number is not None
    ]
    groups_text = f", of {join_words(groups)}" if groups else ""
    unknown = "" if split.patients is not None else "; patients unknown"
    return (
        f"split {split.split}: {format_count(split.fracture)} fracture and {format_count(split.normal)} normal slices"
        f"{groups_text}{unknown}"
    )


def describe_splits(results: ComparisonResults) -> str:
    """Counts of all splits."""
    return join_sentences(describe_split(split) for split in results.data.splits)


def find_split(results: ComparisonResults, name: str) -> SplitSummary | None:
    """The summary of a split; None for what is pooled over folds."""
    return next((split for split in results.data.splits if split.split == name), None)


def describe_source(results: ComparisonResults) -> str:
    """How many slices there are, of what sizes and pixel formats."""
    sizes = ", ".join(f"{name} px: {format_count(count)}" for name, count in results.data.sizes.items())
    modes = ", ".join(f"{name}: {format_count(count)}" for name, count in results.data.modes.items())
    kinds = "; ".join(filter(None, (sizes, modes)))
    return f"{format_count(results.data.slices)} labelled slices" + (f" ({kinds})." if kinds else ".")


def describe_division(results: ComparisonResults) -> str:
    """How slices were assigned to the splits."""
    folded, words = results.folded, []
    anew = folded is not None and folded.group is not None
    if not anew or (folded is not None and folded.beside is not None):
        words.append("the set's own splits")
        if setting(results, "splits", "selection") == "carve":
            words.append(
                f"{results.selection_split} carved out of what is learned from, by whole groups and a seed"
            )
    if anew and folded is not None:
        words.append(f"divisions made anew by whole groups and a seed ({folded.words})")
    text = join_words(words)
    return (
        f"{text[0].upper()}{text[1:]}. Models were selected on {results.selection_split} and are reported on "
        f"{results.reported_split}."
    )


_ACROSS = {
    "patient-across-splits": "patients",
    "study-across-splits": "studies",
    "series-across-splits": "series",
    "source-slice-across-splits": "source slices",
    "copies-across-splits": "copies of one slice (by pixels)",
    "file-across-splits": "files (byte for byte)",
}


def describe_disjointness(results: ComparisonResults) -> Answer:
    """At what level the splits are disjoint, as far as an audit saw."""
    if results.audit is None:
        return leave("the data were not audited: say at what level the partitions are disjoint")
    size, found = results.audit.effective_n, {one.code: one for one in results.audit.findings}
    unknown = found.get("unknown-patients")
    series_known = unknown is None or unknown.evidence.get("slices_without_series") == 0
    levels = [
        *(["patients"] if unknown is None and size.patients is not None else []),
        *(["series"] if series_known and size.series is not None else []),
        *(_ACROSS[code] for code in ("copies-across-splits", "file-across-splits")),
    ]
    shared = [words for code, words in _ACROSS.items() if code in found]
    apart = [level for level in levels if level not in shared]
    texts = [
        f"Not disjoint: these stand in more than one split: {'; '.join(shared)}." if shared else "",
        f"In one split each: {'; '.join(apart)}." if apart else "",
    ]
    if results.folded is not None and results.folded.group is not None:
        texts.append(f"The folds keep every {results.folded.group} together.")
    return Answer(
        " ".join(filter(None, texts)),
        "audit.html; results.json: audit.findings",
        None if unknown is None else "patients are unknown: say whether any stands in two partitions",
    )


def describe_unreadable(results: ComparisonResults) -> str | None:
    """What could not be read; None where nobody looked."""
    if results.audit is None:
        return None
    found = [finding.text for finding in results.audit.findings if finding.code == "unreadable"]
    return " ".join(found) if found else "Every image could be read; none was left out for that."


# --- models


def describe_network(model: ModelResult) -> str:
    """Backbone, head, size, input and output."""
    facts = model.checkpoint
    size = f" Input: {describe_input(facts)}." if facts else ""
    return (
        f"{model.backbone}, {model.head}; {format_count(model.parameters)} parameters, "
        f"{model.flops / 1e9:.3g} GFLOPs a slice.{size}"
    )


def describe_input(facts: CheckpointFacts) -> str:
    """What a network sees of a study for one slice."""
    what = "one slice" if facts.slices == 1 else f"a slice and its neighbours, {facts.slices} in all,"
    channels = f", as {facts.channels} channels that differ" if facts.channels > 1 else ""
    return f"{what} of {facts.height_px}×{facts.width_px} px{channels}"


def describe_weights(model: ModelResult) -> str:
    """Where the weights started."""
    return "random, from the seed" if model.weights == "none" else model.weights


def describe_output(model: ModelResult) -> str:
    """What comes out of a network."""
    facts = model.checkpoint
    calibrated = facts is not None and (facts.slope, facts.intercept) != (1.0, 0.0)
    return (
        f"One logit a slice; its sigmoid{', after the stored calibration,' if calibrated else ''} is the probability "
        f"of {model.evaluation.positive_class}, and {format_value(model.evaluation.threshold)} and above is called so."
    )


def describe_training(model: ModelResult) -> str:
    """How a network was trained: settings where they are kept, epochs, precision."""
    end = "stopped early" if model.stopped_early else "ran to the end"
    words = [f"{count_noun(len(model.history), 'epoch')}, {end}", f"arithmetic {model.precision}"]
    if model.checkpoint:
        settings = model.checkpoint.training
        for key, label in (
            ("optimizer", ""),
            ("learning_rate", "learning rate "),
            ("schedule", "schedule "),
            ("batch_size", "batches of "),
            ("weight_decay", "weight decay "),
            ("class_weights", "class weights "),
            ("seed", "seed "),
        ):
            if key in settings:
                words.append(f"{label}{settings[key]}")
        if settings.get("compiled"):
            words.append("compiled")
    return ", ".join(words) + "."


def describe_augmentation(results: ComparisonResults) -> str | None:
    """What was changed at random in training; None where the settings are not kept."""
    augment = setting(results, "augment")
    if not isinstance(augment, dict):
        return None
    if not augment.get("enabled"):
        return "No augmentation."
    return (
        f"Random rotation up to {augment.get('rotation_deg')} degrees, scale {augment.get('scale_min')} to "
        f"{augment.get('scale_max')}; chance of a flip {augment.get('flip_horizontal')} left-right, "
        f"{augment.get('flip_vertical')} up-down."
    )


def describe_selection(model: ModelResult, results: ComparisonResults) -> str:
    """How the weights were chosen that are reported."""
    where = results.selection_split
    text = f"Weights of epoch {model.best_epoch} of {len(model.history)}: the lowest loss on {where}"
    return text + (", which is also the split that is reported." if where == results.reported_split else ".")


def describe_class_weights(model: ModelResult) -> str | None:
    """What was done about class imbalance; None where the settings are not kept."""
    if model.checkpoint is None or "class_weights" not in model.checkpoint.training:
        return None
    if model.checkpoint.training["class_weights"] == "balanced":
        return "the loss weighs each class by its inverse frequency"
    return "nothing was done (no class weights, no resampling)"


# --- numbers


def describe_metric(model: ModelResult, name: str) -> str | None:
    """A metric with its interval; None where it was not computed."""
    estimate = model.evaluation.metrics.get(name)
    return None if estimate is None else f"{METRICS[name].label} {format_estimate(estimate)}"


def describe_performance(results: ComparisonResults, names: tuple[str, ...]) -> str:
    """Some metrics of every model on the reported slices."""
    rows = [
        f"{model.name}: {join_words(filter(None, (describe_metric(model, name) for name in names)))}"
        for model in results.models
    ]
    return f"On {results.reported_split}: {'; '.join(rows)}."


def describe_intervals(results: ComparisonResults) -> str:
    """How intervals and tests were made."""
    usual = find_usual_interval(list_entries(results))
    if usual is None:
        return "No intervals."
    method, level, unit, n = usual
    text = f"{level:.0%} intervals: {method}, over {count_noun(n, unit)}."
    if results.pairs:
        text += (
            f" Models and the strongest baseline in pairs: permutation test by {results.pairs.unit}, Holm's correction "
            f"over {results.pairs.family}."
        )
    return text


def describe_robustness(results: ComparisonResults) -> str | None:
    """Which corruptions were tried; None where none was."""
    kinds = dict.fromkeys(label_corruption(point.corruption) for point in results.robustness)
    if not kinds:
        return None
    severities = sorted({point.severity for point in results.robustness if point.severity})
    return f"Corruptions of CT at severities {join_words(map(str, severities))}, with intervals: {join_words(kinds)}."


def describe_subgroups(results: ComparisonResults) -> str | None:
    """By which properties of slices performance was looked at; None where by none."""
    columns = dict.fromkeys(part.column.replace("_", " ") for part in results.subgroups)
    return f"Recall and specificity by {join_words(columns)}." if columns else None


def describe_updating(results: ComparisonResults, model: str | None = None) -> str | None:
    """Which recalibrations were fitted, to all models or one; None where probabilities in use were not assessed."""
    uses = [use for use in list_uses(results) if model in (None, use.model)]
    if not uses:
        return None
    words = []
    for use in uses:
        fits = [state for state in use.states if state.fit is not None]
        if not fits:
            continue
        before = format_estimate(use.find_state(None).log_loss)
        after = join_words(
            f"{format_estimate(state.log_loss)} after {name_kind(state.fit.kind)}"
            for state in fits
            if state.fit
        )
        words.append(f"{use.model}: log loss {before} before, {after}")
    if not words:
        return "No model was recalibrated: no split was left to fit it on."
    return f"Calibrations fitted on {uses[0].fitted_on}, shown on {uses[0].split}. {'; '.join(words)}."


def describe_thresholds(results: ComparisonResults) -> str:
    """Where thresholds come from."""
    fixed = dict.fromkeys(format_value(model.evaluation.threshold) for model in results.models)
    text = f"Calls at a threshold of {join_words(fixed)}, set in the experiment and not chosen from its predictions."
    rules = dict.fromkeys(
        name_rule(one.point.rule, one.point.target) for use in list_uses(results) for one in use.points
    )
    if rules:
        text += f" Further thresholds ({join_words(rules)}) were chosen on {results.selection_split}."
    return text


def describe_errors(results: ComparisonResults) -> str:
    """How many fractures were missed and normal slices called."""
    rows = [
        f"{model.name}: {format_count(model.evaluation.confusion.fn)} missed, "
        f"{format_count(model.evaluation.confusion.fp)} false alarms"
        for model in results.models
    ]
    return f"Of {results.reported_split}: {'; '.join(rows)}. The report shows slices of both kinds."


def describe_folds(results: ComparisonResults) -> str | None:
    """Performance by held-out groups; None where none was held out."""
    folded = results.folded
    if folded is None or folded.group is None:
        return None
    return (
        f"Fold by fold ({folded.words}): accuracy and AUROC of every model on what each of {len(folded.folds)} folds "
        "held out."
    )


# --- what speaks against it


def describe_verdict(results: ComparisonResults) -> str | None:
    """The verdict in its words; None in results that have none."""
    return f"Verdict: {results.verdict}. {VERDICT_WORDS[results.verdict]}" if results.verdict else None


def list_caveats(results: ComparisonResults, model: str | None = None) -> tuple[Finding, ...]:
    """Why the verdict is not better; with a model, without what is of another one."""
    reasons = list_reasons(results.findings or ())
    return tuple(one for one in reasons if model is None or one.evidence.get("model", model) == model)


def describe_limits(results: ComparisonResults) -> str | None:
    """The verdict with every reason; None in results that have none."""
    verdict = describe_verdict(results)
    return None if verdict is None else " ".join([verdict, *(one.text for one in list_caveats(results))])
