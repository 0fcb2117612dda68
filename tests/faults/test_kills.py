"""kill -9 of every command at random moments; run again, it ends with the undisturbed result."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest

from tests.faults.jobs import JOBS, Undisturbed, assert_all_whole
from tests.faults.killing import finish, kill_after

# Workspaces of each command, and how often it is killed in each before it may end.
KILLS = {
    **{"plan": (2, 5), "train": (2, 3), "predict": (3, 4), "evaluate": (1, 4)},
    **{"pack": (2, 3), "export": (2, 2), "experiment": (1, 2)},
}


@pytest.mark.parametrize(("name", "start"), [(n, k) for n in JOBS for k in range(KILLS[n][0])])
def test_killed_and_run_again(
    undisturbed: Undisturbed, tmp_path: Path, name: str, start: int
) -> None:
    job, root = JOBS[name], undisturbed.prepare(name, tmp_path)
    workspaces, times = KILLS[name]
    for kill in range(start, workspaces * times, workspaces):
        share = (kill + Random(f"{name} {kill}").random()) / (workspaces * times)
        kill_after(share * undisturbed.seconds[name], name, job.words(root))
        assert_all_whole(root / job.results)
        if name == "export" and list((root / job.results).glob("networks")):
            break  # never overwritten
    else:
        finish(name, job.words(root))
    undisturbed.assert_same(name, root)
