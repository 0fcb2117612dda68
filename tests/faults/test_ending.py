"""A signal ends every command in order: status, whole files, no process and no lock left."""

from __future__ import annotations

import os
import signal
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import psutil
import pytest

from tests.faults.jobs import JOBS, Undisturbed, assert_all_whole
from tests.faults.killing import attempt, finish

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="sends signals of Unix")
MOMENTS = {
    "plan": (0.4,),
    "train": (0.3, 0.8),
    "predict": (0.5,),
}  # shares of the time that it takes


@pytest.mark.parametrize(("name", "share"), [(n, s) for n in JOBS for s in MOMENTS.get(n, (0.6,))])
def test_a_command_that_is_ended_has_nothing_half_written_and_goes_on(
    undisturbed: Undisturbed, tmp_path: Path, name: str, share: float
) -> None:
    job, root = JOBS[name], undisturbed.prepare(name, tmp_path)
    number = signal.SIGHUP if share > 0.5 else signal.SIGTERM
    children: list[psutil.Process] = []

    def end(process: BaseProcess) -> None:
        process.join(share * undisturbed.seconds[name])
        if process.exitcode is None and process.pid is not None:
            server = psutil.Process(process.pid).parent()  # of the command and all its processes
            assert server is not None
            children.extend(server.children(recursive=True))
            for _ in range(2):  # a second one interrupts nothing
                os.kill(process.pid, number)

    ended = attempt(name, job.words(root), meanwhile=end)
    # On a busy machine it may come before the command has begun to handle it.
    assert ended.status in (0, 128 + number) or (ended.status, ended.said) == (-number, ""), ended
    assert "Traceback" not in ended.said
    if ended.status:
        assert f"stopped by {number.name}" in ended.said.splitlines()[-1]
    _gone, alive = psutil.wait_procs(children, timeout=10)
    assert alive == []
    assert_all_whole(root / job.results)
    assert not [path for path in root.rglob(".*") if "tmp-" in path.name or "lock" in path.name]
    begun = time.monotonic()
    if name != "export" or not (root / job.results / "networks").exists():  # never overwritten
        finish(name, job.words(root))
    assert time.monotonic() - begun < 30 + 10 * undisturbed.seconds[name]
    undisturbed.assert_same(name, root)
