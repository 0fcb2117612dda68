"""Too little memory for a command: it says so in a line, and with more it ends as ever."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from autoseg.common.errors import DataError
from autoseg.image.image import read_image
from tests.dataset.making import HIPPOCAMPUS
from tests.dicom_series import write_series
from tests.faults.jobs import JOBS, Undisturbed, assert_all_whole
from tests.faults.killing import attempt, finish
from tests.faults.limits import with_more_memory
from tests.forking import forks

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


SHAPE = (256, 256, 64)  # 8 MB of 16 bits


def write_large(folder: Path, kind: str) -> Path:
    """A scan that ITK reads, larger than the memory that is left."""
    path = folder / f"large{kind}"
    if kind == "":
        write_series(path, np.zeros(SHAPE, np.int16))
        return path
    components = 2 if kind == ".nii" else 1  # with one, autoseg reads it without ITK
    sitk.WriteImage(sitk.Image(SHAPE, sitk.sitkVectorInt16, components), str(path))
    return path


def read_with_little_memory(path: Path, megabytes: int) -> str:
    """Read a scan and say how that ended."""
    read_image(sorted((HIPPOCAMPUS / "imagesTr").iterdir())[0])  # loads the libraries
    with_more_memory(megabytes)()
    try:
        read_image(path)
    except (DataError, MemoryError) as error:
        return f"{type(error).__name__}: {error}"
    return "read"


@pytest.mark.parametrize("megabytes", [0, 4])
@pytest.mark.parametrize("kind", [".mha", ".nrrd", ".nii", ""])
def test_a_scan_is_not_called_truncated(tmp_path: Path, kind: str, megabytes: int) -> None:
    path = write_large(tmp_path, kind)
    with forks().Pool(1) as pool:
        said = pool.apply(read_with_little_memory, (path, megabytes))
    assert said == f"MemoryError: to read {path}"
