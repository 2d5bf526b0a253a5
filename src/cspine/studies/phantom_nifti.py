"""The phantom as whole CT volumes in NIfTI, with the truth beside them."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

from cspine.data.phantom import PhantomPatient, PhantomSettings, PhantomVolume, make_patient, render_volume
from cspine.data.rsna_tables import OVERALL, VERTEBRAE
from cspine.files import atomic_folder
from cspine.studies.nifti import write_nifti
from cspine.studies.volume import CANONICAL_DIRECTION, Volume, grid_origins

COLUMNS = ("volume", "segmentation", "fracture_mask", "patient_id", "split", OVERALL, *VERTEBRAE)


def make_volume(patient: PhantomPatient, rendered: PhantomVolume) -> Volume:
    """A rendered neck as a volume, the middle of its planes at x = y = 0."""
    half_mm = [(length - 1) / 2 * rendered.spacing_mm[1] for length in rendered.hu.shape[1:]]
    origin_mm = (-half_mm[1], -half_mm[0], rendered.first_z_mm)
    return Volume(
        hu=rendered.hu,
        spacing_mm=rendered.spacing_mm,
        direction=CANONICAL_DIRECTION,
        origins_mm=grid_origins(origin_mm, CANONICAL_DIRECTION[0], rendered.spacing_mm[0], len(rendered.hu)),
        patient_id=patient.patient_id,
        study_uid=patient.study_uid,
        series_uid=patient.series_uid,
        source=patient.patient_id,
    )


def write_phantom_nifti(
    dest: Path,
    settings: PhantomSettings,
    *,
    slice_spacing_mm: float = 1.0,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Make a set of CT volumes: the same settings give the same bytes.

    Layout: `volumes/<patient>.nii.gz` (HU), `segmentations/<patient>.nii.gz` (vertebra 1..7),
    `fractures/<patient>.nii.gz` (1 in the gaps) and `labels.csv` (COLUMNS, a row a patient; 1 where broken).

    Args:
        dest: A new or empty folder; it appears whole at the end, or not at all.
        settings: Whom to make; rows and columns are `field_of_view_mm / size_px` apart. The window and the slices per
            patient are not used.
        slice_spacing_mm: Distance of the slices.
        progress: Called with (patients done, patients in all) after every patient.

    Raises:
        MissingExtraError: nibabel is not installed.
        OutputError: `dest` exists and is not empty, or cannot be written.
    """
    pixel_mm = settings.field_of_view_mm / settings.size_px
    with atomic_folder(dest) as folder:
        rows = []
        for index in range(settings.patients):
            patient = make_patient(index, settings)
            rendered = render_volume(patient, (slice_spacing_mm, pixel_mm, pixel_mm))
            volume = make_volume(patient, rendered)
            name = f"{patient.patient_id}.nii.gz"
            paths = [f"{place}/{name}" for place in ("volumes", "segmentations", "fractures")]
            labels = (None, rendered.vertebra_mask, rendered.fracture_mask)
            for path, part in zip(paths, labels, strict=True):
                write_nifti(folder / path, volume, part)
            broken = {fracture.number for fracture in patient.fractures}
            truth = [int(bool(broken)), *(int(number in broken) for number in range(1, 8))]
            rows.append([*paths, patient.patient_id, patient.split, *truth])
            if progress:
                progress(index + 1, settings.patients)
        with (folder / "labels.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerows([COLUMNS, *rows])
    return Path(dest)
