"""The CT series of a source, whatever its format: intake's row, the volume, and what is known of its slices.

    dicom   a file, a folder of any names and depth, a DICOMDIR, a zip
    nifti   a file, or all .nii and .nii.gz files of a folder, or those that a table names
    rsna    the folder of the RSNA 2022 challenge: train.csv and train_images/<StudyInstanceUID>/<n>.dcm

One series is in memory at a time.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from cspine.core.answers import IntakeFinding, IntakeRow, Reason
from cspine.core.errors import InputError, MissingExtraError
from cspine.ct.annotations import (
    TRAIN_TABLE,
    CtSeries,
    LabelTable,
    RsnaLabels,
    Segmentations,
    SeriesAnnotations,
    find_levels,
)
from cspine.ct.intake import IntakeFindings, IntakePolicy, check_extent, check_values
from cspine.ct.nifti import is_nifti, read_nifti
from cspine.ct.volume import OnBegin

Format = Literal["dicom", "nifti", "rsna"]
FORMATS: tuple[Format, ...] = ("dicom", "nifti", "rsna")
Skip = Callable[[str, str | None], bool]

TRAIN_IMAGES = "train_images"


@dataclass(frozen=True)
class ReadOptions:
    """What is read of a source, and who is told.

    Attributes:
        volumes: NIfTI files, as paths from the source folder; None is all that are there.
        skip: Called with the Series Instance UID (NIfTI: the path) and the Patient ID before pixels are read; a series
            for which it is true is left out.
        on_ignored: Called with how many files of a folder are not DICOM and were left alone.
        on_begin: Called with every DICOM series that is about to be read; see `DicomSeries.read`.
    """

    volumes: Sequence[str] | None = None
    skip: Skip = lambda key, patient_id: False
    on_ignored: Callable[[int], None] = lambda count: None
    on_begin: OnBegin | None = None


def recognise_format(source: Path) -> Format | None:
    """Return the CT format of a source, by its contents; None for anything else, such as a folder of pictures."""
    if (source / TRAIN_TABLE).is_file() and (source / TRAIN_IMAGES).is_dir():
        return "rsna"
    if source.is_file() and is_nifti(source):
        return "nifti"
    from cspine.ct.dicom_files import is_dicom

    if is_dicom(source):
        return "dicom"
    return "nifti" if source.is_dir() and next(_walk_nifti(source), None) is not None else None


def read_series(
    source: Path,
    source_format: Format,
    policy: IntakePolicy,
    labels: LabelTable | RsnaLabels | None = None,
    segmentations: Segmentations | None = None,
    options: ReadOptions | None = None,
) -> Iterator[CtSeries]:
    """Read the series of a CT source one by one; one is in memory at a time.

    Args:
        source: File or folder.
        source_format: As `recognise_format` returns it, or as the user says.
        policy: What to do about what intake finds.
        labels: What is known of slices, series or studies.
        segmentations: Give the levels of series of which `labels` say none.
        options: What to read.

    Raises:
        InputError: there is no such file or folder.
        MissingExtraError: the format's packages are not installed.
    """
    for series in _find_reader(source, source_format)(source, policy, options or ReadOptions()):
        yield _annotate(series, labels, segmentations)
        del series  # or its voxels would be held while the next series is read


def _find_reader(
    source: Path, source_format: Format
) -> Callable[[Path, IntakePolicy, ReadOptions], Iterator[CtSeries]]:
    if not source.exists():
        raise InputError("no such file or folder", where=str(source), fix="name a file or a folder")
    if source_format == "nifti":
        return _read_nifti_files
    try:
        import pydicom  # noqa: F401
    except ImportError:
        raise MissingExtraError("DICOM", "studies") from None
    return _read_rsna if source_format == "rsna" else _read_dicom


def _annotate(
    series: CtSeries, labels: LabelTable | RsnaLabels | None, segmentations: Segmentations | None
) -> CtSeries:
    volume, found = series.volume, None
    if volume is None:
        return series
    if labels is not None:
        found = labels.annotate(volume, series.name, series.frames)
    if segmentations is not None and not (found and any(found.levels)):
        mask = segmentations.find(volume)
        if mask is not None:
            found = found or SeriesAnnotations.of(volume)
            found.levels = find_levels(mask)
    return replace(series, annotations=found)


def _read_dicom(source: Path, policy: IntakePolicy, options: ReadOptions) -> Iterator[CtSeries]:
    from cspine.ct.dicom import scan_dicom

    scan = scan_dicom(source, policy)
    if scan.ignored:
        options.on_ignored(scan.ignored)
    yield from (CtSeries(row) for row in scan.rows)
    for number, series in enumerate(scan.series, start=1):
        if not options.skip(series.key, series.frames[0].patient_id):
            yield replace(series.read(policy, options.on_begin), done=number, total=len(scan.series))


def _read_rsna(source: Path, policy: IntakePolicy, options: ReadOptions) -> Iterator[CtSeries]:
    folder = source / TRAIN_IMAGES
    if not folder.is_dir():
        raise InputError(f"there is no folder {TRAIN_IMAGES}", where=str(source), fix="name the set's folder")
    # Study by study, so that the headers of one are in memory and not those of two thousand.
    studies = sorted(path for path in folder.iterdir() if path.is_dir())
    for number, study in enumerate(studies, start=1):
        for series in _read_dicom(study, policy, options):
            yield replace(series, done=number, total=len(studies))
            del series  # or its voxels would be held while the next study is read


def _walk_nifti(folder: Path) -> Iterator[Path]:
    for name, folders, files in os.walk(folder):
        folders.sort()
        yield from (Path(name, file) for file in sorted(files) if is_nifti(Path(file)))


def _read_nifti_files(source: Path, policy: IntakePolicy, options: ReadOptions) -> Iterator[CtSeries]:
    folder = source if source.is_dir() else source.parent
    if source.is_file():
        paths = [source]
    elif options.volumes is not None:
        paths = [folder / name for name in options.volumes]
    else:
        paths = list(_walk_nifti(folder))
    for number, path in enumerate(paths, start=1):
        if not options.skip(str(path), None):
            name = path.relative_to(folder).as_posix()
            yield replace(_read_nifti_file(path, name, policy), done=number, total=len(paths))


def _read_nifti_file(path: Path, name: str, policy: IntakePolicy) -> CtSeries:
    row = IntakeRow(source=str(path), format="nifti", encoding=("NIfTI",))
    try:
        volume = replace(read_nifti(path), source=name)
    except InputError as error:
        reason = Reason.UNUSABLE_NIFTI
        finding = IntakeFinding(reason=reason, action=policy.find_action(reason), detail=error.what)
        return CtSeries(row.model_copy(update={"findings": (finding,)}), name=name)
    found = IntakeFindings(policy)
    extent_mm = check_extent(len(volume), volume.positions_mm, volume.direction[0], found)
    check_values(volume.hu, found)
    taken = not found.refused
    row = row.model_copy(
        update={
            "slices_found": len(volume),
            "slices": len(volume) if taken else 0,
            "size_px": (volume.hu.shape[1], volume.hu.shape[2]) if taken else None,
            "spacing_mm": tuple(float(np.round(step, 4)) for step in volume.spacing_mm),
            "extent_mm": extent_mm,
            "findings": tuple(found.findings),
        }
    )
    return CtSeries(row, volume if taken else None, name=name)
