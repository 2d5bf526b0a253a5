"""Files that others made: the small ones that pydicom's package brings, and a GE series where one is at hand."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pydicom
import pytest

from cspine.core.answers import Action, Reason
from cspine.ct.dicom import PixelReader, scan_dicom
from cspine.ct.dicom_files import hush_pydicom
from cspine.ct.intake import RULES, IntakePolicy
from tests.ct.reading import read_dicom

SHIPPED = Path(pydicom.__file__).parent / "data" / "test_files"


def list_shipped() -> list[Path]:
    """Without the names that `pydicom.data` would have to download."""
    return [
        path for path in sorted(SHIPPED.rglob("*")) if path.is_file() and path.suffix not in (".py", ".pyc")
    ]


# Everything that can be met with less than a refusal is, and a single slice is enough.
PERMISSIVE = IntakePolicy(
    actions={
        reason: rule.actions[-1] for reason, rule in RULES.items() if rule.actions[-1] is not Action.REFUSE
    },
    min_slices=1,
    min_extent_mm=0,
)


def test_every_file_of_pydicom_gives_a_volume_or_a_reason() -> None:
    paths = list_shipped()
    assert len(paths) > 100
    for path in paths:
        results = list(read_dicom(path))
        assert results, path
        for result in results:
            assert (result.volume is None) == (result.intake.decision == "refused"), path
            assert result.volume is not None or result.intake.findings, path


def test_ct_series_of_the_pydicom_folder_give_volumes() -> None:
    scan = scan_dicom(SHIPPED)
    assert len(scan.series) > 40
    assert scan.ignored >= 8
    volumes = [series.read(PERMISSIVE).volume for series in scan.series]
    assert sum(volume is not None for volume in volumes) >= 4


def test_jpeg_2000_of_contradictory_sign_decodes_as_in_pydicom() -> None:
    with hush_pydicom():
        for name in ("J2K_pixelrep_mismatch.dcm", "693_J2KI.dcm", "CT_small.dcm"):
            frame = scan_dicom(SHIPPED / name).series[0].frames[0]
            dataset = pydicom.dcmread(SHIPPED / name)
            wanted = dataset.pixel_array * float(dataset.RescaleSlope) + float(dataset.RescaleIntercept)
            padding = dataset.get("PixelPaddingValue")
            read = PixelReader().read_hu(frame).hu
            real = np.ones(read.shape, bool) if padding is None else dataset.pixel_array != padding
            assert (read[real] == wanted[real]).all(), name


def find_ge_series() -> Iterator[Path]:
    folder = os.environ.get("CSPINE_DATA")
    for root in (Path(folder),) if folder else (Path(__file__).parents[3] / "shared" / "data",):
        if (root / "dicom-ge").is_dir():
            yield root / "dicom-ge"


@pytest.fixture
def ge_series() -> Path:
    for path in find_ge_series():
        return path
    pytest.skip("the GE series is not at hand: name its folder's parent in CSPINE_DATA")


def test_the_ge_series_is_read_with_its_tilt_and_uneven_spacing(ge_series: Path) -> None:
    [result] = read_dicom(ge_series)
    details = {finding.reason: finding.detail for finding in result.intake.findings}
    assert set(details) == {Reason.GANTRY_TILT, Reason.UNEVEN_SPACING}
    assert details[Reason.GANTRY_TILT] == "18.5 degrees"
    volume = result.volume
    assert result.intake.decision == "corrected"
    assert len(volume) == 28
    # Files 01 to 28 go from the neck to the top of the head.
    uids = [
        pydicom.dcmread(ge_series / f"{n:02}.dcm", stop_before_pixels=True).SOPInstanceUID
        for n in range(1, 29)
    ]
    assert list(volume.sop_instance_uids) == uids
    corner = volume.hu[:, 200:240, :8]  # beside the head, inside the reconstructed circle
    assert -1024 <= np.median(corner) <= -980
    # The tilt is out: the slices are stacked along their normal.
    across = (volume.origins_mm - volume.origins_mm[0]) @ np.array(volume.direction[1:]).T
    assert np.abs(across).max() < 1e-6


def test_the_ge_series_can_be_kept_as_scanned(ge_series: Path) -> None:
    policy = IntakePolicy(actions={Reason.GANTRY_TILT: Action.WARN})
    volume = next(iter(read_dicom(ge_series, policy))).volume
    dataset = pydicom.dcmread(ge_series / "15.dcm")
    real = dataset.pixel_array != -1500
    assert (volume.hu[14][real] == dataset.pixel_array[real]).all()
    assert volume.origins_mm[14] == pytest.approx([float(v) for v in dataset.ImagePositionPatient])
