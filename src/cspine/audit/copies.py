"""Which slices are copies of each other, from their pixels alone.

    read ──▶ equal pixels ──▶ signatures ──▶ nearest neighbours ──▶ verified pairs ──▶ families
             (exact)          (signatures)   (neighbours)           (verification)

Names, ids, labels and splits play no part, nor does the order of the manifest: slices are taken in the order of a hash
of their pixels. A copy may be rotated, flipped, sharpened, blurred, rescaled, recompressed, changed in brightness,
contrast or gamma, equalised, or several of these. Neighbouring slices of a series are alike and are no copies.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import polars as pl

from cspine.audit.linking import Linker, verify_pair
from cspine.audit.neighbours import NeighbourIndex
from cspine.audit.signatures import (
    KEY_FREQUENCIES,
    MAX_ZOOM_RINGS,
    PICTURE_PX,
    RINGS,
    Signature,
    compute_keys,
    compute_magnitudes,
    make_signature,
)
from cspine.audit.store import SignatureMap, SignatureStore
from cspine.audit.verification import Match
from cspine.data.manifest import Manifest
from cspine.errors import ImageError
from cspine.machine import count_cpus

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
