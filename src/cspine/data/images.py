"""PNG, JPEG and TIFF files in; slices of 8-bit display values out.

    bytes ──header check──▶ Pillow ──▶ grey uint8 | uint16 | float32 ──scale──▶ Slice ("display8")

One rule a case, so that a file means the same pixels everywhere:

- RGB whose channels are equal is that channel, to the bit; RGB whose channels differ becomes ITU-R 601 luma
  and is flagged (`channels_differ`). A palette is looked up first, then the same.
- Alpha is composited over black. A fully opaque alpha changes nothing.
- Integers above 8 bits become `x * 255 / (2**bits_stored - 1)`, rounded. `bits_stored` is decided for a whole
  set, when it is imported: a 12-bit set does not come out black, and the scaling of a slice never depends on
  its own content.
- Floats are 0..1 or 0..255, again decided for the set, in the same column: `bits_stored` 1 is 0..1, 8 is
  0..255.
- Signed and negative values are refused. They are Hounsfield units, and those belong in DICOM or NIfTI.
- A stored orientation other than "upright" (EXIF or TIFF tag 274) is refused: no scanner writes one, so which
  way up such a slice was looked at when it was labelled is not known.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import stat
import threading
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import numpy.typing as npt
import tifffile
from PIL import JpegImagePlugin, PngImagePlugin, TiffImagePlugin
from PIL.Image import Image

from cspine.core.errors import ImageError
from cspine.core.types import Slice

EXTENSIONS = frozenset({".png", ".jpg", ".jpeg", ".tif", ".tiff"})
MIN_SIDE_PX = 16
MAX_SIDE_PX = 8192
MAX_PIXELS = 64_000_000
MAX_FILE_BYTES = 2**29  # 64 Mpx of four 16-bit channels, uncompressed

_SIGNATURES: dict[bytes, Callable[[io.BytesIO], Image]] = {
    b"\x89PNG\r\n\x1a\n": PngImagePlugin.PngImageFile,
    b"\xff\xd8\xff": JpegImagePlugin.JpegImageFile,
    b"II*\0": TiffImagePlugin.TiffImageFile,
    b"MM\0*": TiffImagePlugin.TiffImageFile,
    b"II+\0": TiffImagePlugin.TiffImageFile,
    b"MM\0+": TiffImagePlugin.TiffImageFile,
}
_TIFF_BITS, _TIFF_PHOTOMETRIC, _ORIENTATION, _TIFF_SAMPLE_FORMAT = 258, 262, 274, 339
_INTEGER_DEPTHS = (8, 10, 12, 14, 16)
_SAVE_AGAIN = "save it as an 8-bit or 16-bit greyscale PNG"
_HU_ELSEWHERE = "Hounsfield units belong in DICOM or NIfTI; for display values, window them to 0..255"


@dataclass(frozen=True, slots=True)
class ImageInfo:
    """What one file holds, found by decoding it once.

    Attributes:
        width_px, height_px: Size.
        mode: Pillow's name of the pixel format in the file, or with ";16" added for colour of 16 bits a
            channel, for which Pillow has no name.
        bits: Bits a channel in the file: 8 (also for fewer), 16 or 32.
        largest: The largest grey value, before any scaling.
        channels_differ: The file has colour: its channels are not all equal.
        file_bytes, file_sha256: Of the file as it lies on the disk.
    """

    width_px: int
    height_px: int
    mode: str
    bits: int
    largest: float
    channels_differ: bool
    file_bytes: int
    file_sha256: str

    @property
    def kind(self) -> Literal["display", "integer", "float"]:
        """How values become 0..255: as they are, by the set's integer depth, or by the set's float range."""
        if self.bits == 8:
            return "display"
        return "float" if self.mode == "F" else "integer"


@dataclass(frozen=True, slots=True)
class _Decoded:
    """grey: (H, W) uint8, uint16 or float32, unscaled. The rest as in `ImageInfo`."""

    grey: npt.NDArray[Any]
    mode: str
    bits: int
    channels_differ: bool


def inspect_image(path: Path) -> ImageInfo:
    """Decode one file and say what is in it.

    Raises:
        ImageError: the file cannot be read as a slice; `what` is the reason.
    """
    data = _read_bytes(path)
    decoded = _decode(data, path)
    height_px, width_px = decoded.grey.shape
    return ImageInfo(
        width_px=width_px,
        height_px=height_px,
        mode=decoded.mode,
        bits=decoded.bits,
        largest=float(decoded.grey.max()),
        channels_differ=decoded.channels_differ,
        file_bytes=len(data),
        file_sha256=hashlib.sha256(data).hexdigest(),
    )


def read_image(
    path: Path, *, slice_id: str, bits_stored: int | None = None, expected_sha256: str | None = None
) -> Slice:
    """Read one file as a slice of display values.

    Args:
        path: A PNG, JPEG or TIFF; told apart by content, not by name.
        slice_id: Identity of the slice.
        bits_stored: The set's depth for files of more than 8 bits (see `choose_bits_stored`); ignored for
            others. None takes the full range of the file's type for integers, and 0..1 for floats where the
            file's values allow it.
        expected_sha256: Of the file; None leaves it unchecked.

    Returns:
        A slice in domain "display8": (H, W) uint8.

    Raises:
        ImageError: the file cannot be read as a slice, has changed, or holds values above `bits_stored`.
    """
    data = _read_bytes(path)
    if expected_sha256 is not None and hashlib.sha256(data).hexdigest() != expected_sha256:
        raise _refuse(path, "the file has changed since it was imported", "import the set again")
    decoded = _decode(data, path)
    return Slice(pixels=_scale_to_display(decoded, bits_stored, path), domain="display8", slice_id=slice_id)


def choose_bits_stored(kind: Literal["display", "integer", "float"], largest: float) -> int:
    """The depth that a whole set of files of one kind is scaled by.

    Args:
        kind: `ImageInfo.kind`.
        largest: Largest value over all files of that kind in the set.

    Returns:
        8 for display values; the smallest of 8, 10, 12, 14, 16 that holds `largest` for integers; for floats
        1 (values are 0..1) or 8 (0..255). `x * 255 / (2**bits - 1)` holds for all of them.
    """
    if kind == "display":
        return 8
    if kind == "float":
        return 1 if largest <= 1 else 8
    return next(bits for bits in _INTEGER_DEPTHS if largest < 2**bits)


def _scale_to_display(decoded: _Decoded, bits_stored: int | None, path: Path) -> npt.NDArray[np.uint8]:
    grey = decoded.grey
    if grey.dtype == np.uint8:
        return grey
    largest = float(grey.max())
    if bits_stored is None:
        bits_stored = choose_bits_stored("float", largest) if decoded.mode == "F" else 16
    limit = 2**bits_stored - 1
    if largest > limit:
        raise _refuse(
            path,
            f"a value of {largest:g} is above the {bits_stored} bits of its set",
            "import the whole set again",
        )
    scaled: npt.NDArray[np.float64] = np.rint(grey.astype(np.float64) * (255.0 / limit))
    return scaled.astype(np.uint8)


def _refuse(path: Path, reason: str, fix: str | None = None) -> ImageError:
    return ImageError(reason, where=str(path), fix=fix)


def _read_bytes(path: Path) -> bytes:
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise _refuse(path, "not a regular file")  # a pipe would wait for ever, a device never end
        size = status.st_size
        if size > MAX_FILE_BYTES:
            raise _refuse(path, f"{size:,} bytes: larger than any slice of {MAX_PIXELS:,} pixels")
        data = path.read_bytes()
    except FileNotFoundError:
        raise _refuse(path, "no such file") from None
    except OSError as error:
        raise _refuse(path, f"cannot be read: {(error.strerror or type(error).__name__).lower()}") from None
    if not data:
        raise _refuse(path, "an empty file (0 bytes)")
    return data


_quiet_lock = threading.Lock()
_quiet_users = 0
_quiet_stack = contextlib.ExitStack()


@contextlib.contextmanager
def _quiet_pillow() -> Iterator[None]:
    """Keep Pillow's warnings about odd metadata from the user, for as long as any thread is inside.

    `warnings.catch_warnings` alone saves and restores a list that all threads share: two that overlap would
    leave the filter set for good. So the first one in sets it and the last one out restores it.
    """
    global _quiet_users
    with _quiet_lock:
        if _quiet_users == 0:
            _quiet_stack.enter_context(warnings.catch_warnings())
            warnings.filterwarnings("ignore", module=r"PIL\.")
        _quiet_users += 1
    try:
        yield
    finally:
        with _quiet_lock:
            _quiet_users -= 1
            if _quiet_users == 0:
                _quiet_stack.close()


def _decode(data: bytes, path: Path) -> _Decoded:
    """Bytes to unscaled grey values. The size is checked from the header, before any pixel is decoded."""
    with _quiet_pillow():
        try:
            image = _open(data, path)
            _check_header(image, path)
            image.load()
        except ImageError:
            raise
        except Exception as error:
            if "unknown pixel mode" in str(error):
                return _decode_unusual_tiff(data, path)
            # Pillow's plugins meet damaged files with OSError, SyntaxError, ValueError, struct.error,
            # zlib.error, EOFError and others; all of them mean the same to the user.
            raise _refuse(path, "a damaged or truncated image") from error
        return _to_grey(image, data, path)


def _open(data: bytes, path: Path) -> Image:
    # The plugins are called directly: `PIL.Image.open` raises on a very large header before it tells the
    # size, and warns on a merely large one.
    for signature, plugin in _SIGNATURES.items():
        if data.startswith(signature):
            return plugin(io.BytesIO(data))
    raise _refuse(path, "not a PNG, JPEG or TIFF image")


def _check_header(image: Image, path: Path) -> None:
    _check_size(*image.size, path)
    _check_pages(getattr(image, "n_frames", 1), path)
    tags = _tiff_tags(image)
    _check_orientation(tags.get(_ORIENTATION) or _exif_orientation(image), path)
    if tags and image.mode not in ("1", "L", "LA") and tags.get(_TIFF_PHOTOMETRIC) == 0:
        raise _refuse(path, "a TIFF of more than 8 bits in which 0 is white", _SAVE_AGAIN)
    # 32 bits are excepted, because programs write those as signed by habit: there, the values decide.
    if 2 in tags.get(_TIFF_SAMPLE_FORMAT, ()) and 32 not in _tiff_bits(tags):
        raise _refuse(path, f"signed {max(_tiff_bits(tags))}-bit pixels", _HU_ELSEWHERE)


def _check_size(width_px: int, height_px: int, path: Path) -> None:
    size = f"{width_px}x{height_px} pixels"
    if min(width_px, height_px) < MIN_SIDE_PX:
        raise _refuse(path, f"{size}: smaller than {MIN_SIDE_PX} px a side")
    if max(width_px, height_px) > MAX_SIDE_PX:
        raise _refuse(path, f"{size}: larger than {MAX_SIDE_PX} px a side")
    if width_px * height_px > MAX_PIXELS:
        raise _refuse(path, f"{size}: more than {MAX_PIXELS:,} pixels")


def _check_pages(pages: int, path: Path) -> None:
    if pages > 1:
        raise _refuse(path, f"{pages} pages or frames in one file", "save each slice as a file of its own")


def _check_orientation(orientation: int | None, path: Path) -> None:
    if orientation not in (None, 1):
        raise _refuse(
            path, f"stored turned (EXIF orientation {orientation})", "save it upright, without EXIF"
        )


def _exif_orientation(image: Image) -> int | None:
    # Asking a PNG that has no EXIF so far makes Pillow decode it, so it is not asked.
    return image.getexif().get(_ORIENTATION) if "exif" in image.info else None


def _tiff_tags(image: Image) -> Any:
    return image.tag_v2 if isinstance(image, TiffImagePlugin.TiffImageFile) else {}


def _tiff_bits(tags: Any) -> tuple[int, ...]:
    return tuple(tags.get(_TIFF_BITS, ()))


def _to_grey(image: Image, data: bytes, path: Path) -> _Decoded:
    mode = image.mode
    if mode in ("I;16", "I;16B", "I;16L", "I"):
        return _decode_integer(image, path)
    if mode == "F":
        return _Decoded(_check_floats(np.asarray(image), path), "F", 32, False)
    if _has_16_bit_colour(image, data):
        return _decode_16_bit_colour(data, mode, path)
    if mode not in ("1", "L", "LA", "RGB", "RGBA", "P", "PA"):
        raise _refuse(path, f"mode {mode} is neither greyscale nor RGB", _SAVE_AGAIN)
    if mode in ("P", "PA") or "transparency" in image.info:
        channels = np.asarray(image.convert("RGBA"))
    else:
        channels = np.asarray(image.convert("L") if mode == "1" else image)
    grey, differ = _merge_channels(channels)
    return _Decoded(grey, mode, 8, differ)


def _decode_integer(image: Image, path: Path) -> _Decoded:
    bits = 32 if image.mode == "I" and 16 not in _tiff_bits(_tiff_tags(image)) else 16
    grey = _check_integers(np.asarray(image), path)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        grey[grey == transparent] = 0
    return _Decoded(grey, image.mode, bits, False)


def _check_integers(values: npt.NDArray[Any], path: Path) -> npt.NDArray[np.uint16]:
    if values.min() < 0:
        raise _refuse(path, "negative pixel values", _HU_ELSEWHERE)
    if values.max() > 65535:
        raise _refuse(path, "integer pixels above 65535 have no defined meaning", _SAVE_AGAIN)
    return values.astype(np.uint16)


def _check_floats(values: npt.NDArray[Any], path: Path) -> npt.NDArray[np.float32]:
    if not np.isfinite(values).all():
        raise _refuse(path, "NaN or infinite pixels", _SAVE_AGAIN)
    if values.min() < 0 or values.max() > 255:
        raise _refuse(path, "float pixels outside 0..255 have no defined meaning", _SAVE_AGAIN)
    return values.astype(np.float32)


def _decode_unusual_tiff(data: bytes, path: Path) -> _Decoded:
    """Greyscale TIFFs of a sample type that Pillow does not read, such as float16 and float64."""
    try:
        with tifffile.TiffFile(io.BytesIO(data)) as file:
            page = file.pages.first
            _check_size(page.imagewidth, page.imagelength, path)
            _check_pages(len(file.pages), path)
            _check_orientation(page.tags.valueof(_ORIENTATION), path)
            plain = page.photometric == tifffile.PHOTOMETRIC.MINISBLACK and page.samplesperpixel == 1
            kind = page.dtype.kind if plain and page.dtype is not None and page.dtype.itemsize > 1 else ""
            values = page.asarray() if kind in ("f", "u") else None
    except ImageError:
        raise
    except Exception as error:
        raise _refuse(
            path, "a damaged TIFF, or one packed in a way that is not supported", _SAVE_AGAIN
        ) from error
    if kind == "i":
        raise _refuse(path, "signed pixels", _HU_ELSEWHERE)
    if values is None or values.ndim != 2:
        raise _refuse(path, "a TIFF pixel format that is not supported", _SAVE_AGAIN)
    bits = 8 * values.dtype.itemsize
    if kind == "f":
        return _Decoded(_check_floats(values, path), "F", min(bits, 32), False)
    return _Decoded(_check_integers(values, path), "I", min(bits, 32), False)


def _has_16_bit_colour(image: Image, data: bytes) -> bool:
    """Whether Pillow has silently cut 16-bit channels to their high bytes."""
    if isinstance(image, PngImagePlugin.PngImageFile):
        return data[24] == 16  # IHDR: bit depth; greyscale of 16 bits came out as an integer mode already
    return 16 in _tiff_bits(_tiff_tags(image))


def _decode_16_bit_colour(data: bytes, mode: str, path: Path) -> _Decoded:
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None or pixels.dtype != np.uint16 or pixels.ndim != 3:
        raise _refuse(path, "16-bit colour in a form that is not supported", _SAVE_AGAIN)
    red_green_blue = pixels[..., [2, 1, 0, 3][: pixels.shape[2]]]
    grey, differ = _merge_channels(red_green_blue)
    return _Decoded(grey, f"{mode};16", 16, differ)


def _merge_channels(pixels: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], bool]:
    """Grey from 1 (L), 2 (LA), 3 (RGB) or 4 (RGBA) channels of uint8 or uint16.

    Args:
        pixels: (H, W) or (H, W, C).

    Returns:
        (H, W) of the same type, contiguous and owned; and whether the colour channels differ.
    """
    if pixels.ndim == 2:
        return np.array(pixels), False
    channels = [pixels[..., index] for index in range(pixels.shape[2])]
    if len(channels) in (2, 4):
        *channels, alpha = channels
        channels = [_composite_over_black(channel, alpha) for channel in channels]
    first = channels[0]
    if all(np.array_equal(first, other) for other in channels[1:]):
        return np.array(first), False
    # ITU-R 601 luma in 16.16 fixed point, as Pillow computes it: the weights sum to 65536, so white stays
    # white.
    red, green, blue = (channel.astype(np.uint32) for channel in channels)
    luma = (red * 19595 + green * 38470 + blue * 7471 + 32768) >> 16
    return luma.astype(first.dtype), True


def _composite_over_black(channel: npt.NDArray[Any], alpha: npt.NDArray[Any]) -> npt.NDArray[Any]:
    full = np.iinfo(channel.dtype).max
    product: npt.NDArray[np.uint32] = channel.astype(np.uint32) * alpha + full // 2
    return (product // full).astype(channel.dtype, copy=False)
