"""`$TMPDIR` that is missing or nearly full: commands do without, or say so in a line."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.faults.jobs import JOBS, Undisturbed, plan_words
from tests.faults.killing import attempt, finish
from tests.faults.limits import eager_workers
from tests.faults.mounting import PAGE, needs_mounts, small_disk

SIZE = 16 * PAGE


def with_workers_and_tmpdir(folder: Path) -> None:
    """Start workers however short the job; temporary files are to go to a folder."""
    os.environ["TMPDIR"] = str(folder)
    tempfile.tempdir = None  # it is looked for once
    eager_workers()


@pytest.fixture
def nearly_full(tmp_path: Path) -> Iterator[Path]:
    """A folder with room for a page."""
    with small_disk(tmp_path / "temporary") as disk:
        disk.resize(SIZE)
        (disk.folder / "full").write_bytes(bytes(SIZE - disk.used - PAGE))
        yield disk.folder


def files_in(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob("*") if path.is_file()]


@needs_mounts
@pytest.mark.parametrize("name", ["plan", "train"])
def test_workers_need_no_room(
    undisturbed: Undisturbed, tmp_path: Path, nearly_full: Path, name: str
) -> None:
    root = undisturbed.prepare(name, tmp_path / "workspace")
    words = [*JOBS[name].words(root), "--processes", "2"]
    finish(name, words, partial(with_workers_and_tmpdir, nearly_full))
    undisturbed.assert_same(name, root)
    assert files_in(nearly_full) == ["full"]  # torch leaves an empty folder


@needs_mounts
def test_predicting_needs_no_room(
    undisturbed: Undisturbed, tmp_path: Path, nearly_full: Path
) -> None:
    root = undisturbed.prepare("predict", tmp_path / "workspace")
    finish("predict", JOBS["predict"].words(root), partial(with_workers_and_tmpdir, nearly_full))
    undisturbed.assert_same("predict", root)


@needs_mounts
def test_measuring_for_a_budget_says_where_room_is_missing(
    undisturbed: Undisturbed, tmp_path: Path, nearly_full: Path
) -> None:
    root = undisturbed.prepare("plan", tmp_path / "workspace")
    words = [*plan_words(root), "--time-budget", "1m"]
    ended = attempt("plan", words, partial(with_workers_and_tmpdir, nearly_full))
    assert ended.status == 2
    assert f"in {nearly_full}" in ended.error
    assert "TMPDIR" in ended.error
    assert files_in(nearly_full) == ["full"]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no TMPDIR")
def test_a_missing_folder_is_none(undisturbed: Undisturbed, tmp_path: Path) -> None:
    root = undisturbed.prepare("train", tmp_path / "workspace")
    words = [*JOBS["train"].words(root), "--processes", "2"]
    finish("train", words, partial(with_workers_and_tmpdir, tmp_path / "missing"))
    undisturbed.assert_same("train", root)
