"""Inputs behind links, read-only and from the future, while the clock runs backwards: no matter."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.faults.jobs import JOBS, TASK, Undisturbed
from tests.faults.killing import finish
from tests.faults.limits import backward_clock, date_from_the_future
from tests.faults.mounting import needs_mounts, read_only

pytestmark = pytest.mark.skipif(os.name == "nt", reason="links are a privilege there")

COMMANDS = [name for name in JOBS if name != "experiment"]  # runs these in processes of its own


def put_behind_link(path: Path, to: Path) -> None:
    to.parent.mkdir(parents=True, exist_ok=True)
    path.rename(to)
    path.symlink_to(to, target_is_directory=to.is_dir())


def put_all_behind_links(root: Path, elsewhere: Path) -> None:
    """Each file of scans, the task's folder and each folder of the workspace."""
    for path in [*root.glob("raw/*/*/*.nii.gz"), *root.glob("in/*.nii.gz")]:
        put_behind_link(path, elsewhere / "files" / path.relative_to(root))
    if (root / "raw").exists():
        put_behind_link(root / "raw" / TASK, elsewhere / "a task of another name")
    for folder in list(root.iterdir()):
        put_behind_link(folder, elsewhere / folder.name)


def links_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_symlink())


@needs_mounts
@pytest.mark.parametrize("name", COMMANDS)
def test_results_are_the_same(undisturbed: Undisturbed, tmp_path: Path, name: str) -> None:
    job, root, elsewhere = JOBS[name], tmp_path / "work", tmp_path / "else where"
    undisturbed.prepare(name, root)
    (root / job.results).mkdir(exist_ok=True)
    date_from_the_future(root)
    put_all_behind_links(root, elsewhere)
    before = links_in(tmp_path)
    written = (job.results, "preprocessed")
    inputs = [path for path in elsewhere.iterdir() if path.name not in written]
    with read_only(*inputs):
        finish(name, job.words(root), backward_clock)
    assert links_in(tmp_path) == before
    undisturbed.assert_same(name, root)
