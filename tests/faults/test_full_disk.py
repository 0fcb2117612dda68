"""Every command on a disk that is full at one write after the other, until there is room."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.jobs import JOBS, Undisturbed, assert_all_whole
from tests.faults.killing import Ended, attempt
from tests.faults.mounting import SmallDisk, needs_mounts, small_disk

# How many bytes more there are from one attempt to the next, and how many of them must fail.
STEPS = {
    "plan": (20 << 10, 3),
    "train": (200 << 10, 2),
    "predict": (12 << 10, 3),
    "evaluate": (900 << 10, 2),
    "pack": (40 << 10, 3),
    "export": (90 << 10, 2),
    "experiment": (800 << 10, 1),
}
MOST_ATTEMPTS = 30


def run_on_growing_disk(
    undisturbed: Undisturbed, disk: SmallDisk, name: str, step: int
) -> list[Ended]:
    """Start a command anew whenever it has failed, with a little more room; returns the failures.

    What was written before is kept, so each attempt goes on where there was no room before.
    """
    job, root = JOBS[name], undisturbed.prepare(name, disk.folder)
    size = disk.used
    failed: list[Ended] = []
    while len(failed) < MOST_ATTEMPTS:
        disk.resize(size)
        ended = attempt(name, job.words(root))
        if ended.status == 0:
            return failed
        assert_all_whole(root / job.results)
        assert ended.error
        assert "cannot" in ended.said  # of an experiment above its last line, run by run
        assert "space" in ended.said
        failed.append(ended)
        size += step
    raise AssertionError(failed[-1])


@needs_mounts
@pytest.mark.parametrize("name", JOBS)
def test_a_full_disk_is_told_and_with_room_the_result_is_the_same(
    undisturbed: Undisturbed, tmp_path: Path, name: str
) -> None:
    step, fewest = STEPS[name]
    with small_disk(tmp_path / "disk") as disk:
        failed = run_on_growing_disk(undisturbed, disk, name, step)
        assert len(failed) >= fewest
        undisturbed.assert_same(name, disk.folder)
