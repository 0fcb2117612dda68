"""Runs in separate processes, for the tests that kill or race them."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from autoseg.common.files import read_json
from autoseg.prediction.batch import predict_cases
from autoseg.prediction.inputs import FoundInputs
from autoseg.prediction.predictor import Predictor
from autoseg.prediction.record import RECORD, file_facts
from tests.prediction.making import Pointwise, model_of
from tests.prediction.scans import PLAN, files_in, inputs_of, predict

TOUCHING = {"open", "os.rename", "os.remove", "os.link", "os.truncate"}
SECONDS = 100.0


class Meeting(nn.Module):
    """Waits in its first patch until the other runs have reached theirs."""

    def __init__(self, folder: Path, runs: int) -> None:
        super().__init__()
        self.folder, self.runs = folder, runs
        self.network = Pointwise()

    def forward(self, patches: Tensor) -> Tensor:
        (self.folder / str(os.getpid())).touch()
        end = time.monotonic() + SECONDS
        while len(list(self.folder.iterdir())) < self.runs and time.monotonic() < end:
            time.sleep(0.01)
        found: Tensor = self.network(patches)
        return found


def share(scans: Path, out: Path, together: int) -> dict[str, list[str]]:
    """Predict the scans, the second case only when that many runs have begun.

    Returns:
        the cases that it has predicted, and those that others have.
    """
    meeting = out.with_name("meeting")
    meeting.mkdir(exist_ok=True)
    predictor = Predictor(model_of(PLAN, Meeting(meeting, together)), device="cpu")
    outcome = predict_cases(predictor, FoundInputs(cases=inputs_of(scans)), out)
    return {"predicted": list(outcome.predicted), "skipped": list(outcome.skipped)}


def kill(scans: Path, out: Path) -> list[int]:
    """Predict the scans again and again, and each time once more to the end.

    It is killed at the first, second, ... moment at which it touches a file of `out`.

    Returns:
        the number of moments, of a new run and of one that overwrites.
    """
    counts = []
    finished = out.with_name("finished")
    in_child(partial(predict, scans, finished))
    whole = label_maps(finished)
    assert len(whole) == len(inputs_of(scans))
    for overwrite in (False, True):
        moments = 0
        for moment in itertools.count(1):
            shutil.rmtree(out, ignore_errors=True)
            if overwrite:
                shutil.copytree(finished, out)
            if not killed_at(moment, out, partial(predict, scans, out, overwrite)):
                break
            moments += 1
            check_complete(out, whole)
            in_child(partial(predict, scans, out))
            check_complete(out, whole)
            assert label_maps(out) == whole
            left = {name for name in files_in(out) if name.startswith(".tmp")}
            assert left == set(), (moment, left)
        counts.append(moments)
    return counts


def label_maps(folder: Path) -> dict[str, Any]:
    """Size and hash of each visible label map; hidden files are not complete yet."""
    found = [path for path in folder.glob("*.nii.gz") if not path.name.startswith(".")]
    return {path.name: file_facts(path) for path in found}


def check_complete(out: Path, whole: dict[str, Any]) -> None:
    """Check that every label map is complete and recorded; more may be recorded."""
    there = label_maps(out)
    assert there.items() <= whole.items()
    recorded = read_json(out / RECORD)["cases"] if there else {}
    assert set(there) <= {name for case in recorded.values() for name in case["files"]}


def in_child(job: Callable[[], Any], before: Callable[[], None] = lambda: None) -> int:
    """Run in a forked process, which starts fast; returns the signal that ended it, or 0."""
    pid = os.fork()
    if pid == 0:
        before()
        job()
        os._exit(0)
    status = os.waitpid(pid, 0)[1]
    assert os.waitstatus_to_exitcode(status) in (0, -signal.SIGKILL)
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0


def killed_at(moment: int, out: Path, job: Callable[[], Any]) -> bool:
    """Kill a process at its n-th access to a file of `out`; returns whether there were so many."""
    count: Iterator[int] = itertools.count(1)

    def watch(event: str, details: tuple[Any, ...]) -> None:
        touches = event in TOUCHING and any(str(out) in str(part) for part in details)
        if touches and next(count) == moment:
            os.kill(os.getpid(), signal.SIGKILL)

    return in_child(job, lambda: sys.addaudithook(watch)) != 0
