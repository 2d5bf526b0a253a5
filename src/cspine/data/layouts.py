"""From the files as they lie on the disk to one manifest.

    class folders   [train|val|test|external]/<class>/** (the Kaggle set) ┐
    labels table    path,label[,patient_id,...]          (the phantom)    ├─▶ rows ─▶ inspect files ─▶ Manifest
    manifest        an earlier one; files are inspected again             ┘

CT studies are imported by `cspine.studies.ct_import`, into a folder with a manifest in it; such a folder is read here.

Which class is the positive one is always said by name, never taken from the order of folders. Nothing is printed
here: what was found, left out and doubted is in the `ImportReport`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import polars as pl

from cspine.data.class_folders import check_both_classes, scan_class_folders
from cspine.data.found import ROW_COLUMNS, Classes, Found
from cspine.data.images import ImageInfo, choose_bits_stored, inspect_image
from cspine.data.labels_table import TABLE_NAMES, read_labels_table
from cspine.data.manifest import Manifest, complete_table, is_manifest, read_manifest
from cspine.data.types import Split
from cspine.errors import ImageError, InputError

Progress = Callable[[int, int], None]

MANIFEST_NAME = "manifest.parquet"
"""What the manifest of an imported CT set is called, in the set's folder."""

_CHUNK_FILES = 512


@dataclass(frozen=True, slots=True)
class ImportReport:
    """What an import found. Sizes, modes and depths count the files that were read.

    Attributes:
        layout: The layout that was read.
        root: The folder that the manifest's paths start from.
        slices: Rows of the manifest.
        counts: Split ("none" where no split is named) to class ("unlabelled" where no label is given) to
            slices.
        sizes: "224x224" (width x height) to slices.
        modes: Pillow's mode to slices.
        bits: Bits a channel in the file to slices.
        bits_stored: The depth that values are scaled by to slices (1: floats 0..1).
        unreadable: (path, reason) of each image that was left out because it could not be read.
        skipped: What kind of file was passed over, to how many.
        channels_differ: Slices with colour.
        source_slices, series, studies, patients: Distinct ones; None where no slice names one.
        notes: Sentences for a person to read.
    """

    layout: str
    root: str
    slices: int
    counts: dict[str, dict[str, int]]
    sizes: dict[str, int]
    modes: dict[str, int]
    bits: dict[str, int]
    bits_stored: dict[str, int]
    unreadable: tuple[tuple[str, str], ...]
    skipped: dict[str, int]
    channels_differ: int
    source_slices: int | None
    series: int | None
    studies: int | None
    patients: int | None
    notes: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """The report as JSON-able values."""
        return {
            **asdict(self),
            "unreadable": [list(pair) for pair in self.unreadable],
            "notes": list(self.notes),
        }


def import_dataset(
    source: Path,
    *,
    layout: Literal["auto", "class-folders", "labels-table", "manifest"] = "auto",
    positive_class: str = "fracture",
    negative_class: str = "normal",
    strict: bool = False,
    root: Path | None = None,
    workers: int = 2,
    progress: Progress | None = None,
) -> tuple[Manifest, ImportReport]:
    """Read a folder or table of slices into a manifest. Every image is decoded once.

    Args:
        source: A folder of class folders, a folder with a labels table in it, a labels table, a manifest, or a folder
            with an imported CT set in it.
        layout: "auto" decides by what `source` is.
        positive_class, negative_class: The class folders, or the labels in the table; upper or lower case is
            the same.
        strict: Refuse the set when any image cannot be read, instead of leaving that image out.
        root: The folder that the paths of a labels table or manifest start from; None is the table's own
            folder.
        workers: Threads that decode.
        progress: Called as (files done, files in all).

    Raises:
        InputError: the set cannot be used as it is; the message says what to change.
    """
    source = Path(source)
    classes = Classes(positive_class.strip(), negative_class.strip())
    if not classes.positive or not classes.negative or classes.find_label(classes.positive) == 0:
        raise InputError(
            f"the two classes need different names, not '{positive_class}' and '{negative_class}'",
            fix="name the positive class and the negative class",
        )
    if not source.exists():
        raise InputError(
            "no such file or folder", where=str(source), fix="name the folder that holds the images"
        )
    if layout in ("auto", "manifest") and (source / MANIFEST_NAME).is_file():
        source = source / MANIFEST_NAME
    if layout in ("auto", "manifest") and is_manifest(source):
        manifest = read_manifest(source, root)
        if manifest.domain == "hu":
            # Its slices were decoded when it was made, and each is checked against its hash when it is read.
            manifest.verify_files()
            return manifest, report_manifest(manifest)
    found = _find_rows(source, layout, classes, root)
    infos, unreadable = _inspect_files(found, workers, progress)
    _refuse_unreadable(source, infos, unreadable, strict)
    manifest = _build_manifest(found, infos)
    if found.layout == "class-folders":
        check_both_classes(manifest.table, classes, source)
    return manifest, _build_report(found, manifest, infos, unreadable)


def report_manifest(manifest: Manifest, notes: Sequence[str] = ()) -> ImportReport:
    """The report on a manifest whose slices need not be looked at."""
    classes = Classes(manifest.positive_class, manifest.negative_class)
    found = Found(
        manifest.source, manifest.root, classes, manifest.table.select(ROW_COLUMNS), notes=list(notes)
    )
    return _build_report(found, manifest, {}, ())


def _find_rows(source: Path, layout: str, classes: Classes, root: Path | None) -> Found:
    if layout not in ("auto", "class-folders", "labels-table", "manifest"):
        raise InputError(
            f"there is no layout '{layout}'", fix="choose auto, class-folders, labels-table or manifest"
        )
    if layout == "auto":
        layout = _recognise_layout(source)
    if layout == "class-folders":
        if not source.is_dir():
            raise InputError("not a folder", where=str(source), fix="name the folder of the class folders")
        return scan_class_folders(source, classes)
    if layout == "labels-table":
        return read_labels_table(source, classes, root)
    manifest = read_manifest(source, root)
    classes = Classes(manifest.positive_class, manifest.negative_class)
    return Found("manifest", manifest.root, classes, manifest.table.select(ROW_COLUMNS))


def _recognise_layout(source: Path) -> str:
    if source.is_file():
        return "manifest" if is_manifest(source) else "labels-table"
    return "labels-table" if any((source / name).is_file() for name in TABLE_NAMES) else "class-folders"


def _inspect_files(
    found: Found, workers: int, progress: Progress | None
) -> tuple[dict[str, ImageInfo], tuple[tuple[str, str], ...]]:
    def inspect(path: str) -> ImageInfo | str:
        try:
            return inspect_image(found.root / path)
        except ImageError as error:
            return error.what

    paths = found.table["path"].to_list()
    infos: dict[str, ImageInfo] = {}
    unreadable: list[tuple[str, str]] = []
    done = 0
    queue = iter(paths)
    with ThreadPoolExecutor(max(1, workers)) as pool:
        # In chunks, so that Ctrl-C waits for one of them and not for the whole set.
        while chunk := list(islice(queue, _CHUNK_FILES)):
            for path, result in zip(chunk, pool.map(inspect, chunk), strict=True):
                if isinstance(result, str):
                    unreadable.append((path, result))
                else:
                    infos[path] = result
                done += 1
                if progress is not None:
                    progress(done, len(paths))
    return infos, tuple(unreadable)


def _refuse_unreadable(
    source: Path, infos: dict[str, ImageInfo], unreadable: Sequence[tuple[str, str]], strict: bool
) -> None:
    if not unreadable or (infos and not strict):
        return
    listed = "".join(f"\n    {path}: {reason}" for path, reason in unreadable[:20])
    more = f"\n    and {len(unreadable) - 20:,} more" if len(unreadable) > 20 else ""
    total = len(infos) + len(unreadable)
    count = f"none of the {total:,}" if not infos else f"{len(unreadable):,} of {total:,}"
    verb = "can be read" if not infos else "cannot be read"
    raise InputError(
        f"{count} images {verb}:{listed}{more}",
        where=str(source),
        fix="repair or remove these files" + (", or import without strict" if infos else ""),
    )


def _build_manifest(found: Found, infos: dict[str, ImageInfo]) -> Manifest:
    largest: dict[str, float] = {}
    for info in infos.values():
        largest[info.kind] = max(largest.get(info.kind, 0.0), info.largest)
    table = found.table.filter(pl.col("path").is_in(list(infos)))
    files = pl.DataFrame(
        [
            {
                "path": path,
                "width_px": info.width_px,
                "height_px": info.height_px,
                "mode": info.mode,
                "bits_stored": choose_bits_stored(info.kind, largest[info.kind]),
                "channels_differ": info.channels_differ,
                "file_bytes": info.file_bytes,
                "file_sha256": info.file_sha256,
            }
            for path, info in infos.items()
        ],
        schema_overrides={"path": pl.String},
    )
    table = complete_table(table.join(files, on="path", how="left", maintain_order="left"))
    return Manifest(table, found.root, found.layout, found.classes.positive, found.classes.negative)


def _build_report(
    found: Found,
    manifest: Manifest,
    infos: dict[str, ImageInfo],
    unreadable: tuple[tuple[str, str], ...],
) -> ImportReport:
    table = manifest.table
    sizes = Counter(
        f"{width}x{height}" for width, height in table.select("width_px", "height_px").iter_rows()
    )
    bits_stored = dict(Counter(str(bits) for bits in table["bits_stored"]).most_common())
    return ImportReport(
        layout=found.layout,
        root=str(found.root),
        slices=table.height,
        counts=_count_classes(table, found.classes),
        sizes=dict(sizes.most_common()),
        modes=dict(Counter(table["mode"].to_list()).most_common()),
        bits=dict(Counter(str(info.bits) for info in infos.values()).most_common()) or bits_stored,
        bits_stored=bits_stored,
        unreadable=unreadable,
        skipped={kind: count for kind, count in sorted(found.skipped.items()) if count},
        channels_differ=int(table["channels_differ"].sum()),
        source_slices=_count_known(table, "source_id"),
        series=_count_known(table, "series_uid"),
        studies=_count_known(table, "study_uid"),
        patients=_count_known(table, "patient_id"),
        notes=(*found.notes, *_describe_doubts(table, found.classes)),
    )


def _count_classes(table: pl.DataFrame, classes: Classes) -> dict[str, dict[str, int]]:
    counts: dict[str, dict[str, int]] = {}
    for split in (*Split, None):
        labels = Counter(table.filter(pl.col("split").eq_missing(split and split.value))["label"].to_list())
        if labels:
            row = {classes.positive: labels[1], classes.negative: labels[0]}
            if labels[None]:
                row["unlabelled"] = labels[None]
            counts[split.value if split else "none"] = row
    return counts


def _count_known(table: pl.DataFrame, name: str) -> int | None:
    return table[name].drop_nulls().n_unique() or None


def _describe_doubts(table: pl.DataFrame, classes: Classes) -> list[str]:
    notes = []
    for name, title in (("patient_id", "patients"), ("study_uid", "studies"), ("source_id", "source slices")):
        splits = table.drop_nulls([name, "split"]).group_by(name).agg(pl.col("split").n_unique())
        if shared := splits.filter(pl.col("split") > 1).height:
            notes.append(f"{shared:,} {title} stand in more than one split.")
    if unlabelled := table["label"].null_count():
        notes.append(f"{unlabelled:,} slices have no label.")
    for split, counts in _count_classes(table, classes).items():
        for name in (classes.positive, classes.negative):
            if counts[name] == 0:
                notes.append(f"Split '{split}' has no slice of class '{name}'.")
    if colour := int(table["channels_differ"].sum()):
        notes.append(f"{colour:,} slices have colour: their channels differ, and they are read as luma.")
    return notes
