"""Stage 1b: the audit of what a comparison uses, its page, and the baselines on the split that is reported."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from pydantic import ValidationError

from cspine.auditing.audit import audit_manifest
from cspine.auditing.findings import AuditResult, Finding, sort_findings
from cspine.auditing.leaks import Choices, find_selection_leak
from cspine.auditing.shortcuts import fit_rows, list_baselines, shrink_slices
from cspine.comparison.prepare import PreparedData
from cspine.core.estimates import BaselineResult, EvaluationResult, FrozenModel, choose_strongest
from cspine.core.files import write_json
from cspine.core.predictions import make_predictions
from cspine.core.progress import Watcher
from cspine.data.cache import SliceCache
from cspine.data.manifest import Manifest
from cspine.experiment import Experiment
from cspine.metrics.evaluation import evaluate_table
from cspine.metrics.intervals import IntervalOptions, explain_unit
from cspine.metrics.paired import ModelComparison, compare_models
from cspine.report.audit_page import write_audit_page
from cspine.report.results import FoldedResult, Note

AUDIT_FILE = "audit.json"
AUDIT_PAGE = "audit.html"
_MOST_FILES = 20


class _StoredAudit(FrozenModel):
    """What `audit.json` holds: the audit, the splits that it was made for, and what was chosen on which of them."""

    roles: list[str]
    chosen: list[str]
    audit: AuditResult


def audit_prepared(
    experiment: Experiment, prepared: PreparedData, folder: Path, watcher: Watcher
) -> AuditResult:
    """Audit the slices that a comparison uses, into `audit.json` and `audit.html`; or read what is there already."""
    manifest, choices = _select_used(prepared), list_choices(experiment, prepared)
    chosen = [*choices.watched, *(f"{name}: {backbone}" for name, backbone in choices.backbones.items())]
    found = _read_same(folder / AUDIT_FILE, manifest, prepared, chosen)
    if found is not None and (folder / AUDIT_PAGE).exists():
        return found
    watcher.start("Auditing", 0)
    result = audit_manifest(
        manifest,
        unreadable=prepared.report.unreadable,
        train=prepared.train,
        choices=choices,
        reported=prepared.reported,
        progress=lambda stage, done, total: watcher.advance(done, total, stage.lower()),
    ).result
    write_audit_page(result, manifest, folder / AUDIT_PAGE)
    stored = _StoredAudit(roles=_list_roles(prepared), chosen=chosen, audit=result)
    write_json(folder / AUDIT_FILE, stored.model_dump(mode="json"))
    watcher.finish(result.verdict)
    return result


def list_choices(experiment: Experiment, prepared: PreparedData) -> Choices:
    """What an experiment chooses, and on which split."""
    backbones = {name: experiment.find_spec(name).backbone for name in experiment.models}
    return Choices(prepared.selection, experiment.list_choices(), backbones=backbones)


def _select_used(prepared: PreparedData) -> Manifest:
    used = pl.col("split").is_in(_list_roles(prepared)) & pl.col("label").is_not_null()
    return prepared.manifest.with_table(prepared.manifest.table.filter(used)).as_display()


def _list_roles(prepared: PreparedData) -> list[str]:
    return [prepared.train, prepared.selection, prepared.reported]


def _read_same(
    path: Path, manifest: Manifest, prepared: PreparedData, chosen: list[str]
) -> AuditResult | None:
    """What an earlier call left, if it is of this manifest, these roles and these choices."""
    if not path.is_file():
        return None
    try:
        content = _StoredAudit.model_validate_json(path.read_text(encoding="utf-8"))
    except (ValidationError, UnicodeDecodeError):
        return None
    same = (content.roles, content.chosen) == (_list_roles(prepared), chosen)
    return content.audit if same and content.audit.manifest_hash == manifest.hash else None


def shorten_audit(result: AuditResult) -> AuditResult:
    """Without the lists of families and with the first files of each finding; all of them stand in `audit.json`."""
    findings = tuple(
        finding.model_copy(update={"files": finding.files[:_MOST_FILES]}) for finding in result.findings
    )
    return result.model_copy(update={"findings": findings, "families": ()})


def predict_baselines(prepared: PreparedData, cache: SliceCache) -> dict[str, tuple[str, pl.DataFrame]]:
    """Name -> (description, predictions on the reported split) of every baseline of `cspine.auditing.shortcuts`.

    Their pixels are those of a model's recipe, without its scaling: where the recipe equalises, so do they.
    """
    table = pl.concat([prepared.table(prepared.train), prepared.table(prepared.reported)])
    thumbnails = shrink_slices(cache.as_pictures(), table["slice_id"].to_list())
    means = thumbnails.reshape(len(thumbnails), -1).mean(axis=1)
    labels = table["label"].to_numpy()
    known = (table["split"] == prepared.train).to_numpy()
    reported = prepared.table(prepared.reported)
    slice_ids = table.filter(pl.Series(~known))["slice_id"].to_list()
    origin = {"recipe_hash": "none", "manifest_hash": prepared.manifest.hash, "checkpoint_hash": "none"}
    found = {}
    for name, (words, features, fit) in list_baselines(
        table.with_columns(mean=pl.Series(means)), thumbnails
    ).items():
        logits = fit_rows(features, fit, labels, np.flatnonzero(known), np.flatnonzero(~known))
        found[name] = (words, make_predictions(reported, slice_ids, logits, model=name, **origin))
    return found


def note_unit(tables: Mapping[str, pl.DataFrame], by: str) -> tuple[Note, ...]:
    """What the intervals of the reported slices cannot know, where patients are unknown."""
    text = next((explain_unit(table, by) for table in tables.values()), None)
    return (Note(severity="warning", text=text),) if text else ()


def find_without_audit(experiment: Experiment, prepared: PreparedData) -> tuple[Finding, ...]:
    """What is known without a look at the data: that nobody looked, and what the roles of the splits say."""
    return (
        *find_selection_leak(list_choices(experiment, prepared), prepared.reported),
        Finding(
            code="not-audited",
            severity="warning",
            text="The data were not audited (evaluation.audit = false): copies, leaks, anomalies and shortcuts may be "
            "there.",
        ),
    )


def judge_models(pairs: ModelComparison | None, bar: str | None) -> tuple[Finding, ...]:
    """A finding for each model that is not shown to be better than the strongest baseline, `bar`."""
    found = []
    for pair in pairs.pairs if pairs is not None else ():
        if bar not in (pair.first, pair.second):
            continue
        model = pair.second if pair.first == bar else pair.first
        auroc = next(one for one in pair.metrics if one.metric == "auroc")
        if auroc.better == model:
            continue
        mine, other = (auroc.first, auroc.second) if pair.first == model else (auroc.second, auroc.first)
        found.append(
            Finding(
                code="no-better-than-a-baseline",
                severity="invalidates",
                text=f"This split does not show that {model} learned fractures: its AUROC of {mine.value or 0:.3f} is "
                f"not shown to be above the {other.value or 0:.3f} of a baseline that sees no anatomy, {bar} "
                f"({auroc.words}).",
                evidence={"model": model, "baseline": bar, "p_holm": auroc.test.p_holm},
            )
        )
    return tuple(found)


@dataclass(frozen=True)
class Scores:
    """What the predictions of all models on one split say.

    Attributes:
        evaluations: Name of a model -> its metrics.
        baselines: What sees no anatomy, with the same metrics.
        pairs: The models and the strongest baseline in pairs; None where there is nothing to compare.
        findings: Models that are not shown to be better than that baseline.
    """

    evaluations: dict[str, EvaluationResult]
    baselines: tuple[BaselineResult, ...]
    pairs: ModelComparison | None
    findings: tuple[Finding, ...]


def score_models(
    models: Mapping[str, pl.DataFrame],
    guesses: Mapping[str, tuple[str, pl.DataFrame]],
    threshold: float,
    options: IntervalOptions,
) -> Scores:
    """Evaluate models and baselines and compare them in pairs.

    Args:
        models: Name -> predictions, all of the same slices.
        guesses: Name -> (description, predictions) of each baseline.
    """
    baselines = tuple(
        BaselineResult(name=name, description=words, evaluation=evaluate_table(table, threshold, options))
        for name, (words, table) in guesses.items()
    )
    bar = choose_strongest(baselines)
    compared = [*models.values(), *([guesses[bar.name][1]] if bar else [])]
    pairs = compare_models(compared, thresholds=threshold, options=options) if len(compared) > 1 else None
    return Scores(
        {name: evaluate_table(table, threshold, options) for name, table in models.items()},
        baselines,
        pairs,
        judge_models(pairs, bar.name if bar else None),
    )


def gather_findings(
    folded: FoldedResult | None,
    scores: Scores,
    audit: AuditResult | None,
    experiment: Experiment,
    prepared: PreparedData,
) -> tuple[Finding, ...]:
    """All that the verdict of a comparison follows from, sorted, without lists of files (`audit.json` has them)."""
    found = (
        *(folded.beside.findings if folded and folded.beside else ()),
        *scores.findings,
        *(audit.findings if audit else find_without_audit(experiment, prepared)),
    )
    return tuple(finding.model_copy(update={"files": ()}) for finding in sort_findings(found))
