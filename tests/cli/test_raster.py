"""RGB pictures from raw task to scores by the commands, and nnU-Net's layout of them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from autoseg.__main__ import main
from autoseg.evaluation.scores import Summary
from autoseg.plan.plan import load_plan
from autoseg.workflow.workspace import ENVIRONMENT_VARIABLE
from tests.cli.making import settings
from tests.dataset.making import declare

TASK = "Dataset020_Cells"
NAMES = {"channel_names": {"0": "R", "1": "G", "2": "B"}, "file_ending": ".png"}
TINY = (
    "network.features=[8,16,16,16]",
    "sampling.batch_size=4",
    "training.epochs=3",
    "training.steps_per_epoch=12",
    "training.validation_steps=1",
    "training.optimizer.learning_rate=0.003",
    "splits.folds=2",
)


def write_cells(images: Path, labels: Path, case: str, seed: int, ending: str = ".png") -> None:
    """Made: red discs of label 1 on green noise, 32 rows and 40 columns."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:32, :40]
    label = np.zeros((32, 40), np.uint8)
    for y, x in rng.integers(4, 28, (3, 2)):
        label[(rows - y) ** 2 + (columns - x) ** 2 < 20] = 1
    colours = rng.integers(0, 60, (32, 40, 3)).astype(np.uint8)
    colours[..., 1] += 100
    colours[label == 1] = (220, 30, 30)
    for folder in (images, labels):
        folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(colours).save(images / f"{case}_0000{ending}")
    Image.fromarray(label).save(labels / f"{case}.png")


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Four cells in nnU-Net's layout: one file with three channels for each case."""
    raw = declare(tmp_path / "raw" / TASK, NAMES | {"labels": {"background": 0, "cell": 1}})
    for seed in range(4):
        write_cells(raw / "imagesTr", raw / "labelsTr", f"cell_{seed}", seed)
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, str(tmp_path))
    return tmp_path


def plan(*words: str) -> int:
    return main(["plan", TASK, "--processes", "1", *words])


def test_plan_train_predict_and_evaluate(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert plan(*settings(*TINY)) == 0
    said = capsys.readouterr().err
    assert said.count("state no spacing; taken as 1 x 1 mm") == 1
    made = load_plan(root / "preprocessed" / TASK / "default" / "plan.json")
    assert (made.configuration, made.sampling.patch_size[2]) == ("2d", 1)
    assert made.channels == ("R", "G", "B")
    assert plan("--config", "3d_fullres") == 2
    assert "'3d_fullres' is not useful" in capsys.readouterr().err
    assert main(["train", TASK, "fold", "0", "--processes", "1"]) == 0
    for seed in (8, 9):
        write_cells(root / "in", root / "reference", f"new_{seed}", seed)
    assert main(["predict", "-i", str(root / "in"), "-o", str(root / "out")]) == 0
    for seed in (8, 9):
        with Image.open(root / "out" / f"new_{seed}.png") as written:
            assert (written.size, written.mode) == ((40, 32), "L")
    words = ["-g", str(root / "reference"), "-p", str(root / "out"), "--processes", "1"]
    assert main(["evaluate", *words]) == 0
    summary = Summary.load(root / "out" / "summary.json")
    assert [case.case for case in summary.cases] == ["new_8", "new_9"]
    assert (summary.foreground_mean() or 0) > 0.5
    capsys.readouterr()
    assert main(["evaluate", *words]) == 0  # figures beside the label maps are no predictions
    assert "without a reference" not in capsys.readouterr().err


def test_files_that_do_not_fit_are_named(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw = root / "raw" / TASK
    images = raw / "imagesTr"
    Image.new("RGB", (40, 31)).save(images / "cell_0_0000.png")
    Image.new("L", (40, 32)).save(images / "cell_1_0000.png")
    (images / "cell_2_0000.png").rename(images / "cell_2_0000.jpg")
    assert plan() == 2
    capsys.readouterr()
    found = json.loads((root / "preprocessed" / TASK / "verification.json").read_text())["errors"]
    kinds = {entry["case"]: (entry["kind"], entry["message"]) for entry in found}
    assert kinds["cell_0"][0] == "shape"
    assert kinds["cell_1"][0] == "channels"
    assert "to cell_2_0000.png" in kinds["cell_2"][1]


def test_one_file_for_each_channel(tmp_path: Path) -> None:
    raw = declare(
        tmp_path / "raw" / TASK,
        {"channel_names": {"0": "a", "1": "b"}, "labels": {"background": 0, "cell": 255}},
    )
    rng = np.random.default_rng(0)
    for folder in ("imagesTr", "labelsTr"):
        (raw / folder).mkdir()
    for case in range(3):
        for channel in (0, 1):
            values = rng.integers(0, 60000, (24, 24), dtype=np.uint16)
            Image.fromarray(values).save(raw / "imagesTr" / f"c{case}_000{channel}.tif")
        label = np.zeros((24, 24), np.uint8)
        label[4:12, 6:20] = 255  # as many programs write masks
        Image.fromarray(label).save(raw / "labelsTr" / f"c{case}.bmp")
    words = ["--processes", "1", "--workspace", str(tmp_path)]
    assert main(["plan", TASK, "--verify-only", *words]) == 0
