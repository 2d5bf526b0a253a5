"""DICOM in: from files to volumes in HU, with an intake row for every series.

    scan_dicom(source) ── headers only, grouped by Series Instance UID ──▶ DicomSeries ── read(policy) ──▶ SeriesResult

Scanning keeps some hundred bytes a slice; reading holds one series, so thousands of studies pass through little memory.
"""

from __future__ import annotations

import contextlib
import threading
from collections import defaultdict, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cspine.core.answers import Action, IntakeFinding, IntakeRow, Reason
from cspine.core.machine import count_cpus
from cspine.ct.dicom_files import (
    MEDIA_DIRECTORY,
    DicomFile,
    Frame,
    Problem,
    find_dicom_files,
    hush_pydicom,
    read_dataset,
    read_frames,
)
from cspine.ct.dicom_pixels import HuFrame, PixelReader, UndecodableError, decodes_in_threads, hush_opencv
from cspine.ct.dicom_stack import Stack, check_frames, plan_stack
from cspine.ct.intake import Findings, IntakePolicy, SeriesResult, check_values
from cspine.ct.volume import RELEASE_EVERY, GrowingVolume, OnBegin, Volume, make_voxels, release_pages

Progress = Callable[[int, int], None]

FORMAT = "dicom"
_MOST_LISTED = 5
_MOST_THREADS = 8


@dataclass(frozen=True)
class DicomScan:
    """What a source holds.

    Attributes:
        series: In the order in which they were met.
        rows: Refused files that belong to no series.
        passed_over: Files that are not DICOM.
    """

    series: tuple[DicomSeries, ...]
    rows: tuple[IntakeRow, ...]
    passed_over: int


def scan_dicom(
    source: Path, policy: IntakePolicy | None = None, progress: Progress | None = None
) -> DicomScan:
    """Read the headers of all DICOM files of a source and group them by Series Instance UID.

    Args:
        source: A file, a folder of any names and depth, a DICOMDIR (the files that it names), a zip.
        policy: Says what to do about files that are missing; None is the default one.
        progress: Called as (files done, files in all).

    Raises:
        InputError: there is no such file or folder.
    """
    source = Path(source)
    found = find_dicom_files(source)
    problems, passed_over = list(found.problems), found.passed_over
    groups: dict[str, list[Frame]] = defaultdict(list)
    files = list(found.files)
    with hush_pydicom():
        for done, file in enumerate(files):  # grows where a DICOMDIR is followed
            try:
                frames = read_frames(file)
            except ValueError as error:
                problems.append(
                    Problem(Reason.DAMAGED_FILE, file.name, f"the header cannot be read: {error}")
                )
                frames = []
            if frames and frames[0].sop_class == MEDIA_DIRECTORY:
                # In a folder or a zip, what a DICOMDIR names lies beside it and is found anyway.
                if file.path == source and file.archive is None:
                    listed, problem = _follow_directory(file)
                    files += listed
                    problems += problem
                else:
                    passed_over += 1
                frames = []
            for frame in frames:
                groups[frame.series_uid or f"without UID: {file.name}"].append(frame)
            if progress is not None:
                progress(done + 1, len(files))
    policy = policy or IntakePolicy()
    return DicomScan(
        series=tuple(DicomSeries(source, tuple(frames)) for frames in groups.values()),
        rows=tuple(_make_problem_row(problem, policy) for problem in problems),
        passed_over=passed_over,
    )


def read_dicom(
    source: Path, policy: IntakePolicy | None = None, progress: Progress | None = None
) -> Iterator[SeriesResult]:
    """Scan a source, then read its series one by one; arguments and errors as for `scan_dicom`."""
    policy = policy or IntakePolicy()
    scan = scan_dicom(source, policy, progress)
    yield from (SeriesResult(row) for row in scan.rows)
    for series in scan.series:
        yield series.read(policy)


@dataclass(frozen=True)
class DicomSeries:
    """The frames that share one Series Instance UID, in the order in which they were met.

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

    def read(
        self,
        policy: IntakePolicy | None = None,
        progress: Progress | None = None,
        on_begin: OnBegin | None = None,
    ) -> SeriesResult:
        """Check the series, and read it into a volume unless it is refused.

        Args:
            policy: None is the default one.
            progress: Called as (slices done, slices in all) while pixels are read.
            on_begin: Called with the volume before its pixels are read. It is abandoned where intake does not take it;
                what is returned has the same volume else.

        Raises:
            OutputError: the disk has no room for the voxels of a large series.
        """
        policy = policy or IntakePolicy()
        with hush_pydicom(), hush_opencv(), contextlib.closing(PixelReader()) as reader:
            found, frames, left_out = Findings(policy), self.frames, 0
            stack = self._plan(frames, found, reader)
            while stack is not None and not found.refused:
                volume = _make_volume(
                    stack, make_voxels((len(stack), *stack.size_px), np.int16), self.frames[0]
                )
                growing = GrowingVolume(volume)
                if on_begin is not None:
                    on_begin(growing)
                taken = False
                try:
                    clipped, bad = _read_pixels(stack, growing, progress, all_bad=_may_leave_out(policy))
                    if not bad:
                        self._judge(volume.hu, clipped, found)
                        taken = not found.refused
                        return self._finish(found, stack, volume)
                finally:
                    if not taken:
                        growing.abandon()
                left_out += len(bad)
                # What is left is checked anew: its gaps are other ones.
                # By place: a frame that was given a position by intake is no longer equal to the one that was met.
                places = {(frame.file, frame.index) for frame in bad}
                frames = tuple(frame for frame in frames if (frame.file, frame.index) not in places)
                found = Findings(policy)
                detail = f"{left_out} of {len(self.frames)} slices, such as: {next(iter(bad.values()))}"
                found.meet(Reason.UNDECODABLE, detail, correctable=bool(frames))
                stack = self._plan(frames, found, reader) if frames else None
            return self._finish(found, stack, None)

    def plan(self, policy: IntakePolicy | None = None) -> Stack | None:
        """How `read` would stack the slices, from headers alone; None where they make no volume.

        Whether the series is refused is not said here, nor which slices cannot be decoded: `read` says both.
        """
        with hush_pydicom(), contextlib.closing(PixelReader()) as reader:
            return self._plan(self.frames, Findings(policy or IntakePolicy()), reader)

    def _plan(self, frames: Sequence[Frame], found: Findings, reader: PixelReader) -> Stack | None:
        kept = check_frames(frames, found, lambda one, other: _same_pixels(reader, one, other))
        blocked = Reason.NOT_AXIAL in found or any(frame.pixel_spacing_mm is None for frame in kept)
        return None if not kept or blocked else plan_stack(kept, found)

    def _judge(self, hu: npt.NDArray[np.int16], clipped: int, found: Findings) -> None:
        """What only the values can tell."""
        if clipped:
            found.meet(Reason.CLIPPED_HU, f"{clipped} voxels")
        if not check_values(hu, found) and Reason.MISSING_RESCALE in found:
            found.meet(Reason.MISSING_RESCALE, "the stored values are no HU either", correctable=False)

    def _finish(self, found: Findings, stack: Stack | None, volume: Volume | None) -> SeriesResult:
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
            encoding=tuple(sorted({frame.encoding for frame in self.frames})),
            findings=tuple(found.met),
        )
        return SeriesResult(row, volume if taken else None)


def _may_leave_out(policy: IntakePolicy) -> bool:
    return policy.find_action(Reason.UNDECODABLE) is Action.CORRECT


def _read_pixels(
    stack: Stack, growing: GrowingVolume, progress: Progress | None, *, all_bad: bool
) -> tuple[int, dict[Frame, str]]:
    """Fill a volume with HU; how many voxels were clipped, and the frames that cannot be decoded.

    With `all_bad` every frame is tried; else the first that fails ends it.
    """
    hu = growing.volume.hu
    held: dict[int, npt.NDArray[np.int16]] = {}
    bad: dict[Frame, str] = {}
    clipped = 0
    blend = stack.blend or tuple((index, 0.0) for index in range(len(stack)))
    needed = sorted(
        {index for source, weight in blend for index in ([source, source + 1] if weight else [source])}
    )
    with contextlib.closing(_decode_ahead(stack, tuple(needed))) as decoded:
        for target, (source, weight) in enumerate(blend):
            last = source + 1 if weight else source
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
                hu[target] = held[source] if not weight else _blend(held[source], held[last], weight)
                growing.advance(target + 1)
            for index in [index for index in held if index < source]:
                del held[index]
            if target % RELEASE_EVERY == RELEASE_EVERY - 1:
                release_pages(hu)
            if progress is not None:
                progress(target + 1, len(stack))
    return clipped, bad


def _decode_ahead(stack: Stack, indices: Sequence[int]) -> Generator[HuFrame | UndecodableError]:
    """Source slices in the order asked for, each at its place in the volume; threads decode a few of them ahead.

    One thread where the decoder holds Python's lock: two would wait for each other.
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


def _blend(
    one: npt.NDArray[np.int16], other: npt.NDArray[np.int16], weight: float
) -> npt.NDArray[np.float32]:
    mixed = one.astype(np.float32) * (1 - weight) + other.astype(np.float32) * weight
    return np.asarray(np.rint(mixed), np.float32)


def _same_pixels(reader: PixelReader, one: Frame, other: Frame) -> bool:
    try:
        return np.array_equal(reader.read_hu(one).hu, reader.read_hu(other).hu)
    except UndecodableError:
        return False


def _make_volume(stack: Stack, hu: npt.NDArray[np.int16], first: Frame) -> Volume:
    uids = [frame.sop_uid for frame in stack.frames]
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


def _make_problem_row(problem: Problem, policy: IntakePolicy) -> IntakeRow:
    finding = IntakeFinding(
        reason=problem.reason, action=policy.find_action(problem.reason), detail=problem.detail
    )
    return IntakeRow(source=problem.name, format=FORMAT, findings=(finding,))


def _follow_directory(directory: DicomFile) -> tuple[list[DicomFile], list[Problem]]:
    """The files that a DICOMDIR names (Referenced File ID), and those that are not there.

    The list of records is flat, whatever the offsets between them say, so damaged offsets do no harm (PS3.3 F.3).
    """
    with directory.open() as stream:
        dataset = read_dataset(stream, ["DirectoryRecordSequence"])
    ids: Iterable[Any] = (
        record.get("ReferencedFileID") for record in dataset.get("DirectoryRecordSequence") or []
    )
    parts = [(name,) if isinstance(name, str) else tuple(str(part) for part in name) for name in ids if name]
    folder = directory.path.parent
    paths = {names: _find_ignoring_case(folder, names) for names in parts}
    missing = ["/".join(names) for names, path in paths.items() if path is None]
    problems = []
    if missing:
        more = f" and {len(missing) - _MOST_LISTED} more" if len(missing) > _MOST_LISTED else ""
        detail = (
            f"{len(missing)} of {len(parts)} files are missing: {', '.join(missing[:_MOST_LISTED])}{more}"
        )
        problems.append(Problem(Reason.MISSING_FILE, directory.name, detail))
    elif not parts:
        problems.append(Problem(Reason.NOT_CT, directory.name, "a DICOMDIR that names no files"))
    return [DicomFile(str(path), path) for path in paths.values() if path is not None], problems


def _find_ignoring_case(folder: Path, parts: Sequence[str]) -> Path | None:
    """File IDs are upper case (PS3.10 8.5); a copied disc often has them in lower case."""
    for part in parts:
        if part in ("", ".", "..") or not folder.is_dir():
            return None
        exact = folder / part
        if not exact.exists():
            exact = next(
                (path for path in folder.iterdir() if path.name.casefold() == part.casefold()), exact
            )
        folder = exact
    return folder if folder.is_file() else None
