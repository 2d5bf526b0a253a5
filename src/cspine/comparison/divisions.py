"""Which divisions of the data a comparison trains on: the set's own splits, folds, or both side by side."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

from cspine.audit.grouping import settle_groups
from cspine.comparison.prepare import PreparedData, import_data, settle_splits
from cspine.comparison.watch import Watcher
from cspine.data.folds import Scheme, make_folds
from cspine.data.layouts import ImportReport
from cspine.data.manifest import Manifest
from cspine.data.types import Split
from cspine.experiment import Experiment


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
