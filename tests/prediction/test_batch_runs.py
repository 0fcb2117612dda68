"""Runs in real processes that share a folder, are killed or stopped, or fill the disk."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from autoseg.cli.common import CONTINUE
from autoseg.common.errors import AutosegError
from autoseg.common.files import read_json
from autoseg.image.image import read_label
from autoseg.prediction.record import LABELS as LABELS_FILE
from autoseg.prediction.record import RECORD, file_facts
from tests.dataset.making import write_scan
from tests.faults.killing import attempt
from tests.forking import begin
from tests.prediction import running
from tests.prediction.making import save_model
from tests.prediction.scans import PLAN, files_in, predict, write_scans

SECONDS = 120.0
STATUSES = {
    signal.SIGTERM: (143, f"stopped by SIGTERM; {CONTINUE}"),
    signal.SIGINT: (130, f"stopped by Ctrl-C; {CONTINUE}"),
}
NAMES = [f"case {number}" for number in range(8)]


def check_all_complete(out: Path, names: list[str]) -> None:
    record = read_json(out / RECORD)
    assert sorted(record["cases"]) == sorted(names)
    assert files_in(out) == {RECORD, LABELS_FILE, *(f"{name}.nii.gz" for name in names)}
    for case in record["cases"].values():
        for file, facts in case["files"].items():
            assert file_facts(out / file) == facts
            read_label(out / file)


def test_runs_share_the_cases_of_a_folder_and_take_over_those_of_a_killed_one(
    tmp_path: Path,
) -> None:
    """Three runs are in their first case when one of them is killed."""
    scans, out, meeting = (
        write_scans(tmp_path / "in", *NAMES),
        tmp_path / "out",
        tmp_path / "meeting",
    )
    (killed, _), *others = [begin(running.share, scans, out, 4) for _ in range(3)]
    for run in (killed, *(run for run, _ in others)):
        wait_for((meeting / str(run.pid)).exists, run)
    killed.kill()
    killed.join()
    (meeting / "the fourth").touch()  # now the others go on
    first, second = (result.recv() for _, result in others)
    assert first["predicted"]
    assert second["predicted"]
    assert sorted(first["predicted"] + second["predicted"]) == NAMES
    assert sorted(first["skipped"]) == sorted(second["predicted"])
    assert sorted(second["skipped"]) == sorted(first["predicted"])
    check_all_complete(out, NAMES)
    record = read_json(out / RECORD)
    makers = [
        {record["cases"][name]["run"] for name in run["predicted"]} for run in (first, second)
    ]
    assert [len(found) for found in makers] == [1, 1]
    assert makers[0] | makers[1] == set(record["runs"])
    assert len(record["runs"]) == 2


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork, to start many processes quickly")
def test_killed_at_any_moment_and_run_again(tmp_path: Path) -> None:
    scans = write_scans(tmp_path / "in", "a")
    fresh, overwriting = begin(running.kill, scans, tmp_path / "out")[1].recv()
    assert fresh > 15
    assert overwriting > 15


def wait_for(happened: Any, run: BaseProcess) -> None:
    end = time.monotonic() + SECONDS
    while not happened():
        assert run.is_alive()
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such signals")
def test_a_stopped_command_leaves_only_complete_files(tmp_path: Path) -> None:
    model, scans = save_model(PLAN, tmp_path / "model", "0"), tmp_path / "in"
    write_scan(scans / "0.nii.gz", np.random.default_rng(0).normal(size=(12, 12, 12)))
    for copy in range(1, 500):  # more than it can do before it is stopped
        shutil.copy(scans / "0.nii.gz", scans / f"{copy}.nii.gz")
    words = ["-i", str(scans), "-m", str(model), "--device", "cpu"]
    for number, expected in STATUSES.items():
        out = tmp_path / str(number)
        ended = attempt("predict", [*words, "-o", str(out)], meanwhile=partial(stop, number, out))
        assert (ended.status, ended.said.splitlines()[-1]) == expected
        cases = list(read_json(out / RECORD)["cases"])
        check_all_complete(out, cases)
        assert len(cases) < 500


def stop(number: int, out: Path, run: BaseProcess) -> None:
    """Send a signal to a run when it is at work."""
    wait_for((out / "10.nii.gz").exists, run)
    assert run.pid is not None
    os.kill(run.pid, number)


@contextmanager
def no_file_above(size: int) -> Iterator[None]:
    resource = pytest.importorskip("resource", reason="limits of processes are POSIX")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("format", ["nii.gz", "nrrd", "mha"])
def test_a_full_disk_ends_the_run_after_complete_files(tmp_path: Path, format: str) -> None:
    scans, out = write_scans(tmp_path / "in", "a"), tmp_path / "out"
    noise = np.random.default_rng(0).integers(0, 3, (40, 40, 40)).astype(np.float32)
    write_scan(scans / "b.nii.gz", noise)
    write_scans(scans, "c")
    with (
        no_file_above(8192),
        pytest.raises(AutosegError, match=r"cannot write .*b\.") as error,
    ):
        predict(scans, out, format=format)
    assert "\n" not in str(error.value)
    assert files_in(out) == {RECORD, LABELS_FILE, f"a.{format}"}
    assert list(read_json(out / RECORD)["cases"]) == ["a"]
    assert sorted(predict(scans, out, format=format).predicted) == ["b", "c"]
