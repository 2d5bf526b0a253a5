"""Stage 1: the data of an experiment, and which slices are used for what."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import cast

import polars as pl

from cspine.auditing.audit import count_known, settle_groups
from cspine.core.errors import ExperimentError
from cspine.core.progress import Watcher
from cspine.core.types import Split
from cspine.data.layouts import ImportReport, import_dataset
from cspine.data.manifest import Manifest
from cspine.data.splits import Scheme, carve_split, make_folds
from cspine.experiment import Experiment
from cspine.metrics.intervals import IntervalOptions, choose_unit
from cspine.preprocess import Scale
from cspine.report.results import DataSummary, SplitSummary
from cspine.robustness.curves import check_points

CARVED = "val"


@dataclass(frozen=True)
class PreparedData:
    """A manifest and the roles of its splits. `selection` and `reported` may be the same split: the paper's way."""

    manifest: Manifest
    report: ImportReport
    train: str
    selection: str
    reported: str

    def table(self, split: str) -> pl.DataFrame:
        """The labelled rows of one split."""
        return self.manifest.table.filter((pl.col("split") == split) & pl.col("label").is_not_null())


def prepare_data(experiment: Experiment, watcher: Watcher) -> PreparedData:
    """Import the slices and settle the set's own splits; nothing is written.

    Raises:
        InputError: the data cannot be used, or lacks a split or class that the experiment needs.
    """
    return settle_splits(experiment, *import_data(experiment, watcher))


def import_data(experiment: Experiment, watcher: Watcher) -> tuple[Manifest, ImportReport]:
    """Import the slices that an experiment names.

    Raises:
        InputError: it names none, or the data cannot be used.
        RecipeError: the recipe is for Hounsfield units and the slices are pictures, or the other way round.
    """
    data = experiment.data
    if not data.root:
        raise ExperimentError(
            "the experiment names no data", where="data.root", fix="add --set data.root=FOLDER"
        )
    watcher.start("Reading slices", 0)
    manifest, report = import_dataset(
        Path(data.root).expanduser(),
        layout=data.layout,
        positive_class=data.positive_class,
        negative_class=data.negative_class,
        strict=data.strict,
        progress=watcher.advance,
    )
    unreadable = f", {len(report.unreadable):,} more could not be read" if report.unreadable else ""
    watcher.finish(f"{len(manifest):,} slices{unreadable}")
    check_recipe(experiment, manifest)
    return manifest, report


def check_recipe(experiment: Experiment, manifest: Manifest) -> None:
    """Raise `RecipeError` where the recipe of an experiment is for another kind of slice than the manifest's."""
    channels = experiment.preprocess.channels
    recipe = experiment.make_recipe(Scale(mean=(0.0,) * channels, std=(1.0,) * channels))
    recipe.check_domain(manifest.domain, str(manifest.root))


def settle_splits(experiment: Experiment, manifest: Manifest, report: ImportReport) -> PreparedData:
    """Which of the set's own splits is used for what, a part for the selection carved where the experiment asks.

    Raises:
        InputError: a split or class is missing that the experiment needs.
    """
    splits = experiment.splits
    present = set(manifest.splits)
    reported = splits.reported
    if reported == "auto":
        reported = Split.TEST if Split.TEST in present else Split.VAL
    selection = splits.selection
    if selection == "auto":
        selection = Split.VAL if Split.VAL in present and reported != Split.VAL else "carve"
    if selection == "carve":
        manifest, reported = _make_room_for_carved(manifest, reported)
        manifest = carve_split(
            manifest,
            from_split=splits.train,
            to_split=CARVED,
            fraction=splits.carve_fraction,
            seed=experiment.seed,
            by=splits.group_by,
        )
        selection = CARVED
    prepared = PreparedData(manifest, report, splits.train, str(selection), str(reported))
    for role, split in (("selection", selection), ("reported", reported)):
        if split == splits.train:
            raise ExperimentError(
                f"the {role} split is the one that is learned from: its numbers would say nothing",
                where=f"splits.{role}",
                fix='name another split, or "auto"',
            )
    for role, split in (("train", prepared.train), ("selection", selection), ("reported", reported)):
        _check_split(prepared, role, str(split))
    return prepared


def _make_room_for_carved(manifest: Manifest, reported: str) -> tuple[Manifest, str]:
    """A set with train and val only: its val is what is reported, so it becomes `test`, and `val` is carved."""
    if reported != Split.VAL:
        return manifest, reported
    if Split.TEST in set(manifest.splits):
        raise ExperimentError(
            "no part can be carved for the selection: it would be called val, which is to be reported, and the data "
            "has a test split as well",
            where="splits",
            fix='report test, or set splits.selection to "val" or "test"',
        )
    renamed = pl.col("split").replace({Split.VAL.value: Split.TEST.value})
    return manifest.with_table(manifest.table.with_columns(renamed)), Split.TEST


def _check_split(prepared: PreparedData, role: str, split: str) -> None:
    counts = dict(prepared.table(split).group_by("label").len().iter_rows())
    if counts.get(0) and counts.get(1):
        return
    found = f"{counts.get(1, 0)} fracture and {counts.get(0, 0)} normal slices"
    raise ExperimentError(
        f"the {role} split {split!r} has {found}; it needs both classes",
        where=f"splits.{role}",
        fix="the data has " + (", ".join(sorted(filter(None, prepared.manifest.splits))) or "no splits"),
    )


def summarise_data(prepared: PreparedData) -> DataSummary:
    """What went in, for the report."""
    table = prepared.manifest.table
    order = [split.value for split in Split]
    splits = sorted(table["split"].drop_nulls().unique().to_list(), key=order.index)
    return DataSummary(
        root=prepared.report.root,
        slices=len(table),
        splits=tuple(_summarise_split(table.filter(pl.col("split") == split), split) for split in splits),
        sizes={name.replace("x", "×"): count for name, count in prepared.report.sizes.items()},
        modes=prepared.report.modes,
        notes=prepared.report.notes,
    )


def _summarise_split(table: pl.DataFrame, split: str) -> SplitSummary:
    return SplitSummary(
        split=split,
        fracture=int((table["label"] == 1).sum()),
        normal=int((table["label"] == 0).sum()),
        patients=count_known(table, "patient_id"),
        series=count_known(table, "series_uid"),
        source_slices=count_known(table, "source_id"),
    )


def check_evaluation(experiment: Experiment, prepared: PreparedData) -> None:
    """Refuse before the training what the evaluation would refuse after it.

    Raises:
        InputError: an unknown unit, corruption or severity, or too few draws for the level.
    """
    settings, robustness = experiment.evaluation, experiment.robustness
    choose_unit(prepared.table(prepared.reported), settings.unit)
    IntervalOptions(settings.draws, experiment.seed, settings.level)  # raises where it cannot be
    if robustness.enabled:
        IntervalOptions(robustness.draws, experiment.seed, settings.level)
        check_points(robustness.corruptions, robustness.severities)


@dataclass(frozen=True)
class Division:
    """One division of the data, with the seed of its trainings and of what it draws.

    Attributes:
        name: Also of its folder; "" is the first training on the set's own splits.
        repeat: 0 for the first seed.
        seed: Of split and trainings.
        prepared: The data with this division's splits.
        groups: How many groups are held out; None where the splits are the set's own.
    """

    name: str
    repeat: int
    seed: int
    prepared: PreparedData
    groups: int | None = None


@dataclass(frozen=True)
class Plan:
    """What is trained and reported: the main division, and the further ones of `[evaluation.folds]`.

    Attributes:
        main: Whose training curves, robustness and samples the report shows.
        divisions: All divisions of the folds, in order; empty without folds. `main` is among them where the set's own
            splits are not reported, or where they are what is repeated.
        column: What the folds keep together; None without folds or where the splits are the set's own.
    """

    main: Division
    divisions: tuple[Division, ...] = ()
    column: str | None = None

    @property
    def given(self) -> bool:
        """Whether `main` is the set's own splits."""
        return self.main.groups is None


def plan_divisions(experiment: Experiment, watcher: Watcher) -> Plan:
    """Import the slices and settle all divisions; nothing is written.

    Raises:
        InputError: the data cannot be used, cannot be divided so, or lacks a split or class that is needed.
    """
    manifest, report = import_data(experiment, watcher)
    folds = experiment.evaluation.folds
    given = bool(manifest.splits) if folds.given == "auto" else folds.given
    own = None
    if given or folds.scheme in ("none", "given"):
        own = Division("", 0, experiment.seed, settle_splits(experiment, manifest, report))
        if folds.scheme == "none":
            return Plan(own)
        if folds.scheme == "given":
            return Plan(own, _repeat(own, folds.repeats))
    divisions, column = _divide(experiment, manifest, report, watcher)
    return Plan(own or divisions[0], divisions, column)


def _repeat(main: Division, repeats: int) -> tuple[Division, ...]:
    others = (
        Division(f"seed{main.seed + one}", one, main.seed + one, main.prepared) for one in range(1, repeats)
    )
    return (main, *others)


def _divide(
    experiment: Experiment, manifest: Manifest, report: ImportReport, watcher: Watcher
) -> tuple[tuple[Division, ...], str]:
    """The divisions of all repeats, and the column that they keep together."""
    folds = experiment.evaluation.folds
    watcher.start("Finding groups", 0)
    grouped, column = settle_groups(
        manifest, folds.by, lambda stage, done, total: watcher.advance(done, total, stage)
    )
    watcher.finish(f"by {column}")
    found = []
    for repeat in range(folds.repeats):
        seed = experiment.seed + repeat
        made = make_folds(
            grouped,
            scheme=cast(Scheme, folds.scheme),
            folds=folds.folds,
            test_fraction=folds.test_fraction,
            selection_fraction=folds.selection_fraction,
            by=column,
            seed=seed,
        )
        prefix = f"seed{seed}-" if folds.repeats > 1 else ""
        found += [
            Division(
                prefix + fold.name,
                repeat,
                seed,
                PreparedData(fold.manifest, report, Split.TRAIN, Split.VAL, Split.TEST),
                fold.groups,
            )
            for fold in made
        ]
    return tuple(found), column
