"""Folders that nobody can write, though there is something to write: one line tells."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.jobs import JOBS, Undisturbed
from tests.faults.killing import attempt
from tests.faults.mounting import needs_mounts, read_only

pytestmark = needs_mounts

CACHES = ("XDG_", "MPLCONFIGDIR", "HOME")


def in_place(undisturbed: Undisturbed, name: str, root: Path) -> Path:
    """A workspace for a command, with the folder for its results."""
    undisturbed.prepare(name, root)
    (root / JOBS[name].results).mkdir(exist_ok=True)
    return root


@pytest.mark.parametrize("name", JOBS)
def test_results_that_cannot_be_written_are_told(
    undisturbed: Undisturbed, tmp_path: Path, name: str
) -> None:
    job, root = JOBS[name], in_place(undisturbed, name, tmp_path)
    with read_only(root / job.results):
        ended = attempt(name, job.words(root))
    assert "Read-only file system" in ended.error
    assert str(root / job.results) in ended.error
    assert ended.status == 2


def test_a_home_that_cannot_be_written_is_no_hindrance(
    undisturbed: Undisturbed, tmp_path: Path
) -> None:
    """Matplotlib keeps its caches there."""
    root = undisturbed.prepare("evaluate", tmp_path)
    home = tmp_path / "home"
    home.mkdir()
    kept = {name: value for name, value in os.environ.items() if not name.startswith(CACHES)}
    folders = ["-g", str(root / "truth"), "-p", str(root / "out"), "-o", str(root / "scores")]
    words = [sys.executable, "-m", "autoseg.cli.evaluate", *folders, "--processes", "1"]
    with read_only(home):
        done = subprocess.run(
            words,
            env=kept | {"HOME": str(home), "OMP_NUM_THREADS": "1"},
            cwd=Path(__file__).parents[2],
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert (root / "scores" / "dice.png").is_file()
    tables = [folder / "scores" / "table.csv" for folder in (root, undisturbed.root)]
    assert tables[0].read_bytes() == tables[1].read_bytes()
