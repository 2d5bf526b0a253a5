"""Slices in HU on disk: any of them read alone, the same bytes for the same slices, damage found."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from cspine.core.errors import ImageError
from cspine.data.manifest import hash_pixels, read_stack_slice, write_stack

HU = np.random.default_rng(1).integers(-1024, 3072, (3, 5, 7)).astype(np.int16)


def test_slices_come_back_as_they_were_and_numpy_reads_them_too(tmp_path: Path) -> None:
    found = write_stack(tmp_path / "a.npz", HU)
    with np.load(tmp_path / "a.npz", allow_pickle=False) as archive:
        assert archive.files == ["00000", "00001", "00002"]
        np.testing.assert_array_equal(archive["00002"], HU[2])
    for number, (size, digest) in enumerate(found):
        assert size > 0
        assert digest == hashlib.sha256(HU[number].astype("<i2").tobytes()).hexdigest()
        read = read_stack_slice(tmp_path / "a.npz", number, expected_sha256=digest)
        assert read.dtype == np.int16
        np.testing.assert_array_equal(read, HU[number])


def test_labels_are_stored_as_bytes(tmp_path: Path) -> None:
    labels = (HU > 500).astype(np.uint8)
    write_stack(tmp_path / "a.npz", labels)
    read = read_stack_slice(tmp_path / "a.npz", 1)
    assert read.dtype == np.uint8
    np.testing.assert_array_equal(read, labels[1])


def test_the_memory_layout_of_slices_changes_no_byte(tmp_path: Path) -> None:
    write_stack(tmp_path / "a.npz", HU)
    write_stack(tmp_path / "b.npz", np.asfortranarray(HU).astype(">i2"))
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    assert hash_pixels(HU[0]) == hash_pixels(HU[0].T.copy().T)


def test_what_is_missing_damaged_or_changed_is_said(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    with pytest.raises(ImageError, match="no such file"):
        read_stack_slice(path, 0)
    write_stack(path, HU)
    with pytest.raises(ImageError, match="slice 4 is missing"):
        read_stack_slice(path, 3)
    with pytest.raises(ImageError, match="slice 1 has changed"):
        read_stack_slice(path, 0, expected_sha256=hash_pixels(HU[1]))
    content = bytearray(path.read_bytes())
    content[60:80] = bytes(20)
    path.write_bytes(content)
    with pytest.raises(ImageError, match="damaged"):
        read_stack_slice(path, 0)
    np.testing.assert_array_equal(read_stack_slice(path, 2), HU[2])
    path.write_bytes(content[:100])
    with pytest.raises(ImageError, match="damaged"):
        read_stack_slice(path, 2)
