"""Where CT series lie, whatever the format: one stream of results, each with what labels may be joined by.

    dicom   a file, a folder of any names and depth, a DICOMDIR, a zip
    nifti   a file, or all .nii and .nii.gz files of a folder; with a table that has a column `volume`, those it names
    rsna    the folder of the RSNA 2022 challenge: train.csv and train_images/<StudyInstanceUID>/<n>.dcm

One series is in memory at a time.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from cspine.errors import InputError, MissingExtraError
from cspine.studies.growing import OnBegin
from cspine.studies.intake import Finding, Findings, IntakePolicy, IntakeRow, Reason, SeriesResult
from cspine.studies.nifti import is_nifti, read_nifti
from cspine.studies.volume import Volume
from cspine.studies.volume_checks import check_extent, check_values

Format = Literal["dicom", "nifti", "rsna"]
FORMATS: tuple[Format, ...] = ("dicom", "nifti", "rsna")
Progress = Callable[[int, int], None]
Skip = Callable[[str, str | None], bool]

TRAIN_TABLE, TRAIN_IMAGES = "train.csv", "train_images"


@dataclass(frozen=True)
class FoundSeries:
    """One series of a source, or one file that belongs to none.

    Attributes:
        result: What intake says, and the volume unless refused.
        name: By which a table may name it: the file's path from the source folder; None for DICOM.
        frames: The DICOM frames of the series (`dicom_header.Frame`), whatever intake made of them; else empty.
        done, total: How far the source is read.
    """

    result: SeriesResult
    name: str | None = None
    frames: tuple[Any, ...] = ()
    done: int = 0
    total: int = 0


def recognise_format(source: Path) -> Format | None:
    """What CT format a source is of, by its contents; None for anything else, such as a folder of pictures."""
    if (source / TRAIN_TABLE).is_file() and (source / TRAIN_IMAGES).is_dir():
        return "rsna"
    if source.is_file() and is_nifti(source):
        return "nifti"
    from cspine.studies.dicom_files import is_dicom

    if is_dicom(source):
        return "dicom"
    return "nifti" if source.is_dir() and next(_walk_nifti(source), None) is not None else None


def find_series(
    source: Path,
    source_format: Format,
    policy: IntakePolicy,
    *,
    volumes: Sequence[str] | None = None,
    progress: Progress | None = None,
    on_passed_over: Callable[[int], None] | None = None,
    skip: Skip | None = None,
    on_begin: OnBegin | None = None,
) -> Iterator[FoundSeries]:
    """Read the series of a source one by one.

    Args:
        source: File or folder.
        source_format: As `recognise_format` returns it, or as the user says.
        policy: What to do about what intake finds.
        volumes: NIfTI files, as paths from the source folder; None is all that are there.
        progress: Called as (files done, files in all) while headers of DICOM files are read.
        on_passed_over: Called with how many files of a folder are not DICOM and were left alone.
        skip: Called with the Series Instance UID, or for NIfTI with the row's source, and the Patient ID before pixels
            are read; a series for which it is true is left out.
        on_begin: Called with every DICOM series that is about to be read; see `DicomSeries.read`.

    Raises:
        InputError: there is no such file or folder.
        MissingExtraError: the format's packages are not installed.
    """
    if not source.exists():
        raise InputError("no such file or folder", where=str(source), fix="name a file or a folder")
    if source_format == "nifti":
        return _find_nifti(source, policy, volumes, skip)
    try:
        import pydicom  # noqa: F401
    except ImportError:
        raise MissingExtraError("DICOM", "studies") from None
    if source_format == "rsna":
        return _find_rsna(source, policy, on_passed_over, skip, on_begin)
    return _find_dicom(source, policy, progress, on_passed_over, skip, on_begin)


def _find_dicom(
    source: Path,
    policy: IntakePolicy,
    progress: Progress | None,
    on_passed_over: Callable[[int], None] | None,
    skip: Skip | None,
    on_begin: OnBegin | None,
) -> Iterator[FoundSeries]:
    from cspine.studies.dicom import scan_dicom

    scan = scan_dicom(source, policy, progress)
    if on_passed_over is not None and scan.passed_over:
        on_passed_over(scan.passed_over)
    yield from (FoundSeries(SeriesResult(row)) for row in scan.rows)
    for number, series in enumerate(scan.series):
        if skip is not None and skip(series.key, series.frames[0].patient_id):
            continue
        result = series.read(policy, on_begin=on_begin)
        yield FoundSeries(result, frames=series.frames, done=number + 1, total=len(scan.series))
        del result  # or its voxels would be held while the next series is read


def _find_rsna(
    source: Path,
    policy: IntakePolicy,
    on_passed_over: Callable[[int], None] | None,
    skip: Skip | None,
    on_begin: OnBegin | None,
) -> Iterator[FoundSeries]:
    """Study by study, so that the headers of one are in memory and not those of two thousand."""
    folder = source / TRAIN_IMAGES
    if not folder.is_dir():
        raise InputError(f"there is no folder {TRAIN_IMAGES}", where=str(source), fix="name the set's folder")
    studies = sorted(path for path in folder.iterdir() if path.is_dir())
    for number, study in enumerate(studies):
        for found in _find_dicom(study, policy, None, on_passed_over, skip, on_begin):
            yield replace(found, done=number + 1, total=len(studies))
            del found  # or its voxels would be held while the next study is read


def _walk_nifti(folder: Path) -> Iterator[Path]:
    for name, folders, files in os.walk(folder):
        folders.sort()
        yield from (Path(name, file) for file in sorted(files) if is_nifti(Path(file)))


def _find_nifti(
    source: Path, policy: IntakePolicy, volumes: Sequence[str] | None, skip: Skip | None
) -> Iterator[FoundSeries]:
    folder = source if source.is_dir() else source.parent
    if source.is_file():
        paths = [source]
    elif volumes is not None:
        paths = [folder / name for name in volumes]
    else:
        paths = list(_walk_nifti(folder))
    for number, path in enumerate(paths):
        if skip is not None and skip(str(path), None):
            continue
        name = path.relative_to(folder).as_posix()
        yield FoundSeries(_read_nifti(path, name, policy), name=name, done=number + 1, total=len(paths))


def _read_nifti(path: Path, name: str, policy: IntakePolicy) -> SeriesResult:
    row = IntakeRow(source=str(path), format="nifti", encoding=("NIfTI",))
    try:
        volume = replace(read_nifti(path), source=name)
    except InputError as error:
        reason = Reason.UNUSABLE_NIFTI
        finding = Finding(reason=reason, action=policy.find_action(reason), detail=error.what)
        return SeriesResult(row.model_copy(update={"findings": (finding,)}))
    found = Findings(policy)
    extent_mm = check_extent(len(volume), volume.positions_mm, volume.direction[0], found)
    check_values(volume.hu, found)
    return SeriesResult(_describe(row, volume, found, extent_mm), None if found.refused else volume)


def _describe(row: IntakeRow, volume: Volume, found: Findings, extent_mm: float) -> IntakeRow:
    taken = not found.refused
    return row.model_copy(
        update={
            "slices_found": len(volume),
            "slices": len(volume) if taken else 0,
            "size_px": (volume.hu.shape[1], volume.hu.shape[2]) if taken else None,
            "spacing_mm": tuple(float(np.round(step, 4)) for step in volume.spacing_mm),
            "extent_mm": extent_mm,
            "findings": tuple(found.met),
        }
    )
