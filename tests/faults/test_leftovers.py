"""What a killed command has left unfinished is gone when the next run of it ends."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

from tests.faults.jobs import JOBS, Undisturbed
from tests.faults.killing import KILLED, attempt, finish

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="kills by a signal of POSIX")

OUTPUT = {"pack": "model.zip", "export": "networks"}


def die_when_the_output_is_whole() -> None:
    """Kill this process just before it gives its output its own name."""

    def die_or(rename: object, temporary: Path, target: Path) -> object:
        if target.name in OUTPUT.values():
            os.kill(os.getpid(), signal.SIGKILL)
        return rename(temporary, target)  # type: ignore[operator]

    for name in ("replace", "rename"):
        original = getattr(Path, name)
        setattr(Path, name, lambda a, b, original=original: die_or(original, a, b))


@pytest.mark.parametrize("name", OUTPUT)
def test_the_next_run_removes_them(undisturbed: Undisturbed, tmp_path: Path, name: str) -> None:
    root = undisturbed.prepare(name, tmp_path)
    words, results = JOBS[name].words(root), root / JOBS[name].results
    assert attempt(name, words, die_when_the_output_is_whole).status == KILLED
    (left,) = [path for path in results.iterdir() if path.suffix != ".lock"]
    assert left.name.startswith(".tmp-")
    finish(name, words)
    assert [path.name for path in results.iterdir()] == [OUTPUT[name]]
    undisturbed.assert_same(name, root)
