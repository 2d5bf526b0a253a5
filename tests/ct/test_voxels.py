"""Large volumes live in a file without a name; nobody who reads them can tell."""

from __future__ import annotations

import errno
import mmap
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cspine.core.errors import OutputError
from cspine.ct import volume as voxels
from cspine.ct.volume import make_voxels, release_pages
from cspine.phantom.patient import PhantomPatient

pydicom = pytest.importorskip("pydicom")

from cspine.core.answers import Reason  # noqa: E402
from cspine.ct import dicom  # noqa: E402
from cspine.ct.dicom import HuFrame, PixelReader, scan_dicom  # noqa: E402
from cspine.ct.dicom_files import Frame  # noqa: E402
from cspine.phantom.dicom import PLAIN, Habit, make_objects, write_objects  # noqa: E402
from cspine.phantom.series import scan_patient, write_series  # noqa: E402
from tests.ct.reading import read_dicom  # noqa: E402

pytestmark = pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="volumes stay in memory here")
ENHANCED = replace(PLAIN, name="enhanced", multi_frame=True)


@pytest.fixture
def every_volume_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(voxels, "MAPPED_BYTES", 1)


def write_neck(folder: Path, neck: PhantomPatient, habit: Habit = PLAIN) -> Any:
    series = scan_patient(neck, (3.0, 3.0, 3.0), habit)
    write_series(folder, series.volume, habit)
    return series.volume.hu


def find_base(array: Any) -> Any:
    while isinstance(array, np.ndarray):
        array = array.base
    return array


@pytest.mark.usefixtures("every_volume_is_large")
def test_values_stay_when_their_pages_are_given_back() -> None:
    array = make_voxels((3, 64, 64), np.int16)
    array[:] = np.arange(array.size).reshape(array.shape)
    release_pages(array[1, ::2])
    np.testing.assert_array_equal(array.ravel(), np.arange(array.size))


def test_small_arrays_are_in_memory() -> None:
    array = make_voxels((3, 64, 64), np.uint8)
    release_pages(array)
    assert find_base(array) is None


@pytest.mark.usefixtures("every_volume_is_large")
@pytest.mark.parametrize("habit", [PLAIN, ENHANCED], ids=["classic", "multi-frame"])
def test_a_series_in_a_file_has_the_values_of_one_in_memory(
    habit: Habit, broken_neck: PhantomPatient, tmp_path: Path
) -> None:
    truth = write_neck(tmp_path, broken_neck, habit)
    [result] = read_dicom(tmp_path)
    volume = result.volume
    assert isinstance(find_base(volume.hu), mmap.mmap)
    np.testing.assert_array_equal(volume.hu, truth)
    read = [
        volume.slice(index) for index in range(len(volume))
    ]  # past the slice at which pages are given back
    np.testing.assert_array_equal(np.stack([one.pixels for one in read]), truth)


@pytest.mark.usefixtures("every_volume_is_large")
def test_a_full_disk_is_one_clear_error(
    broken_neck: PhantomPatient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    write_neck(tmp_path, broken_neck)
    monkeypatch.setattr(os, "posix_fallocate", refuse)
    with pytest.raises(OutputError, match="no room for the voxels of a series") as caught:
        list(read_dicom(tmp_path))
    assert "TMPDIR" in str(caught.value)


def test_of_a_multi_frame_file_only_the_frame_asked_for_is_read(
    broken_neck: PhantomPatient, tmp_path: Path
) -> None:
    truth = write_neck(tmp_path, broken_neck, ENHANCED)
    [series] = scan_dicom(tmp_path).series
    reader = PixelReader()
    found = reader.read_hu(series.frames[-1]).hu
    element = reader._dataset["PixelData"]
    assert hasattr(element.value, "read")
    reader.close()
    assert element.value.closed
    np.testing.assert_array_equal(found, truth[-1])


@pytest.mark.parametrize("table", ["basic", "extended", "none"])
@pytest.mark.parametrize("encoding", ["rle", "jpeg-2000"])
def test_compressed_frames_are_found_by_any_table_or_none(
    encoding: Any, table: str, broken_neck: PhantomPatient, tmp_path: Path
) -> None:
    habit = replace(ENHANCED, encoding=encoding)
    part = scan_patient(broken_neck, (12.0, 3.0, 3.0), habit).volume
    objects = make_objects(part, habit, 0)
    [path] = write_objects(tmp_path, objects, habit)
    dataset = pydicom.dcmread(path)
    count = len(part)
    frames = list(pydicom.encaps.generate_frames(dataset.PixelData, number_of_frames=count))
    if table == "extended":
        dataset.PixelData, offsets, lengths = pydicom.encaps.encapsulate_extended(frames)
        dataset.ExtendedOffsetTable, dataset.ExtendedOffsetTableLengths = offsets, lengths
    else:
        dataset.PixelData = pydicom.encaps.encapsulate(frames, has_bot=table == "basic")
    dataset.save_as(path)
    [result] = read_dicom(path)
    assert Reason.UNDECODABLE not in {finding.reason for finding in result.intake.findings}
    [series] = scan_dicom(path).series
    reader = PixelReader()
    order = [*range(0, count, 2), *range(1, count, 2)]
    read = {index: reader.read_hu(series.frames[index]).hu for index in order}
    reader.close()
    np.testing.assert_array_equal(np.stack([read[index] for index in range(count)]), part.hu)


def test_a_multi_frame_file_that_ends_early_is_undecodable(
    broken_neck: PhantomPatient, tmp_path: Path
) -> None:
    write_neck(tmp_path, broken_neck, ENHANCED)
    [path] = [path for path in tmp_path.rglob("*") if path.is_file()]
    path.write_bytes(path.read_bytes()[:-100])
    [result] = read_dicom(tmp_path)
    assert Reason.UNDECODABLE in {finding.reason for finding in result.intake.findings}
    assert result.volume is None


@pytest.mark.parametrize(("signed", "bits_stored"), [(False, 12), (False, 16), (True, 16)])
def test_jpeg_2000_is_the_same_in_threads_and_by_pydicom(
    signed: bool,
    bits_stored: int,
    broken_neck: PhantomPatient,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    habit = replace(PLAIN, encoding="jpeg-2000", signed=signed, bits_stored=bits_stored)
    truth = write_neck(tmp_path, broken_neck, habit)
    monkeypatch.setattr("cspine.ct.dicom.count_cpus", lambda: 3)
    [threads] = read_dicom(tmp_path)
    monkeypatch.setattr(dicom, "decodes_in_threads", lambda frame: False)
    [pydicom_alone] = read_dicom(tmp_path)
    np.testing.assert_array_equal(threads.volume.hu, truth)
    np.testing.assert_array_equal(pydicom_alone.volume.hu, truth)
    assert capfd.readouterr().err == ""


def test_slices_keep_their_order_however_long_each_takes(
    broken_neck: PhantomPatient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_hu = PixelReader.read_hu

    def wait(reader: PixelReader, frame: Frame) -> HuFrame:
        time.sleep(0.004 if (frame.instance_number or 0) % 3 == 0 else 0)
        return read_hu(reader, frame)

    truth = write_neck(tmp_path, broken_neck)
    monkeypatch.setattr(PixelReader, "read_hu", wait)
    monkeypatch.setattr("cspine.ct.dicom.count_cpus", lambda: 4)
    monkeypatch.setattr("cspine.ct.dicom.decodes_in_threads", lambda frame: True)
    [result] = read_dicom(tmp_path)
    np.testing.assert_array_equal(result.volume.hu, truth)
