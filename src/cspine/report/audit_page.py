"""The page of an audit: one HTML file that opens offline, with the verdict, what it follows from, and the pictures."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
from markupsafe import Markup

from cspine.auditing.findings import VERDICT_WORDS, AuditResult, Finding
from cspine.core.errors import ImageError
from cspine.core.files import write_text
from cspine.data.manifest import Manifest
from cspine.report.page import make_environment
from cspine.report.text import SEVERITY_WORDS, format_estimate

THUMBNAIL_PX = 72
MAX_FAMILIES = 400
MAX_IN_ROW = 24
MAX_SHOWN = 12

# Findings whose files are worth a look; the families have rows of their own.
_PICTURED = (
    "blank",
    "saturated",
    "inverted",
    "burnt-in-text",
    "border",
    "colour",
    "odd-shape",
    "unlike-the-set",
)

Progress = Callable[[int, int], None]
Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class FindingView:
    """A finding with its pictures: one strip of thumbnails, or none."""

    finding: Finding
    strip: str | None
    more: int


@dataclass(frozen=True)
class FamilyView:
    """One family of copies: a strip of thumbnails as a base64 JPEG, its size, and where it lies."""

    strip: str
    size: int
    more: int
    places: str
    first: str


def write_audit_page(
    result: AuditResult, manifest: Manifest, path: Path, progress: Progress | None = None
) -> Path:
    """Write the page of an audit, atomically.

    Args:
        result: What the audit found.
        manifest: The set; the files that are shown are read.
        path: An HTML file.
        progress: Told (done, total) as rows of thumbnails are drawn.
    """
    html = render_audit_page(result, manifest, progress)
    return write_text(path, html)


def render_audit_page(result: AuditResult, manifest: Manifest, progress: Progress | None = None) -> str:
    """The page as one text without any reference to the outside."""
    environment = make_environment()
    album = _Album(manifest)
    families = sorted(
        result.families, key=lambda family: (-_count_splits(family, album), -len(family), family)
    )
    shown = families[:MAX_FAMILIES]
    rows = []
    for done, family in enumerate(shown):
        rows.append(_view_family(family, album))
        if progress is not None:
            progress(done + 1, len(shown))
    return environment.get_template("audit.html.j2").render(
        result=result,
        words=VERDICT_WORDS[result.verdict],
        css=Markup(environment.get_template("report.css").render()),
        severity_words=SEVERITY_WORDS,
        findings=[_view_finding(finding, album) for finding in result.findings],
        families=rows,
        families_left=len(families) - len(shown),
        estimate=format_estimate,
        set_name=manifest.source,
        slices=len(manifest),
        version=version("cspine"),
    )


class _Album:
    """Thumbnails of a set by path."""

    def __init__(self, manifest: Manifest) -> None:
        self._manifest = manifest
        self._rows = {path: row for row, path in enumerate(manifest.table["path"])}
        self._splits = manifest.table["split"].to_list()

    def find_split(self, path: str) -> str:
        row = self._rows.get(path)
        return "" if row is None else self._splits[row] or "no split"

    def draw_strip(self, paths: Sequence[str]) -> str | None:
        """A row of thumbnails as a base64 JPEG; None where none of the files is in the manifest and readable."""
        tiles = [tile for path in paths if (tile := self._read(path)) is not None]
        if not tiles:
            return None
        gap = np.full((THUMBNAIL_PX, 3), 255, np.uint8)
        _, jpeg = cv2.imencode(
            ".jpg", np.hstack(list(_interleave(tiles, gap))), [cv2.IMWRITE_JPEG_QUALITY, 80]
        )
        return base64.b64encode(jpeg.tobytes()).decode()

    def _read(self, path: str) -> Pixels | None:
        row = self._rows.get(path)
        if row is None:
            return None
        try:
            pixels = np.asarray(self._manifest.read_row(row).pixels, np.uint8)
        except ImageError:
            return None
        scale = THUMBNAIL_PX / max(pixels.shape)
        size = (max(1, round(pixels.shape[1] * scale)), max(1, round(pixels.shape[0] * scale)))
        small = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
        tile = np.zeros((THUMBNAIL_PX, THUMBNAIL_PX), np.uint8)
        tile[: size[1], : size[0]] = small
        return tile


def _interleave(tiles: Sequence[Pixels], gap: Pixels) -> Iterator[Pixels]:
    for place, tile in enumerate(tiles):
        if place:
            yield gap
        yield tile


def _count_splits(family: Sequence[str], album: _Album) -> int:
    return len({album.find_split(path) for path in family})


def _view_family(family: Sequence[str], album: _Album) -> FamilyView:
    splits = [album.find_split(path) for path in family]
    places = ", ".join(f"{split}: {splits.count(split)}" for split in dict.fromkeys(splits))
    # Each split's part is shown where a family lies in several.
    ordered = [family[row] for row in sorted(range(len(family)), key=lambda row: splits.index(splits[row]))]
    step = max(1, -(-len(ordered) // MAX_IN_ROW))
    chosen = ordered[::step] if len(set(splits)) > 1 else ordered[:MAX_IN_ROW]
    return FamilyView(
        strip=album.draw_strip(chosen) or "",
        size=len(family),
        more=len(family) - len(chosen),
        places=places,
        first=family[0],
    )


def _view_finding(finding: Finding, album: _Album) -> FindingView:
    if finding.code not in _PICTURED:
        return FindingView(finding, None, 0)
    shown = finding.files[:MAX_SHOWN]
    return FindingView(finding, album.draw_strip(shown), len(finding.files) - len(shown))
