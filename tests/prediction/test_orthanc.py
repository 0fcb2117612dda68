"""A DICOM SEG and its picture, stored to and fetched from a real Orthanc."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest

import autoseg
from autoseg.prediction.dicom_seg import SegWriter, Source
from tests.dicom_series import write_series
from tests.making import tiny_plan

pytest.importorskip("highdicom")
ORTHANC = shutil.which("Orthanc") or shutil.which("Orthanc", path="/usr/sbin")
SECONDS = 60  # to start and to stop
SCAN = np.random.default_rng(0).integers(-1000, 400, (16, 12, 8)).astype(np.int16)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture
def orthanc(tmp_path: Path) -> Iterator[str]:
    """The address of a server that only this machine can reach, with an empty store."""
    if ORTHANC is None:
        pytest.skip("Orthanc is not installed (Debian package orthanc)")
    store, port = tmp_path / "orthanc", free_port()
    store.mkdir()
    settings = {
        "StorageDirectory": str(store),
        "IndexDirectory": str(store),
        "HttpPort": port,
        "DicomServerEnabled": False,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False,
        "Plugins": [],
    }
    (store / "settings.json").write_text(json.dumps(settings), encoding="utf-8")
    with (store / "log").open("wb") as log:
        server = subprocess.Popen([ORTHANC, store / "settings.json"], stdout=log, stderr=log)
    address = f"http://127.0.0.1:{port}"
    try:
        end = time.monotonic() + SECONDS
        while True:
            with contextlib.suppress(OSError):
                ask(f"{address}/system")
                break
            assert server.poll() is None, (store / "log").read_text(errors="replace")
            assert time.monotonic() < end, "Orthanc does not answer"
            time.sleep(0.1)
        yield address
    finally:
        server.terminate()
        try:
            server.wait(SECONDS)
        except subprocess.TimeoutExpired:
            server.kill()


def ask(address: str, content: bytes | None = None) -> bytes:
    with urllib.request.urlopen(address, content, timeout=10) as answer:
        found: bytes = answer.read()
        return found


def store(address: str, path: Path) -> Any:
    return json.loads(ask(f"{address}/instances", path.read_bytes()))


def test_results_come_back_as_part_of_the_study(orthanc: str, tmp_path: Path) -> None:
    files = write_series(tmp_path / "in", SCAN)
    label = np.random.default_rng(1).integers(0, 3, SCAN.shape).astype(np.uint8)
    plan = tiny_plan(labels={"background": [0], "left lung": [1], "lung tumour": [2]})
    seg, capture = tmp_path / "seg.dcm", tmp_path / "capture.dcm"
    autoseg.write_dicom_seg(seg, label, tmp_path / "in", plan)
    picture = np.random.default_rng(0).integers(0, 256, (20, 31, 3)).astype(np.uint8)
    SegWriter.of(plan).write_picture(capture, picture, Source.read(tmp_path / "in"))
    stored = [store(orthanc, path) for path in (*files, seg, capture)]
    assert {each["Status"] for each in stored} == {"Success"}
    assert len({each["ParentStudy"] for each in stored}) == 1
    assert len({each["ParentSeries"] for each in stored}) == 3
    for path, each in zip((seg, capture), stored[-2:], strict=True):
        fetched = pydicom.dcmread(io.BytesIO(ask(f"{orthanc}/instances/{each['ID']}/file")))
        assert fetched == pydicom.dcmread(path)
        assert (fetched.pixel_array == pydicom.dcmread(path).pixel_array).all()
