"""How the audit scores anything against the labels: with the metrics and intervals of `cspine.evaluation`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import polars as pl
from pydantic import JsonValue
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold, LeaveOneGroupOut
from sklearn.neighbors import NearestNeighbors
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from cspine.auditing.anomalies import shrink_pixels
from cspine.auditing.findings import Baseline, Finding, MetadataScore, Severity
from cspine.core.estimates import Estimate
from cspine.core.predictions import compute_sigmoid
from cspine.core.types import GROUP_NAMES, Label
from cspine.data.cache import SliceCache
from cspine.metrics.intervals import IntervalOptions, estimate_intervals, find_unit_column
from cspine.metrics.scores import arrange_cases

AUDIT_DRAWS = 1000

UNIT_NAMES = {**GROUP_NAMES, "family": "distinct slice"}


def choose_unit_column(table: pl.DataFrame) -> str:
    """The column of what is independent, as for predictions, with the families that pixels show as copies."""
    return find_unit_column(table, copies="family")


def estimate_scores(
    values: pl.DataFrame,
    names: Sequence[str],
    *,
    unit_name: str = "unit",
    seed: int = 0,
) -> dict[str, Estimate]:
    """Metrics of scores against labels, with intervals over units.

    Args:
        values: `value` (any scale; 0 is the threshold of calls), `label` (0 or 1) and `unit`, no nulls.
        names: Keys of `cspine.metrics.scores.METRICS`.
        unit_name: What one unit is called.
        seed: Of the draws.
    """
    # Ranks instead of values: the metrics want probabilities, and nothing but the order and the sign counts here.
    value = values["value"].to_numpy()
    ranks = values["value"].rank("dense").to_numpy().astype(np.float64)
    below = len(np.unique(value[value < 0]))
    logits = 20 * (ranks - below - 0.5) / max(float(ranks.max()), 1.0)
    cases = arrange_cases(
        values["label"].to_numpy(),
        compute_sigmoid(logits),
        0.5,
        units=values["unit"].rank("dense").to_numpy().astype(np.int64) - 1,
        unit=unit_name,
    )
    return estimate_intervals(cases, IntervalOptions(AUDIT_DRAWS, seed), names)


# Baselines that see no anatomical detail. A model that does not clearly beat them has shown nothing.


NEAREST_NEIGHBOUR = "nearest neighbour"

Features = npt.NDArray[np.float32]
Scores = npt.NDArray[np.float64]

MAX_TRAINING = 20_000
"""Slices that a baseline learns from at most, drawn with a fixed seed."""

_TINY_DISTANCE = 1e-6
_LOGIT_LIMIT = 20.0


def fit_nearest_neighbour(known: Features, labels: npt.NDArray[np.integer], asked: Features) -> Scores:
    """ln(distance to the nearest normal / distance to the nearest fracture) of each row of `asked`.

    Above 0 exactly where the nearest neighbour is a fracture.

    Args:
        known: (n, features) rows whose classes are known, both among them.
        labels: (n,) 0 or 1.
        asked: (m, features).
    """
    distances = {}
    for label in Label:
        index = NearestNeighbors(n_neighbors=1, algorithm="brute").fit(known[labels == label])
        distances[label] = np.maximum(index.kneighbors(asked)[0][:, 0], _TINY_DISTANCE)
    return np.asarray(np.log(distances[Label.NORMAL] / distances[Label.FRACTURE]))


def fit_logistic_regression(known: Features, labels: npt.NDArray[np.integer], asked: Features) -> Scores:
    """Logits of a ridge-regularised logistic regression on standardised features; arguments as above."""
    model = make_pipeline(
        StandardScaler(), LogisticRegression(C=0.01 if known.shape[1] > 50 else 1.0, max_iter=500)
    )
    # A product of short float32 rows has been seen to raise the processor's "invalid" flag with every input finite
    # (docs/log.md). The features are checked to be finite by the model, and predictions that are not are refused.
    with np.errstate(invalid="ignore"):
        logits: Scores = model.fit(known, labels).decision_function(asked)
    return np.clip(logits, -_LOGIT_LIMIT, _LOGIT_LIMIT)


Fit = Callable[[Features, npt.NDArray[np.integer], Features], Scores]


def list_baselines(
    table: pl.DataFrame, thumbnails: npt.NDArray[np.uint8]
) -> Mapping[str, tuple[str, Features, Fit]]:
    """Name -> (description, (n, features) float32, how it learns), for those whose features are there.

    Args:
        table: A manifest's columns and the measure `mean`.
        thumbnails: (n, 32, 32) uint8, in the order of the rows.
    """
    pixels = thumbnails.reshape(len(thumbnails), -1).astype(np.float32) / np.float32(255)
    size = f"{thumbnails.shape[1]}x{thumbnails.shape[2]}"
    found: dict[str, tuple[str, Features, Fit]] = {
        NEAREST_NEIGHBOUR: (
            f"the class of the nearest known slice on {size} pixels",
            pixels,
            fit_nearest_neighbour,
        ),
        "logistic regression": (f"a linear model of {size} pixels", pixels, fit_logistic_regression),
        "mean intensity": (
            "a linear model of one number: the mean grey value",
            _column(table, pl.col("mean")),
            fit_logistic_regression,
        ),
        "file metadata": (
            "a linear model of the file's size, dimensions and pixel format; no pixel is seen",
            _describe_files(table),
            fit_logistic_regression,
        ),
    }
    if table["position"].null_count() == 0 and table["position"].n_unique() > 1:
        found["slice position"] = (
            "a linear model of one number: the slice's place in its series",
            _column(table, pl.col("position")),
            fit_logistic_regression,
        )
    return found


def _column(table: pl.DataFrame, expression: pl.Expr) -> Features:
    return np.asarray(table.select(expression.cast(pl.Float32)).to_numpy(), np.float32)


def _describe_files(table: pl.DataFrame) -> Features:
    numbers = table.select(
        pl.col("file_bytes").log(), pl.col("width_px", "height_px", "bits_stored").cast(pl.Float64)
    ).to_numpy()
    kinds = OneHotEncoder(sparse_output=False).fit_transform(table.select("mode").to_numpy())
    return np.hstack([numbers, kinds]).astype(np.float32)


def fit_rows(
    features: Features,
    fit: Fit,
    labels: npt.NDArray[np.integer],
    known: npt.NDArray[np.integer],
    asked: npt.NDArray[np.integer],
    seed: int = 0,
) -> Scores:
    """Learn from the rows `known` and score the rows `asked`.

    Args:
        features: (n, features).
        fit: How.
        labels: (n,) 0 or 1; those of the rows asked are not looked at.
        known, asked: Rows.
        seed: Of the draw where more than `MAX_TRAINING` are known.
    """
    if len(known) > MAX_TRAINING:
        known = np.sort(np.random.default_rng(seed).permutation(known)[:MAX_TRAINING])
    return fit(features[known], labels[known], features[asked])


def shrink_slices(cache: SliceCache, slice_ids: Sequence[str]) -> npt.NDArray[np.uint8]:
    """(n, 32, 32) uint8: the slices of a cache as the baselines see them."""
    return np.stack([shrink_pixels(np.asarray(cache.pixels[row])) for row in cache.rows(slice_ids)])


# How far the baselines of `cspine.auditing.shortcuts` come: on the given split, and with whole groups held out.


WARN_ABOVE = 0.6
INVALIDATES_FROM = 0.9
"""The whole interval of an AUROC above the first is a finding; an AUROC from the second on leaves a model no room."""

MOST_SLICES = 25_000
"""Slices that baselines are taken on at most, of each side of a split and of all folds; drawn by whole groups."""

_FOLDS = 5
_MOST_LEFT_OUT = 12
_MIN_SLICES = 10

Held = Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]


def score_given_split(
    table: pl.DataFrame, thumbnails: npt.NDArray[np.uint8], train: str, reported: str
) -> tuple[Baseline, ...]:
    """Every baseline, learnt from `train` and scored on `reported`; none where a side lacks a class.

    Where copies stand on both sides, each is scored once more, learnt from what has no copy in `reported`: what is
    left of it then is not due to them.

    Args:
        table: Labelled, readable slices: the manifest's columns, the measures and `family`.
        thumbnails: (n, 32, 32) uint8, in the order of the rows.
        train, reported: Names of splits.
    """
    sides = [
        np.flatnonzero((table["split"] == name).fill_null(False).to_numpy()) for name in (train, reported)
    ]
    rows = np.sort(np.concatenate([side[_draw_groups(table[side])] for side in sides]))
    part, there = table[rows], sum(len(side) for side in sides)
    known = (part["split"] == train).to_numpy()
    labels = part["label"].to_numpy()
    if any(len(np.unique(labels[side])) < 2 for side in (known, ~known)):
        return ()
    copied = part["family"].is_in(part["family"].filter(pl.Series(~known)).implode()).to_numpy()
    ways = {f"{train} to {reported}": known, f"{train} without copies to {reported}": known & ~copied}
    if not (known & copied).any() or len(np.unique(labels[known & ~copied])) < 2:
        ways.popitem()
    asked, baselines = part.filter(pl.Series(~known)), list_baselines(part, thumbnails[rows])
    return tuple(
        _evaluate(
            name,
            description,
            protocol + _describe_draw(part, there),
            asked,
            fit_rows(features, fit, labels, np.flatnonzero(learnt), np.flatnonzero(~known)),
        )
        for protocol, learnt in ways.items()
        for name, (description, features, fit) in baselines.items()
    )


def score_held_out(
    table: pl.DataFrame, thumbnails: npt.NDArray[np.uint8]
) -> tuple[tuple[Baseline, ...], list[Finding]]:
    """Every baseline on slices whose whole group was held out, one slice a family, whatever the given split.

    The group is the patient where known, else the series, else the family. Up to 12 groups are left out one by one,
    more in five folds. All files of the other groups are learnt from, as a model would.

    Returns:
        The baselines, and a finding with the nearest neighbour's accuracy in each group that was left out.
    """
    there, drawn = table.height, _draw_groups(table)
    table, thumbnails = table[drawn], thumbnails[drawn]
    firsts = _choose_distinct(table)
    column = next(
        name
        for name in ("patient_id", "series_uid", "family")
        if name == "family" or (table[name].null_count() == 0 and table[name].n_unique() > 1)
    )
    groups = table[column].rank("dense").to_numpy()
    count, labels = len(np.unique(groups)), table["label"].to_numpy()
    if count < 2 or len(firsts) < _MIN_SLICES or len(np.unique(labels)) < 2:
        return (), []
    alone = count <= _MOST_LEFT_OUT
    word = UNIT_NAMES[column]
    protocol = f"leave one {word} out" if alone else f"{_FOLDS} folds by {word}"
    protocol += _describe_draw(table, there)
    part = table[firsts]
    found: list[Baseline] = []
    details: list[Finding] = []
    for name, (description, features, fit) in list_baselines(table, thumbnails).items():
        folds = LeaveOneGroupOut() if alone else GroupKFold(_FOLDS)
        scores = _score_folds(features, fit, labels, folds.split(features, labels, groups), firsts)
        found.append(_evaluate(name, description, protocol, part, scores))
        if name == NEAREST_NEIGHBOUR and alone:
            details = [_describe_groups(part, column, scores)]
    return tuple(found), details


def _draw_groups(table: pl.DataFrame) -> npt.NDArray[np.int64]:
    """Rows of whole groups, drawn with a fixed seed, up to `MOST_SLICES`; all rows where there are no more.

    A group is the independent unit; where there are few of these, so that none can be spared, a family of copies.
    """
    if table.height <= MOST_SLICES:
        return np.arange(table.height)
    column = choose_unit_column(table)
    if table[column].n_unique() <= _MOST_LEFT_OUT:
        column = "family"
    group = table[column].rank("dense").to_numpy().astype(np.int64) - 1
    order = np.random.default_rng(0).permutation(group.max() + 1)
    sizes = np.bincount(group)[order]
    chosen = order[: max(1, int(np.searchsorted(np.cumsum(sizes), MOST_SLICES, side="right")))]
    return np.flatnonzero(np.isin(group, chosen))


def _describe_draw(part: pl.DataFrame, there: int) -> str:
    return f", on {part.height:,} of {there:,} slices, drawn by whole groups" if part.height < there else ""


def _choose_distinct(table: pl.DataFrame) -> npt.NDArray[np.int64]:
    """Rows: the largest slice of each family, the first by name where several are."""
    pixels = pl.col("width_px").cast(pl.Int64) * pl.col("height_px")
    ranked = table.with_row_index("row").sort(pixels, "slice_id", descending=[True, False])
    firsts = ranked.unique("family", keep="first", maintain_order=True)["row"].sort()
    return firsts.to_numpy().astype(np.int64)


def _score_folds(
    features: Features,
    fit: Fit,
    labels: npt.NDArray[np.integer],
    folds: Held,
    asked: npt.NDArray[np.int64],
) -> npt.NDArray[np.float64]:
    """Scores of the rows `asked`, each learnt without its group; a large one where only one class is known."""
    scores = np.zeros(len(labels))
    wanted = np.zeros(len(labels), np.bool_)
    wanted[asked] = True
    for known, held in folds:
        rows = held[wanted[held]]
        if len(np.unique(labels[known])) < 2:
            scores[rows] = 20.0 if labels[known][0] else -20.0
        elif len(rows):
            scores[rows] = fit_rows(features, fit, labels, known, rows)
    return scores[asked]


def _evaluate(
    name: str, description: str, protocol: str, part: pl.DataFrame, scores: npt.NDArray[np.float64]
) -> Baseline:
    unit = choose_unit_column(part)
    values = part.select("label", unit=unit).with_columns(value=pl.Series(scores))
    metrics = estimate_scores(values, ("accuracy", "auroc"), unit_name=UNIT_NAMES[unit])
    positives = int(part["label"].sum())
    return Baseline(
        name=name,
        description=description,
        protocol=protocol,
        slices=part.height,
        positives=positives,
        accuracy=metrics["accuracy"],
        auroc=metrics["auroc"],
        larger_class=max(positives, part.height - positives) / part.height,
    )


def _describe_groups(part: pl.DataFrame, column: str, scores: npt.NDArray[np.float64]) -> Finding:
    """How often the nearest neighbour is right in each group that was left out, beside its larger class."""
    right = pl.Series((scores > 0).astype(np.int8)) == part["label"]
    groups = (
        part.select(column, "label")
        .with_columns(right=right)
        .group_by(column)
        .agg(pl.len().alias("slices"), pl.col("right").mean(), pl.col("label").mean().alias("fractures"))
        .sort(column)
    )
    rows: list[dict[str, JsonValue]] = [
        {
            "group": name,
            "slices": count,
            "accuracy": round(accuracy, 4),
            "larger_class": round(max(fractures, 1 - fractures), 4),
        }
        for name, count, accuracy, fractures in groups.iter_rows()
    ]
    word = UNIT_NAMES[column]
    # A patient is not named on a page that may be passed on; a series of a set of files is.
    names = [f"{row['group']}: " if column == "series_uid" else "" for row in rows]
    shown = "; ".join(
        f"{name}{row['accuracy']:.0%} (always the larger class: {row['larger_class']:.0%})"
        for name, row in zip(names, rows, strict=True)
    )
    return Finding(
        code="held-out-baseline",
        severity="info",
        text=f"With each {word} left out in turn, the nearest neighbour is right in {shown}.",
        evidence={"column": column, "groups": list[JsonValue](rows)},
    )


def find_shortcuts(baselines: tuple[Baseline, ...]) -> list[Finding]:
    """A finding for each baseline that does clearly better than chance, from the protocol that shows it most surely."""
    surest: dict[str, Baseline] = {}
    for baseline in sorted(baselines, key=lambda one: -(one.auroc.low or 0)):
        surest.setdefault(baseline.name, baseline)
    found = []
    for baseline in surest.values():
        low, value = baseline.auroc.low, baseline.auroc.value
        if low is None or value is None or low <= WARN_ABOVE:
            continue
        severity: Severity = "invalidates" if value >= INVALIDATES_FROM else "warning"
        found.append(
            Finding(
                code="shortcut",
                severity=severity,
                text=f'Without any anatomy, the baseline "{baseline.name}" ({baseline.description}) reaches an '
                f"accuracy of {baseline.accuracy.value or 0:.1%} and an AUROC of {value:.3f} [{low:.3f}, "
                f"{baseline.auroc.high or 1:.3f}], {baseline.protocol}.",
                evidence={
                    "baseline": baseline.name,
                    "protocol": baseline.protocol,
                    "auroc": value,
                    "low": low,
                },
            )
        )
    return found


# Metadata that predicts the class: properties of the files and of the scan, none of which is a fracture.


METADATA_WARN_ABOVE = 0.6
INVALIDATES_ABOVE = 0.9
"""An AUROC whose whole interval lies above these is a finding of that severity."""

_NUMBERS: Mapping[str, tuple[str, pl.Expr]] = {
    "file_bytes": ("file size", pl.col("file_bytes")),
    "pixels": ("number of pixels", pl.col("width_px").cast(pl.Int64) * pl.col("height_px")),
    "aspect": ("width to height", pl.col("width_px") / pl.col("height_px")),
    "bits_stored": ("bits stored", pl.col("bits_stored")),
    "position": ("place in the series", pl.col("position")),
    "place": (
        "relative place in the series",
        (pl.col("position").rank("dense") - 1).over("series_uid")
        / (pl.col("position").n_unique() - 1).over("series_uid"),
    ),
    "mean": ("mean intensity", pl.col("mean")),
    "std": ("contrast (standard deviation)", pl.col("std")),
    "sharpness": ("sharpness", pl.col("sharpness")),
}
_CATEGORIES: Mapping[str, tuple[str, pl.Expr]] = {
    "mode": ("pixel format", pl.col("mode")),
    "file_type": (
        "file type",
        pl.col("path").str.extract(r"\.([^./]+)$").str.to_lowercase().fill_null("none"),
    ),
    "series_uid": ("series", pl.col("series_uid")),
}
_SHUFFLES, _HIGHEST_CHANCE = 20, 0.99
_KNOWN_FRACTION = 0.5
"""A number that is known for fewer slices than this is not scored; a category has to be known for all."""


def score_metadata(table: pl.DataFrame, unit: str, seed: int = 0) -> tuple[MetadataScore, ...]:
    """The AUROC of every property that varies, with its interval over units; the strongest first.

    Args:
        table: Labelled, readable slices: the manifest's columns and the measures.
        unit: The column of what is independent, with no nulls; see `scoring.choose_unit_column`.
        seed: Of the bootstrap and of the swaps.

    Returns:
        A score a property. A number is scored in the direction that does better on this very set, which flatters a
        little, so only a whole interval above 0.6 is a finding. A category is scored by the share of fractures among
        its slices. Many small series would tell any labels in that way, so what swapped labels give is taken for
        chance: that becomes 0.5, and 1 stays 1.
        A category whose values are as fine as the units themselves is left out: it is one with them.
    """
    found = []
    for name, (words, expression) in _NUMBERS.items():
        values = table.select(value=expression.cast(pl.Float64), label="label", unit=unit).drop_nulls()
        enough = values.height >= _KNOWN_FRACTION * table.height and values["label"].n_unique() == 2
        if enough and values["value"].n_unique() > 1:
            found.append(_score(name, words, values, seed))
    units = table[unit].n_unique()
    for name, (words, expression) in _CATEGORIES.items():
        kind = table.select(kind=expression)["kind"]
        if kind.null_count() or kind.n_unique() < 2 or kind.n_unique() > units / 2 or name == unit:
            continue
        values = table.select(label="label", unit=unit).with_columns(kind=kind)
        found.append(_score_kind(name, words, values, seed))
    return tuple(sorted(found, key=lambda score: -(score.auroc.value or 0)))


def _score_kind(name: str, words: str, values: pl.DataFrame, seed: int) -> MetadataScore:
    """Score a category: `values` has label, unit and kind."""
    rated = values.with_columns(value=pl.col("label").mean().over("kind"))
    auroc = estimate_scores(rated, ("auroc",), seed=seed)["auroc"]
    chance = _find_chance(values, seed)

    def correct(value: float | None) -> float | None:
        return None if value is None else max(0.0, 0.5 + 0.5 * (value - chance) / (1 - chance))

    update = {end: correct(getattr(auroc, end)) for end in ("value", "low", "high")}
    direction = f"some values of {words} have more fractures"
    return MetadataScore(name=name, direction=direction, auroc=auroc.model_copy(update=update))


def _find_chance(values: pl.DataFrame, seed: int) -> float:
    """The mean AUROC of the kinds' shares of fractures when labels are swapped: what any labels would give.

    Whole units swap, and the labels within each: so what is alike within units stays alike.
    """
    rows = values.sort("unit", maintain_order=True)
    kinds, units = (rows[name].rank("dense").to_numpy().astype(np.int64) - 1 for name in ("kind", "unit"))
    known = rows["label"].to_numpy()
    generator = np.random.default_rng(seed)
    found = []
    for _ in range(_SHUFFLES):
        places = generator.permutation(units[-1] + 1)[units]
        labels = known[np.lexsort((generator.random(len(units)), places))]
        positives = np.bincount(kinds, labels)
        negatives = np.bincount(kinds) - positives
        order = np.argsort(positives / (positives + negatives))
        below = np.cumsum(negatives[order]) - negatives[order] / 2
        found.append(float(positives[order] @ below / (positives.sum() * negatives.sum())))
    return min(float(np.mean(found)), _HIGHEST_CHANCE)


def _score(name: str, words: str, values: pl.DataFrame, seed: int) -> MetadataScore:
    auroc = estimate_scores(values, ("auroc",), seed=seed)["auroc"]
    larger = auroc.value is None or auroc.value >= 0.5
    direction = f"{'larger' if larger else 'smaller'} {words} in fractures"
    return MetadataScore(name=name, direction=direction, auroc=auroc if larger else _flip(auroc))


def _flip(auroc: Estimate) -> Estimate:
    """The AUROC of the negated score."""

    def turn(value: float | None) -> float | None:
        return None if value is None else 1 - value

    update = {"value": turn(auroc.value), "low": turn(auroc.high), "high": turn(auroc.low)}
    return auroc.model_copy(update=update)


def find_telling_metadata(scores: tuple[MetadataScore, ...]) -> list[Finding]:
    """A finding for each property whose AUROC is clearly above chance."""
    found = []
    for score in scores:
        low = score.auroc.low
        if low is None or score.auroc.value is None or low <= METADATA_WARN_ABOVE:
            continue
        severity: Severity = "invalidates" if low > INVALIDATES_ABOVE else "warning"
        found.append(
            Finding(
                code="metadata-predicts-class",
                severity=severity,
                text=f"The class goes with what is no fracture: {score.direction}, AUROC "
                f"{score.auroc.value:.3f} [{low:.3f}, {score.auroc.high or 1:.3f}].",
                evidence={
                    "property": score.name,
                    "auroc": score.auroc.value,
                    "low": low,
                    "high": score.auroc.high,
                },
            )
        )
    return found
