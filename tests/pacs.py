"""An archive for tests: a real Orthanc on ports of its own, with storage of its own, gone when the test is.

    with run_orthanc(tmp_path) as pacs:
        pacs.store(datasets)                        # C-STORE
        client = pacs.make_client()                 # DICOMweb: QIDO-RS, WADO-RS, STOW-RS

HTTP answers this machine only. Orthanc cannot bind its DICOM port to the loopback address; it refuses every association
that is not from there.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from pydicom.dataset import Dataset

HOST = "127.0.0.1"
AE_TITLE, OUR_AE_TITLE = "ORTHANC", "CSPINE"
_PROGRAMS = ("Orthanc", "/usr/sbin/Orthanc", "/usr/local/sbin/Orthanc")
_PLUGINS = ("/usr/share/orthanc/plugins", "/usr/local/share/orthanc/plugins", "/usr/lib/orthanc")
_START_S, _STOP_S = 60.0, 10.0


@dataclass(frozen=True)
class Pacs:
    """A running archive.

    Attributes:
        http_port, dicom_port: On HOST.
        our_port: Where it looks for the node OUR_AE_TITLE, when it is to send something there.
    """

    http_port: int
    dicom_port: int
    our_port: int

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.http_port}"

    @property
    def dicomweb_url(self) -> str:
        return f"{self.url}/dicom-web"

    def make_client(self) -> Any:
        """A `dicomweb_client.DICOMwebClient`, which heeds no proxy of the environment."""
        import requests
        from dicomweb_client import DICOMwebClient

        session = requests.Session()
        session.trust_env = False
        return DICOMwebClient(self.dicomweb_url, session=session)

    def store(self, datasets: Iterable[Dataset]) -> None:
        """C-STORE each, as it is encoded; fails the test unless each succeeds."""
        from pynetdicom import AE

        kept = list(datasets)
        entity = AE(ae_title=OUR_AE_TITLE)
        for sop_class, syntax in {(one.SOPClassUID, one.file_meta.TransferSyntaxUID) for one in kept}:
            entity.add_requested_context(sop_class, syntax)
        association = entity.associate(HOST, self.dicom_port, ae_title=AE_TITLE)
        assert association.is_established, "the archive takes no association"
        try:
            for dataset in kept:
                status = association.send_c_store(dataset)
                assert status.get("Status") == 0x0000, f"{dataset.SOPClassUID.name}: {status}"
        finally:
            association.release()


def find_orthanc() -> tuple[str, str]:
    """The program and its DICOMweb plugin; skips the test where one is not installed."""
    program = next((found for name in _PROGRAMS if (found := shutil.which(name))), None)
    if program is None:
        pytest.skip("Orthanc is not installed")
    for folder in _PLUGINS:
        for path in sorted(Path(folder).glob("libOrthancDicomWeb.so*")):
            return program, str(path)
    pytest.skip("Orthanc's DICOMweb plugin is not installed")


@contextlib.contextmanager
def run_orthanc(folder: Path) -> Iterator[Pacs]:
    """Start an archive whose files lie in `folder`, and stop it in the end."""
    program, plugin = find_orthanc()
    folder.mkdir(parents=True, exist_ok=True)
    pacs = Pacs(*_find_free_ports(3))
    (folder / "orthanc.json").write_text(json.dumps(_configure(folder, plugin, pacs)))
    with (folder / "orthanc.log").open("wb") as log:
        process = subprocess.Popen([program, folder / "orthanc.json"], stdout=log, stderr=log, cwd=folder)
    try:
        _wait_for(pacs, process, folder / "orthanc.log")
        yield pacs
    finally:
        process.terminate()
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _configure(folder: Path, plugin: str, pacs: Pacs) -> dict[str, Any]:
    return {
        "Name": "tests of cspine",
        "StorageDirectory": str(folder / "storage"),
        "IndexDirectory": str(folder / "storage"),
        "Plugins": [plugin],
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False,
        "HttpPort": pacs.http_port,
        "DicomPort": pacs.dicom_port,
        "DicomAet": AE_TITLE,
        "DicomCheckCalledAet": True,
        "DicomCheckModalityHost": True,
        "DicomAlwaysAllowEcho": False,
        "DicomAlwaysAllowStore": False,
        "DicomModalities": {"cspine": [OUR_AE_TITLE, HOST, pacs.our_port]},
        "StableAge": 1,
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
    }


def _find_free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind((HOST, 0))
        return [one.getsockname()[1] for one in sockets]


def _wait_for(pacs: Pacs, process: subprocess.Popen[bytes], log: Path) -> None:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    end = time.monotonic() + _START_S
    while time.monotonic() < end:
        if process.poll() is not None:
            break
        with contextlib.suppress(OSError), opener.open(f"{pacs.dicomweb_url}/studies", timeout=5):
            return
        time.sleep(0.05)
    pytest.fail(f"Orthanc did not start: {log.read_text(errors='replace')[-2000:]}")
