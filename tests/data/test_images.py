"""Every kind of file is read to the pixels that Pillow, tifffile or a sum by hand say, or refused in one sentence."""

from __future__ import annotations

import contextlib
import io
import os
import struct
import threading
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from cspine.core.errors import ImageError
from cspine.data.images import (
    _decode,
    _scale_to_display,
    _to_grey,
    choose_bits_stored,
    inspect_image,
    read_image,
)

GREY = np.arange(20 * 24, dtype=np.int64).reshape(20, 24) % 256
WIDE = (GREY * 257).astype(np.uint16)


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., Path]:
    """Write an array or Pillow image to a fresh file."""

    def write(pixels: Any, name: str = "slice.png", **options: Any) -> Path:
        image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
        image.save(tmp_path / name, **options)
        return tmp_path / name

    return write


@pytest.fixture
def save_tiff(tmp_path: Path) -> Callable[..., Path]:
    def write(pixels: np.ndarray, **options: Any) -> Path:
        tifffile.imwrite(tmp_path / "slice.tif", pixels, **{"photometric": "minisblack", **options})
        return tmp_path / "slice.tif"

    return write


def read(path: Path, bits_stored: int | None = None) -> np.ndarray:
    return read_image(path, slice_id="a", bits_stored=bits_stored).pixels


def make_png(pixels: np.ndarray, colour_type: int, extra: bytes = b"") -> bytes:
    """A 16-bit PNG by hand, which Pillow cannot write in colour; (H, W, C), colour type as in PNG's IHDR."""
    height, width = pixels.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)
    chunks = make_chunk(b"IHDR", header) + extra + make_chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + chunks + make_chunk(b"IEND", b"")


def make_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


# 8 bits --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.png", "a.PNG", "a.tif", "a.TIFF"])
def test_8_bit_grey_is_read_as_it_is(save: Callable[..., Path], name: str) -> None:
    path = save(GREY.astype(np.uint8), name)
    item = read_image(path, slice_id="x")
    assert (item.domain, item.slice_id) == ("display8", "x")
    assert np.array_equal(item.pixels, GREY)


def test_a_jpeg_is_what_pillow_decodes(save: Callable[..., Path]) -> None:
    path = save(GREY.astype(np.uint8), "a.jpg", quality=70)
    assert np.array_equal(read(path), np.asarray(Image.open(path)))
    assert inspect_image(path).mode == "L"


def test_the_content_counts_and_not_the_name(save: Callable[..., Path]) -> None:
    path = save(GREY.astype(np.uint8), "a.jpg", format="PNG")
    assert np.array_equal(read(path), GREY)


def test_1_bit_is_black_and_white(save: Callable[..., Path]) -> None:
    path = save(Image.fromarray(GREY > 99))
    assert inspect_image(path).mode == "1"
    assert np.array_equal(read(path), np.where(GREY > 99, 255, 0))


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_equal_channels_are_that_channel_to_the_bit(save: Callable[..., Path], name: str) -> None:
    path = save(np.stack([GREY.astype(np.uint8)] * 3, axis=-1), name)
    info = inspect_image(path)
    assert (info.mode, info.bits, info.channels_differ) == ("RGB", 8, False)
    assert np.array_equal(read(path), GREY)


def test_one_differing_pixel_makes_luma_as_pillow_computes_it(save: Callable[..., Path]) -> None:
    colour = np.random.default_rng(0).integers(0, 256, (20, 24, 3), dtype=np.uint8)
    path = save(colour)
    assert inspect_image(path).channels_differ
    assert np.array_equal(read(path), np.asarray(Image.fromarray(colour).convert("L")))
    almost_grey = np.stack([GREY.astype(np.uint8)] * 3, axis=-1)
    almost_grey[3, 4] = (255, 0, 0)
    path = save(almost_grey)
    assert inspect_image(path).channels_differ
    assert read(path)[3, 4] == 76  # 0.299 * 255
    assert read(path)[3, 5] == GREY[3, 5]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_opaque_alpha_changes_nothing(save: Callable[..., Path], channels: int, name: str) -> None:
    grey = [GREY.astype(np.uint8)] * channels
    path = save(np.stack([*grey, np.full_like(grey[0], 255)], axis=-1), name)
    assert inspect_image(path).mode == ("LA" if channels == 1 else "RGBA")
    assert np.array_equal(read(path), GREY)


@pytest.mark.parametrize("channels", [1, 3])
def test_alpha_is_composited_over_black(save: Callable[..., Path], channels: int) -> None:
    alpha = np.full(GREY.shape, 128, dtype=np.uint8)
    alpha[0] = 0
    path = save(np.stack([GREY.astype(np.uint8)] * channels + [alpha], axis=-1))
    expected = np.rint(GREY * (alpha / 255.0))
    assert np.array_equal(read(path), expected)
    assert inspect_image(path).largest == expected.max()


def test_hidden_colour_is_no_colour(save: Callable[..., Path]) -> None:
    pixels = np.zeros((20, 20, 4), dtype=np.uint8)
    pixels[..., 0] = 200  # red, but fully transparent
    assert not inspect_image(save(pixels)).channels_differ


def test_a_transparent_grey_value_is_black(save: Callable[..., Path]) -> None:
    assert np.array_equal(read(save(GREY.astype(np.uint8), transparency=77)), np.where(GREY == 77, 0, GREY))


def make_palette(colours: list[tuple[int, int, int]]) -> Image.Image:
    indices = (GREY % len(colours)).astype(np.uint8)
    image = Image.frombytes("P", indices.shape[::-1], indices.tobytes())
    image.putpalette([value for colour in colours for value in colour])
    return image


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_a_palette_is_looked_up(save: Callable[..., Path], name: str) -> None:
    path = save(make_palette([(9, 9, 9), (200, 200, 200), (3, 3, 3)]), name)
    info = inspect_image(path)
    assert (info.mode, info.channels_differ, info.largest) == ("P", False, 200)
    assert np.array_equal(read(path), np.array([9, 200, 3])[GREY % 3])


def test_a_coloured_palette_is_luma(save: Callable[..., Path]) -> None:
    path = save(make_palette([(255, 0, 0), (0, 255, 0), (0, 0, 255)]))
    assert inspect_image(path).channels_differ
    assert np.array_equal(read(path), np.array([76, 150, 29])[GREY % 3])


def test_a_transparent_palette_entry_is_black(save: Callable[..., Path]) -> None:
    path = save(make_palette([(9, 9, 9), (200, 200, 200)]), transparency=bytes([255, 0]))
    assert np.array_equal(read(path), np.array([9, 0])[GREY % 2])


def test_a_palette_with_alpha_keeps_both() -> None:
    image = make_palette([(9, 9, 9), (200, 200, 200)]).convert("PA")
    assert image.mode == "PA"
    # No format that is read stores PA, but a plugin may decode to it.
    assert np.array_equal(_to_grey(image, b"", Path("a")).grey, np.array([9, 200])[GREY % 2])


# 16 bits and more ----------------------------------------------------------------------------------------------------


def test_the_depth_of_a_set_holds_its_largest_value() -> None:
    cases = {0: 8, 255: 8, 256: 10, 1023: 10, 1024: 12, 4095: 12, 4096: 14, 16383: 14, 16384: 16, 65535: 16}
    assert {value: choose_bits_stored("integer", value) for value in cases} == cases
    assert [choose_bits_stored("float", value) for value in (0.5, 1.0, 1.01, 255)] == [1, 1, 8, 8]
    assert choose_bits_stored("display", 3) == 8


@pytest.mark.parametrize("byteorder", ["<", ">"])
def test_16_bit_tiff_is_scaled_by_the_depth_of_its_set(
    save_tiff: Callable[..., Path], byteorder: str
) -> None:
    pixels = (GREY * 16).astype(np.uint16)
    path = save_tiff(pixels, byteorder=byteorder)
    info = inspect_image(path)
    assert (info.bits, info.largest, info.kind) == (16, pixels.max(), "integer")
    assert np.array_equal(read(path, 12), np.rint(pixels * 255.0 / 4095))
    assert np.array_equal(read(path), np.rint(pixels * 255.0 / 65535))


def test_16_bit_png_is_scaled(save: Callable[..., Path]) -> None:
    path = save(WIDE)
    assert inspect_image(path).mode == "I;16"
    assert np.array_equal(read(path, 16), GREY)


def test_a_transparent_16_bit_value_is_black(tmp_path: Path) -> None:
    key = make_chunk(b"tRNS", struct.pack(">H", 77 * 257))
    (tmp_path / "a.png").write_bytes(make_png(WIDE[..., None], 0, key))
    assert np.array_equal(read(tmp_path / "a.png"), np.where(GREY == 77, 0, GREY))


@given(st.integers(0, 4095), st.sampled_from([12, 14, 16]))
@settings(max_examples=50, deadline=None)
def test_scaling_is_exact_rounding(value: int, bits: int) -> None:
    pixels = np.full((16, 16), value, dtype=np.uint16)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    scaled = _scale_to_display(_decode(buffer.getvalue(), Path("a")), bits, Path("a"))
    limit = 2**bits - 1
    assert scaled[0, 0] == (2 * value * 255 + limit) // (2 * limit)


def test_the_scaling_of_a_slice_does_not_depend_on_its_content(save: Callable[..., Path]) -> None:
    dark = np.full((16, 16), 1000, dtype=np.uint16)
    bright = dark.copy()
    bright[0, 0] = 4095
    assert read(save(dark), 12)[5, 5] == read(save(bright), 12)[5, 5] == 62


def test_a_value_above_the_depth_of_the_set_is_refused(save: Callable[..., Path]) -> None:
    with pytest.raises(ImageError, match="a value of 5000 is above the 12 bits of its set"):
        read(save(np.full((16, 16), 5000, dtype=np.uint16)), 12)


@pytest.mark.parametrize(("colour_type", "channels"), [(2, 3), (4, 2), (6, 4)])
def test_16_bit_png_colour_keeps_all_its_bits(tmp_path: Path, colour_type: int, channels: int) -> None:
    pixels = np.stack([WIDE // 16] * channels, axis=-1)
    if channels in (2, 4):
        pixels[..., -1] = 65535
    (tmp_path / "a.png").write_bytes(make_png(pixels, colour_type))
    info = inspect_image(tmp_path / "a.png")
    assert (info.bits, info.channels_differ, info.largest) == (16, False, (WIDE // 16).max())
    assert info.mode.endswith(";16")
    assert np.array_equal(read(tmp_path / "a.png", 12), np.rint((WIDE // 16) * 255.0 / 4095))


def test_16_bit_colour_is_luma_in_the_order_red_green_blue(
    tmp_path: Path, save_tiff: Callable[..., Path]
) -> None:
    pixels = np.zeros((16, 16, 3), dtype=np.uint16)
    pixels[..., 0] = 65535
    (tmp_path / "a.png").write_bytes(make_png(pixels, 2))
    for path in (tmp_path / "a.png", save_tiff(pixels, photometric="rgb")):
        assert inspect_image(path).channels_differ
        assert (read(path, 16) == 76).all()


def test_32_bit_integers_within_16_bits_are_read(save_tiff: Callable[..., Path]) -> None:
    path = save_tiff(WIDE.astype(np.uint32))
    assert (inspect_image(path).bits, inspect_image(path).mode) == (32, "I")
    assert np.array_equal(read(path, 16), GREY)


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
def test_floats_are_0_to_1_or_0_to_255_as_the_set_says(save_tiff: Callable[..., Path], kind: type) -> None:
    unit = save_tiff((GREY / 255).astype(kind))
    assert inspect_image(unit).kind == "float"
    assert np.array_equal(read(unit, 1), GREY)
    assert np.array_equal(read(unit), GREY)
    assert read(unit, 8).max() == 1
    assert np.array_equal(read(save_tiff(GREY.astype(kind)), 8), GREY)


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_are_refused(save_tiff: Callable[..., Path], kind: type, value: float) -> None:
    pixels = np.zeros((16, 16), dtype=kind)
    pixels[3, 3] = value
    with pytest.raises(ImageError, match="NaN or infinite pixels"):
        read(save_tiff(pixels))


@pytest.mark.parametrize(
    ("pixels", "reason"),
    [
        (np.full((16, 16), -1000, np.int16), "signed 16-bit pixels"),
        (np.full((16, 16), -1000, np.int32), "negative pixel values"),
        (np.full((16, 16), 70_000, np.int32), "integer pixels above 65535 have no defined meaning"),
        (np.full((16, 16), -0.5, np.float32), "float pixels outside 0..255 have no defined meaning"),
        (np.full((16, 16), 255.5, np.float32), "float pixels outside 0..255 have no defined meaning"),
        (np.zeros((16, 16), np.int8), "signed 8-bit pixels"),
        (np.zeros((16, 16), np.complex64), "a TIFF pixel format that is not supported"),
    ],
)
def test_values_without_a_meaning_are_refused(
    save_tiff: Callable[..., Path], pixels: np.ndarray, reason: str
) -> None:
    path = save_tiff(pixels)
    for attempt in (lambda: read(path), lambda: inspect_image(path)):
        with pytest.raises(ImageError) as caught:
            attempt()
        assert caught.value.what == reason
        assert caught.value.where == str(path)
        assert caught.value.fix


def test_white_is_zero_in_8_bits_is_turned_and_in_16_refused(save_tiff: Callable[..., Path]) -> None:
    assert np.array_equal(read(save_tiff(GREY.astype(np.uint8), photometric="miniswhite")), 255 - GREY)
    with pytest.raises(ImageError, match="0 is white"):
        read(save_tiff(WIDE, photometric="miniswhite"))


# Bad files -----------------------------------------------------------------------------------------------------------


def huge_png(width: int, height: int) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + make_chunk(b"IHDR", header) + make_chunk(b"IDAT", zlib.compress(b"\0" * 99))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "an empty file (0 bytes)"),
        (b"hello, this is no image", "not a PNG, JPEG or TIFF image"),
        (b"\x89PNG\r\n\x1a\n", "a damaged or truncated image"),
        (b"\xff\xd8\xff" + b"\0" * 50, "a damaged or truncated image"),
        (b"II*\0" + b"\xff" * 50, "a damaged or truncated image"),
        (huge_png(1, 1), "1x1 pixels: smaller than 16 px a side"),
        (huge_png(512, 15), "512x15 pixels: smaller than 16 px a side"),
        (huge_png(20_000, 20_000), "20000x20000 pixels: larger than 8192 px a side"),
        (huge_png(8192, 8192), "8192x8192 pixels: more than 64,000,000 pixels"),
    ],
)
def test_a_bad_file_is_refused_in_one_sentence(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(content)
    with pytest.raises(ImageError) as caught:
        inspect_image(path)
    assert caught.value.what == reason
    assert caught.value.where == str(path)


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tif"])
def test_a_truncated_file_is_refused(save: Callable[..., Path], name: str) -> None:
    noise = np.random.default_rng(1).integers(0, 256, (64, 64), dtype=np.uint8)
    path = save(noise, name, **({"compression": "tiff_deflate"} if name == "a.tif" else {}))
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    with pytest.raises(ImageError, match="a damaged or truncated image"):
        read(path)


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="no such file"):
        read(tmp_path / "no.png")
    with pytest.raises(ImageError, match="not a regular file"):
        read(tmp_path)


def test_several_pages_or_frames_are_refused(save: Callable[..., Path]) -> None:
    page = Image.fromarray(GREY.astype(np.uint8))
    for name in ("a.tif", "a.png"):
        path = save(page, name, save_all=True, append_images=[page.rotate(90)])
        with pytest.raises(ImageError, match="2 pages or frames in one file"):
            read(path)
    float_pages = path.with_name("b.tif")
    tifffile.imwrite(float_pages, np.zeros((3, 16, 16), np.float64), photometric="minisblack")
    with pytest.raises(ImageError, match="3 pages or frames in one file"):
        read(float_pages)


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.tif"])
def test_a_stored_rotation_is_refused(save: Callable[..., Path], name: str) -> None:
    exif = Image.Exif()
    exif[274] = 6
    with pytest.raises(ImageError, match="EXIF orientation 6"):
        read(save(GREY.astype(np.uint8), name, exif=exif))
    exif[274] = 1
    read(save(GREY.astype(np.uint8), name, exif=exif))


def test_other_colour_models_are_refused(save: Callable[..., Path]) -> None:
    with pytest.raises(ImageError, match="mode CMYK is neither greyscale nor RGB"):
        read(save(Image.new("CMYK", (20, 20)), "a.jpg"))


def test_a_changed_file_is_refused(save: Callable[..., Path]) -> None:
    path = save(GREY.astype(np.uint8))
    sha256 = inspect_image(path).file_sha256
    assert read_image(path, slice_id="a", expected_sha256=sha256)
    save(GREY.astype(np.uint8).T.copy())
    with pytest.raises(ImageError, match="changed since it was imported"):
        read_image(path, slice_id="a", expected_sha256=sha256)


def test_a_file_larger_than_any_slice_is_not_even_read(tmp_path: Path) -> None:
    with (tmp_path / "a.tif").open("wb") as file:
        file.truncate(2**29 + 1)  # sparse: takes no space
    with pytest.raises(ImageError, match="536,870,913 bytes: larger than any slice"):
        inspect_image(tmp_path / "a.tif")


def test_unusual_tiffs_that_are_no_plain_grey_are_refused(save_tiff: Callable[..., Path]) -> None:
    with pytest.raises(ImageError, match="signed pixels"):
        read(save_tiff(np.zeros((16, 16), np.int64)))
    for pixels in (np.zeros((16, 16, 3), np.float32), np.zeros((16, 16, 3), np.uint32)):
        with pytest.raises(ImageError, match="a TIFF pixel format that is not supported"):
            read(save_tiff(pixels, photometric="rgb"))


@given(st.data())
@settings(max_examples=120, deadline=None)
def test_a_corrupted_file_is_read_or_refused_and_nothing_else(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    image = Image.fromarray(np.stack([GREY.astype(np.uint8)] * 3, axis=-1))
    mode = data.draw(st.sampled_from(["1", "L", "LA", "P", "RGB", "RGBA", "I;16", "F"]))
    image = Image.fromarray(WIDE) if mode == "I;16" else image.convert("L").convert(mode)
    formats = {"F": ["TIFF"], "L": ["PNG", "TIFF", "JPEG"], "RGB": ["PNG", "TIFF", "JPEG"]}
    buffer = io.BytesIO()
    image.save(buffer, data.draw(st.sampled_from(formats.get(mode, ["PNG", "TIFF"]))))
    content = bytearray(buffer.getvalue())
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "corrupted"
    path.write_bytes(content[: data.draw(st.integers(len(content) // 2, len(content)))])
    with contextlib.suppress(ImageError):
        assert read(path).dtype == np.uint8


def test_no_warning_of_pillow_leaks_out_of_any_thread(save: Callable[..., Path]) -> None:
    text = PngImagePlugin.PngInfo()
    path = save(GREY.astype(np.uint8), pnginfo=text)
    odd = save(GREY.astype(np.uint8), "odd.tif", tiffinfo={270: "x" * 40})
    odd.write_bytes(odd.read_bytes().replace(b"x" * 40, b""))  # tags point behind the end of the file

    def work() -> None:
        for _ in range(20):
            read(path)
            with pytest.raises(ImageError):
                read(odd)

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        before = list(warnings.filters)
        threads = [threading.Thread(target=work) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert warnings.filters == before
    assert not caught


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(ImageError, match="not a regular file"):
        read(tmp_path / "pipe.png")
