"""Too little memory for a command: it says so in a line, and with more it ends as ever."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.faults.jobs import JOBS, Undisturbed, assert_all_whole
from tests.faults.killing import attempt, finish
from tests.faults.limits import with_more_memory

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="limits its address space")


@pytest.mark.parametrize(("name", "megabytes"), [("plan", 0), ("evaluate", 2)])
def test_too_little_memory_is_told(
    undisturbed: Undisturbed, tmp_path: Path, name: str, megabytes: int
) -> None:
    root = undisturbed.prepare(name, tmp_path)
    words = JOBS[name].words(root)
    ended = attempt(name, words, with_more_memory(megabytes))
    assert "not enough memory" in ended.error
    assert "fewer --processes" in ended.error
    assert ended.status == 1
    assert_all_whole(root)
    finish(name, words)
    undisturbed.assert_same(name, root)
