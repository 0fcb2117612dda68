"""Memory that preprocessing a large scan needs, beyond that of the libraries."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from autoseg.dataset.task import Case
from autoseg.preprocessing.preprocess import preprocess_case
from autoseg.preprocessing.store import CaseStore
from tests.dataset.making import write_scan
from tests.making import tiny_plan

PAPER = tiny_plan(
    preprocessing=[
        {"step": "clip", "window": [-1250, 250]},
        {"step": "rescale", "range": [0, 255], "whole_numbers": True},
        {"step": "resample", "rounding": "down", "anisotropy": None},
        {"step": "z_score"},
    ],
    target_spacing_mm=[1.58, 1.58, 2.7],
)
# Linux counts the peak of the process that starts another as that one's own: a small one does it.
CHILD = "import subprocess, sys; subprocess.run(sys.argv[1:], check=True)"
SIZE, SPACING_MM = (256, 256, 200), (0.8, 0.8, 1.0)


def peak_bytes() -> int:
    """Peak memory of this process."""
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def case_in(folder: Path, number: int) -> Case:
    return Case(f"case{number}", (folder / f"image{number}.nii",), folder / f"label{number}.nii")


def make_case(folder: Path, number: int, size: tuple[int, int, int]) -> None:
    """Noise in the type of CT, and a box of each label."""
    case = case_in(folder, number)
    rng = np.random.default_rng(0)
    write_scan(case.images[0], rng.integers(-1024, 600, size, np.int16), SPACING_MM)
    label = np.zeros(size, np.uint8)
    for value in (1, 2):
        label[tuple(slice(value * n // 4, value * n // 4 + n // 3) for n in size)] = value
    write_scan(case.label, label, SPACING_MM)


def measure(folder: Path) -> None:
    """Print the growth of the peak by a large case, once a small one has loaded all libraries."""
    store = CaseStore(folder / "cases", "any")
    preprocess_case(PAPER, store, case_in(folder, 0))
    before = peak_bytes()
    preprocess_case(PAPER, store, case_in(folder, 1))
    print(json.dumps(peak_bytes() - before))


def test_a_large_scan_takes_less_than_nine_bytes_a_voxel(tmp_path: Path) -> None:
    """2 for the scan, 1 + 2 for its label and classes, and slabs: no floats of full resolution.

    7.1 were measured at this size and 6.2 at 512 x 512 x 400 (0.65 GB, the whole process 0.85).
    """
    pytest.importorskip("resource")
    make_case(tmp_path, 0, (9, 9, 9))
    make_case(tmp_path, 1, SIZE)
    command = [sys.executable, "-c", CHILD, sys.executable, "-m", __name__, str(tmp_path)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    growth = json.loads(done.stdout.splitlines()[-1])
    assert 3 * np.prod(SIZE) < growth < 9 * np.prod(SIZE)


if __name__ == "__main__":
    measure(Path(sys.argv[1]))
