"""Processes that trained together leave nothing behind that would abort Python at its end."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    ("end", "told"),
    [("finished", "left of 3: 0"), ("stopped", "stopped by SIGTERM; left of 3: 0")],
)
def test_the_group_and_its_networks_are_gone_when_it_was_left(end: str, told: str) -> None:
    run = two_processes(end)
    assert run.returncode == 0, run.stderr
    assert sorted(run.stdout.splitlines()) == [told, told]


def test_a_process_that_does_not_answer_is_not_waited_for_for_ever() -> None:
    run = two_processes("silent")
    assert run.returncode != 0
    assert "RunError: process 0 of 2" in run.stderr
    assert "process 1 of 2" not in run.stderr


def two_processes(end: str) -> subprocess.CompletedProcess[str]:
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--standalone")
    return subprocess.run(
        [*torchrun, "--nproc-per-node=2", "-m", "tests.training.leaving", end],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
