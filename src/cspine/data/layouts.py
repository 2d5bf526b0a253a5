"""What a layout finds before any image is opened: rows of the manifest that is to be."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import polars as pl

from cspine.core.errors import ImageError, InputError
from cspine.core.types import Split
from cspine.data.images import EXTENSIONS, ImageInfo, choose_bits_stored, inspect_image
from cspine.data.manifest import SCHEMA, Manifest, complete_table, is_manifest, make_relative, read_manifest
from cspine.data.tables import cast_numbers, number_rows, read_text_table, refuse_cells

# What folders and tables call the splits, in lower case.
SPLIT_NAMES = {
    "train": Split.TRAIN,
    "val": Split.VAL,
    "valid": Split.VAL,
    "validation": Split.VAL,
    "test": Split.TEST,
    "external": Split.EXTERNAL,
}
# The columns of the manifest that a layout may fill; the others come from the image files.
ROW_COLUMNS = (
    "path",
    "label",
    "slice_id",
    "split",
    "patient_id",
    "study_uid",
    "series_uid",
    "source_id",
    "position",
    "vertebra_level",
    "fracture_type",
    "mask_path",
)


@dataclass(frozen=True, slots=True)
class Classes:
    """What the two classes are called in the source; upper and lower case are the same."""

    positive: str
    negative: str

    def find_label(self, name: str) -> int | None:
        """The label of a class name: 1 or 0; None for any other name."""
        return {self.positive.casefold(): 1, self.negative.casefold(): 0}.get(name.strip().casefold())

    def name_label(self, label: int) -> str:
        """The class name of a label."""
        return self.positive if label == 1 else self.negative


@dataclass(frozen=True, slots=True)
class Found:
    """Rows that a layout names.

    Attributes:
        layout: The layout's name; of an imported CT set, its format.
        root: The folder that the paths start from.
        classes: What its classes are called.
        table: `ROW_COLUMNS`, in the manifest's types.
        skipped: What kind of file was passed over, to how many.
        notes: Sentences for the report.
    """

    layout: str
    root: Path
    classes: Classes
    table: pl.DataFrame
    skipped: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)


# Class folders: `[train|val|test|external]/<class>/**`, as in the Kaggle set.
#
# Splits and classes are found by the names of folders, whatever their case and order. A folder that holds
# images and is neither is an error, not a guess. From the Kaggle set's file names, series and source slice are
# read too, so that copies of one slice are known as such.


_SYSTEM_NAMES = frozenset({"__macosx", "thumbs.db", "desktop.ini"})
# Series, slice number, a rare suffix that tells two slices of one number apart, and the chain of
# augmentations.
_KAGGLE_NAME = re.compile(r"^(CSFDV1B\d+) \((\d+)\)(_\d+)?(-.*)?\.png$")
_SOME_IMAGES = (
    f"name a folder with files that end in {', '.join(sorted(EXTENSIONS))}; "
    "for DICOM and NIfTI, import the studies first: cspine import"
)


def scan_class_folders(source: Path, classes: Classes) -> Found:
    """List the images of all class folders, with the split and label that their folders give them.

    Raises:
        InputError: a split or class is there twice, missing, or not known; or there are no images.
    """
    folders = _list_folders(source)
    splits = [(SPLIT_NAMES[name.casefold()], name) for name in folders if name.casefold() in SPLIT_NAMES]
    class_folders = [name for name in folders if classes.find_label(name) is not None]
    if not splits and not class_folders:
        raise _explain_no_classes(source, folders, classes)
    if splits and class_folders:
        raise InputError(
            f"class folders ('{class_folders[0]}') stand beside split folders ('{splits[0][1]}')",
            where=str(source),
            fix="put the class folders into the split folders",
        )
    skipped: Counter[str] = Counter()
    notes: list[str] = []
    rows: list[dict[str, Any]] = []
    if splits:
        _check_split_folders(source, folders, splits)
        _count_loose_files(source, skipped)
        for split, name in splits:
            in_split = _scan_split(source / name, source, split, classes, skipped)
            rows += in_split
            if not in_split:
                notes.append(f"The folder '{name}' has no images.")
    else:
        rows = _scan_split(source, source, None, classes, skipped)
    if not rows:
        raise InputError("there are no images in the folder", where=str(source), fix=_SOME_IMAGES)
    table = complete_table(pl.DataFrame(rows, schema_overrides=SCHEMA, infer_schema_length=None))
    check_both_classes(table, classes, source)
    notes += _describe_kaggle_names(table)
    return Found("class-folders", source, classes, table.select(ROW_COLUMNS), skipped, notes)


def check_both_classes(table: pl.DataFrame, classes: Classes, source: Path) -> None:
    """Raise InputError when a split has images of one class only."""
    for (split,), rows in table.group_by("split", maintain_order=True):
        for label in (1, 0):
            if label not in rows["label"]:
                where = "the set" if split is None else f"the split '{split}'"
                raise InputError(
                    f"{where} has {rows.height:,} images, but none of class '{classes.name_label(label)}'",
                    where=str(source),
                    fix="add the missing class, or remove this split",
                )


def _scan_split(
    folder: Path, root: Path, split: Split | None, classes: Classes, skipped: Counter[str]
) -> list[dict[str, Any]]:
    """Rows of the class folders in one folder."""
    _count_loose_files(folder, skipped)
    names: dict[int, str] = {}
    rows: list[dict[str, Any]] = []
    for name in _list_folders(folder):
        label = classes.find_label(name)
        if label is None:
            if _has_images(folder / name):
                raise InputError(
                    f"the folder '{name}' is neither class, '{classes.positive}' nor '{classes.negative}'",
                    where=str(folder / name),
                    fix="move it out of the set, or give the classes the names that the folders have",
                )
            continue
        if label in names:
            raise InputError(
                f"the class '{classes.name_label(label)}' is there twice, as '{names[label]}' and '{name}'",
                where=str(folder),
                fix="merge the two folders",
            )
        names[label] = name
        rows += [_make_row(path, root, label, split) for path in _walk_images(folder / name, skipped)]
    return rows


def _make_row(path: Path, root: Path, label: int, split: Split | None) -> dict[str, Any]:
    relative = path.relative_to(root).as_posix()
    row: dict[str, Any] = {
        "slice_id": relative,
        "path": relative,
        "label": label,
        "split": split and split.value,
    }
    if match := _KAGGLE_NAME.match(path.name):
        series, number, suffix, _ = match.groups()
        row["series_uid"] = series
        row["position"] = float(number)
        # Without the class: numbers count the slices of a series, so one number in both classes would be one
        # slice with two labels, and its copies belong together all the more. (The Kaggle set has no such
        # case.)
        row["source_id"] = f"{series} ({number}){suffix or ''}"
    return row


def _check_split_folders(source: Path, folders: Sequence[str], splits: Sequence[tuple[Split, str]]) -> None:
    names: dict[Split, str] = {}
    for split, name in splits:
        if split in names:
            raise InputError(
                f"the split '{split}' is there twice, as '{names[split]}' and '{name}'",
                where=str(source),
                fix="merge the two folders",
            )
        names[split] = name
    for name in folders:
        if name.casefold() not in SPLIT_NAMES and _has_images(source / name):
            raise InputError(
                f"the folder '{name}' stands beside the splits and has images, but is none of "
                f"{', '.join(SPLIT_NAMES)}",
                where=str(source / name),
                fix="rename it, or move it out of the set",
            )


def _explain_no_classes(source: Path, folders: Sequence[str], classes: Classes) -> InputError:
    """What to say about a folder with neither split nor class folders in it."""
    wanted = f"'{classes.positive}' and '{classes.negative}'"
    if not _has_images(source):
        return InputError("there are no images in the folder", where=str(source), fix=_SOME_IMAGES)
    if classes.find_label(source.name) is not None:
        return InputError(
            "this is one class folder, not the set", where=str(source), fix=f"did you mean {source.parent}?"
        )
    for name in folders:
        below = _list_folders(source / name)
        if any(classes.find_label(item) is not None or item.casefold() in SPLIT_NAMES for item in below):
            return InputError(
                f"no class folders {wanted} here, but there are some one level below",
                where=str(source),
                fix=f"did you mean {source / name}?",
            )
    there = ", ".join(f"'{name}'" for name in folders) or "none"
    return InputError(
        f"no class folders {wanted} in the folder; its folders: {there}",
        where=str(source),
        fix="give the two classes the names that the folders have, or name a labels table",
    )


def _describe_kaggle_names(table: pl.DataFrame) -> list[str]:
    known = table.height - table["source_id"].null_count()
    if not known:
        return []
    return [
        f"{known:,} of {table.height:,} files have names of the Kaggle set: series and source slice are read from "
        "the names; patients and studies are unknown."
    ]


def _list_folders(folder: Path) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entry.name for entry in entries if entry.is_dir() and not _is_system(entry.name))
    except OSError as error:
        reason = (error.strerror or type(error).__name__).lower()
        raise InputError(
            f"the folder cannot be read: {reason}", where=str(folder), fix="name a folder that you may read"
        ) from None


def _walk_images(folder: Path, skipped: Counter[str]) -> Iterator[Path]:
    """Images under `folder`, sorted by name; what is passed over is counted in `skipped`."""
    for parent, folders, names in os.walk(folder):
        for name in filter(_is_system, folders):
            skipped["hidden or system files"] += sum(len(files) for *_, files in os.walk(Path(parent, name)))
        folders[:] = sorted(name for name in folders if not _is_system(name))
        if links := sum(os.path.islink(os.path.join(parent, name)) for name in folders):
            skipped["links to folders"] += links  # a link may lead back up; os.walk follows none
        for name in sorted(names):
            if kind := _name_skipped(name):
                skipped[kind] += 1
            elif not _is_utf8(name):
                skipped["images whose names are not UTF-8"] += 1  # no table or report could name them
            else:
                yield Path(parent, name)


def _has_images(folder: Path) -> bool:
    return next(_walk_images(folder, Counter()), None) is not None


def _count_loose_files(folder: Path, skipped: Counter[str]) -> None:
    """Count the files that lie beside class or split folders, and the hidden folders there, as skipped."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_file():
                skipped[_name_skipped(entry.name) or "images outside a class folder"] += 1
            elif _is_system(entry.name):
                skipped["hidden or system files"] += sum(len(files) for *_, files in os.walk(entry.path))


def _name_skipped(name: str) -> str | None:
    """What kind of file this is, if it is none to read."""
    if _is_system(name):
        return "hidden or system files"
    suffix = os.path.splitext(name)[1].lower()
    return None if suffix in EXTENSIONS else f"other files ({suffix or 'no suffix'})"


def _is_utf8(name: str) -> bool:
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _is_system(name: str) -> bool:
    return name.startswith(".") or name.casefold() in _SYSTEM_NAMES


# A labels table: `path,label[,patient_id,...]` as CSV, TSV or parquet, beside the images or elsewhere.
#
# Every cell is read as text, so that an id "001" stays "001". A cell that does not fit is an error that names
# its row.


TABLE_NAMES = ("labels.csv", "labels.tsv", "labels.parquet")


def read_labels_table(source: Path, classes: Classes, root: Path | None) -> Found:
    """Read the rows of a table, or of the one labels table in a folder.

    Args:
        source: The table; or the folder that has it, under one of `TABLE_NAMES`.
        classes: What the labels are called; 1 and 0, true and false are understood too.
        root: The folder that the paths start from; None is the table's own.

    Raises:
        InputError: the table cannot be read, or a cell does not fit; the message names the row.
    """
    path = _find_table(source)
    root = Path(root) if root is not None else path.parent
    table = read_text_table(path, ("path", "label"), what="labels table", row="slice")
    kept = [name for name in ROW_COLUMNS if name in table.columns]
    unknown = [name for name in table.columns if name not in kept]
    notes = [f"Columns of the table that were not kept: {', '.join(unknown)}."] if unknown else []
    table = number_rows(table.select(kept), path)
    table = _convert_cells(table, classes, root, path)
    if "slice_id" not in table.columns:
        table = table.with_columns(slice_id=pl.col("path"))
    refuse_cells(table, pl.col("slice_id").is_null(), "slice_id", "no slice_id", path)
    for name in ("path", "slice_id"):
        refuse_cells(table, pl.col(name).is_duplicated(), name, f"a {name} that another row has too", path)
    table, missing_masks = _drop_missing_masks(complete_table(table.drop("row")), root)
    if missing_masks:
        notes.append(f"{missing_masks:,} mask files are missing; their slices have no mask.")
    return Found("labels-table", root, classes, table.select(ROW_COLUMNS), notes=notes)


def _find_table(source: Path) -> Path:
    if not source.is_dir():
        return source
    tables = [source / name for name in TABLE_NAMES if (source / name).is_file()]
    if len(tables) != 1:
        what = "several labels tables" if tables else "no labels table"
        raise InputError(
            f"{what} ({', '.join(TABLE_NAMES)}) in the folder", where=str(source), fix="name the table"
        )
    return tables[0]


def _convert_cells(table: pl.DataFrame, classes: Classes, root: Path, path: Path) -> pl.DataFrame:
    """Bring paths, labels, splits and positions from text to what the manifest has."""
    refuse_cells(table, pl.col("path").is_null(), "path", "no path", path)
    paths = [_make_posix(text, root) for text in table["path"]]
    table = translate_labels(table.with_columns(pl.Series("path", paths, dtype=pl.String)), classes, path)
    if "position" in table.columns:
        table = cast_numbers(table, "position", pl.Float64, path)
    return table


def _label_words(classes: Classes) -> dict[str, int]:
    words = {classes.positive.casefold(): 1, classes.negative.casefold(): 0}
    plain = {"1": 1, "0": 0, "1.0": 1, "0.0": 0, "true": 1, "false": 0}
    # Where a class is itself called "0" or "true", such words are names and nothing else.
    return words if words.keys() & plain.keys() else {**plain, **words}


def translate_labels(table: pl.DataFrame, classes: Classes, path: Path) -> pl.DataFrame:
    """Bring the columns `label` and `split`, if a table of text has them, to what a manifest has.

    Raises:
        InputError: a cell is no label or split; the message names its row (of `number_rows`).
    """
    splits = {name: split.value for name, split in SPLIT_NAMES.items()}
    for name, words in (("label", _label_words(classes)), ("split", splits)):
        if name in table.columns:
            table = table.with_columns(_translate_cells(table, name, words, path))
    return table


def _translate_cells(table: pl.DataFrame, name: str, words: dict[str, Any], path: Path) -> pl.Series:
    cells = [cell if cell is None else cell.casefold() for cell in table[name]]
    wrong = pl.Series([cell is not None and cell not in words for cell in cells], dtype=pl.Boolean)
    refuse_cells(table, wrong, name, f"a {name} that is none of {', '.join(words)}", path)
    return pl.Series(name, [None if cell is None else words[cell] for cell in cells], dtype=SCHEMA[name])


def _make_posix(text: str, root: Path) -> str:
    return make_relative(Path(text.replace("\\", "/")), root)


def _drop_missing_masks(table: pl.DataFrame, root: Path) -> tuple[pl.DataFrame, int]:
    masks = [None if text is None else _make_posix(text, root) for text in table["mask_path"]]
    there = [mask if mask is not None and os.path.isfile(root / mask) else None for mask in masks]
    series = pl.Series("mask_path", there, dtype=pl.String)
    return table.with_columns(series), series.null_count() - table["mask_path"].null_count()


# From the files as they lie on the disk to one manifest.
#
#     class folders   [train|val|test|external]/<class>/** (the Kaggle set) ┐
#     labels table    path,label[,patient_id,...]          (the phantom)    ├─▶ rows ─▶ inspect files ─▶ Manifest
#     manifest        an earlier one; files are inspected again             ┘
#
# CT studies are imported by `cspine.ct.importing`, into a folder with a manifest in it; such a folder is read
# here.
#
# Which class is the positive one is always said by name, never taken from the order of folders. Nothing is printed
# here: what was found, left out and doubted is in the `ImportReport`.


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
