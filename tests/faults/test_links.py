"""Symbolic links that lead nowhere, or in a circle: told in a line, and gone through once."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.faults.jobs import JOBS, TASK, Undisturbed, assert_same
from tests.faults.killing import attempt, finish

pytestmark = pytest.mark.skipif(os.name == "nt", reason="links are a privilege there")


def test_broken_and_circular_links_are_told(undisturbed: Undisturbed, tmp_path: Path) -> None:
    root = undisturbed.prepare("plan", tmp_path)
    images = sorted((root / "raw" / TASK / "imagesTr").glob("*.nii.gz"))
    for path, to in ((images[0], "nowhere.nii.gz"), (images[1], images[1].name)):
        path.unlink()
        path.symlink_to(to)
    words = JOBS["plan"].words(root)
    assert images[0].name in attempt("plan", words).said
    assert attempt("plan", words).status == 2
    ended = attempt("plan", [*words, "--skip-bad-cases"])
    assert ended.status in (0, 2)
    assert "Traceback" not in ended.said


def test_links_in_a_circle_among_scans_are_gone_through_once(
    undisturbed: Undisturbed, tmp_path: Path
) -> None:
    job, root = JOBS["predict"], undisturbed.prepare("predict", tmp_path)
    (root / "in" / "circle").symlink_to(root / "in", target_is_directory=True)
    (root / "in" / "parent").symlink_to("..", target_is_directory=True)
    finish("predict", job.words(root))
    assert_same(root / "out", undisturbed.root / "out")


@pytest.mark.parametrize("to", ["myself", "nowhere/else"])
def test_a_broken_link_for_the_results_is_told(
    undisturbed: Undisturbed, tmp_path: Path, to: str
) -> None:
    job, root = JOBS["predict"], undisturbed.prepare("predict", tmp_path)
    (root / "out").symlink_to(to if to != "myself" else "out")
    ended = attempt("predict", job.words(root))
    assert "cannot write" in ended.error
    assert ended.status == 2
