"""Files of JSON that are none, through the commands; and sizes that no machine holds."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

from tests.cli.making import write_ct
from tests.dataset.making import write_scan
from tests.faults.bad_json import TEXTS
from tests.faults.commands import refusal, tell
from tests.faults.damage import damaged_files
from tests.making import tiny_plan
from tests.prediction.making import save_model

CHILD = """
import resource, sys
from pathlib import Path
from typing import Any
import SimpleITK, numpy
from autoseg.common.errors import DataError
from autoseg.image.image import read_geometry, read_image
now = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (now + (256 << 20),) * 2)
for path in sorted(Path(sys.argv[1]).iterdir()):
    for read in (lambda: read_image([path]), lambda: read_geometry(path)):
        try:
            read()
        except DataError:
            pass
    print(path.name)
"""
HUGE = ("nifti-huge", "nifti-size", "nifti-offset", "nrrd-sizes", "mha-DimSize", "gzip-bomb")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A task, a model, a scan, and two folders of label maps."""
    write_ct(tmp_path / "raw" / "Task001_CT", cases=2, size=8)
    save_model(tiny_plan(inference={"overlap": [0, 0, 0]}), tmp_path / "model", "0")
    write_scan(tmp_path / "in" / "a.nii.gz", np.arange(1000.0).reshape(10, 10, 10))
    for name in ("truth", "predicted"):
        write_scan(tmp_path / name / "a.nii.gz", np.eye(8, dtype=np.uint8)[:, :, None])
    return tmp_path


def calls(root: Path) -> dict[str, tuple[Path, str, list[str]]]:
    """What -> a file, and a command that reads it."""
    predict = ["-i", str(root / "in"), "-o", str(root / "out"), "-m", str(root / "model")]
    folders = ["-g", str(root / "truth"), "-p", str(root / "predicted")]
    raw = root / "raw" / "Task001_CT"
    plan = ["Task001", "--workspace", str(root)]
    return {
        "dataset": (raw / "dataset.json", "plan", [*plan, "--verify-only"]),
        "overrides": (root / "o.json5", "plan", [*plan, "--overrides", str(root / "o.json5")]),
        "plan": (root / "model" / "plan.json", "predict", predict),
        "learned": (root / "model" / "postprocessing.json", "predict", predict),
        "labels": (root / "predicted" / "labels.json", "evaluate", folders),
        "study": (
            root / "study.json5",
            "experiment",
            [str(root / "study.json5"), "--status", "--workspace", str(root)],
        ),
    }


@pytest.mark.parametrize("what", ["dataset", "overrides", "plan", "learned", "labels", "study"])
def test_files_that_are_no_json(root: Path, what: str) -> None:
    path, command, words = calls(root)[what]
    for name, content in TEXTS.items():
        path.write_bytes(content)
        told = refusal(command, *words)
        assert path.name in told or what in ("overrides", "study"), (name, told)


def test_a_record_of_predictions_that_is_none(root: Path) -> None:
    """It is written anew, as the label maps beside it are."""
    words = [*calls(root)["plan"][2], "--device", "cpu", "--backend", "torch"]
    assert tell("predict", *words).status == 0
    cases: tuple[Any, ...] = ([], {"a": 1}, {"a": {"files": 3}}, {"a": {}})
    for content in [*TEXTS.values(), *(f'{{"cases": {c!r}}}'.encode() for c in cases)]:
        (root / "out" / "predictions.json").write_bytes(content.replace(b"'", b'"'))
        assert tell("predict", *words, "--overwrite").status == 0


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux to limit memory")
def test_sizes_that_a_file_only_claims_take_no_memory(tmp_path: Path) -> None:
    """Each is refused by a process that may take no more than 256 MB."""
    picture = sitk.GetImageFromArray(np.arange(1000, dtype=np.int16).reshape(10, 10, 10))
    names = []
    for name, content in damaged_files(picture):
        if name.startswith(HUGE):
            (tmp_path / name).write_bytes(content)
            names.append(name)
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout.split() == sorted(names)
