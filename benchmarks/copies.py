"""How well and how fast are copies found, and how does the time grow with the set?

python benchmarks/copies.py manifest.parquet            # a manifest whose source_id says what is a copy of what
python benchmarks/copies.py --growth 1000 2000 4000     # drawn slices, a fifth of them copies
"""

from __future__ import annotations

import argparse
import hashlib
import resource
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Mapping
from pathlib import Path

import cv2
import numpy as np
import polars as pl

from cspine.auditing.copies import find_copies
from cspine.data.manifest import Manifest, complete_table, read_manifest
from cspine.phantom.patient import PhantomSettings, make_patient
from cspine.phantom.scanner import render_plane, to_display8

SIZE_PX = 224
COPY_EVERY = 5


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("manifest", nargs="?", type=Path)
    parser.add_argument("--growth", nargs="*", type=int, default=[], help="numbers of drawn slices")
    arguments = parser.parse_args()
    if arguments.manifest is not None:
        score_manifest(read_manifest(arguments.manifest))
    measure_growth(arguments.growth if arguments.growth or arguments.manifest else [500, 1000, 2000])


def score_manifest(manifest: Manifest) -> None:
    """Find the copies of a set whose source_id says what is a copy of what."""
    table = manifest.table
    truth = {
        slice_id: (source or slice_id, label)
        for slice_id, source, label in table.select("slice_id", "source_id", "label").iter_rows()
    }
    before, start = time.process_time(), time.perf_counter()
    family_of = find_copies(manifest).family_of
    wall_s, cpu_s = time.perf_counter() - start, time.process_time() - before
    groups = {slice_id: family_of.get(slice_id, slice_id) for slice_id in manifest.slice_ids}
    precision, recall, f1 = score_pairs(truth, groups)
    print(
        f"{len(table):,} slices, {len(set(truth.values())):,} sources: {wall_s:.1f} s ({cpu_s:.1f} s CPU); "
        f"pairs: precision {precision:.4f}, recall {recall:.4f}, F1 {f1:.4f}; {len(set(groups.values()))} groups"
    )


def score_pairs(truth: Mapping[str, Hashable], groups: Mapping[str, Hashable]) -> tuple[float, float, float]:
    """Pairwise precision, recall and F1 of a grouping."""

    def count_pairs(keys: Iterable[Hashable]) -> int:
        return sum(count * (count - 1) // 2 for count in Counter(keys).values())

    both = count_pairs((truth[name], groups[name]) for name in truth)
    found, real = count_pairs(groups.values()), count_pairs(truth.values())
    return both / max(found, 1), both / max(real, 1), 2 * both / max(found + real, 1)


def measure_growth(sizes: list[int]) -> None:
    if not sizes:
        return
    planes = draw_planes(40)
    per_slice: dict[int, float] = defaultdict(float)
    for size in sorted(sizes):
        with tempfile.TemporaryDirectory() as folder:
            manifest, truth = draw_set(Path(folder), planes, size)
            before, start = time.process_time(), time.perf_counter()
            found = find_copies(manifest)
            wall_s, cpu_s = time.perf_counter() - start, time.process_time() - before
        groups = {name: found.family_of.get(name, name) for name in truth}
        precision, recall, f1 = score_pairs(truth, groups)
        per_slice[size] = 1000 * cpu_s / size
        peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(
            f"{size:7,d} slices: {wall_s:7.1f} s, {cpu_s:7.1f} s CPU, {per_slice[size]:.1f} ms CPU a slice, "
            f"{found.compared / size:.2f} pairs verified a slice, peak {peak_mb:,.0f} MB; "
            f"precision {precision:.4f}, recall {recall:.4f}, F1 {f1:.4f}",
            flush=True,
        )
    first, last = min(per_slice), max(per_slice)
    print(
        f"from {first:,} to {last:,} slices the time of one grows by {per_slice[last] / per_slice[first]:.2f}"
    )


def draw_planes(count: int) -> list[np.ndarray]:
    """Planes of phantoms without noise, 3 mm apart, five a patient; (320, 320) float32 in display values."""
    settings = PhantomSettings(size_px=320, seed=5)
    still = {"size_px": 320, "follow_spine": False, "noise": False}
    drawn = [render_plane(make_patient(n // 5, settings), 3.0 * (n % 5), **still) for n in range(count)]
    return [to_display8(hu).astype(np.float32) for hu, _, _ in drawn]


def draw_set(folder: Path, planes: list[np.ndarray], size: int) -> tuple[Manifest, dict[str, str]]:
    """Slices of warped planes with noise of their own; every fifth is a turned, recompressed copy of the one before."""
    rows, truth = [], {}
    previous = np.zeros((SIZE_PX, SIZE_PX), np.uint8)
    for number in range(size):
        rng = np.random.default_rng([7, number])
        name = f"s{number:06d}"
        if number % COPY_EVERY == COPY_EVERY - 1:
            pixels, truth[name] = copy_slice(previous, rng), f"s{number - 1:06d}"
        else:
            pixels = previous = draw_slice(planes[int(rng.integers(len(planes)))], rng)
            truth[name] = name
        data = cv2.imencode(".png", pixels, [cv2.IMWRITE_PNG_COMPRESSION, 1])[1].tobytes()
        (folder / f"{name}.png").write_bytes(data)
        about = {
            "width_px": SIZE_PX,
            "height_px": SIZE_PX,
            "mode": "L",
            "bits_stored": 8,
            "channels_differ": False,
        }
        sha256 = hashlib.sha256(data).hexdigest()
        rows.append(
            {"slice_id": name, "path": f"{name}.png", **about, "file_bytes": len(data), "file_sha256": sha256}
        )
    return Manifest(complete_table(pl.DataFrame(rows)), folder, "drawn"), truth


def draw_slice(plane: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Another neck for each call: the plane bent by up to 6 px, moved, with noise of 3 to 8 grey levels."""
    field = cv2.resize(
        rng.normal(0, 6, (4, 4, 2)).astype(np.float32), (SIZE_PX, SIZE_PX), interpolation=cv2.INTER_CUBIC
    )
    y, x = np.mgrid[:SIZE_PX, :SIZE_PX].astype(np.float32)
    left, top = rng.uniform(30, 66, 2)
    moved = cv2.remap(
        plane, x + field[..., 0] + np.float32(left), y + field[..., 1] + np.float32(top), cv2.INTER_LINEAR
    )
    noise = cv2.GaussianBlur(rng.normal(0, 1, moved.shape).astype(np.float32), (0, 0), 0.6)
    return np.clip(np.rint(moved + rng.uniform(3, 8) / noise.std() * noise), 0, 255).astype(np.uint8)


def copy_slice(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    middle = (SIZE_PX - 1) / 2
    matrix = cv2.getRotationMatrix2D((middle, middle), float(rng.uniform(0, 360)), 1)
    turned = cv2.warpAffine(pixels, matrix, (SIZE_PX, SIZE_PX))
    return cv2.imdecode(cv2.imencode(".jpg", turned, [cv2.IMWRITE_JPEG_QUALITY, 85])[1], cv2.IMREAD_GRAYSCALE)


if __name__ == "__main__":
    sys.exit(main())
