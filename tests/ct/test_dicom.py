"""Pixels read as they lie in the file are those that pydicom reads, and what is not as it should be is left to it."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, ImplicitVRLittleEndian, generate_uid

from cspine.ct.dicom import PixelReader, UndecodableError, read_native
from cspine.ct.dicom_files import DicomFile, Frame, NativePixels, read_frames

SHAPE = (3, 5)


def write_slice(
    path: Path, stored: np.ndarray, syntax: str = ExplicitVRLittleEndian, **values: object
) -> Frame:
    """A CT slice of 16 bits a pixel in a file, and its frame as intake meets it."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.SOPClassUID, dataset.SOPInstanceUID = CTImageStorage, generate_uid(entropy_srcs=["a"])
    dataset.Rows, dataset.Columns = stored.shape
    dataset.SamplesPerPixel, dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 1, 16, 16, 15
    dataset.PixelRepresentation = int(stored.dtype.kind == "i")
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.RescaleSlope, dataset.RescaleIntercept = 1, -1024
    for keyword, value in values.items():
        setattr(dataset, keyword, value)
    dataset.PixelData = stored.tobytes()
    dataset["PixelData"].VR = "OW"
    dataset.save_as(path, enforce_file_format=True)
    [frame] = read_frames(DicomFile(path.name, path))
    return frame


def read_both_ways(frame: Frame) -> tuple[np.ndarray, np.ndarray]:
    assert isinstance(frame.native, NativePixels)
    reader = PixelReader()
    ours, theirs = reader.read_hu(frame), reader.read_hu(replace(frame, native=None))
    assert ours.clipped == theirs.clipped
    return ours.hu, theirs.hu


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_native_pixels_are_what_pydicom_reads(tmp_path: Path, data: st.DataObject):
    signed, bits = data.draw(st.booleans()), data.draw(st.integers(8, 16))
    kind = np.dtype("<i2" if signed else "<u2")
    whole = data.draw(st.booleans())  # bits above those that count may hold anything
    span = 1 << (16 if whole else bits)
    words = data.draw(st.lists(st.integers(0, span - 1), min_size=15, max_size=15))
    values = {
        "BitsStored": bits,
        "HighBit": data.draw(st.integers(bits - 1, 15)),
        "RescaleSlope": data.draw(st.sampled_from(["1", "2", "0.5", "-1", "1.0"])),
        "RescaleIntercept": data.draw(st.sampled_from(["-1024", "0", "-1023.5", "-40000", "32000"])),
    }
    if data.draw(st.booleans()):
        values["PixelPaddingValue"] = data.draw(st.integers(-100, 100) if signed else st.integers(0, 200))
    stored = np.array(words, np.uint16).view(kind).reshape(SHAPE)
    syntax = data.draw(st.sampled_from([ExplicitVRLittleEndian, ImplicitVRLittleEndian]))
    ours, theirs = read_both_ways(write_slice(tmp_path / "slice.dcm", stored, syntax, **values))
    np.testing.assert_array_equal(ours, theirs)


def test_values_beyond_int16_are_clipped_and_counted(tmp_path: Path):
    stored = np.full(SHAPE, 65535, np.uint16)
    stored[0, 0] = 1024
    frame = write_slice(tmp_path / "slice.dcm", stored)
    found = PixelReader().read_hu(frame)
    assert frame.native is not None
    assert (found.hu[0, 0], found.hu[1, 1], found.clipped) == (0, 32767, 14)


@pytest.mark.parametrize("cut", [2, 30])
def test_a_file_that_ends_early_cannot_be_decoded(tmp_path: Path, cut: int):
    path = tmp_path / "slice.dcm"
    frame = write_slice(path, np.zeros(SHAPE, np.int16))
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(UndecodableError):
        PixelReader().read_hu(frame)


def test_other_bits_and_samples_are_left_to_pydicom(tmp_path: Path):
    assert write_slice(tmp_path / "a.dcm", np.zeros(SHAPE, np.uint16), BitsAllocated=8).native is None
    assert write_slice(tmp_path / "b.dcm", np.zeros(SHAPE, np.uint16), SamplesPerPixel=3).native is None
    assert write_slice(tmp_path / "c.dcm", np.zeros(SHAPE, np.uint16), NumberOfFrames=2).native is None
    odd = write_slice(tmp_path / "d.dcm", np.zeros(SHAPE, np.uint16), PixelRepresentation=2)
    assert odd.native is None


def test_a_header_that_wants_gigabytes_does_not_get_them(tmp_path: Path):
    path = tmp_path / "slice.dcm"
    frame = write_slice(path, np.zeros(SHAPE, np.uint16))
    asked: list[int] = []

    class Asked(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            asked.append(size or 0)
            return super().read(size)

    file: Any = SimpleNamespace(open=lambda: Asked(path.read_bytes()))
    assert frame.native is not None
    assert read_native(file, frame.native, (60_000, 60_000)) is None
    assert 0 < max(asked) < 100
