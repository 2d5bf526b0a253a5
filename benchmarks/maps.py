"""Which maps point at fractures? Settings of Grad-CAM and occlusion on the same slices of a set with masks or boxes.

    python benchmarks/maps.py folds/holdout.parquet runs/m/checkpoint.safetensors --split test --slices 40 --seed 0

Prints a Markdown table: the share of peaks inside with its interval over patients, and the time of a slice.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np

from cspine.comparison.explaining import choose_slices, find_ground
from cspine.data.manifest import Manifest, read_manifest
from cspine.data.regions import Regions
from cspine.explain.maps import Explainer
from cspine.explain.pointing import SlicePointing, evaluate_pointing, score_slice
from cspine.inference.predictor import Predictor
from cspine.metrics.intervals import IntervalOptions
from cspine.report.text import format_estimate

CELLS, GRIDS = (1, 6, 7), (8, 12, 16)


def score(
    explainer: Explainer, manifest: Manifest, regions: Regions, slice_ids: list[str]
) -> tuple[dict[str, SlicePointing], float]:
    """Scores by slice, and seconds a slice for its map alone."""
    recipe, scores, seconds = explainer.recipe, {}, 0.0
    for slice_id in slice_ids:
        item, region = manifest.read_slice(slice_id, recipe.offsets_mm), regions.read(slice_id)
        pixels, placement = recipe.apply(item)[np.newaxis], recipe.locate(item)
        began = time.perf_counter()
        heat = explainer.explain_pixels(pixels)[0]
        seconds += time.perf_counter() - began
        if region is not None and region.mask.any():
            ground = find_ground(item, placement)
            scores[slice_id] = score_slice(placement.bring_back(heat), region.mask, ground, item.spacing_mm)
    return scores, seconds / len(slice_ids)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("manifest", nargs="?", type=Path)
    parser.add_argument("checkpoint", nargs="?", type=Path)
    parser.add_argument("--split", default="test")
    parser.add_argument("--slices", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    if asked.manifest is None or asked.checkpoint is None:
        print("needs a set whose fractures have known places, and a checkpoint: see the head of this file")
        return
    predictor = Predictor.load(asked.checkpoint)
    manifest = read_manifest(asked.manifest).select(asked.split)
    regions = Regions(manifest)
    slice_ids, known = choose_slices(manifest, regions, asked.slices, asked.seed)
    if not known:
        parser.error("no slice with a fracture has a mask or boxes")
    model, recipe = predictor.model, predictor.recipe
    explainers = [Explainer(model, recipe, "gradcam", fewest_cells=cells) for cells in CELLS]
    explainers += [Explainer(model, recipe, "occlusion", grid=grid) for grid in GRIDS]
    print("| maps | peak inside | share inside | chance | middle of the body | s a slice |")
    print("| --- | --- | --- | --- | --- | --- |")
    for explainer in explainers:
        scores, seconds = score(explainer, manifest, regions, slice_ids)
        found = {
            one.name: one
            for one in evaluate_pointing(
                scores, manifest.table, options=IntervalOptions(1000, asked.seed)
            ).measures
        }
        hit, energy = found["hit"], found["energy"]
        cells = [format_estimate(one) for one in (hit.found, energy.found, hit.chance, hit.centre)]
        print(f"| {explainer.describe()} | {' | '.join(cells)} | {seconds:.3f} |", flush=True)


if __name__ == "__main__":
    main()
