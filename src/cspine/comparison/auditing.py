"""Stage 1b: the audit of what a comparison uses, its page, and the baselines on the split that is reported."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from pydantic import ValidationError

from cspine.auditing.audit import audit_manifest, repair_manifest
from cspine.auditing.findings import VERDICT_WORDS, AuditResult, Change, Finding, sort_findings
from cspine.auditing.leaks import Choices, find_selection_leak
from cspine.auditing.shortcuts import fit_rows, list_baselines, shrink_slices
from cspine.comparison.prepare import PreparedData
from cspine.core.errors import CspineError, InputError, OutputError
from cspine.core.estimates import BaselineResult, EvaluationResult, FrozenModel, choose_strongest
from cspine.core.files import atomic_file, refuse_to_replace, write_json, write_text
from cspine.core.html import show_table
from cspine.core.predictions import make_predictions
from cspine.core.progress import Silent, Watcher
from cspine.data.cache import SliceCache
from cspine.data.layouts import import_dataset
from cspine.data.manifest import Manifest, write_manifest
from cspine.experiment import Experiment
from cspine.metrics.evaluation import evaluate_table
from cspine.metrics.intervals import IntervalOptions, explain_unit
from cspine.metrics.paired import ModelComparison, compare_models
from cspine.report.audit_page import write_audit_page
from cspine.report.report import RESULTS_FILE, read_results
from cspine.report.results import ComparisonResults, FoldedResult, Note
from cspine.report.text import format_estimate

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


MANIFEST_FILE, EXPERIMENT_FILE = "manifest.parquet", "experiment.json"


class Audit(AuditResult):
    """What an audit found: `verdict`, `findings`, `baselines`, `effective_n` and more."""

    def __repr__(self) -> str:
        return f"Audit({self.verdict}: {len(self.findings)} findings, {self.effective_n.files:,} files)"

    def to_frame(self) -> pl.DataFrame:
        """Return one row a finding: severity, code, text, remedy, files."""
        columns = {"severity": pl.String, "code": pl.String, "text": pl.String, "remedy": pl.String}
        rows = [one.model_dump(include={*columns, "files"}) for one in self.findings]
        return pl.DataFrame(rows, schema={**columns, "files": pl.List(pl.String)})

    def _repr_html_(self) -> str:
        rows = [(one.name, one.protocol, format_estimate(one.auroc)) for one in self.baselines]
        baselines = show_table(("baseline", "scored", "AUROC"), rows) if rows else ""
        findings = self.to_frame().drop("files")
        heading = f"<p><b>{self.verdict}</b>: {VERDICT_WORDS[self.verdict]}</p>"
        return heading + show_table(findings.columns, findings.iter_rows()) + baselines


def audit(
    source: str | Path | Manifest,
    output: str | Path | None = None,
    fix: str | Path | None = None,
    classes: tuple[str, str] = ("fracture", "normal"),
    watcher: Watcher | None = None,
) -> Audit:
    """Find copies, leaks, anomalies and shortcuts in a set.

    Args:
        source: A manifest, a folder of class folders, a table of labels; or the folder of a finished run, whose
            manifest is audited together with what its splits were used for.
        output: Where a page goes (HTML); None writes none.
        fix: Where a repaired manifest goes, and its table of changes beside it; None writes none.
        classes: Names of the positive and the negative class.
        watcher: Told about progress.

    Raises:
        InputError: the set cannot be read, or an output would replace it.
        OutputError: an output cannot be written.
    """
    watcher = watcher or Silent()
    page, fixed = (None if path is None else Path(path) for path in (output, fix))
    choices = reported = None
    unreadable: tuple[tuple[str, str], ...] = ()
    if isinstance(source, Manifest):
        manifest = source
    else:
        source = Path(source)
        _check_outputs(source, page, fixed)
        if (source / RESULTS_FILE).is_file() and (source / MANIFEST_FILE).is_file():
            run = read_results(source)
            choices, reported = list_run_choices(run, source / EXPERIMENT_FILE), run.reported_split
            source = source / MANIFEST_FILE
        watcher.start("Reading slices", 0)
        manifest, report = import_dataset(
            source, positive_class=classes[0], negative_class=classes[1], progress=watcher.advance
        )
        unreadable = report.unreadable
        watcher.finish(f"{len(manifest):,} slices")
    stages = _Stages(watcher, f"{len(manifest):,} slices")
    audited = audit_manifest(
        manifest.as_display(),
        unreadable=unreadable,
        choices=choices,
        # Folds alone are reported as a whole, in words; the manifest has the splits of the first of them.
        reported=reported if reported in manifest.splits else None,
        progress=stages.tell,
    )
    watcher.finish(stages.words)
    result = audited.result
    if fixed is not None:
        repaired = repair_manifest(manifest, audited, unreadable)
        changes = tuple(Change(**row) for row in repaired.changes.iter_rows(named=True))
        result = result.model_copy(update={"changes": changes})
        # Inside one another, so that a table of changes that cannot be written leaves no manifest behind.
        with atomic_file(fixed) as staged:
            write_manifest(repaired.manifest, staged)
            write_text(name_changes(fixed), repaired.changes.write_csv())
    if page is not None:
        watcher.start("Drawing the page", 0)
        write_audit_page(result, manifest.as_display(), page, watcher.advance)
        watcher.finish(str(page))
    return Audit.model_construct(**dict(result))


class _Stages:
    """The parts of an audit as stages of a watcher."""

    def __init__(self, watcher: Watcher, words: str) -> None:
        self.watcher, self.words, self._name = watcher, words, ""

    def tell(self, name: str, done: int, total: int) -> None:
        if name != self._name:
            if self._name:
                self.watcher.finish(self.words)
            self.watcher.start(name, total)
            self._name = name
        self.watcher.advance(done, total)


def list_run_choices(run: ComparisonResults, experiment: Path) -> Choices:
    """What a finished run chose, and on which split, by its `experiment.json`; without it, by the results alone."""
    watched = ["the choice of the best epoch"]
    if experiment.is_file():
        try:
            watched = list(Experiment.model_validate_json(experiment.read_bytes()).list_choices())
        except (ValidationError, CspineError, OSError):
            raise InputError("this is no experiment of cspine", where=str(experiment)) from None
    elif any(model.stopped_early for model in run.models):
        watched.insert(0, "early stopping")
    tuned = [
        f"the {noun} of {use.model}"
        for use in run.in_use
        for noun, splits in (
            ("threshold", [point.point.split for point in use.points]),
            ("calibration", [state.fit.split for state in use.states if state.fit is not None]),
        )
        if run.reported_split in splits
    ]
    backbones = {model.name: model.backbone for model in run.models}
    return Choices(run.selection_split, watched, tuned, backbones)


def _check_outputs(source: Path, page: Path | None, fixed: Path | None) -> None:
    outputs = [page, fixed, name_changes(fixed) if fixed is not None else None]
    for output in filter(None, outputs):
        refuse_to_replace(output, source, source / MANIFEST_FILE)
        if output.is_dir():
            raise OutputError("this is a folder", where=str(output), fix="name a file")
    if page is not None and page.suffix.lower() not in (".html", ".htm"):
        raise InputError(
            "the page of an audit is HTML", where=str(page), fix="name a file that ends in .html"
        )
    if fixed is not None and fixed.suffix.lower() != ".parquet":
        raise InputError("a manifest is parquet", where=str(fixed), fix="name a file that ends in .parquet")


def name_changes(fixed: Path) -> Path:
    """The table of what was changed, beside the repaired manifest."""
    return fixed.with_suffix(".changes.csv")
