"""Where DICOM files lie: a file, a folder of any names and depth, a zip."""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from cspine.errors import InputError
from cspine.studies.intake import Reason

_ZIP_MAGIC = (b"PK\x03\x04", b"PK\x05\x06")
# Without the preamble (as ACR-NEMA and some old archives write), a data set begins with group 0002 or 0008.
_FIRST_GROUPS = (b"\x02\x00", b"\x08\x00", b"\x00\x02", b"\x00\x08")
_MAX_MEMBER_BYTES = 4 * 2**30


@dataclass(frozen=True, slots=True)
class DicomFile:
    """One file that seems to be DICOM.

    Attributes:
        name: For messages: the path, and the name in the archive.
        path: On the disk.
        archive: The zip that it lies in, or None.
        member: Its name in the archive.
    """

    name: str
    path: Path
    archive: zipfile.ZipFile | None = None
    member: str = ""

    def open(self) -> BinaryIO:
        """Open it for reading; one from an archive is unpacked in memory.

        Raises:
            OSError, zipfile.BadZipFile, RuntimeError, NotImplementedError: it cannot be read or unpacked.
        """
        if self.archive is None:
            return self.path.open("rb")
        if self.archive.getinfo(self.member).file_size > _MAX_MEMBER_BYTES:
            raise zipfile.BadZipFile("the member would unpack to more than 4 GiB")
        return io.BytesIO(self.archive.read(self.member))


@dataclass(frozen=True, slots=True)
class Problem:
    """A file that belongs to no series, and why."""

    reason: Reason
    name: str
    detail: str


@dataclass(slots=True)
class FilesFound:
    """What a source holds: files that seem to be DICOM, problems, and how many others were passed over."""

    files: list[DicomFile] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    passed_over: int = 0


def find_dicom_files(source: Path) -> FilesFound:
    """Find the DICOM files of a source, by what is in them and never by their names.

    Args:
        source: A DICOM file, which may be a DICOMDIR; a zip; a folder, with everything below it and in the zips in it.

    Raises:
        InputError: there is no such file or folder.
    """
    source = Path(source)
    found = FilesFound()
    if source.is_dir():
        for path in _walk(source, lambda error: found.problems.append(_refuse_unreadable(error))):
            _look_at(path, found, named=False)
    elif source.is_file():
        _look_at(source, found, named=True)
    else:
        raise InputError("no such file or folder", where=str(source), fix="name a DICOM file, folder or zip")
    return found


def is_dicom(source: Path) -> bool:
    """Whether a file, or any file of a folder, seems to be DICOM; a zip is where one of its members is."""
    source = Path(source)
    if source.is_dir():
        return any(is_dicom(path) for path in _walk(source))
    found = FilesFound()
    if source.is_file():
        _look_at(source, found, named=False)
    return bool(found.files)


def _walk(folder: Path, on_error: Callable[[OSError], None] | None = None) -> Iterator[Path]:
    """Regular files below a folder, sorted; links to folders are followed, each folder once.

    Args:
        folder: Where to begin.
        on_error: Called with why a folder or a file cannot be looked at.
    """
    on_error = on_error or (lambda error: None)
    seen: set[tuple[int, int]] = set()
    for name, folders, files in os.walk(folder, followlinks=True, onerror=on_error):
        status = os.stat(name)
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders.sort()
        for path in (Path(name, file) for file in sorted(files)):
            try:
                if path.is_file():
                    yield path
            except OSError as error:
                on_error(error)


def _refuse_unreadable(error: OSError) -> Problem:
    reason = (error.strerror or "it cannot be opened").lower()
    return Problem(Reason.DAMAGED_FILE, str(error.filename), reason)


def _head_is_dicom(head: bytes) -> bool:
    # The element of the first tag is small as well, which no text or picture file has.
    first = head[:2] in _FIRST_GROUPS and len(head) > 8 and b"\x00" in head[2:4]
    return head[128:132] == b"DICM" or first


def _look_at(path: Path, found: FilesFound, *, named: bool) -> None:
    try:
        with path.open("rb") as file:
            head = file.read(132)
    except OSError as error:
        found.problems.append(_refuse_unreadable(error))
        return
    if head.startswith(_ZIP_MAGIC):
        _look_into_zip(path, found)
    elif not _head_is_dicom(head):
        if named:
            found.problems.append(Problem(Reason.NOT_DICOM, str(path), "no DICOM file"))
        else:
            found.passed_over += 1
    else:
        found.files.append(DicomFile(str(path), path))


def _look_into_zip(path: Path, found: FilesFound) -> None:
    try:
        archive = zipfile.ZipFile(path)
        members = sorted(archive.infolist(), key=lambda info: info.filename)
    except (zipfile.BadZipFile, OSError, NotImplementedError, ValueError) as error:
        found.problems.append(Problem(Reason.DAMAGED_FILE, str(path), f"a damaged zip: {error}"))
        return
    for info in members:
        name = f"{path}!{info.filename}"
        if info.is_dir():
            continue
        try:
            with archive.open(info) as file:
                head = file.read(132)
        # zipfile has RuntimeError for a password, NotImplementedError for a rare compression, zlib.error for damage.
        except Exception as error:
            found.problems.append(Problem(Reason.DAMAGED_FILE, name, f"cannot be unpacked: {error}"))
            continue
        if _head_is_dicom(head):
            found.files.append(DicomFile(name, path, archive, info.filename))
        else:
            found.passed_over += 1
