"""Copies are found from pixels alone, whatever was done to them; slices that are merely alike are not."""

from __future__ import annotations

import hashlib
import io
import os
import re
import tarfile
from collections import Counter
from collections.abc import Callable, Mapping
from math import comb
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import polars as pl
import pytest
from PIL import Image

from cspine.auditing.copies import Families, find_copies
from cspine.core.errors import OutputError
from cspine.data.images import read_image
from cspine.data.layouts import import_dataset
from cspine.data.manifest import Manifest, complete_table
from cspine.phantom.patient import PhantomSettings, make_patient
from cspine.phantom.scanner import render_plane, to_display8

DATA = Path(os.environ.get("CSPINE_DATA", Path(__file__).parents[3] / "shared" / "data"))
SIZE_PX = 224
HEIGHTS_MM = (0.0, 1.0, 2.0, 5.0)

Pixels = npt.NDArray[np.uint8]


def draw_slice(patient: int, z_mm: float, size_px: int = SIZE_PX, seed: int = 3) -> Pixels:
    settings = PhantomSettings(size_px=size_px, seed=seed)
    hu = render_plane(make_patient(patient, settings), z_mm, size_px=size_px, follow_spine=False)[0]
    return to_display8(hu)


@pytest.fixture(scope="module")
def necks() -> dict[str, Pixels]:
    """Four neighbours in each of three patients: no copies among them."""
    return {f"p{patient}-{z:.0f}": draw_slice(patient, z) for patient in range(3) for z in HEIGHTS_MM}


def write_set(folder: Path, slices: Mapping[str, Pixels], suffix: str = ".png") -> Manifest:
    """A manifest of unlabelled files, one for each slice, whose ids are the names."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, pixels in slices.items():
        assert cv2.imwrite(str(folder / f"{name}{suffix}"), pixels)
    return make_manifest(folder, {name: f"{name}{suffix}" for name in slices})


def make_manifest(folder: Path, paths: Mapping[str, str]) -> Manifest:
    rows = []
    for slice_id, path in paths.items():
        data = (folder / path).read_bytes()
        height, width = read_image(folder / path, slice_id=slice_id).pixels.shape
        about = {
            "width_px": width,
            "height_px": height,
            "mode": "L",
            "bits_stored": 8,
            "channels_differ": False,
        }
        sha256 = hashlib.sha256(data).hexdigest()
        rows.append(
            {"slice_id": slice_id, "path": path, **about, "file_bytes": len(data), "file_sha256": sha256}
        )
    return Manifest(complete_table(pl.DataFrame(rows)), folder, "test")


def list_families(found: Families) -> list[set[str]]:
    return [set(family.slice_ids) for family in found.families]


# What is done to copies ----------------------------------------------------------------------------------------------


def rotate(pixels: Pixels, degrees: float, border: int = cv2.BORDER_CONSTANT, zoom: float = 1.0) -> Pixels:
    height, width = pixels.shape
    matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), degrees, zoom)
    return np.asarray(cv2.warpAffine(pixels, matrix, (width, height), borderMode=border), np.uint8)


def rotate_and_crop(pixels: Pixels, degrees: float) -> Pixels:
    angle = np.radians(degrees)
    return rotate(pixels, degrees, zoom=float(abs(np.cos(angle)) + abs(np.sin(angle))))


def rotate_and_keep(pixels: Pixels, degrees: float) -> Pixels:
    """All of the slice in a larger frame, with black corners."""
    margin = round(0.21 * len(pixels))
    framed = cv2.copyMakeBorder(pixels, *[margin] * 4, cv2.BORDER_CONSTANT, value=0)
    return rotate(np.asarray(framed, np.uint8), degrees)


def flip(pixels: Pixels) -> Pixels:
    return np.ascontiguousarray(pixels[:, ::-1])


def sharpen(pixels: Pixels, amount: float = 1.5) -> Pixels:
    values = pixels.astype(np.float32)
    return to_uint8(values + amount * (values - cv2.GaussianBlur(values, (0, 0), 1.5)))


def smooth(pixels: Pixels, sigma_px: float) -> Pixels:
    return np.asarray(cv2.GaussianBlur(pixels, (0, 0), sigma_px), np.uint8)


def compress(pixels: Pixels, quality: int) -> Pixels:
    _, data = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, quality])
    return np.asarray(cv2.imdecode(data, cv2.IMREAD_GRAYSCALE), np.uint8)


def resize(pixels: Pixels, size_px: int) -> Pixels:
    return np.asarray(cv2.resize(pixels, (size_px, size_px), interpolation=cv2.INTER_AREA), np.uint8)


def brighten(pixels: Pixels, factor: float, offset: float) -> Pixels:
    return to_uint8(pixels.astype(np.float32) * factor + offset)


def bend(pixels: Pixels, gamma: float) -> Pixels:
    return to_uint8(255 * (pixels.astype(np.float32) / 255) ** gamma)


def equalise(pixels: Pixels) -> Pixels:
    return np.asarray(cv2.equalizeHist(pixels), np.uint8)


def to_uint8(values: npt.NDArray[np.floating]) -> Pixels:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


CHANGES: dict[str, Callable[[Pixels], Pixels]] = {
    "turned by 7": lambda pixels: rotate(pixels, 7),
    "turned by 131": lambda pixels: rotate(pixels, 131),
    "turned, reflected corners": lambda pixels: rotate(pixels, -38, cv2.BORDER_REFLECT_101),
    "turned and cropped": lambda pixels: rotate_and_crop(pixels, 24),
    "turned in a larger frame": lambda pixels: rotate_and_keep(pixels, 45),
    "flipped": flip,
    "upside down": lambda pixels: np.ascontiguousarray(pixels[::-1]),
    "sharpened": sharpen,
    "blurred": lambda pixels: smooth(pixels, 1.0),
    "jpeg 75": lambda pixels: compress(pixels, 75),
    "brighter": lambda pixels: brighten(pixels, 1.0, 35),
    "less contrast": lambda pixels: brighten(pixels, 0.6, 30),
    "more contrast": lambda pixels: brighten(pixels, 1.4, -30),
    "gamma 0.6": lambda pixels: bend(pixels, 0.6),
    "gamma 1.8": lambda pixels: bend(pixels, 1.8),
    "equalised": equalise,
    "turned twice": lambda pixels: rotate(rotate(pixels, 50), -17),
    "sharpened, turned": lambda pixels: rotate(sharpen(pixels), 100),
    "flipped, cropped, bent, jpeg": lambda pixels: compress(bend(rotate_and_crop(flip(pixels), 12), 0.8), 85),
    "equalised, turned, jpeg": lambda pixels: compress(rotate(equalise(pixels), 63), 85),
}


def test_every_change_is_seen_through_and_neighbours_stay_apart(
    tmp_path: Path, necks: dict[str, Pixels]
) -> None:
    slices = dict(necks)
    wanted: dict[str, str] = {}
    for number, (name, change) in enumerate(CHANGES.items()):
        source = list(necks)[number % len(necks)]
        slices[name.replace(" ", "_")] = change(necks[source])
        wanted[name.replace(" ", "_")] = source
    found = find_copies(write_set(tmp_path, slices))
    family_of = found.family_of
    missed = [name for name, source in wanted.items() if family_of.get(name, -1) != family_of.get(source, -2)]
    assert not missed
    for family in found.families:
        assert len({wanted.get(slice_id, slice_id) for slice_id in family.slice_ids}) == 1, family.slice_ids
    assert found.distinct == len(necks)


def test_a_smaller_copy_is_found(tmp_path: Path) -> None:
    large = {f"z{z:.0f}": draw_slice(1, z, size_px=512) for z in (0.0, 1.0)}
    small = {"small": resize(rotate(large["z1"], 20), 224)}
    assert list_families(find_copies(write_set(tmp_path, large | small))) == [{"z1", "small"}]


def test_a_turn_by_any_angle_is_seen_through(tmp_path: Path, necks: dict[str, Pixels]) -> None:
    """Angles apart from those above, right angles among them; each is a copy of one slice, its neighbours are none."""
    angles = (3, 33, 61, 90, 118, 149, 180, 205, 237, 270, 299, 341)
    turned = {f"t{angle}": rotate(necks["p0-0"], angle) for angle in angles}
    found = find_copies(write_set(tmp_path, {**necks, **turned}))
    assert list_families(found) == [{"p0-0", *turned}]


def test_names_of_files_play_no_part(tmp_path: Path, necks: dict[str, Pixels]) -> None:
    """What is named like a copy is none, and a copy may have any name."""
    slices = {
        "CSFDV1B10 (1)": necks["p0-0"],
        "CSFDV1B10 (1)-rotated1": necks["p1-0"],
        "another": rotate(necks["p0-0"], 15),
    }
    assert list_families(find_copies(write_set(tmp_path, slices))) == [{"CSFDV1B10 (1)", "another"}]


@pytest.mark.parametrize("spacing_mm", [1.0, 3.0])
def test_neighbours_and_other_patients_are_no_copies(tmp_path: Path, spacing_mm: float) -> None:
    slices = {
        f"p{patient}-{step}": draw_slice(patient, step * spacing_mm, seed=8)
        for patient in range(3)
        for step in range(5)
    }
    found = find_copies(write_set(tmp_path, slices))
    assert found.families == ()
    assert found.distinct == len(slices)
    assert found.family_of == {}


@pytest.mark.parametrize("size_px", [64, 96, 128])
def test_small_neighbours_are_no_copies(tmp_path: Path, size_px: int) -> None:
    slices = {f"z{step}": draw_slice(2, step * 1.0, size_px=size_px) for step in range(6)}
    assert find_copies(write_set(tmp_path, slices)).families == ()


def test_neighbours_that_were_all_smoothed_are_no_copies(tmp_path: Path, necks: dict[str, Pixels]) -> None:
    smoothed = {name: smooth(pixels, 1.5) for name, pixels in necks.items()}
    assert find_copies(write_set(tmp_path, smoothed)).families == ()


# Exact copies --------------------------------------------------------------------------------------------------------


def test_equal_pixels_are_exact_copies_whatever_the_file(tmp_path: Path, necks: dict[str, Pixels]) -> None:
    pixels = necks["p0-0"]
    manifest = write_set(tmp_path, {"grey": pixels, "other": necks["p1-0"]})
    Image.fromarray(pixels).convert("RGB").save(tmp_path / "colour.png")
    Image.fromarray(pixels).save(tmp_path / "grey.tiff")
    Image.fromarray(pixels.astype(np.uint16) * 257).save(tmp_path / "deep.png")
    paths = {name: f"{name}.png" for name in ("grey", "other", "colour", "deep")} | {"tiff": "grey.tiff"}
    manifest = make_manifest(tmp_path, paths)
    deep = pl.when(pl.col("slice_id") == "deep").then(16).otherwise(8).cast(pl.Int8)
    found = find_copies(manifest.with_table(manifest.table.with_columns(bits_stored=deep)))
    (family,) = found.families
    assert family.slice_ids == ("colour", "deep", "grey", "tiff")
    assert family.exact == (family.slice_ids,)
    assert family.links == ()
    assert found.compared <= 1


def test_a_family_names_its_exact_groups_and_what_links_the_rest(
    tmp_path: Path, necks: dict[str, Pixels]
) -> None:
    turned = rotate(necks["p1-0"], 30)
    slices = {"a": necks["p1-0"], "b": turned, "c": turned, "other": necks["p1-1"]}
    (family,) = find_copies(write_set(tmp_path, slices)).families
    assert family.slice_ids == ("a", "b", "c")
    assert family.exact == (("b", "c"),)
    (link,) = family.links
    assert {link.first, link.second} == {"a", "b"}
    assert link.match.needed <= link.match.correlation <= 1
    sign = 1 if link.first == "a" else -1
    assert link.match.transform.rotation_deg == pytest.approx(sign * 30, abs=0.2)
    assert not link.match.transform.flipped
    assert link.match.transform.zoom == pytest.approx(1, abs=0.005)
    assert link.match.transform.shift == pytest.approx((0, 0), abs=0.003)


def test_the_link_says_how_a_flipped_and_magnified_copy_was_made(
    tmp_path: Path, necks: dict[str, Pixels]
) -> None:
    slices = {"a": necks["p2-0"], "b": rotate(flip(necks["p2-0"]), 75, zoom=1.3)}
    ((link,),) = (family.links for family in find_copies(write_set(tmp_path, slices)).families)
    forward = link.first == "a"
    assert link.match.transform.flipped
    assert link.match.transform.zoom == pytest.approx(1.3 if forward else 1 / 1.3, rel=0.01)
    # Undoing "flip, then turn" is a flip and the same turn.
    assert link.match.transform.rotation_deg == pytest.approx(75, abs=0.5)


def test_blank_slices_are_copies_only_where_pixels_are_equal(tmp_path: Path) -> None:
    blank = {name: np.full((64, 64), level, np.uint8) for name, level in (("a", 0), ("b", 0), ("c", 9))}
    assert list_families(find_copies(write_set(tmp_path, blank))) == [{"a", "b"}]


# The way it runs -----------------------------------------------------------------------------------------------------


def test_order_workers_and_labels_change_nothing(tmp_path: Path, necks: dict[str, Pixels]) -> None:
    slices = dict(necks)
    for name in ("p0-0", "p0-1", "p1-5"):
        slices |= {f"{name}-t": rotate(necks[name], 80), f"{name}-f": sharpen(flip(necks[name]))}
    manifest = write_set(tmp_path, slices)
    first = find_copies(manifest, workers=1)
    assert len(first.families) == 3
    for seed, workers in ((1, 2), (2, 3)):
        table = manifest.table.sample(fraction=1, shuffle=True, seed=seed)
        labels = pl.Series("label", np.arange(len(table)) % 2, dtype=pl.Int8)
        assert find_copies(manifest.with_table(table.with_columns(labels)), workers=workers) == first


def test_slices_that_cannot_be_read_are_skipped_and_listed(tmp_path: Path, necks: dict[str, Pixels]) -> None:
    slices = {"a": necks["p0-0"], "b": flip(necks["p0-0"]), "gone": necks["p0-1"], "changed": necks["p0-2"]}
    manifest = write_set(tmp_path, slices)
    (tmp_path / "gone.png").unlink()
    (tmp_path / "changed.png").write_bytes((tmp_path / "a.png").read_bytes())
    found = find_copies(manifest)
    assert list_families(found) == [{"a", "b"}]
    assert found.distinct == 1
    assert [slice_id for slice_id, _ in found.skipped] == ["changed", "gone"]
    assert "no such file" in dict(found.skipped)["gone"]


def test_a_set_of_which_nothing_can_be_read_has_no_families(tmp_path: Path, necks: dict[str, Pixels]) -> None:
    manifest = write_set(tmp_path, {"a": necks["p0-0"]})
    (tmp_path / "a.png").unlink()
    found = find_copies(manifest)
    assert (found.families, found.distinct, len(found.skipped)) == ((), 0, 1)


def test_progress_counts_up_to_the_end_of_each_stage(tmp_path: Path, necks: dict[str, Pixels]) -> None:
    calls: list[tuple[str, int, int]] = []
    slices = {name: necks[name] for name in ("p0-0", "p0-1", "p1-0")}
    find_copies(write_set(tmp_path, slices), progress=lambda *call: calls.append(call))
    stages = [stage for stage, _, _ in calls]
    assert sorted(set(stages), key=stages.index)[:2] == ["read", "compare"]
    assert [call for call in calls if call[0] == "read"] == [("read", done, 3) for done in (1, 2, 3)]
    for stage in set(stages):
        done = [(at, total) for name, at, total in calls if name == stage]
        assert done == sorted(done)
        assert done[-1][0] == done[-1][1]


def test_a_missing_scratch_folder_is_named(tmp_path: Path, necks: dict[str, Pixels]) -> None:
    manifest = write_set(tmp_path, {"a": necks["p0-0"]})
    with pytest.raises(OutputError, match="nowhere"):
        find_copies(manifest, scratch=tmp_path / "nowhere")


# The real set --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_copies_of_two_series_of_the_kaggle_set_are_found(tmp_path: Path) -> None:
    """B10 and B13; the limits were set on B12. Slices (15) and (15)_1 of B13 are equal, whatever their names say."""
    archive = DATA / "kaggle-cspine.tar"
    if not archive.is_file():
        pytest.skip(f"no {archive.name} in {DATA.name}; name its folder in CSPINE_DATA")
    with tarfile.open(archive) as members:
        for member in members:
            if not re.search(r"CSFDV1B1[03] .*webp$", member.name):
                continue
            path = tmp_path / "set" / re.sub(r"\.(L|RGB)\.webp$", ".png", member.name)
            path.parent.mkdir(parents=True, exist_ok=True)
            file = members.extractfile(member)
            assert file is not None
            image = Image.open(io.BytesIO(file.read()))
            image.convert("L" if ".L." in member.name else "RGB").save(path, compress_level=1)
    manifest, _ = import_dataset(tmp_path / "set")
    found = find_copies(manifest)
    rows = manifest.table.select("slice_id", "label", "source_id", "split").iter_rows()
    about = {slice_id: (label, source.removesuffix("_1"), split) for slice_id, label, source, split in rows}
    sources = [{about[slice_id][:2] for slice_id in family.slice_ids} for family in found.families]
    assert all(len(source) == 1 for source in sources)
    # No family is wrong, so precision is 1; recall is the part of the true pairs that is within families.
    in_families = sum(comb(len(family.slice_ids), 2) for family in found.families)
    in_sources = sum(comb(count, 2) for count in Counter(one[:2] for one in about.values()).values())
    assert in_families / in_sources > 0.98
    straddling = {
        next(iter(source))
        for source, family in zip(sources, found.families, strict=True)
        if len({about[slice_id][2] for slice_id in family.slice_ids}) > 1
    }
    assert straddling == {(1, "CSFDV1B10 (18)"), (0, "CSFDV1B10 (109)")}
