"""Class folders: `[train|val|test|external]/<class>/**`, as in the Kaggle set.

Splits and classes are found by the names of folders, whatever their case and order. A folder that holds
images and is neither is an error, not a guess. From the Kaggle set's file names, series and source slice are
read too, so that copies of one slice are known as such.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from cspine.data.found import ROW_COLUMNS, SPLIT_NAMES, Classes, Found
from cspine.data.images import EXTENSIONS
from cspine.data.manifest import SCHEMA, complete_table
from cspine.data.types import Split
from cspine.errors import InputError

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
