"""The cache holds what the recipe makes of every slice, goes on after interruption, and leaves nothing half done."""

from __future__ import annotations

import errno
import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from cspine.core.errors import ImageError, ManifestError, OutputError, RecipeError
from cspine.data import cache as cache_module
from cspine.data.cache import SliceCache, open_cache
from cspine.data.layouts import import_dataset
from cspine.data.manifest import Manifest, write_manifest
from cspine.preprocess import Equalise, Recipe, Resize, Scale, Window

RECIPE = Recipe(steps=(Equalise(), Resize(height_px=24, width_px=32)))
SLICES = 10


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    generator = np.random.default_rng(0)
    for index in range(SLICES):
        path = (
            tmp_path
            / "set"
            / ("train", "val")[index % 4 // 2]
            / ("fracture", "normal")[index % 2]
            / f"{index}.png"
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (20, 30), dtype=np.uint8)).save(path)
    return import_dataset(tmp_path / "set")[0]


def expect_pixels(manifest: Manifest, slice_ids: list[str]) -> np.ndarray:
    return np.stack([RECIPE.apply(manifest.read_slice(slice_id)) for slice_id in slice_ids])


def assert_right(cache: SliceCache, manifest: Manifest) -> None:
    assert list(cache.slice_ids) == sorted(manifest.slice_ids)
    assert np.array_equal(cache.pixels, expect_pixels(manifest, list(cache.slice_ids)))


def test_every_row_is_what_the_recipe_makes_of_the_slice(manifest: Manifest, tmp_path: Path) -> None:
    cache = open_cache(manifest, RECIPE, tmp_path / "caches")
    assert cache.pixels.shape == (len(cache), 24, 32) == (SLICES, 24, 32)
    assert cache.pixels.dtype == np.uint8
    assert_right(cache, manifest)
    assert cache.folder == tmp_path / "caches" / f"{manifest.pixel_hash}-{RECIPE.pixel_hash}"


@given(st.lists(hnp.arrays(np.uint8, (18, 17)), min_size=1, max_size=3))
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_the_cache_equals_the_recipe_for_any_slice(
    tmp_path_factory: pytest.TempPathFactory, slices: list[np.ndarray]
) -> None:
    root = tmp_path_factory.mktemp("any")
    for name in ("fracture", "normal"):
        (root / name).mkdir()
        for index, pixels in enumerate(slices):
            Image.fromarray(pixels).save(root / name / f"{index}.png")
    manifest, _ = import_dataset(root)
    assert_right(open_cache(manifest, RECIPE, root / "caches", workers=1), manifest)


def test_rows_and_slices_come_in_the_order_asked_for(manifest: Manifest, tmp_path: Path) -> None:
    cache = open_cache(manifest, RECIPE, tmp_path / "caches")
    wanted = [*manifest.slice_ids[::-1], manifest.slice_ids[3]]
    rows = cache.rows(wanted)
    assert rows.dtype == np.int64
    assert [cache.slice_ids[row] for row in rows] == wanted
    assert np.array_equal(cache.read(wanted), expect_pixels(manifest, wanted))
    assert cache.read([]).shape == (0, 24, 32)
    with pytest.raises(ManifestError, match="no such slice"):
        cache.rows(["nobody"])


def test_the_pixels_are_mapped_and_cannot_be_changed(manifest: Manifest, tmp_path: Path) -> None:
    cache = open_cache(manifest, RECIPE, tmp_path / "caches")
    assert isinstance(cache.pixels, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        cache.pixels[0, 0, 0] = 1
    cache.read(manifest.slice_ids[:1])[0, 0, 0] = 1  # a copy, which can


def test_a_second_call_opens_without_reading_an_image(manifest: Manifest, tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []

    def progress(done: int, total: int) -> None:
        calls.append((done, total))

    open_cache(manifest, RECIPE, tmp_path / "caches", progress=progress)
    assert calls == [(done, SLICES) for done in range(1, SLICES + 1)]
    shutil.rmtree(manifest.root)
    again = open_cache(manifest, RECIPE, tmp_path / "caches", progress=progress)
    assert len(calls) == SLICES
    assert len(again) == SLICES


def test_only_pixel_steps_need_a_cache_of_their_own(manifest: Manifest, tmp_path: Path) -> None:
    first = open_cache(manifest, RECIPE, tmp_path / "caches")
    other = manifest.with_table(
        manifest.table.reverse().with_columns(split=None, label=None).cast(manifest.table.schema)
    )
    scaled = RECIPE.model_copy(update={"scale": Scale(mean=(0.5,), std=(0.5,))})
    assert open_cache(other, scaled, tmp_path / "caches").folder == first.folder
    larger = Recipe(steps=(Equalise(), Resize(height_px=48, width_px=48)))
    assert open_cache(manifest, larger, tmp_path / "caches").folder != first.folder


@pytest.mark.parametrize("workers", [1, 3])
def test_small_batches_and_any_number_of_threads_give_the_same(
    manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    monkeypatch.setattr(cache_module, "_ROWS_PER_WORKER", 2)
    assert_right(open_cache(manifest, RECIPE, tmp_path / "caches", workers=workers), manifest)


# Interruption and damage ---------------------------------------------------------------------------------------------


def interrupt_at(count: int) -> Callable[[int, int], None]:
    def progress(done: int, total: int) -> None:
        if done == count:
            raise KeyboardInterrupt

    return progress


def test_an_interrupted_build_goes_on_where_it_stopped(
    manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_module, "_ROWS_PER_WORKER", 2)
    with pytest.raises(KeyboardInterrupt):
        open_cache(manifest, RECIPE, tmp_path / "caches", workers=1, progress=interrupt_at(7))
    assert not any(path.suffix == "" and path.is_dir() for path in (tmp_path / "caches").iterdir())
    calls: list[int] = []
    cache = open_cache(
        manifest, RECIPE, tmp_path / "caches", workers=1, progress=lambda done, _: calls.append(done)
    )
    assert calls == [7, 8, 9, 10]
    assert_right(cache, manifest)
    assert sorted(path.name for path in cache.folder.iterdir()) == ["index.json", "pixels.npy"]


def test_a_build_that_was_killed_goes_on(manifest: Manifest, tmp_path: Path) -> None:
    path = write_manifest(manifest, tmp_path / "m.parquet")
    code = f"""
import os
from pathlib import Path
from cspine.data import cache
from cspine.data.manifest import read_manifest
from cspine.preprocess import Recipe
cache._ROWS_PER_WORKER = 3
recipe = Recipe.model_validate_json({RECIPE.model_dump_json()!r})
stop = lambda done, total: os._exit(9) if done == 8 else None
manifest = read_manifest(Path({str(path)!r}))
cache.open_cache(manifest, recipe, Path({str(tmp_path / "caches")!r}), workers=1, progress=stop)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 9
    calls: list[int] = []
    cache = open_cache(manifest, RECIPE, tmp_path / "caches", progress=lambda done, _: calls.append(done))
    assert calls == [7, 8, 9, 10]
    assert_right(cache, manifest)


@pytest.mark.parametrize("damage", ["pixels.npy", "done.json", "index.json"])
def test_a_damaged_partial_build_starts_again(
    manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    monkeypatch.setattr(cache_module, "_ROWS_PER_WORKER", 2)
    with pytest.raises(KeyboardInterrupt):
        open_cache(manifest, RECIPE, tmp_path / "caches", workers=1, progress=interrupt_at(7))
    (partial,) = (tmp_path / "caches").glob("*.partial")
    (partial / damage).write_bytes(b"{")
    assert_right(open_cache(manifest, RECIPE, tmp_path / "caches"), manifest)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def forget_slice(path: Path) -> None:
    index = json.loads(path.read_text())
    index["slice_ids"].reverse()
    path.write_text(json.dumps(index))


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("pixels.npy", cut),
        ("pixels.npy", Path.unlink),
        ("pixels.npy", lambda path: path.write_bytes(b"")),
        ("pixels.npy", lambda path: np.save(path, np.zeros((2, 24, 32), np.uint8))),
        ("pixels.npy", lambda path: np.save(path, np.zeros((SLICES, 24, 32), np.float32))),
        ("index.json", Path.unlink),
        ("index.json", cut),
        ("index.json", forget_slice),
    ],
)
def test_a_damaged_cache_is_built_again(
    manifest: Manifest, tmp_path: Path, name: str, damage: Callable[[Path], Any]
) -> None:
    folder = open_cache(manifest, RECIPE, tmp_path / "caches").folder
    damage(folder / name)
    assert_right(open_cache(manifest, RECIPE, tmp_path / "caches"), manifest)


def test_of_two_that_build_at_once_one_waits_for_the_other(manifest: Manifest, tmp_path: Path) -> None:
    started = threading.Event()
    calls: list[str] = []
    caches: list[SliceCache] = []

    def build(name: str) -> None:
        def progress(done: int, total: int) -> None:
            calls.append(name)
            started.set()

        caches.append(open_cache(manifest, RECIPE, tmp_path / "caches", workers=1, progress=progress))

    threads = [threading.Thread(target=build, args=(name,)) for name in ("a", "b")]
    threads[0].start()
    started.wait(timeout=10)
    threads[1].start()
    for thread in threads:
        thread.join(timeout=20)
    assert calls == ["a"] * SLICES
    assert len(caches) == 2
    for cache in caches:
        assert_right(cache, manifest)


# What cannot work ----------------------------------------------------------------------------------------------------


def list_left(folder: Path) -> list[str]:
    """What lies in the cache folder, but for locks, which hold nothing."""
    return [path.name for path in folder.iterdir() if path.suffix != ".lock"]


def test_a_file_damaged_since_the_import_is_named(manifest: Manifest, tmp_path: Path) -> None:
    (manifest.root / manifest.slice_ids[5]).write_bytes(b"")
    with pytest.raises(ImageError, match="empty file") as caught:
        open_cache(manifest, RECIPE, tmp_path / "caches")
    assert caught.value.where == str(manifest.root / manifest.slice_ids[5])
    assert list_left(tmp_path / "caches") == []


def test_missing_files_are_counted_before_anything_is_built(manifest: Manifest, tmp_path: Path) -> None:
    (manifest.root / manifest.slice_ids[5]).unlink()
    with pytest.raises(ManifestError, match="1 of 10 files are missing"):
        open_cache(manifest, RECIPE, tmp_path / "caches")
    assert list_left(tmp_path / "caches") == []


def test_a_recipe_for_hounsfield_units_is_refused(manifest: Manifest, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="Hounsfield units"):
        open_cache(manifest, Recipe(steps=(Window(), Resize())), tmp_path / "caches")
    assert not (tmp_path / "caches").exists()


def test_too_little_space_is_said_before_anything_is_built(
    manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=SLICES * 24 * 32 - 1)
    monkeypatch.setattr(cache_module.shutil, "disk_usage", lambda _: usage)
    calls: list[int] = []
    with pytest.raises(OutputError, match="MiB more and the disk has"):
        open_cache(manifest, RECIPE, tmp_path / "caches", progress=lambda done, _: calls.append(done))
    assert calls == []
    assert list_left(tmp_path / "caches") == []


def test_a_disk_that_fills_while_building_leaves_nothing(
    manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(cache_module.os, "fsync", fail)
    with pytest.raises(OutputError, match="the disk is full"):
        open_cache(manifest, RECIPE, tmp_path / "caches")
    assert list_left(tmp_path / "caches") == []


def test_a_folder_that_cannot_be_made_is_refused(manifest: Manifest, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="cannot write"):
        open_cache(manifest, RECIPE, tmp_path / "file")
