"""The slice cache: every slice decoded and preprocessed once, then read from a memory-mapped file.

    folder/<manifest.pixel_hash>-<recipe.pixel_hash>/
        pixels.npy    (N, H, W) uint8, or (N, channels, H, W) where the recipe makes several
        index.json    the slice id of each row, in sorted order

The name says what is inside, so a cache is never stale: another file, depth or pixel step is another folder;
another label, split or scaling is not. While it is built it is called `....partial` and counts its finished
rows, so that a build that was interrupted goes on where it stopped. A lock lets one process build and the
others wait for it.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
from filelock import FileLock

from cspine.core.errors import ManifestError, OutputError
from cspine.core.files import explain_os_error, write_json
from cspine.core.machine import count_cpus
from cspine.data.manifest import Manifest
from cspine.preprocess import Recipe

Progress = Callable[[int, int], None]

_FORMAT = 1
_ROWS_PER_WORKER = 64
_MAX_WORKERS = 8


@dataclass(frozen=True, eq=False)
class SliceCache:
    """All slices of a manifest as one recipe leaves them.

    Attributes:
        pixels: (N, H, W) or (N, channels, H, W) uint8, memory-mapped and read-only; rows are in the order of
            `slice_ids`.
        slice_ids: Sorted, whatever the order of the manifest's rows.
        folder: Where it lies.
        shown_channel: Of several channels the one that stands for the slice in a picture.
    """

    pixels: npt.NDArray[np.uint8]
    slice_ids: tuple[str, ...]
    folder: Path
    shown_channel: int = 0

    def __len__(self) -> int:
        return len(self.slice_ids)

    @cached_property
    def _row_of(self) -> dict[str, int]:
        return {slice_id: row for row, slice_id in enumerate(self.slice_ids)}

    def rows(self, slice_ids: Sequence[str]) -> npt.NDArray[np.int64]:
        """The row of each slice id, in the order given.

        Raises:
            ManifestError: a slice is not in the cache.
        """
        try:
            return np.array([self._row_of[slice_id] for slice_id in slice_ids], dtype=np.int64)
        except KeyError as error:
            raise ManifestError(
                "the cache has no such slice", where=str(error.args[0]), fix="open it with the whole manifest"
            ) from None

    def as_pictures(self) -> SliceCache:
        """The same slices as one picture each: (N, H, W), still memory-mapped."""
        return self if self.pixels.ndim == 3 else replace(self, pixels=self.pixels[:, self.shown_channel])

    def read(self, slice_ids: Sequence[str]) -> npt.NDArray[np.uint8]:
        """Copy some slices into memory: (n, [channels,] H, W) uint8, in the order given; errors as for `rows`."""
        return np.asarray(self.pixels[self.rows(slice_ids)])


def open_cache(
    manifest: Manifest,
    recipe: Recipe,
    folder: Path,
    *,
    workers: int | None = None,
    progress: Progress | None = None,
) -> SliceCache:
    """Open the cache of a manifest and recipe; build it first where there is none, or a damaged one.

    Args:
        manifest: The whole one, so that all its splits share the cache.
        recipe: Its pixel steps; `recipe.scale` is not part of a cache.
        folder: Where caches lie; one folder is made in it for each.
        workers: Threads that decode; None is one a CPU, 8 at most.
        progress: Called as (slices done, slices in all) while it is built, and not when it is only opened.

    Raises:
        ManifestError: files of the manifest are missing.
        ImageError: a file cannot be read, or has changed since it was imported.
        RecipeError: the recipe is for Hounsfield units and the slices are pictures, or the other way round.
        OutputError: the disk is too full, or the folder cannot be written.
    """
    recipe.check_domain(manifest.domain, str(manifest.root))
    target = Path(folder) / f"{manifest.pixel_hash}-{recipe.pixel_hash}"
    index = _make_index(manifest, recipe)
    if cache := _open_finished(target, index, recipe.shown_channel):
        return cache
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(target.with_name(f"{target.name}.lock")):
            if not (cache := _open_finished(target, index, recipe.shown_channel)):
                cache = _build(
                    manifest, recipe, target, index, workers or min(count_cpus(), _MAX_WORKERS), progress
                )
            return cache
    except OSError as error:
        raise explain_os_error(error, target) from error


def _make_index(manifest: Manifest, recipe: Recipe) -> dict[str, Any]:
    return {
        "format": _FORMAT,
        "manifest_pixel_hash": manifest.pixel_hash,
        "recipe_pixel_hash": recipe.pixel_hash,
        "shape": [len(manifest), *recipe.shape],
        "slice_ids": sorted(manifest.slice_ids),
    }


def _open_finished(target: Path, index: dict[str, Any], shown_channel: int) -> SliceCache | None:
    """The cache at `target`, or None where there is none or a damaged one."""
    if _read_json(target / "index.json") != index:
        return None
    try:
        pixels = np.load(target / "pixels.npy", mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    if list(pixels.shape) != index["shape"] or pixels.dtype != np.uint8:
        return None
    return SliceCache(pixels, tuple(index["slice_ids"]), target, shown_channel)


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _build(
    manifest: Manifest,
    recipe: Recipe,
    target: Path,
    index: dict[str, Any],
    workers: int,
    progress: Progress | None,
) -> SliceCache:
    manifest.verify_files()
    partial = target.with_name(f"{target.name}.partial")
    done = _count_done(partial, index)
    _check_disk(target, index, done)
    with _remove_on_error(partial):
        if done == 0:
            _start(partial, index)
        _write_rows(manifest, recipe, partial, index, done, workers, progress)
        (partial / "done.json").unlink()
        if target.exists():
            shutil.rmtree(target)  # the damaged one
        partial.replace(target)
    cache = _open_finished(target, index, recipe.shown_channel)
    if cache is None:
        raise OutputError("the cache cannot be read back", where=str(target), fix="check the disk")
    return cache


def _count_done(partial: Path, index: dict[str, Any]) -> int:
    """How many rows of an interrupted build can be kept."""
    done = _read_json(partial / "done.json")
    total, *shape = index["shape"]
    if _read_json(partial / "index.json") != index or not isinstance(done, int) or not 0 < done <= total:
        return 0
    wanted = len(_make_header(index)) + done * int(np.prod(shape))
    pixels = partial / "pixels.npy"
    return done if pixels.is_file() and pixels.stat().st_size >= wanted else 0


def _start(partial: Path, index: dict[str, Any]) -> None:
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    write_json(partial / "index.json", index)
    (partial / "pixels.npy").write_bytes(_make_header(index))


def _make_header(index: dict[str, Any]) -> bytes:
    """The `.npy` header of the whole array."""
    buffer = BytesIO()
    header = {"descr": "|u1", "fortran_order": False, "shape": tuple(index["shape"])}
    np.lib.format.write_array_header_1_0(buffer, header)
    return buffer.getvalue()


def _check_disk(target: Path, index: dict[str, Any], done: int) -> None:
    total, *shape = index["shape"]
    needed = (total - done) * int(np.prod(shape))
    free = shutil.disk_usage(target.parent).free
    if needed > free:
        raise OutputError(
            f"the cache needs {needed / 2**20:,.0f} MiB more and the disk has {free / 2**20:,.0f} MiB free",
            where=str(target),
            fix="free some space, or name another cache folder",
        )


@contextlib.contextmanager
def _remove_on_error(partial: Path) -> Iterator[None]:
    """An error would come back, so the partial build is removed; after Ctrl-C or a kill it is kept."""
    try:
        yield
    except Exception:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _write_rows(
    manifest: Manifest,
    recipe: Recipe,
    partial: Path,
    index: dict[str, Any],
    done: int,
    workers: int,
    progress: Progress | None,
) -> None:
    """Decode from row `done` on and append to the partial file.

    Rows are written through a file and not through a memory map: on a full disk a map ends the process
    (SIGBUS), a file raises. Threads, not processes: on the Kaggle set (4,200 files, 2 cores) one thread took
    6.7 s, two took 4.2 s and two spawned processes 3.6 s; too little gain for processes, which need a guarded
    `__main__` in every script that opens a cache.
    """
    row_in_table = {slice_id: row for row, slice_id in enumerate(manifest.slice_ids)}
    total = len(manifest)

    def make(slice_id: str) -> npt.NDArray[np.uint8]:
        return recipe.apply(manifest.read_row(row_in_table[slice_id], recipe.offsets_mm))

    with open(partial / "pixels.npy", "r+b") as file, ThreadPoolExecutor(workers) as pool:
        file.seek(len(_make_header(index)) + done * int(np.prod(recipe.shape)))
        while done < total:
            batch = index["slice_ids"][done : done + workers * _ROWS_PER_WORKER]
            for pixels in pool.map(make, batch):
                file.write(pixels.data)
                done += 1
                if progress is not None:
                    progress(done, total)
            _sync(file)
            write_json(partial / "done.json", done)
        file.truncate()


def _sync(file: BinaryIO) -> None:
    # The count of finished rows must not reach the disk before the rows do.
    file.flush()
    os.fsync(file.fileno())
