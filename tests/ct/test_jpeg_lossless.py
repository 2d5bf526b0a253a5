"""JPEG lossless, written here and read by libjpeg, which knows nothing of how it was written."""

from __future__ import annotations

import numpy as np
import pytest

from cspine.phantom.dicom import encode_jpeg_lossless

libjpeg = pytest.importorskip("libjpeg")
RNG = np.random.default_rng(5)


@pytest.mark.parametrize("bits", [8, 12, 16])
@pytest.mark.parametrize("shape", [(2, 2), (1, 9), (7, 1), (33, 50)])
def test_another_decoder_reads_what_was_written(shape: tuple[int, int], bits: int) -> None:
    pixels = RNG.integers(0, 1 << bits, shape).astype(np.uint16)
    np.testing.assert_array_equal(libjpeg.decode(encode_jpeg_lossless(pixels, bits)).reshape(shape), pixels)


def test_the_largest_jumps_and_flat_pictures_survive() -> None:
    jumps = np.array(
        [[0, 32768, 0, 65535, 0], [32768, 0, 1, 65535, 32767], [65535, 65534, 0, 0, 0]], np.uint16
    )
    np.testing.assert_array_equal(libjpeg.decode(encode_jpeg_lossless(jumps, 16)), jumps)
    flat = np.full((16, 16), 700, np.uint16)
    assert len(encode_jpeg_lossless(flat, 12)) < 250
    np.testing.assert_array_equal(libjpeg.decode(encode_jpeg_lossless(flat, 12)), flat)


def test_no_byte_of_the_data_can_be_taken_for_a_marker() -> None:
    stream = encode_jpeg_lossless(RNG.integers(0, 4096, (64, 64)).astype(np.uint16), 12)
    data = stream[stream.index(b"\xff\xda") + 2 : -2]
    assert all(data[i + 1] == 0 for i in range(len(data) - 1) if data[i] == 0xFF)
