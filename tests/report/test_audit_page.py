"""The page of an audit: every family is a row of pictures, what is found is shown, and names of files are only text."""

from __future__ import annotations

import base64
import re
from html import unescape

import cv2
import numpy as np
import numpy.typing as npt
import pytest

from cspine.auditing.audit import audit_manifest
from cspine.data.layouts import import_dataset
from cspine.report.audit_page import MAX_IN_ROW, THUMBNAIL_PX, render_audit_page

GAP_PX = 3
EVIL = '<script>alert(1)</script> & "x"'


def draw_noise(seed: int) -> npt.NDArray[np.uint8]:
    noise = np.random.default_rng(seed).integers(0, 256, (96, 96), dtype=np.uint8)
    return np.asarray(cv2.GaussianBlur(noise, (0, 0), 0.8), np.uint8)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Eight slices in each class of train and val; one of train stands in val too, another thirty times in train."""
    root = tmp_path_factory.mktemp("page") / "set"
    for place, split in enumerate(("train", "val")):
        for label, name in enumerate(("normal", "fracture")):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(8):
                cv2.imwrite(str(folder / f"{number}.png"), draw_noise(100 * place + 10 * label + number))
    cv2.imwrite(str(root / "val/normal" / "again.png"), draw_noise(0))
    for number in range(29):
        cv2.imwrite(str(root / "train/fracture" / f"{EVIL.replace('/', '')}{number}.png"), draw_noise(12))
    manifest = import_dataset(root)[0]
    return render_audit_page(audit_manifest(manifest).result, manifest)


def read_families(page: str) -> list[tuple[int, str]]:
    """(width of the strip in pixels, words beneath) of each family, in the order of the page."""
    found = re.findall(
        r'<figure class="family">.*?base64,([^"]+)".*?<figcaption>(.*?)</figcaption>', page, re.DOTALL
    )
    return [
        (cv2.imdecode(np.frombuffer(base64.b64decode(strip), np.uint8), cv2.IMREAD_GRAYSCALE).shape[1], words)
        for strip, words in found
    ]


def test_families_are_rows_of_pictures_and_leaks_come_first(page: str) -> None:
    (straddling, words), (large, more) = read_families(page)
    assert straddling == 2 * THUMBNAIL_PX + GAP_PX
    assert "train: 1, val: 1" in words
    assert large == MAX_IN_ROW * THUMBNAIL_PX + (MAX_IN_ROW - 1) * GAP_PX
    assert "<b>30</b> copies (train: 30); 6 not shown" in more


def test_file_names_are_text_and_nothing_is_loaded(page: str) -> None:
    assert "<script" not in page
    assert "<script>alert(1)<script>" in unescape(page)
    assert not re.search(r'(src|href)="(?!data:|#)', page)


def test_verdict_sizes_and_both_ways_to_score_are_on_the_page(page: str) -> None:
    text = " ".join(unescape(re.sub(r"<[^>]+>", " ", page)).split())
    assert "Not evidence" in text
    assert "62 files are 32 distinct slices" in text
    assert "Train without copies to val" in text
    assert "copies-across-splits" in text


def test_the_given_split_is_first_and_baselines_explained_once(page: str) -> None:
    text = " ".join(unescape(re.sub(r"<[^>]+>", " ", page[page.index('id="baselines"') :])).split())
    places = [text.index(one) for one in ("Train to val", "Train without copies to val", "5 folds by")]
    assert places == sorted(places)
    assert text.count("the class of the nearest known slice on 32x32 pixels") == 1
