"""Nearest neighbours among many vectors, in time that grows about linearly with their number.

A few random trees halve the vectors until a leaf is small; within a leaf all are compared. A neighbour that one tree
puts into another leaf is found by the next. A search in all pairs would be exact, and quadratic.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import polars as pl

from cspine.auditing.matching import (
    KEY_FREQUENCIES,
    MAX_ZOOM_RINGS,
    PICTURE_PX,
    RINGS,
    Match,
    Signature,
    SignatureMap,
    SignatureStore,
    compute_keys,
    compute_magnitudes,
    guess_placement,
    make_signature,
    match_pictures,
)
from cspine.core.errors import ImageError
from cspine.core.machine import count_cpus
from cspine.data.manifest import Manifest

_TREES = 4
_LEAF_SIZE = 1024
_QUERY_ROWS = 2048

Vectors = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]


class NeighbourIndex:
    """Random trees over vectors (N, D) float32; the same vectors in the same order give the same trees."""

    def __init__(self, vectors: Vectors) -> None:
        self._vectors = vectors
        self._squares = np.einsum("nd,nd->n", vectors, vectors)
        self._random = np.random.default_rng(0)
        rows = np.arange(len(vectors))
        self._trees = [_Node(vectors, rows, self._random) for _ in range(_TREES)]

    def find_pairs(self, queries: Vectors, count: int, farthest: float) -> tuple[Rows, Vectors]:
        """Pair every query with up to `count` nearest vectors in each tree, none farther than `farthest`.

        Args:
            queries: (N, D), one for each vector of the index; a query is never paired with its own vector.
            count: At least 1.
            farthest: Euclidean distance.

        Returns:
            (P, 2) pairs of rows, the lower one first, each pair once; and their distances (P,), of the nearest try.
        """
        count_all = len(self._vectors)
        keys, distances = np.empty(0, np.int64), np.empty(0, np.float32)
        # Tree by tree: most pairs are found by several, and all of them at once would take the most memory of a search.
        for tree in self._trees:
            found = [
                self._compare(queries, asked, leaf, count, farthest)
                for asked, leaf in tree.assign(queries, np.arange(len(queries)))
            ]
            keys = np.concatenate([keys, *(pairs[:, 0] * count_all + pairs[:, 1] for pairs, _ in found)])
            distances = np.concatenate([distances, *(distance for _, distance in found)])
            order = np.lexsort((distances, keys))
            keys, distances = keys[order], distances[order]
            first = np.ones(len(keys), bool)
            first[1:] = keys[1:] != keys[:-1]
            keys, distances = keys[first], distances[first]
        return np.stack(np.divmod(keys, count_all), axis=1), distances

    def _compare(
        self, queries: Vectors, asked: Rows, leaf: Rows, count: int, farthest: float
    ) -> tuple[Rows, Vectors]:
        """The nearest of a leaf for each query that was assigned to it."""
        inside, squares = self._vectors[leaf], self._squares[leaf]
        pairs, distances = [np.empty((0, 2), np.int64)], [np.empty(0, np.float32)]
        for start in range(0, len(asked), _QUERY_ROWS):
            rows = asked[start : start + _QUERY_ROWS]
            some = queries[rows]
            square = squares - 2 * (some @ inside.T) + np.einsum("nd,nd->n", some, some)[:, None]
            square[rows[:, None] == leaf] = np.inf
            kept = min(count, len(leaf))
            near = np.argpartition(square, kept - 1, axis=1)[:, :kept]
            distance = np.sqrt(np.maximum(np.take_along_axis(square, near, axis=1), 0))
            from_row, slot = np.nonzero(distance <= farthest)
            pair = np.stack([rows[from_row], leaf[near[from_row, slot]]], axis=1)
            pairs.append(np.sort(pair, axis=1))
            distances.append(distance[from_row, slot])
        return np.concatenate(pairs), np.concatenate(distances)


class _Node:
    """A part of the vectors, cut in two at the median of a random direction until it is a leaf."""

    def __init__(self, vectors: Vectors, rows: Rows, random: np.random.Generator) -> None:
        self.rows = rows
        self.children: tuple[_Node, _Node] | None = None
        if len(rows) <= _LEAF_SIZE:
            return
        # Through two of the vectors: directions in which they are spread come up more often.
        one, other = random.choice(rows, 2, replace=False)
        self.direction = vectors[one] - vectors[other]
        along = vectors[rows] @ self.direction
        self.cut = float(np.median(along))
        low = along < self.cut
        if not 0 < low.sum() < len(rows):  # many equal vectors
            low = np.arange(len(rows)) < len(rows) // 2
        self.rows = rows[:0]
        self.children = (_Node(vectors, rows[low], random), _Node(vectors, rows[~low], random))

    def assign(self, queries: Vectors, asked: Rows) -> list[tuple[Rows, Rows]]:
        """Which queries come into which leaf: a list of (rows of the queries, rows in the leaf)."""
        if self.children is None:
            return [(asked, self.rows)]
        low = queries[asked] @ self.direction < self.cut
        parts = zip(self.children, (asked[low], asked[~low]), strict=True)
        return [pair for child, some in parts if len(some) for pair in child.assign(queries, some)]


# From pairs that may be copies to groups that are: verify the nearest first, and only what still matters.


Pair = tuple[int, int]

_BATCH = 64
_LOOK_AHEAD = 512
# Failed pairs after which a group is left alone.
_PATIENCE = 4
# Failed pairs after which two groups are taken for different.
_PATIENCE_WITH_ONE = 2
# Groups of this size and more are joined by one link only where it is this far above what is needed.
_LARGE, _CLEARLY = 3, 0.1


def verify_pair(signatures: SignatureMap, pair: Pair, *, zoom: bool) -> Match | None:
    """Compare two slices pixel by pixel.

    Args:
        signatures: Of all slices.
        pair: Two numbers in it.
        zoom: Look for another scale. None is returned where the same scale fits best: that is compared without.
    """
    first, second = pair
    guess = guess_placement(signatures.read_spectrum(first), signatures.read_spectrum(second), zoom=zoom)
    if zoom and guess.zoom_rings == 0:
        return None
    return match_pictures(signatures.read_picture(first), signatures.read_picture(second), guess)


class Linker:
    """Groups of `count` items, joined by verified pairs.

    Attributes:
        links: The pairs that joined groups, with what was found, in that order.
        compared: Pairs that were verified.
    """

    def __init__(self, count: int) -> None:
        self.links: list[tuple[Pair, Match]] = []
        self.compared = 0
        self._parent = list(range(count))
        self._patience_a_member = 0
        self._size = [1] * count
        self._failed = [0] * count
        self._failed_with: list[Counter[int]] = [Counter() for _ in range(count)]
        self._first_links: dict[Pair, tuple[Pair, Match]] = {}

    def find_group(self, item: int) -> int:
        """The number of an item's group: the same for all its members."""
        while self._parent[item] != item:
            self._parent[item] = self._parent[self._parent[item]]
            item = self._parent[item]
        return item

    def link(
        self,
        pairs: npt.NDArray[np.integer],
        verify: Callable[[Pair], Match | None],
        pool: Executor,
        progress: Callable[[int, int], None] | None = None,
        *,
        patience_a_member: int,
    ) -> None:
        """Verify pairs in their order, except those that are in one group by then or in one that has failed enough.

        Within a batch, each group is in one pair only: so the result does not depend on the threads, and few pairs
        are verified that the batch itself makes needless.

        Args:
            pairs: (P, 2), the most promising first.
            verify: What a pair has in common, or None where it does not count; called from the pool's threads.
            pool: Where it is called.
            progress: Called as (pairs settled, pairs in all).
            patience_a_member: How many more failures a group may have for each member after its first. Failures of
                an earlier call do not count.
        """
        self._patience_a_member = patience_a_member
        self._failed = [0] * len(self._failed)
        self._failed_with = [Counter() for _ in self._failed_with]
        ahead: list[Pair] = []
        taken = 0
        while taken < len(pairs) or ahead:
            # As tuples only when their turn comes: millions of them would take many times the memory.
            fresh = [(one, other) for one, other in pairs[taken : taken + _LOOK_AHEAD - len(ahead)].tolist()]
            taken += len(fresh)
            batch, ahead = self._choose([*ahead, *fresh])
            for pair, match in zip(batch, pool.map(verify, batch), strict=True):
                self._settle(pair, match)
            if progress is not None:
                progress(taken - len(ahead), len(pairs))

    def _choose(self, waiting: Iterable[Pair]) -> tuple[list[Pair], list[Pair]]:
        """The next batch, and the pairs that must wait for its results."""
        batch: list[Pair] = []
        later: list[Pair] = []
        busy: set[int] = set()
        for pair in waiting:
            groups = self._find_groups(pair)
            if groups[0] == groups[1] or not self._has_patience(groups):
                continue
            if not busy.isdisjoint(groups) or len(batch) == _BATCH:
                later.append(pair)
            else:
                batch.append(pair)
                busy.update(groups)
        return batch, later

    def _find_groups(self, pair: Pair) -> Pair:
        one, other = self.find_group(pair[0]), self.find_group(pair[1])
        return (one, other) if one < other else (other, one)

    def _has_patience(self, groups: Pair) -> bool:
        return self._failed_with[groups[0]][groups[1]] < _PATIENCE_WITH_ONE and all(
            self._failed[group] < _PATIENCE + self._patience_a_member * (self._size[group] - 1)
            for group in groups
        )

    def _settle(self, pair: Pair, match: Match | None) -> None:
        self.compared += match is not None
        groups = one, other = self._find_groups(pair)
        if match is None or not match.is_copy:
            self._failed[one] += 1
            self._failed[other] += 1
            self._failed_with[one][other] += 1
            self._failed_with[other][one] += 1
            return
        found = [(pair, match)]
        large = min(self._size[one], self._size[other]) >= _LARGE
        if large and match.correlation < match.needed + _CLEARLY:
            # One wrong link would make two families of many one: a second pair has to agree.
            known = self._first_links.setdefault(groups, (pair, match))
            if known[0] == pair:
                return
            found = [known, *found]
        self.links += found
        self._join(one, other)

    def _join(self, one: int, other: int) -> None:
        self._parent[other] = one
        self._size[one] += self._size[other]
        self._failed[one] += self._failed[other]
        for third, times in self._failed_with[other].items():
            self._failed_with[one][third] += times
            self._failed_with[third][one] += times
            del self._failed_with[third][other]
        self._failed_with[other].clear()


# Which slices are copies of each other, from their pixels alone.
#
#     read ──▶ equal pixels ──▶ signatures ──▶ nearest neighbours ──▶ verified pairs ──▶ families
#              (exact)          (signatures)   (neighbours)           (verification)
#
# Names, ids, labels and splits play no part, nor does the order of the manifest: slices are taken in the order of a
# hash
# of their pixels. A copy may be rotated, flipped, sharpened, blurred, rescaled, recompressed, changed in brightness,
# contrast or gamma, equalised, or several of these. Neighbouring slices of a series are alike and are no copies.


# Called as (stage, done, in all); the stages are "read", then "compare" for copies of the same scale, then "zoom".
Progress = Callable[[str, int, int], None]

_READ_TOGETHER = 64
_MAX_WORKERS = 8
_KEY_SIZE = 64
_KEY_SAMPLE = 8192
_KEY_BLOCK = 4096
# Neighbours a tree and slice, and the distance of keys beyond which no copy has been seen (docs/log.md).
_NEIGHBOURS, _FARTHEST = 32, 0.5
# Members of a family differ in what is near them, so a large one may fail more often before it is left alone.
_PATIENCE_A_MEMBER = 2
_ZOOM_NEIGHBOURS, _ZOOM_FARTHEST = 4, 0.36


@dataclass(frozen=True)
class Link:
    """Two slices that were compared and found to be copies; `match.transform` leads from the first to the second."""

    first: str
    second: str
    match: Match


@dataclass(frozen=True)
class Family:
    """Slices that are copies of one slice.

    Attributes:
        slice_ids: Two and more, sorted.
        exact: Groups of two and more of them with equal pixels, whatever their files.
        links: What holds the others together, in the order found. In an exact group, the slice of the lowest id
            stands for all. A family that is one exact group has none.
    """

    slice_ids: tuple[str, ...]
    exact: tuple[tuple[str, ...], ...]
    links: tuple[Link, ...]


@dataclass(frozen=True)
class Families:
    """All copies in a manifest.

    Attributes:
        families: Sorted by their first slice id; no slice is in two.
        distinct: How many slices are left when each family counts once.
        skipped: (slice id, reason) of each slice that could not be read; it counts nowhere else.
        compared: How many pairs were verified pixel by pixel.
    """

    families: tuple[Family, ...]
    distinct: int
    skipped: tuple[tuple[str, str], ...]
    compared: int

    @cached_property
    def family_of(self) -> dict[str, int]:
        """The number of the family, from 0, of each slice that has copies."""
        return {
            slice_id: number for number, family in enumerate(self.families) for slice_id in family.slice_ids
        }


@dataclass(frozen=True, eq=False)
class _Read:
    """What reading left: `groups` are slice ids of equal pixels, `magnitudes` and `blank` their signatures."""

    groups: list[tuple[str, ...]]
    magnitudes: npt.NDArray[np.float16]
    blank: npt.NDArray[np.bool_]
    order: list[int]
    skipped: list[tuple[str, str]]


def find_copies(
    manifest: Manifest,
    *,
    workers: int | None = None,
    scratch: Path | None = None,
    progress: Progress | None = None,
) -> Families:
    """Group the slices of a manifest into families of copies.

    Time grows about linearly with the slices. Memory holds 2 KB a slice; pictures of 60 KB a slice go to a temporary
    file.

    Args:
        manifest: Any; only its paths and pixels are used.
        workers: Threads; None is one a CPU, 8 at most. The result does not depend on it.
        scratch: Folder for the temporary file; None is the system's.
        progress: Called as (stage, done, in all).

    Returns:
        The families; slices that cannot be read are listed and left out.

    Raises:
        OutputError: the temporary file cannot be written.
    """
    largest_px = min(
        PICTURE_PX, manifest.table.select(pl.max_horizontal("width_px", "height_px").max()).item()
    )
    with (
        _single_threaded_opencv(),
        SignatureStore(largest_px, scratch) as store,
        ThreadPoolExecutor(workers or min(count_cpus(), _MAX_WORKERS)) as pool,
    ):
        read = _read_all(manifest, store, pool, progress)
        linker = Linker(len(read.groups))
        if (~read.blank).sum() > 1:
            _link(read, store.open_map(), linker, pool, progress)
    return _make_families(read, linker)


def _read_all(
    manifest: Manifest, store: SignatureStore, pool: ThreadPoolExecutor, progress: Progress | None
) -> _Read:
    """Read every slice once; slices of equal pixels share the signature of the first of them."""

    def read(row: int) -> tuple[bytes, Signature] | str:
        try:
            pixels = np.asarray(manifest.read_row(row).pixels, np.uint8)  # files hold display values
        except ImageError as error:
            return error.what
        height, width = pixels.shape
        digest = hashlib.sha256(f"{height}x{width}".encode() + pixels.tobytes()).digest()
        return digest, make_signature(pixels)

    groups: dict[bytes, list[str]] = {}
    skipped: list[tuple[str, str]] = []
    blank: list[bool] = []
    slice_ids = manifest.slice_ids
    magnitudes = np.empty((len(slice_ids), RINGS, KEY_FREQUENCIES), np.float16)
    for start in range(0, len(slice_ids), _READ_TOGETHER):
        rows = range(start, min(start + _READ_TOGETHER, len(slice_ids)))
        for row, found in zip(rows, pool.map(read, rows), strict=True):
            if isinstance(found, str):
                skipped.append((slice_ids[row], found))
            elif found[0] in groups:
                groups[found[0]].append(slice_ids[row])
            else:
                digest, signature = found
                groups[digest] = [slice_ids[row]]
                store.append(signature)
                magnitudes[len(blank)] = compute_magnitudes(signature.spectrum)
                blank.append(signature.blank)
            if progress is not None:
                progress("read", row + 1, len(slice_ids))
    digests = list(groups)
    return _Read(
        groups=[tuple(sorted(groups[digest])) for digest in digests],
        magnitudes=magnitudes[: len(blank)],
        blank=np.array(blank, bool),
        order=sorted(range(len(digests)), key=digests.__getitem__),
        skipped=sorted(skipped),
    )


def _link(
    read: _Read,
    signatures: SignatureMap,
    linker: Linker,
    pool: ThreadPoolExecutor,
    progress: Progress | None,
) -> None:
    """Look for copies of the same scale, then for those of another one."""
    numbers = np.array([number for number in read.order if not read.blank[number]])
    for stage, pairs in _find_candidates(read.magnitudes, numbers):
        zoom = stage == "zoom"

        def verify(pair: tuple[int, int], zoom: bool = zoom) -> Match | None:
            return verify_pair(signatures, pair, zoom=zoom)

        def report(done: int, total: int, stage: str = stage) -> None:
            if progress is not None:
                progress(stage, done, total)

        # A family finds its like at its own scale through any of its members; one try is as good as another for zoom.
        patience = 0 if zoom else _PATIENCE_A_MEMBER
        linker.link(pairs, verify, pool, report, patience_a_member=patience)


def _find_candidates(
    magnitudes: npt.NDArray[np.float16], numbers: npt.NDArray[np.int64]
) -> Iterator[tuple[str, npt.NDArray[np.int32]]]:
    """Pairs (P, 2) of `numbers` with like keys, the nearest first: ("compare", ...), then ("zoom", ...)."""
    axes = _fit_axes(magnitudes, numbers)
    keys = _project(magnitudes, numbers, axes, 0)
    index = NeighbourIndex(keys)
    yield "compare", _sort_pairs([index.find_pairs(keys, _NEIGHBOURS, _FARTHEST)], numbers)
    zoomed = [
        index.find_pairs(_project(magnitudes, numbers, axes, rings), _ZOOM_NEIGHBOURS, _ZOOM_FARTHEST)
        for rings in range(1, MAX_ZOOM_RINGS + 1)
    ]
    yield "zoom", _sort_pairs(zoomed, numbers)


def _sort_pairs(
    found: list[tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]], numbers: npt.NDArray[np.int64]
) -> npt.NDArray[np.int32]:
    pairs, distances = (np.concatenate(part) for part in zip(*found, strict=True))
    order = np.lexsort((pairs[:, 1], pairs[:, 0], distances))
    return np.asarray(numbers.astype(np.int32)[pairs[order]])


def _fit_axes(magnitudes: npt.NDArray[np.float16], numbers: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    """The directions (D, k) along which the keys of a sample of the slices differ most."""
    sample = numbers[np.linspace(0, len(numbers) - 1, min(len(numbers), _KEY_SAMPLE)).astype(np.int64)]
    keys = compute_keys(magnitudes[sample]).astype(np.float64)
    keys -= keys.mean(axis=0)
    _, vectors = np.linalg.eigh(keys.T @ keys)
    return np.asarray(vectors[:, -_KEY_SIZE:], np.float32)


def _project(
    magnitudes: npt.NDArray[np.float16],
    numbers: npt.NDArray[np.int64],
    axes: npt.NDArray[np.float32],
    zoom_rings: int,
) -> npt.NDArray[np.float32]:
    blocks = [numbers[start : start + _KEY_BLOCK] for start in range(0, len(numbers), _KEY_BLOCK)]
    return np.concatenate([compute_keys(magnitudes[block], zoom_rings) @ axes for block in blocks])


def _make_families(read: _Read, linker: Linker) -> Families:
    members: dict[int, list[int]] = defaultdict(list)
    for number in range(len(read.groups)):
        members[linker.find_group(number)].append(number)
    links: dict[int, list[Link]] = defaultdict(list)
    for (first, second), match in linker.links:
        ends = read.groups[first][0], read.groups[second][0]
        links[linker.find_group(first)].append(Link(*ends, match))
    families = []
    for group, numbers in members.items():
        slice_ids = sorted(slice_id for number in numbers for slice_id in read.groups[number])
        if len(slice_ids) > 1:
            exact = sorted(read.groups[number] for number in numbers if len(read.groups[number]) > 1)
            families.append(Family(tuple(slice_ids), tuple(exact), tuple(links[group])))
    families.sort(key=lambda family: family.slice_ids)
    return Families(tuple(families), len(members), tuple(read.skipped), linker.compared)


@contextlib.contextmanager
def _single_threaded_opencv() -> Iterator[None]:
    # The slices are spread over threads already; OpenCV's own would only wait for each other.
    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(before)
