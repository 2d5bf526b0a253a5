"""DICOM in: from files to volumes in HU, with an intake row for every series.

    scan_dicom(source) ── headers only, grouped by Series Instance UID ──▶ DicomSeries
    DicomSeries.read(policy) ── checks, plan of the volume, pixels slice by slice ──▶ CtSeries
    PixelReader.read_hu(frame) ── bits and sign, padding set apart, Modality LUT, rounded ──▶ int16 HU

Photometric Interpretation plays no part: MONOCHROME1 says that the lowest value is shown white *after* the VOI LUT
(PS3.3 C.7.6.3.1.2), so it changes a display and never a Hounsfield unit.
"""

from __future__ import annotations

import contextlib
import struct
import threading
from collections import defaultdict, deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import cv2
import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset
from pydicom.encaps import get_frame, parse_basic_offsets, parse_fragments
from pydicom.pixels.utils import pixel_array
from pydicom.uid import JPEG2000Lossless, RLELossless

from cspine.core.answers import Action, IntakeFinding, IntakeRow, Reason
from cspine.core.machine import count_cpus
from cspine.ct.annotations import CtSeries
from cspine.ct.dicom_files import (
    MEDIA_DIRECTORY,
    PIXEL_DATA,
    DicomFile,
    Frame,
    NativePixels,
    Problem,
    Span,
    as_stored,
    find_dicom_files,
    find_padding,
    hush_pydicom,
    read_dataset,
    read_frames,
)
from cspine.ct.dicom_stack import Stack, check_frames, plan_stack
from cspine.ct.intake import IntakeFindings, IntakePolicy, check_values
from cspine.ct.volume import (
    PADDING_HU,
    RELEASE_EVERY,
    OnBegin,
    StreamingVolume,
    Volume,
    make_voxels,
    release_pages,
)

FORMAT = "dicom"
_MOST_LISTED = 5
_MOST_THREADS = 8
_INT16 = np.iinfo(np.int16)
# pylibjpeg-rle ends the whole program on some damaged frames (a panic in Rust, which is no Exception).
_PLUGINS = {RLELossless: "pydicom"}

Stored = npt.NDArray[Any]
Hu = npt.NDArray[np.int16]


@dataclass(frozen=True)
class DicomScan:
    """What a source holds.

    Attributes:
        series: In the order in which they were found.
        rows: Refused files that belong to no series.
        ignored: Number of files that are not DICOM.
    """

    series: tuple[DicomSeries, ...]
    rows: tuple[IntakeRow, ...]
    ignored: int


def scan_dicom(source: Path, policy: IntakePolicy | None = None) -> DicomScan:
    """Read the headers of all DICOM files of a source and group them by Series Instance UID.

    Some hundred bytes are kept for each slice.

    Args:
        source: A file, a folder of any names and depth, a DICOMDIR (the files that it names), a zip.
        policy: Says what to do about files that are missing; None is the default one.

    Raises:
        InputError: there is no such file or folder.
    """
    source, policy = Path(source), policy or IntakePolicy()
    found = find_dicom_files(source)
    groups: dict[str, list[Frame]] = defaultdict(list)
    with hush_pydicom():
        for file in found.files:  # more are added when a DICOMDIR is followed
            try:
                frames = read_frames(file)
            except ValueError as error:
                detail = f"the header cannot be read: {error}"
                found.problems.append(Problem(Reason.DAMAGED_FILE, file.name, detail))
                continue
            if frames[0].sop_class_uid != MEDIA_DIRECTORY:
                for frame in frames:
                    groups[frame.series_uid or f"without UID: {file.name}"].append(frame)
            elif file.path == source and file.archive is None:
                listed, problems = _follow_directory(file)
                found.files += listed
                found.problems += problems
            else:  # in a folder or a zip, what a DICOMDIR names lies beside it and is found anyway
                found.ignored += 1
    return DicomScan(
        series=tuple(DicomSeries(source, tuple(frames)) for frames in groups.values()),
        rows=tuple(_make_problem_row(problem, policy) for problem in found.problems),
        ignored=found.ignored,
    )


def _make_problem_row(problem: Problem, policy: IntakePolicy) -> IntakeRow:
    action = policy.find_action(problem.reason)
    finding = IntakeFinding(reason=problem.reason, action=action, detail=problem.detail)
    return IntakeRow(source=problem.name, format=FORMAT, findings=(finding,))


def _follow_directory(directory: DicomFile) -> tuple[list[DicomFile], list[Problem]]:
    """Return the files that a DICOMDIR names (Referenced File ID), and a problem if some are not there.

    The list of records is flat, whatever the offsets between them say, so damaged offsets do no harm (PS3.3 F.3).
    """
    with directory.open() as stream:
        dataset = read_dataset(stream, ["DirectoryRecordSequence"])
    ids = [record.get("ReferencedFileID") for record in dataset.get("DirectoryRecordSequence") or []]
    parts = [(name,) if isinstance(name, str) else tuple(map(str, name)) for name in ids if name]
    paths = {names: _find_ignoring_case(directory.path.parent, names) for names in parts}
    missing = ["/".join(names) for names, path in paths.items() if path is None]
    problems = []
    if missing:
        more = f" and {len(missing) - _MOST_LISTED} more" if len(missing) > _MOST_LISTED else ""
        listed = f"{', '.join(missing[:_MOST_LISTED])}{more}"
        detail = f"{len(missing)} of {len(parts)} files are missing: {listed}"
        problems.append(Problem(Reason.MISSING_FILE, directory.name, detail))
    elif not parts:
        problems.append(Problem(Reason.NOT_CT, directory.name, "a DICOMDIR that names no files"))
    return [DicomFile(str(path), path) for path in paths.values() if path is not None], problems


def _find_ignoring_case(folder: Path, parts: Sequence[str]) -> Path | None:
    """Find a file by File ID: upper case (PS3.10 8.5), but often in lower case on a copied disc."""
    for part in parts:
        if part in ("", ".", "..") or not folder.is_dir():
            return None
        exact = folder / part
        if not exact.exists():
            alike = (path for path in folder.iterdir() if path.name.casefold() == part.casefold())
            exact = next(alike, exact)
        folder = exact
    return folder if folder.is_file() else None


@dataclass(frozen=True)
class DicomSeries:
    """The frames that share one Series Instance UID, in the order in which they were found.

    Attributes:
        source: What was named.
        frames: All of them, whatever they are.
    """

    source: Path
    frames: tuple[Frame, ...]

    @property
    def key(self) -> str:
        """Its Series Instance UID, or where its first file lies."""
        return self.frames[0].series_uid or self.frames[0].file.name

    def read(self, policy: IntakePolicy | None = None, on_begin: OnBegin | None = None) -> CtSeries:
        """Check the series, and read it into a volume unless it is refused.

        Args:
            policy: None is the default one.
            on_begin: Called with the volume before its pixels are read. It is abandoned if intake refuses it; else it
                is the one that is returned.

        Raises:
            OutputError: the disk has no room for the voxels of a large series.
        """
        policy = policy or IntakePolicy()
        found, frames, left_out = IntakeFindings(policy), self.frames, 0
        with hush_pydicom(), hush_opencv(), contextlib.closing(PixelReader()) as reader:
            stack = _plan(frames, found, reader)
            while stack is not None and not found.refused:
                volume, bad = self._read_volume(stack, found, on_begin)
                if not bad:
                    return self._finish(found, stack, volume)
                left_out += len(bad)
                # What is left is checked anew: its gaps are other ones.
                # By place: a frame that was given a position by intake is no longer equal to the one that was met.
                places = {(frame.file, frame.index) for frame in bad}
                frames = tuple(frame for frame in frames if (frame.file, frame.index) not in places)
                found = IntakeFindings(policy)
                detail = f"{left_out} of {len(self.frames)} slices, such as: {next(iter(bad.values()))}"
                found.report(Reason.UNDECODABLE, detail, correctable=bool(frames))
                stack = _plan(frames, found, reader) if frames else None
            return self._finish(found, stack, None)

    def plan(self, policy: IntakePolicy | None = None) -> Stack | None:
        """Return how `read` would stack the slices, from headers alone; None if they make no volume.

        Whether the series is refused is not said here, nor which slices cannot be decoded: `read` says both.
        """
        with hush_pydicom(), contextlib.closing(PixelReader()) as reader:
            return _plan(self.frames, IntakeFindings(policy or IntakePolicy()), reader)

    def _read_volume(
        self, stack: Stack, found: IntakeFindings, on_begin: OnBegin | None
    ) -> tuple[Volume, dict[Frame, str]]:
        """Read pixels and check their values; also return the frames that cannot be decoded, and why."""
        hu = make_voxels((len(stack), *stack.size_px), np.int16)
        volume = _make_volume(stack, hu, self.frames[0])
        streaming, taken = StreamingVolume(volume), False
        if on_begin is not None:
            on_begin(streaming)
        try:
            all_bad = found.policy.find_action(Reason.UNDECODABLE) is Action.CORRECT
            clipped, bad = _read_pixels(stack, streaming, all_bad=all_bad)
            if not bad:
                if clipped:
                    found.report(Reason.CLIPPED_HU, f"{clipped} voxels")
                if not check_values(hu, found) and Reason.MISSING_RESCALE in found:
                    found.report(
                        Reason.MISSING_RESCALE, "the stored values are no HU either", correctable=False
                    )
                taken = not found.refused
            return volume, bad
        finally:
            if not taken:
                streaming.abandon()

    def _finish(self, found: IntakeFindings, stack: Stack | None, volume: Volume | None) -> CtSeries:
        first = self.frames[0]
        taken = stack is not None and volume is not None and not found.refused
        row = IntakeRow(
            source=first.file.name,
            format=FORMAT,
            study_uid=first.study_uid,
            series_uid=first.series_uid,
            patient_id=first.patient_id,
            modality=first.modality,
            files=len({frame.file for frame in self.frames}),
            slices_found=len(self.frames),
            slices=len(stack) if stack and taken else 0,
            size_px=stack.size_px if stack and taken else None,
            spacing_mm=stack.spacing_mm if stack else None,
            extent_mm=stack.extent_mm if stack else None,
            encoding=tuple(sorted({frame.transfer_syntax for frame in self.frames})),
            findings=tuple(found.findings),
        )
        return CtSeries(row, volume if taken else None, frames=self.frames)


def _plan(frames: Sequence[Frame], found: IntakeFindings, reader: PixelReader) -> Stack | None:
    kept = check_frames(frames, found, reader.same_pixels)
    blocked = Reason.NOT_AXIAL in found or any(frame.pixel_spacing_mm is None for frame in kept)
    return None if not kept or blocked else plan_stack(kept, found)


def _make_volume(stack: Stack, hu: Hu, first: Frame) -> Volume:
    uids = [frame.sop_instance_uid for frame in stack.frames]
    frames = [frame.index for frame in stack.frames]
    # A slice that was interpolated is none of the source's instances.
    own = stack.blend is None
    return Volume(
        hu=hu,
        spacing_mm=stack.spacing_mm,
        direction=stack.direction,
        origins_mm=stack.origins_mm,
        patient_id=first.patient_id,
        study_uid=first.study_uid,
        series_uid=first.series_uid,
        frame_of_reference_uid=first.frame_of_reference_uid,
        sop_instance_uids=tuple(uid for uid in uids if uid) if own and all(uids) else (),
        frame_numbers=tuple(i + 1 for i in frames if i is not None) if own and None not in frames else (),
        source=first.file.name,
    )


def _read_pixels(stack: Stack, streaming: StreamingVolume, *, all_bad: bool) -> tuple[int, dict[Frame, str]]:
    """Fill a volume with HU; return how many voxels were clipped, and the frames that cannot be decoded.

    With `all_bad` every frame is tried; else the first that fails ends it.
    """
    hu = streaming.volume.hu
    held: dict[int, Hu] = {}
    bad: dict[Frame, str] = {}
    clipped = 0
    blend = stack.blend or tuple((index, 0.0) for index in range(len(stack)))
    needed = sorted(
        {index for first, weight in blend for index in ((first, first + 1) if weight else (first,))}
    )
    with contextlib.closing(_decode_ahead(stack, tuple(needed))) as decoded:
        for target, (first, weight) in enumerate(blend):
            last = first + 1 if weight else first
            while needed and needed[0] <= last:
                index = needed.pop(0)
                frame = next(decoded)
                if isinstance(frame, HuFrame):
                    held[index] = frame.hu
                    clipped += frame.clipped
                    continue
                bad[stack.frames[index]] = str(frame)
                if not all_bad:
                    return clipped, bad
            if not bad:
                hu[target] = held[first] if not weight else _blend(held[first], held[last], weight)
                streaming.advance(target + 1)
            for index in [index for index in held if index < first]:
                del held[index]
            if target % RELEASE_EVERY == RELEASE_EVERY - 1:
                release_pages(hu)
    return clipped, bad


def _decode_ahead(stack: Stack, indices: Sequence[int]) -> Generator[HuFrame | UndecodableError]:
    """Yield source slices in the order asked for, each at its place in the volume; threads decode a few of them ahead.

    One thread if the decoder holds Python's lock: two would wait for each other.
    """
    own = threading.local()
    readers: list[PixelReader] = []

    def decode(index: int) -> HuFrame | UndecodableError:
        if not hasattr(own, "reader"):
            own.reader = PixelReader()
            readers.append(own.reader)
        try:
            frame = own.reader.read_hu(stack.frames[index])
        except UndecodableError as error:
            return error
        return HuFrame(stack.place(index, frame.hu), frame.clipped)

    workers = min(count_cpus(), _MOST_THREADS) if decodes_in_threads(stack.frames[0]) else 1
    pool = ThreadPoolExecutor(workers)
    try:
        waiting: deque[Future[HuFrame | UndecodableError]] = deque()
        for index in indices:
            waiting.append(pool.submit(decode, index))
            if len(waiting) > 2 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
        for reader in readers:
            reader.close()


def _blend(one: Hu, other: Hu, weight: float) -> npt.NDArray[np.float32]:
    mixed = one.astype(np.float32) * (1 - weight) + other.astype(np.float32) * weight
    return np.asarray(np.rint(mixed), np.float32)


class UndecodableError(Exception):
    """Pixel data that cannot be decoded; the message says why."""


@dataclass(frozen=True, slots=True)
class HuFrame:
    """(rows, columns) HU of one frame, padding as `PADDING_HU`; and how many pixels lay beyond int16."""

    hu: Hu
    clipped: int


class PixelReader:
    """Reads frames; the last file stays parsed, and of a multi-frame file only the frame asked for is in memory.

    Each thread needs a reader of its own.
    """

    def __init__(self) -> None:
        self._file: DicomFile | None = None
        self._dataset = Dataset()
        self._options: dict[str, Any] = {}
        self._stream: BinaryIO | None = None

    def read_hu(self, frame: Frame) -> HuFrame:
        """Decode one frame and rescale it to Hounsfield units (PS3.3 C.11.1).

        Raises:
            UndecodableError: there are no pixels, fewer than there should be, or no decoder can read them.
        """
        try:
            if (native := frame.native) is not None:
                values = read_native(frame.file, native, (frame.rows, frame.columns))
                if values is not None:
                    return _to_hu(values, frame, native.padding)
            self._open(frame)
            stored = _read_stored(self._dataset, frame, self._options)
            padding = find_padding(self._dataset, stored.dtype)
            if frame.has_modality_lut:
                return _to_int16(apply_modality_lut(stored, self._dataset), _find_padded(stored, padding))
            return _to_hu(stored, frame, padding)
        except (UndecodableError, MemoryError):
            raise
        # Decoders in C and Python meet damage with errors of every kind; all mean the same to the user.
        except Exception as error:
            text = " ".join(str(error).split()) or type(error).__name__
            raise UndecodableError(text[:200]) from error

    def same_pixels(self, one: Frame, other: Frame) -> bool:
        """Return whether two frames show the same picture."""
        try:
            return np.array_equal(self.read_hu(one).hu, self.read_hu(other).hu)
        except UndecodableError:
            return False

    def close(self) -> None:
        """Close the file."""
        self._file = None
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def _open(self, frame: Frame) -> None:
        if frame.file is self._file:
            return
        self.close()
        self._options = {}
        stream = frame.file.open()
        try:
            self._dataset = read_dataset(stream, pixels=frame.index is None)
            if frame.index is not None:
                if _attach_pixels(self._dataset, stream):
                    self._options = _find_frames(self._dataset, stream)
                    self._stream = stream
                else:
                    stream.seek(0)
                    self._dataset = read_dataset(stream)
        finally:
            if self._stream is None:
                stream.close()
        self._file = frame.file


def _attach_pixels(dataset: Dataset, stream: BinaryIO) -> bool:
    """Make a stream that stands at the element of Pixel Data its value; False if it stands elsewhere (deflated).

    pydicom reads a frame from a stream when it is asked for, and leaves the stream where it was.
    """
    implicit, little = dataset.original_encoding
    head = stream.read(8 if implicit else 12)
    order = "<" if little else ">"
    if len(head) < 8 or struct.unpack(f"{order}HH", head[:4]) != PIXEL_DATA:
        return False
    dataset.add_new("PixelData", "OW" if implicit else head[4:6].decode("ascii"), stream)
    return True


def _find_frames(dataset: Dataset, stream: BinaryIO) -> dict[str, Any]:
    """Find compressed frames in a file without an offset table, as an option of pydicom's decoders.

    pydicom would else look through the whole file for every frame (PS3.5 A.4).
    """
    if not dataset.file_meta.TransferSyntaxUID.is_encapsulated or "ExtendedOffsetTable" in dataset:
        return {}
    begin = stream.tell()
    offsets = parse_basic_offsets(stream)
    first = stream.tell()
    count, places = (0, []) if offsets else parse_fragments(stream)
    lengths: list[int] = []
    for place in places:
        stream.seek(place + 4)
        lengths += struct.unpack("<L", stream.read(4))
    stream.seek(begin)
    # Where a frame has several fragments pydicom finds its end by itself.
    if not count == int(dataset.get("NumberOfFrames") or 1) > 1:
        return {}
    return {"extended_offsets": ([place - first for place in places], lengths)}


def _read_stored(dataset: Dataset, frame: Frame, options: dict[str, Any]) -> Stored:
    """Return (rows, columns) stored values, signed as Pixel Representation says (PS3.3 C.7.6.3)."""
    if "PixelData" not in dataset:
        raise UndecodableError("there is no Pixel Data")
    if dataset.PixelData in (None, b""):
        raise UndecodableError("Pixel Data is empty")
    if frame.samples_per_pixel != 1:
        raise UndecodableError(f"{frame.samples_per_pixel} samples a pixel: colour, not CT")
    syntax = dataset.file_meta.TransferSyntaxUID
    bits, high = int(dataset.BitsStored), int(dataset.get("HighBit", dataset.BitsStored - 1))
    # Old scanners stored 12 bits at the top of 16; pydicom takes them to be at the bottom.
    shift = 0 if syntax.is_encapsulated else high + 1 - bits
    stored = _decode_in_opencv(dataset, frame, options)
    if stored is None:
        stored = pixel_array(
            dataset,
            index=frame.index or 0,
            raw=True,
            correct_unused_bits=shift <= 0,
            decoding_plugin=_PLUGINS.get(syntax, ""),
            **options,
        )
    if stored.shape != (frame.rows, frame.columns) or stored.dtype.kind not in "iu":
        raise UndecodableError(
            f"{stored.dtype} pixels of shape {stored.shape}, not {frame.rows} x {frame.columns}"
        )
    return keep_bits(stored, bits, high) if shift > 0 else stored


def _decode_in_opencv(
    dataset: Dataset, frame: Frame, options: dict[str, Any]
) -> npt.NDArray[np.uint16] | None:
    """Decode lossless JPEG 2000; None for all else, and for what OpenCV does not read as it is stored.

    It is the decoder of pydicom's plugins (OpenJPEG), called without Python's lock: threads share the work.
    """
    bits = int(dataset.BitsStored)
    if not decodes_in_threads(frame) or dataset.PixelRepresentation != 0 or dataset.BitsAllocated != 16:
        return None
    table = options.get("extended_offsets")
    if table is None and "ExtendedOffsetTable" in dataset:
        table = dataset.ExtendedOffsetTable, dataset.ExtendedOffsetTableLengths
    count = int(dataset.get("NumberOfFrames") or 1)
    encoded = get_frame(dataset.PixelData, frame.index or 0, extended_offsets=table, number_of_frames=count)
    try:
        stored = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error:
        return None
    if stored is None or stored.dtype != np.uint16 or stored.shape != (frame.rows, frame.columns):
        return None
    return np.asarray(stored, np.uint16) if int(stored.max()) < 1 << bits else None


def decodes_in_threads(frame: Frame) -> bool:
    """Return whether several threads decode frames such as this one faster than one does."""
    return frame.transfer_syntax == JPEG2000Lossless.name


@contextlib.contextmanager
def hush_opencv() -> Iterator[None]:
    """Keep OpenCV's remarks on colour spaces off the terminal."""
    level = cv2.utils.logging.getLogLevel()
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    try:
        yield
    finally:
        cv2.utils.logging.setLogLevel(level)


def _to_hu(stored: Stored, frame: Frame, padding: Span | None) -> HuFrame:
    """Apply Rescale Slope and Intercept (PS3.3 C.11.1.1.2); padding becomes `PADDING_HU`."""
    slope, intercept = frame.rescale or (1.0, 0.0)
    hu = _shift(stored, int(intercept)) if slope == 1 and intercept.is_integer() else None
    if hu is None:
        if slope.is_integer() and intercept.is_integer():
            values: Stored = stored.astype(np.int64) * int(slope) + int(intercept)
        else:
            values = np.rint(stored.astype(np.float64) * slope + intercept)
        return _to_int16(values, _find_padded(stored, padding))
    padded = _find_padded(stored, padding)
    if padded is not None:
        hu[padded] = PADDING_HU
    return HuFrame(hu, 0)


def _shift(stored: Stored, intercept: int) -> Hu | None:
    """Return `stored` + `intercept`, in one pass over 16 bits; None if the sum does not always fit."""
    if int(stored.min()) + intercept < _INT16.min or int(stored.max()) + intercept > _INT16.max:
        return None
    hu = stored.astype(np.int16)  # modulo 2^16, as is the sum: what fits comes out right
    hu += np.array([intercept & 0xFFFF], np.uint16).view(np.int16)
    return hu


def _to_int16(values: Stored, padded: npt.NDArray[np.bool_] | None) -> HuFrame:
    if padded is not None:
        values = np.where(padded, PADDING_HU, values)
    clipped = int(np.count_nonzero((values < _INT16.min) | (values > _INT16.max)))
    return HuFrame(np.clip(values, _INT16.min, _INT16.max).astype(np.int16), clipped)


def _find_padded(stored: Stored, padding: Span | None) -> npt.NDArray[np.bool_] | None:
    return None if padding is None else np.asarray((stored >= padding[0]) & (stored <= padding[1]))


def apply_modality_lut(stored: Stored, dataset: Dataset) -> npt.NDArray[np.int64]:
    """Look stored values up in the Modality LUT Sequence (PS3.3 C.11.1.1).

    LUT Descriptor is (entries, 0 meaning 65536; first stored value mapped; bits an entry). Values below the first one
    mapped get the first entry, those beyond the last one the last.
    """
    item = dataset.ModalityLUTSequence[0]
    entries, first, bits = (int(value) for value in item.LUTDescriptor)
    entries = entries or 65536
    first = as_stored(first, stored.dtype)
    table = _read_table(item.LUTData, entries, bits, little=bool(dataset.original_encoding[1]))
    index = np.clip(stored.astype(np.int64) - first, 0, entries - 1)
    return np.asarray(table[index], np.int64)


def _read_table(data: Any, entries: int, bits: int, *, little: bool) -> npt.NDArray[np.int64]:
    if isinstance(data, bytes):
        order = "<" if little else ">"
        wide = len(data) >= 2 * entries
        table = np.frombuffer(data, np.dtype(f"{order}u2" if wide else "u1"))
    else:
        table = np.atleast_1d(np.asarray(data))
    if len(table) < entries or not 8 <= bits <= 16:
        raise UndecodableError(
            f"a Modality LUT of {len(table)} entries of {bits} bits, where {entries} are named"
        )
    return table[:entries].astype(np.int64)


def read_native(file: DicomFile, native: NativePixels, shape: tuple[int, int]) -> Stored | None:
    """Read (rows, columns) stored values; None if the file holds anything else: pydicom says what."""
    wanted = shape[0] * shape[1] * native.kind.itemsize
    begin = 12 if native.explicit else 8
    with file.open() as stream:
        stream.seek(native.offset)
        head = stream.read(begin)
        if len(head) < begin or struct.unpack_from("<HH", head) != PIXEL_DATA:
            return None
        # Before so much is read: a damaged header may want gigabytes.
        if struct.unpack_from("<L", head, begin - 4) != (wanted,):
            return None
        found = stream.read(wanted)
    if len(found) < wanted:
        return None
    stored = np.frombuffer(found, native.kind).reshape(shape)
    return keep_bits(stored, native.bits_stored, native.high_bit)


def keep_bits(stored: Stored, bits_stored: int, high_bit: int) -> Stored:
    """Keep the Bits Stored up to High Bit, with the sign of the type (PS3.5 8.1.1)."""
    top = 8 * stored.dtype.itemsize - 1 - high_bit
    down = 8 * stored.dtype.itemsize - bits_stored
    if top == down:  # the bits lie at the bottom; those above them are rarely anything but zeros or the sign
        low = 0 if stored.dtype.kind == "u" else -1 << bits_stored - 1
        high = low + (1 << bits_stored)
        if low <= int(stored.min()) and int(stored.max()) < high:
            return stored
    return np.asarray(np.right_shift(np.left_shift(stored, top), down))
