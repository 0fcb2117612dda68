"""All commands on a workspace whose folders, task and cases have names that ask for trouble."""

from __future__ import annotations

import html
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pytest

from autoseg.common.files import read_json
from tests.cli.making import settings
from tests.dataset.making import V2, declare, write_case
from tests.faults.killing import finish

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="such names are Linux's alone")

WORKSPACE = "-my \"first\" 'big' folder; $HOME #1 & [bold] %s {x} \\n éà"
TASK = "Task007_Würfel's “große” [red]Studie[bold] $1"
CLASS = "tu$mor_^{x}$ [red]<i>ü</i>"
LONGEST = 243  # bytes, so that overlay_NAME.png can be a file's name
NAMES = (
    *("-rf", "a b'c\"d", "[bold]x [red] {y} %d", "<b>&amp;$HOME;*?"),
    *(unicodedata.normalize("NFC", "Größe"), unicodedata.normalize("NFD", "Größe 2")),
    *("語" * (LONGEST // 3), "l" * LONGEST),
)
CASES = {unicodedata.normalize("NFC", name) for name in NAMES}
TINY = (
    *("network.features=[2,4]", "sampling.batch_size=2", "splits.folds=2"),
    *("training.epochs=1", "training.steps_per_epoch=1", "training.validation_steps=1"),
)


def write_task(task: Path) -> None:
    declare(task, V2 | {"labels": {"background": 0, CLASS: 1}})
    rng = np.random.default_rng(0)
    for name in NAMES:
        label = np.zeros((12, 12, 12), np.uint8)
        label[4:9, 4:9, 3:8] = 1
        image = label * 100 + rng.normal(0, 10, label.shape)
        write_case(task, name, image.astype(np.float32), label)


def make_deep(folder: Path) -> Path:
    """A folder of an odd name so deep that paths have 1000 letters and more."""
    deep = folder.joinpath(*(letter * 200 for letter in "abcd"), WORKSPACE)
    deep.mkdir(parents=True)
    return deep


def test_all_commands_take_odd_names(tmp_path: Path) -> None:
    root = make_deep(tmp_path)
    place = ["--workspace", str(root)]
    raw, model = root / "raw" / TASK, root / "models" / TASK / "ä-b.1"
    write_task(raw)
    tiny = settings(*TINY)
    finish("plan", ["Task007", *place, "--name", "ä-b.1", "--processes", "1", *tiny])
    finish("train", ["Task007", *place, "fold", "0", "--device", "cpu", "--processes", "1"])
    scans, out, scores = raw / "imagesTr", root / "-out 'ü'", root / "scores [x]"
    finish("predict", ["-i", str(scans), "-o", str(out), *place, "--device", "cpu"])
    assert {path.name for path in out.glob("*.nii.gz")} == {f"{name}.nii.gz" for name in CASES}
    folders = ["-g", str(raw / "labelsTr"), "-p", str(out), "-i", str(scans), "-o", str(scores)]
    finish("evaluate", [*folders, "--processes", "1"])
    check_evaluation(scores)
    finish("evaluate", ["Task007", *place, "--processes", "1"])
    assert (model / "cross_validation" / "report.html").is_file()
    finish("pack", ["Task007", *place, "-o", str(root / "-m 'ü'.zip")])
    packed = ["-m", str(root / "-m 'ü'.zip"), "-i", str(scans), "-o", str(root / "again")]
    finish("predict", [*packed, "--device", "cpu"])
    for path in out.glob("*.nii.gz"):
        assert path.read_bytes() == (root / "again" / path.name).read_bytes()


def check_evaluation(scores: Path) -> None:
    """Every case is scored and stands in the report as text, never as markup."""
    cases = read_json(scores / "summary.json")["metric_per_case"]
    assert {case["case"] for case in cases} == CASES
    assert all(CLASS in case["metrics"] for case in cases)
    report = (scores / "report.html").read_text(encoding="utf-8")
    assert html.escape("<b>&amp;$HOME;*?") in report
    assert "<b>&amp;$HOME" not in report
    assert "<i>ü</i>" not in report
