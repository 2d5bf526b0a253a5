"""Slices in Hounsfield units on disk: one file a series, made by the import of CT studies.

A file is a plain `.npz` of numpy with one array a slice, "00000", "00001" and so on from feet to head: int16 HU, or
uint8 for labels beside them. Slices are compressed one by one, so that any of them can be read without the others, by
several threads at once, and the archive's own checksums find damage. The same content gives the same bytes.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from cspine.core.errors import ImageError, ManifestError
from cspine.core.files import write_parquet
from cspine.core.types import Domain, Slice, Split, find_nearest
from cspine.data.images import read_image
from cspine.preprocess import Window, apply_window

HU_MODE = "HU"
"""What the column `mode` of a manifest says of a slice that lies in such a file."""
HU_BITS = 16
SUFFIX = ".npz"

_DATE = (1980, 1, 1, 0, 0, 0)
# Level 1: higher ones take three times as long for a few percent of noise.
_LEVEL = 1


def write_stack(path: Path, slices: Iterable[npt.NDArray[Any]]) -> list[tuple[int, str]]:
    """Write (H, W) int16 or uint8 slices to a new file.

    Returns:
        For each slice its size in bytes as stored, and the SHA-256 of its pixels (little endian, row by row).
    """
    found = []
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=_LEVEL) as archive:
        for number, pixels in enumerate(slices):
            pixels = np.ascontiguousarray(pixels, np.uint8 if pixels.dtype == np.uint8 else "<i2")
            buffer = io.BytesIO()
            np.lib.format.write_array(buffer, pixels, allow_pickle=False)
            info = zipfile.ZipInfo(f"{number:05d}.npy", _DATE)
            info.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(info, buffer.getvalue())
            found.append((archive.getinfo(info.filename).compress_size, hash_pixels(pixels)))
    return found


def hash_pixels(pixels: npt.NDArray[Any]) -> str:
    """SHA-256 of the values of a slice, as `write_stack` returns it."""
    wanted = np.ascontiguousarray(pixels, np.uint8 if pixels.dtype == np.uint8 else "<i2")
    return hashlib.sha256(wanted.tobytes()).hexdigest()


def read_stack_slice(path: Path, number: int, *, expected_sha256: str | None = None) -> npt.NDArray[Any]:
    """Read slice `number`, from 0, of a file of `write_stack`: (H, W), int16 or uint8.

    Raises:
        ImageError: the file is missing or damaged, has no such slice, or has changed since it was imported.
    """
    name = f"{number:05d}.npy"
    try:
        with zipfile.ZipFile(path) as archive:
            pixels = np.lib.format.read_array(io.BytesIO(archive.read(name)), allow_pickle=False)
    except FileNotFoundError:
        raise ImageError("there is no such file", where=str(path), fix="import the set again") from None
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error):
        raise ImageError(
            f"slice {number + 1} is missing or damaged", where=str(path), fix="import the set again"
        ) from None
    if expected_sha256 is not None and hash_pixels(pixels) != expected_sha256:
        raise ImageError(
            f"slice {number + 1} has changed since it was imported",
            where=str(path),
            fix="import the set again",
        )
    return np.asarray(pixels)


# The manifest: which slices there are, whose they are, what they are labelled and what they are used for.
#
# One row a slice, in a Polars table with one strict schema, stored as parquet. Whatever the layout of the files
# was, every later step sees only this. An unknown patient is null; nothing here or anywhere else invents an id.


SCHEMA = pl.Schema(
    {
        "slice_id": pl.String,
        "path": pl.String,
        "label": pl.Int8,
        "split": pl.String,
        "patient_id": pl.String,
        "study_uid": pl.String,
        "series_uid": pl.String,
        "source_id": pl.String,
        "position": pl.Float64,
        "vertebra_level": pl.String,
        "fracture_type": pl.String,
        "mask_path": pl.String,
        "width_px": pl.Int32,
        "height_px": pl.Int32,
        "mode": pl.String,
        "bits_stored": pl.Int8,
        "channels_differ": pl.Boolean,
        "file_bytes": pl.Int64,
        "file_sha256": pl.String,
        "frame": pl.Int32,
        "row_spacing_mm": pl.Float64,
        "column_spacing_mm": pl.Float64,
    }
)
_CT_COLUMNS = ("frame", "row_spacing_mm", "column_spacing_mm")
NEVER_NULL = (
    "slice_id",
    "path",
    "width_px",
    "height_px",
    "mode",
    "bits_stored",
    "channels_differ",
    "file_bytes",
    "file_sha256",
)
SCHEMA_VERSION = 2
# Version 1 had no columns for slices in Hounsfield units. A set of pictures has nothing in them, and keeps its hash.
_OLD_VERSION = _HASH_VERSION = 1
_METADATA_KEY = "cspine.manifest"
_EXAMPLES = 3
_HASH_CHUNK_ROWS = 50_000


@dataclass(frozen=True, eq=False)
class Manifest:
    """A table of slices that is known to keep the rules.

    Attributes:
        table: One row a slice, in `SCHEMA`. `path` and `mask_path` are posix paths relative to `root`.
            `label` is 1 for the positive class, 0 for the negative one, null where unlabelled. `position`
            orders the slices of a series: mm, or the slice number. `source_id` is shared by the copies of one
            slice. `bits_stored`: see `images.read_image`. `frame` is the number, from 0, of a slice in a file of
            `hu_store`, of whose pixels (not its file) `file_sha256` then is; null for pictures, which are files
            of their own. A manifest holds the one or the other: see `domain`.
        root: The folder that the paths start from.
        source: Name of the layout that it was imported from.
        positive_class, negative_class: What the labels 1 and 0 are called in the source.
        window: Through which slices in HU are read, as 0..255; None reads them as they are. See `as_display`.

    Raises:
        ManifestError: the table breaks the schema or a rule; the message names the rule and gives examples.
    """

    table: pl.DataFrame
    root: Path
    source: str
    positive_class: str = "fracture"
    negative_class: str = "normal"
    window: Window | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "root", Path(self.root))
        object.__setattr__(self, "table", _check_table(self.table))

    def __len__(self) -> int:
        return self.table.height

    @cached_property
    def hash(self) -> str:
        """Identifies the content: all columns and the class names, but not the order of rows, nor the root."""
        classes = [self.positive_class, self.negative_class]
        used = [name for name in SCHEMA.names() if name not in _CT_COLUMNS or self._holds_hu]
        return _hash_rows(self.table.select(used), {"version": _HASH_VERSION, "classes": classes})

    @cached_property
    def pixel_hash(self) -> str:
        """Identifies the slices' pixels. Labels and splits are not in it: changing them rebuilds no cache."""
        columns = ["slice_id", "file_sha256", "bits_stored"]
        header: dict[str, Any] = {"version": _HASH_VERSION}
        if self.window is not None:
            header["window"] = self.window.model_dump(mode="json")
        return _hash_rows(self.table.select(columns), header)

    @property
    def domain(self) -> Domain:
        """What slices hold as they are read: "hu" (int16 Hounsfield units) or "display8" (0..255)."""
        return "hu" if self._holds_hu and self.window is None else "display8"

    @property
    def _holds_hu(self) -> bool:
        return bool(self.table["mode"][0] == HU_MODE)

    def as_display(self, window: Window | None = None) -> Manifest:
        """The same slices to be looked at, as 0..255: HU through a window (None is the bone window), pictures as is."""
        return replace(self, window=window or Window()) if self._holds_hu else self

    @property
    def slice_ids(self) -> list[str]:
        """The slice ids, in the order of the table's rows."""
        return self.table["slice_id"].to_list()

    @property
    def splits(self) -> dict[str, int]:
        """How many slices each split has, in the order train, val, test, external, without empty ones."""
        counts = dict(self.table["split"].drop_nulls().value_counts().iter_rows())
        return {split.value: counts[split.value] for split in Split if split.value in counts}

    @cached_property
    def _row_of(self) -> dict[str, int]:
        return {slice_id: row for row, slice_id in enumerate(self.slice_ids)}

    def select(self, split: Split | str) -> Manifest:
        """The slices of one split, in the same order.

        Raises:
            ManifestError: there is no such split, or it has no slices.
        """
        if split not in self.splits:
            there = ", ".join(f"{name} ({count:,})" for name, count in self.splits.items()) or "none"
            raise ManifestError(
                f"the manifest has no slices in split '{split}'", fix=f"choose one of its splits: {there}"
            )
        return self.with_table(self.table.filter(pl.col("split") == str(split)))

    def with_table(self, table: pl.DataFrame) -> Manifest:
        """The same manifest with another table, which is checked."""
        return replace(self, table=table)

    @cached_property
    def _stacks(self) -> dict[str, tuple[npt.NDArray[np.float64], list[int]]]:
        """Of every file of slices in HU their positions, sorted, and their rows."""
        table = self.table.select("path", "position").with_row_index("row").sort("path", "position")
        return {
            str(key[0]): (part["position"].to_numpy(), part["row"].to_list())
            for key, part in table.group_by("path", maintain_order=True)
        }

    def find_around(self, row: int, offsets_mm: Sequence[float]) -> list[int]:
        """The rows of the slices of the same series that lie nearest to `offsets_mm` from a slice in HU.

        At the ends of a series the last slice is there again.
        """
        path, position = self.table.select("path", "position").row(row)
        positions, rows = self._stacks[path]
        return [rows[index] for index in find_nearest(positions, position, offsets_mm)]

    def read_slice(self, slice_id: str, offsets_mm: Sequence[float] = ()) -> Slice:
        """Read the pixels of one slice, and of those at `offsets_mm` from it into `around`.

        Raises:
            ManifestError: there is no such slice.
            ImageError: the file is missing, unreadable, or has changed since it was imported.
        """
        return self.read_row(self.find_row(slice_id), offsets_mm)

    def find_row(self, slice_id: str) -> int:
        """The row of the table that a slice stands in.

        Raises:
            ManifestError: there is no such slice.
        """
        row = self._row_of.get(slice_id)
        if row is None:
            raise ManifestError("the manifest has no such slice", where=slice_id)
        return row

    def read_row(self, row: int, offsets_mm: Sequence[float] = ()) -> Slice:
        """Read the pixels of the slice in one row of the table; as `read_slice`."""
        entry = self.table.row(row, named=True)
        around = (
            [self.read_row(other).pixels for other in self.find_around(row, offsets_mm)] if offsets_mm else []
        )
        return replace(
            self._read_pixels(entry),
            around=tuple(np.asarray(pixels, np.int16) for pixels in around),
            patient_id=entry["patient_id"],
            study_uid=entry["study_uid"],
            series_uid=entry["series_uid"],
            position=entry["position"],
        )

    def _read_pixels(self, entry: dict[str, Any]) -> Slice:
        if entry["mode"] == HU_MODE:
            hu = read_stack_slice(
                self.root / entry["path"], entry["frame"], expected_sha256=entry["file_sha256"]
            )
            if self.window is not None:
                hu = apply_window(hu, self.window.center_hu, self.window.width_hu)
            spacing_mm = (entry["row_spacing_mm"], entry["column_spacing_mm"])
            return Slice(pixels=hu, domain=self.domain, slice_id=entry["slice_id"], spacing_mm=spacing_mm)
        # Hashing costs a few percent of decoding. Without it an edited file would slip into results that
        # claim this hash.
        return read_image(
            self.root / entry["path"],
            slice_id=entry["slice_id"],
            bits_stored=entry["bits_stored"],
            expected_sha256=entry["file_sha256"],
        )

    def iter_slices(self) -> Iterator[Slice]:
        """Read all slices one by one, in the order of the table's rows."""
        return (self.read_row(row) for row in range(len(self)))

    def verify_files(self) -> None:
        """Check that every file is there, by name only.

        Raises:
            ManifestError: some are missing; the message says how many, and which are the first.
        """
        paths = self.table["path"].unique(maintain_order=True)
        missing = [path for path in paths if not os.path.isfile(self.root / path)]
        if missing:
            raise ManifestError(
                f"{len(missing):,} of {len(paths):,} files are missing, such as {_name_examples(missing)}",
                where=str(self.root),
                fix="name the folder that the paths start from as the root, or import the set again",
            )


def complete_table(table: pl.DataFrame) -> pl.DataFrame:
    """Add the columns of `SCHEMA` that are absent, as nulls, and bring the others to their order and types.

    Raises:
        ManifestError: a value does not fit its column's type.
    """
    columns = [pl.col(name) if name in table.columns else pl.lit(None).alias(name) for name in SCHEMA.names()]
    try:
        return table.select(columns).cast(SCHEMA)
    except pl.exceptions.PolarsError as error:
        raise ManifestError(f"a column has values of another type: {str(error).splitlines()[0]}") from None


def write_manifest(manifest: Manifest, path: Path) -> Path:
    """Write a manifest as parquet, atomically; root, source and class names go into the file's metadata.

    Raises:
        OutputError: the file cannot be written.
    """
    path = Path(path)
    metadata = {
        "schema_version": SCHEMA_VERSION,
        "root": manifest.root.resolve().as_posix(),
        # So that a folder with the manifest in or beside the images can be moved as a whole.
        "root_from_manifest": Path(
            os.path.relpath(manifest.root.resolve(), path.resolve().parent)
        ).as_posix(),
        "source": manifest.source,
        "positive_class": manifest.positive_class,
        "negative_class": manifest.negative_class,
    }
    return write_parquet(path, manifest.table, {_METADATA_KEY: json.dumps(metadata)})


def read_manifest(path: Path, root: Path | None = None) -> Manifest:
    """Read a manifest that `write_manifest` wrote.

    Args:
        path: The parquet file.
        root: The folder that its paths start from. None takes the folder that the manifest names, or, if that
            is gone, the one in the same place relative to the manifest.

    Raises:
        ManifestError: no manifest, one of another version, or one that breaks a rule.
    """
    path = Path(path)
    table, metadata = _read_parquet(path)
    if root is None:
        root = Path(metadata["root"])
        if not root.is_dir():
            moved = path.resolve().parent / metadata["root_from_manifest"]
            root = moved.resolve() if moved.is_dir() else root
    try:
        return Manifest(
            table, root, metadata["source"], metadata["positive_class"], metadata["negative_class"]
        )
    except ManifestError as error:
        raise ManifestError(error.what, where=error.where or str(path), fix=error.fix) from None


def is_manifest(path: Path) -> bool:
    """Whether a file is a parquet file that says that it is a manifest; it is not checked further."""
    try:
        return Path(path).suffix.lower() == ".parquet" and _METADATA_KEY in pl.read_parquet_metadata(path)
    except (pl.exceptions.PolarsError, OSError):
        return False


def _read_parquet(path: Path) -> tuple[pl.DataFrame, dict[str, Any]]:
    fix = "make one with `cspine import`"
    if not path.is_file():
        raise ManifestError("there is no such manifest", where=str(path), fix=fix)
    try:
        metadata = json.loads(pl.read_parquet_metadata(path).get(_METADATA_KEY, "null"))
        table = pl.read_parquet(path)
    except (pl.exceptions.PolarsError, OSError, ValueError):
        raise ManifestError("the manifest is damaged, or no parquet file", where=str(path), fix=fix) from None
    if not isinstance(metadata, dict):
        raise ManifestError("a parquet file, but no manifest of cspine", where=str(path), fix=fix)
    version = metadata.get("schema_version")
    if version == _OLD_VERSION:
        table = table.with_columns(pl.lit(None, SCHEMA[name]).alias(name) for name in _CT_COLUMNS)
        version = SCHEMA_VERSION
    if version != SCHEMA_VERSION:
        raise ManifestError(
            f"the manifest has schema version {version}; this cspine reads version {SCHEMA_VERSION}",
            where=str(path),
            fix="import the set again",
        )
    keys = ("root", "root_from_manifest", "source", "positive_class", "negative_class")
    if not all(isinstance(metadata.get(key), str) for key in keys):
        raise ManifestError("the manifest's metadata is incomplete", where=str(path), fix=fix)
    return table, metadata


def _check_table(table: pl.DataFrame) -> pl.DataFrame:
    """The table with its columns in the schema's order; raises ManifestError for the first broken rule."""
    _check_columns(table)
    table = table.select(SCHEMA.names())
    if table.is_empty():
        raise ManifestError("the manifest has no slices")
    for name in NEVER_NULL:
        if nulls := table[name].null_count():
            raise ManifestError(f"column {name} is empty in {nulls:,} of {table.height:,} rows", where=name)
    repeated = table.filter(pl.col("slice_id").is_duplicated())["slice_id"].unique(maintain_order=True)
    if len(repeated):
        raise ManifestError(
            f"{len(repeated):,} slice ids stand in more than one row, such as {_name_examples(repeated)}",
            where="slice_id",
            fix="give every slice an id of its own",
        )
    splits = [split.value for split in Split]
    _refuse_rows(table, pl.col("slice_id") == "", "slice_id", "an empty slice id")
    _refuse_rows(table, ~pl.col("label").is_in([0, 1]), "label", "a label other than 0, 1 or none")
    _refuse_rows(
        table, ~pl.col("split").is_in(splits), "split", f"a split other than {', '.join(splits)} or none"
    )
    _refuse_rows(table, ~pl.col("position").is_finite(), "position", "a position that is NaN or infinite")
    _refuse_rows(
        table, ~pl.col("bits_stored").is_in([1, 8, 10, 12, 14, 16]), "bits_stored", "an unknown depth"
    )
    _check_domain(table)
    for name in ("width_px", "height_px", "file_bytes"):
        _refuse_rows(table, pl.col(name) <= 0, name, "a value that is not above 0")
    for name in ("path", "mask_path"):
        outside = (pl.col(name) == "") | pl.col(name).str.contains(r"^/|^[A-Za-z]:|\\|(^|/)\.\.(/|$)")
        _refuse_rows(table, outside, name, "a path that is not posix and relative to the root, inside it")
    return table


def _check_domain(table: pl.DataFrame) -> None:
    hu = pl.col("mode") == HU_MODE
    if table.select(hu.n_unique()).item() > 1:
        raise ManifestError(
            "some slices are Hounsfield units and some are pictures of 0 to 255",
            where="mode",
            fix="make a manifest of each",
        )
    placed = pl.all_horizontal(pl.col(name).is_not_null() for name in _CT_COLUMNS)
    empty = pl.all_horizontal(pl.col(name).is_null() for name in _CT_COLUMNS)
    _refuse_rows(table, hu & ~placed, "frame", "Hounsfield units without a place in their file or a spacing")
    _refuse_rows(table, ~hu & ~empty, "frame", "pictures with a place in a file of several or a spacing")
    for name in ("row_spacing_mm", "column_spacing_mm"):
        _refuse_rows(
            table, ~((pl.col(name) > 0) & pl.col(name).is_finite()), name, "a spacing that is not above 0"
        )
    _refuse_rows(table, pl.col("frame") < 0, "frame", "a number below 0")


def _check_columns(table: pl.DataFrame) -> None:
    missing = [name for name in SCHEMA.names() if name not in table.columns]
    unknown = [name for name in table.columns if name not in SCHEMA]
    wrong = [
        f"{name} is {table.schema[name]}, not {kind}"
        for name, kind in SCHEMA.items()
        if name in table.columns and table.schema[name] != kind
    ]
    problems = [
        f"{title}: {', '.join(names)}"
        for title, names in (
            ("missing columns", missing),
            ("unknown columns", unknown),
            ("wrong types", wrong),
        )
        if names
    ]
    if problems:
        raise ManifestError(f"the table does not have the manifest's columns ({'; '.join(problems)})")


def _refuse_rows(table: pl.DataFrame, broken: pl.Expr, column: str, what: str) -> None:
    rows = table.filter(broken.fill_null(False))
    if not rows.is_empty():
        raise ManifestError(
            f"{rows.height:,} of {table.height:,} rows have {what}, such as {_name_examples(rows['slice_id'])}",
            where=column,
        )


def _name_examples(names: Sequence[str] | pl.Series) -> str:
    shown = ", ".join(f"'{name}'" for name in names[:_EXAMPLES])
    return f"{shown} and {len(names) - _EXAMPLES:,} more" if len(names) > _EXAMPLES else shown


def _hash_rows(table: pl.DataFrame, header: dict[str, Any]) -> str:
    # Newline-delimited JSON, because it keeps null, "" and every float apart and does not change with Polars'
    # own hashes.
    digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    for rows in table.sort("slice_id").iter_slices(_HASH_CHUNK_ROWS):
        digest.update(rows.write_ndjson().encode())
    return digest.hexdigest()[:16]


def make_relative(path: Path, root: Path) -> str:
    """The posix path of `path` relative to `root`, for the columns `path` and `mask_path`.

    Raises:
        ManifestError: it lies outside `root`.
    """
    absolute = Path(os.path.abspath(root / path))
    try:
        return PurePosixPath(absolute.relative_to(os.path.abspath(root))).as_posix()
    except ValueError:
        raise ManifestError(
            "a path leads out of the root folder", where=str(path), fix="name a root that holds all files"
        ) from None
