"""The four commands one after the other, on real scans and on a phantom of the paper's data."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from autoseg.cli import evaluate, plan, predict, train
from autoseg.evaluation.scores import Summary
from autoseg.image.image import read_label
from autoseg.models.folder import FolderFiles, read_calibration
from autoseg.plan.plan import load_plan
from tests.cli.making import TINY, copy_hippocampus, settings, write_phantom
from tests.dataset.making import HIPPOCAMPUS

FOLD_FILES = {"final.safetensors", "latest.safetensors", "log.jsonl", "progress.png", "validation"}
PHANTOM = """{
  // the paper's plan, small
  sampling: { patch_size: [32, 32, 16] },
  network: { features: [4, 8, 8, 8, 8] },
  inference: { overlap: [16, 16, 8] },
  training: { epochs: 1, steps_per_epoch: 2, validation_steps: 1 },
  splits: { folds: 3 },
}"""


@dataclass(frozen=True)
class Trained:
    """A workspace with one trained fold."""

    root: Path
    cases: list[str]

    @property
    def fold(self) -> Path:
        return self.root / "models" / "Task004_Hippocampus" / "default" / "fold_0"

    def train(self, *arguments: str) -> int:
        return train.main(["Task004", *arguments, *self.where, "--processes", "1"])

    @property
    def where(self) -> list[str]:
        return ["--workspace", str(self.root), "--device", "cpu"]


def files_below(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    root = tmp_path_factory.mktemp("Arbeit für Zoë")
    cases = copy_hippocampus(root / "raw" / "Task004_Hippocampus", 6)
    made = Trained(root, cases)
    patch = ("sampling.patch_size=[24,32,24]", "inference.overlap=[8,8,8]", "splits.folds=3")
    arguments = ["Task004", *made.where, "--processes", "1", *settings(*TINY, *patch)]
    assert plan.main(arguments) == 0
    assert made.train("fold", "0") == 0
    return made


def test_training_leaves_whole_files_only(trained: Trained) -> None:
    assert {path.name for path in trained.fold.iterdir()} == FOLD_FILES
    log = [
        json.loads(line)
        for line in (trained.fold / "log.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    assert [entry["epoch"] for entry in log] == [0, 1]
    assert all(entry["validation_loss"] is not None for entry in log)
    plans = [folder / "plan.json" for folder in (trained.fold.parent, _planned(trained))]
    assert load_plan(plans[0]) == load_plan(plans[1])
    assert not [name for name in files_below(trained.root) if "tmp" in name or "lock" in name]


def _planned(trained: Trained) -> Path:
    return trained.root / "preprocessed" / "Task004_Hippocampus" / "default"


def test_the_validation_cases_are_scored_whole(trained: Trained) -> None:
    split = json.loads((_planned(trained) / "splits.json").read_text(encoding="utf-8"))[0]
    summary = Summary.load(trained.fold / "validation" / "summary.json")
    assert [case.case for case in summary.cases] == split["val"]
    for name in split["val"]:
        label, geometry = read_label(trained.fold / "validation" / f"{name}.nii.gz")
        truth, expected = read_label(HIPPOCAMPUS / "labelsTr" / f"{name}.nii.gz")
        assert geometry == expected
        assert label.shape == truth.shape
        assert set(np.unique(label)) <= {0, 1, 2}
    assert set(split["train"]) | set(split["val"]) == set(trained.cases)


def test_a_second_run_is_refused(trained: Trained, capsys: pytest.CaptureFixture[str]) -> None:
    before = (trained.fold / "final.safetensors").read_bytes()
    assert trained.train("0") == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"error: {trained.fold} ")
    assert "epoch 2 of 2, saved 20" in error
    assert "--resume" in error
    assert (trained.fold / "final.safetensors").read_bytes() == before


def test_resuming_a_finished_run_changes_nothing(trained: Trained) -> None:
    weights = (trained.fold / "final.safetensors").read_bytes()
    summary = (trained.fold / "validation" / "summary.json").read_bytes()
    assert trained.train("fold", "0", "--resume") == 0
    assert (trained.fold / "final.safetensors").read_bytes() == weights
    assert (trained.fold / "validation" / "summary.json").read_bytes() == summary


def test_another_plan_of_the_same_name_is_refused(
    trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "copy"
    shutil.copytree(trained.root, root)
    other = Trained(root, trained.cases)
    assert plan.main(["Task004", *other.where, "--processes", "1"]) == 0
    assert other.train("1") == 2
    assert "holds models of another plan (fold_0)" in capsys.readouterr().err


def test_new_scans_keep_name_and_grid_and_are_scored(
    trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scans, out = tmp_path / "neue Bilder", tmp_path / "Ergebnis é"
    scans.mkdir()
    names = ["hippocampus_040", "hippocampus_088"]
    for name in names:
        source = HIPPOCAMPUS / "imagesTs" / f"{name}.nii.gz"
        shutil.copy(source, scans / f"{name}_0000.nii.gz")
    (scans / "kaputt_0000.nii.gz").write_bytes(b"half a scan")
    arguments = ["-i", str(scans), "-o", str(out), *trained.where]

    assert predict.main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == f"{out}\n"
    assert "2 predicted, 0 " in printed.err
    assert "kaputt" in printed.err
    side_files = {"labels.json", "predictions.json"}
    assert files_below(out) == {*side_files, *(f"{name}.nii.gz" for name in names)}
    for name in names:
        label, geometry = read_label(out / f"{name}.nii.gz")
        assert geometry == read_label(HIPPOCAMPUS / "labelsTs" / f"{name}.nii.gz")[1]
        assert label.shape == geometry.size
    record = json.loads((out / "predictions.json").read_text(encoding="utf-8"))
    assert record["plan_id"] == load_plan(trained.fold.parent / "plan.json").id
    assert sorted(record["cases"]) == names

    (scans / "kaputt_0000.nii.gz").unlink()
    assert predict.main(arguments) == 0
    assert "0 predicted, 2 " in capsys.readouterr().err

    truth = str(HIPPOCAMPUS / "labelsTs")
    assert evaluate.main(["-g", truth, "-p", str(out), "--processes", "1"]) == 0
    summary = Summary.load(out / "summary.json")
    assert [case.case for case in summary.cases] == names
    assert len(summary.missing) == 6


def test_the_cross_validation_is_gathered(
    trained: Trained, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ["--workspace", str(trained.root)]
    assert evaluate.main(["Task004", *where]) == 0
    assert "missing folds: 1, 2" in capsys.readouterr().out
    folder = trained.fold.parent / "cross_validation"
    with (folder / "table.csv").open() as file:
        rows = list(csv.reader(file))
    assert len(rows) > 2
    assert (folder / "report.html").is_file()


def test_all_folds_calibrate_the_quality_of_predictions(trained: Trained, tmp_path: Path) -> None:
    root = tmp_path / "copy"
    shutil.copytree(trained.root, root)
    every = Trained(root, trained.cases)
    assert every.train("fold", "1", "2") == 0
    assert evaluate.main(["Task004", "--workspace", str(root)]) == 0
    calibration = read_calibration(FolderFiles(every.fold.parent))["quality"]
    assert calibration["cases"] == 6
    assert set(calibration["classes"]) == {"Anterior", "Posterior"}
    assert any(of["figures"] for of in calibration["classes"].values())
    scan = HIPPOCAMPUS / "imagesTs" / "hippocampus_040.nii.gz"
    assert predict.main(["-i", str(scan), "-o", str(tmp_path / "out"), *every.where]) == 0
    record = json.loads((tmp_path / "out" / "predictions.json").read_text(encoding="utf-8"))
    assert record["cases"]["hippocampus_040"]["quality"] in ("good", "check", "failed")
    for name, figures in record["cases"]["hippocampus_040"]["assessment"]["evidence"].items():
        learned = calibration["classes"][name]["figures"]
        assert not learned or figures is None or set(learned) <= set(figures)


def test_the_papers_plan_on_a_phantom(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw = write_phantom(tmp_path / "raw" / "Task001_COVID")
    (tmp_path / "small.json5").write_text(PHANTOM)
    where = ["--workspace", str(tmp_path), "--device", "cpu"]
    overrides = ["--overrides", str(tmp_path / "small.json5")]
    assert plan.main(["Task001", *where, *overrides, "--processes", "1"]) == 0
    assert train.main(["Task001", "fold", "all", *where, "--processes", "1"]) == 0

    folder = tmp_path / "models" / "Task001_COVID" / "default"
    made = load_plan(folder / "plan.json")
    assert made.training.loss.loss == "tversky_cross_entropy"
    assert made.provenance["training.loss.loss"].source == "reference plan Task001_COVID.json5"
    assert made.provenance["network.features"].source == "overrides small.json5"
    kept = tmp_path / "preprocessed" / "Task001_COVID" / "default" / "cases"
    case = json.loads((kept / "coronacases_0" / "case.json").read_text(encoding="utf-8"))
    assert case["shape"] == [91, 91, 59]  # floor(24 x 6 / 1.58), floor(20 x 8 / 2.7)
    assert {path.name for path in (folder / "fold_all").iterdir()} == {
        *(FOLD_FILES - {"validation"}),
        "best.safetensors",
    }

    scan = raw / "imagesTr" / "coronacases_1_0000.nii.gz"
    assert predict.main(["-i", str(scan), "-o", str(tmp_path / "out"), *where]) == 0
    label, geometry = read_label(tmp_path / "out" / "coronacases_1.nii.gz")
    assert geometry.size == label.shape == (24, 24, 20)
    assert geometry.spacing_mm == (6.0, 6.0, 8.0)
    record = json.loads((tmp_path / "out" / "predictions.json").read_text(encoding="utf-8"))
    found = record["cases"]["coronacases_1"]
    counts = np.bincount(label.ravel(), minlength=4)
    whole = int(counts[1:].sum())
    assert found["share"] == {"infection": round(int(counts[3]) / whole, 6) if whole else None}
    assert found["volume_ml"]["infection"] == pytest.approx(counts[3] * 6 * 6 * 8 / 1000)
    assert "1 predicted" in capsys.readouterr().err
