"""kill -9 of every command at random moments; run again, it ends with the undisturbed result."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest

from tests.faults.jobs import JOBS, Undisturbed, assert_all_whole
from tests.faults.killing import finish, kill_after

KILLS = {
    **{"plan": 10, "train": 6, "predict": 12, "evaluate": 4},
    **{"pack": 6, "export": 4, "experiment": 2},
}


@pytest.mark.parametrize(("name", "kill"), [(n, k) for n in JOBS for k in range(KILLS[n])])
def test_killed_and_run_again(
    undisturbed: Undisturbed, tmp_path: Path, name: str, kill: int
) -> None:
    job, root = JOBS[name], undisturbed.prepare(name, tmp_path)
    share = (kill + Random(f"{name} {kill}").random()) / KILLS[name]
    kill_after(share * undisturbed.seconds[name], name, job.words(root))
    assert_all_whole(root / job.results)
    if name != "export" or not list((root / job.results).glob("networks")):  # never overwritten
        finish(name, job.words(root))
    undisturbed.assert_same(name, root)
