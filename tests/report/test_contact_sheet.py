"""The contact sheet: one row a slice, each picture in its own tile, whole or not at all."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from cspine.core.errors import OutputError
from cspine.report.pictures import TILE_PX, Pixels, draw_contact_sheet, draw_missed
from tests.report.builders import make_results

GREYS = (60, 120, 180, 220)  # raw, preprocessed, two variants


def make_plain(grey: int, height: int, width: int) -> Pixels:
    return np.full((height, width), grey, np.uint8)


def draw(path: Path, rows: int = 3) -> Path:
    before = [make_plain(GREYS[0], 512, 512) for _ in range(rows)]
    after = [[make_plain(grey, 64, 64) for grey in GREYS[1:]] for _ in range(rows)]
    return draw_contact_sheet(before, after, [f"slice {row}" for row in range(rows)], path)


def read(path: Path) -> Pixels:
    return np.asarray(cv2.imread(str(path), cv2.IMREAD_GRAYSCALE), dtype=np.uint8)


def test_each_row_is_a_slice_and_its_versions_in_equal_tiles(tmp_path: Path) -> None:
    sheet = read(draw(tmp_path / "sheet.png"))
    for grey in GREYS:
        assert np.count_nonzero(sheet == grey) >= 3 * TILE_PX**2
    places = [int(np.argmax((sheet == grey).sum(axis=0) > TILE_PX)) for grey in GREYS]
    assert places == sorted(places)
    assert len(set(np.diff(places))) == 1


def test_a_header_names_columns_and_rows_are_equally_high(tmp_path: Path) -> None:
    one, three = (read(draw(tmp_path / f"{rows}.png", rows)) for rows in (1, 3))
    assert one.shape[1] == three.shape[1]
    row_px = (three.shape[0] - one.shape[0]) // 2
    header_px = one.shape[0] - row_px
    assert row_px > TILE_PX
    assert header_px > 0
    # Ink above every column: the header says what stands below it.
    for place in range(len(GREYS)):
        left = place * (one.shape[1] // len(GREYS))
        assert one[:header_px, left : left + TILE_PX].min() < 128


def test_a_long_slice_keeps_its_shape(tmp_path: Path) -> None:
    path = draw_contact_sheet(
        [make_plain(200, 50, 200)], [[make_plain(90, 8, 8)]], ["long"], tmp_path / "s.png"
    )
    filled = read(path) == 200
    # Text has stray pixels of any grey; a row or column of the tile has many.
    assert (filled.sum(axis=1) >= TILE_PX).sum() == TILE_PX // 4
    assert (filled.sum(axis=0) >= TILE_PX // 4).sum() == TILE_PX


@pytest.mark.parametrize("shape", [(1, 1), (1, 3000), (3000, 1)])
def test_any_size_of_slice_fits(shape: tuple[int, int], tmp_path: Path) -> None:
    path = draw_contact_sheet(
        [make_plain(200, *shape)], [[make_plain(90, 8, 8)]], ["odd"], tmp_path / "s.png"
    )
    assert (read(path) == 200).any()


def test_the_same_slices_give_the_same_bytes(tmp_path: Path) -> None:
    assert draw(tmp_path / "a.png").read_bytes() == draw(tmp_path / "b.png").read_bytes()


def test_one_caption_a_slice(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="shorter"):
        draw_contact_sheet([make_plain(1, 8, 8)], [[make_plain(1, 8, 8)]], [], tmp_path / "s.png")
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_is_one_clear_message(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError):
        draw(tmp_path / "file" / "sheet.png")


def test_any_caption_can_be_written(tmp_path: Path) -> None:
    for caption in ("", "Größe 頸椎", "x" * 5000):
        draw_contact_sheet([make_plain(1, 8, 8)], [[make_plain(1, 8, 8)]], [caption], tmp_path / "s.png")


def test_missed_fractures_are_drawn_in_a_row_a_model(tmp_path: Path) -> None:
    results = make_results()
    missed = [sample for sample in results.samples if sample.outcome == "fn"]
    models = {sample.model for sample in missed}
    assert missed
    path = draw_missed(results, tmp_path / "missed.png")
    assert path is not None
    most = max(sum(sample.model == model for sample in missed) for model in models)
    height, width = read(path).shape
    assert width // TILE_PX == most
    assert height // len(models) >= TILE_PX


def test_nothing_missed_draws_nothing(tmp_path: Path) -> None:
    found = tuple(sample for sample in make_results().samples if sample.outcome != "fn")
    results = make_results().model_copy(update={"samples": found})
    assert draw_missed(results, tmp_path / "missed.png") is None
    assert list(tmp_path.iterdir()) == []
