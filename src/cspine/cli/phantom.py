"""`cspine phantom`: a drawn set in the format that was asked for. No torch here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import typer

from cspine.cli.screen import Bars
from cspine.data.phantom import PhantomSettings, write_phantom
from cspine.errors import InputError, MissingExtraError
from cspine.studies.intake import Reason

FORMATS = ("png", "nifti", "dicom", "rsna")


def run_phantom(
    output: Path,
    settings: PhantomSettings,
    file_format: str,
    slice_spacing_mm: float,
    faults: Sequence[str],
) -> None:
    """Write the set, and say what was planted in it.

    Raises:
        InputError: an unknown format or fault, a fault that the format cannot have, or no distance of slices.
        OutputError: the folder exists and is not empty.
    """
    reasons = [_find_reason(fault) for fault in faults]
    if reasons and file_format != "dicom":
        raise InputError("only DICOM series can have faults", where="--fault", fix="add --format dicom")
    if not 0.1 <= slice_spacing_mm <= 10:
        raise InputError(
            f"slice_spacing_mm is {slice_spacing_mm:g}", where="--slice-spacing-mm", fix="give 0.1 to 10"
        )
    write = _find_writer(file_format, slice_spacing_mm, reasons)
    with Bars() as bars:
        bars.start("Drawing patients", settings.patients)
        write(output, settings, progress=bars.advance)
        bars.finish(str(output))
    if reasons:
        from cspine.studies.phantom_faults import FAULTS

        for reason in reasons:
            typer.echo(f"planted {reason}: {FAULTS[reason].says}")


def _find_reason(name: str) -> Reason:
    if name not in list(Reason):
        raise InputError(f"no such fault: {name}", where="--fault", fix=f"choose one of {', '.join(Reason)}")
    return Reason(name)


def _find_writer(file_format: str, slice_spacing_mm: float, reasons: Sequence[Reason]) -> Callable[..., Any]:
    if file_format not in FORMATS:
        raise InputError(
            f"no such format: {file_format}", where="--format", fix=f"choose one of {', '.join(FORMATS)}"
        )
    if file_format == "png":
        return write_phantom
    if file_format == "nifti":
        from cspine.studies.phantom_nifti import write_phantom_nifti

        return partial(write_phantom_nifti, slice_spacing_mm=slice_spacing_mm)
    try:
        from cspine.studies.phantom_dicom import write_phantom_dicom
        from cspine.studies.phantom_rsna import write_phantom_rsna
    except ImportError:
        raise MissingExtraError("DICOM", "studies") from None
    if file_format == "rsna":
        return partial(write_phantom_rsna, slice_spacing_mm=slice_spacing_mm)
    return partial(write_phantom_dicom, slice_spacing_mm=slice_spacing_mm, faults=reasons)
