"""Damaged scans and label maps through the commands: each is named, and the others go on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from autoseg.image.formats import stem_of
from tests.cli.making import settings
from tests.dataset.making import V2, declare, write_4d, write_scan
from tests.faults.commands import everything_in, refusal, tell
from tests.faults.damage import damaged_files
from tests.making import tiny_plan
from tests.prediction.making import save_model

TASK = "Task001_Bad"
FEWEST = 250
SIZE = (14, 12, 10)
Write = Callable[[Path], object]

LABEL = np.zeros(SIZE, np.uint8)
LABEL[3:9, 3:9, 3:8] = 1
IMAGE = (LABEL * 100 + np.random.default_rng(0).integers(0, 20, SIZE)).astype(np.int16)


def picture() -> sitk.Image:
    made = sitk.GetImageFromArray(np.ascontiguousarray(IMAGE.T))
    made.SetSpacing((0.8, 0.8, 1.5))
    return made


def damaged(folder: Path) -> list[str]:
    """Write damaged files, as `damage` makes them, and others; returns their names."""
    folder.mkdir(parents=True, exist_ok=True)
    names = []
    for name, content in damaged_files(picture()):
        (folder / name).write_bytes(content)
        names.append(name)
    for name, write in odd_files().items():
        write(folder / name)
        names.append(name)
    return names


def odd_files() -> dict[str, Write]:
    """Whole files of another kind than their name says."""
    return {
        "folder.nii.gz": lambda path: path.mkdir(),
        "folder-with-text.nrrd": write_folder,
        "nrrd-as.nii": lambda path: rename(path, ".nrrd"),
        "nifti-as.mha": lambda path: rename(path, ".nii"),
        "mha-as.nrrd": lambda path: rename(path, ".mha"),
        "json-as.nii.gz": lambda path: path.write_text("{}"),
        "png-as.nii.gz": lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(500)),
        "four-channels.nii.gz": lambda path: write_4d(path, np.stack([IMAGE] * 4)),
    }


def write_folder(path: Path) -> None:
    path.mkdir()
    (path / "readme.txt").write_text("no slices here")


def rename(path: Path, ending: str) -> None:
    write_scan(path.with_name(f"{path.stem}-{ending[1:]}{ending}"), IMAGE)
    path.with_name(f"{path.stem}-{ending[1:]}{ending}").rename(path)


def bad_labels() -> dict[str, Write]:
    """Whole label maps that do not fit their scan, or hold what is no label."""
    return {
        "fractions.nii.gz": lambda path: write_scan(path, LABEL * np.float32(0.5)),
        "negative.nii.gz": lambda path: write_scan(path, -LABEL.astype(np.int16)),
        "undeclared.nii.gz": lambda path: write_scan(path, LABEL * 7),
        "huge-value.nii.gz": lambda path: write_scan(path, LABEL * np.int32(1 << 20)),
        "larger.nii.gz": lambda path: write_scan(path, np.pad(LABEL, 1)),
        "turned.nii.gz": lambda path: write_scan(path, np.ascontiguousarray(LABEL.T)),
        "elsewhere.nii.gz": lambda path: write_scan(path, LABEL, origin_mm=(5, 0, 0)),
        "coarser.nii.gz": lambda path: write_scan(path, LABEL, (2, 2, 2)),
        "mirrored.nii.gz": lambda path: write_scan(
            path, LABEL, direction=(-1, 0, 0, 0, 1, 0, 0, 0, 1)
        ),
    }


@pytest.fixture
def task(tmp_path: Path) -> Path:
    """A task with three good cases, in a workspace."""
    folder = declare(tmp_path / "raw" / TASK, V2)
    for number in range(3):
        write_scan(folder / "imagesTr" / f"good{number}_0000.nii.gz", IMAGE + number)
        write_scan(folder / "labelsTr" / f"good{number}.nii.gz", LABEL)
    return folder


def plan_words(task: Path, *more: str) -> list[str]:
    words = [TASK, "--workspace", str(task.parents[1]), "--processes", "1", *more]
    return [*words, *settings("splits.folds=2")]


def assert_planned_without(task: Path, bad: set[str]) -> None:
    """Planning refuses and names the bad cases, and goes on without them where it may."""
    room = task.parents[1] / "preprocessed"
    before = everything_in(task.parents[1], [room])
    assert f"task {TASK} has {len(bad)} error" in refusal("plan", *plan_words(task))
    found = json.loads((room / TASK / "verification.json").read_text(encoding="utf-8"))
    assert {problem["case"] for problem in found["errors"]} == bad
    told = tell("plan", *plan_words(task, "--skip-bad-cases"))
    assert told.status == 0, told.err
    plan = json.loads((room / TASK / "default" / "plan.json").read_text(encoding="utf-8"))
    assert set(plan["skipped_cases"]) == bad
    assert everything_in(task.parents[1], [room]) == before


def test_planning_on_damaged_scans(task: Path, tmp_path: Path) -> None:
    bad = set()
    for name in damaged(tmp_path / "damaged"):
        case = stem_of(Path(name))
        shutil.move(tmp_path / "damaged" / name, task / "imagesTr" / name)
        write_scan(task / "labelsTr" / f"{case}.nii.gz", LABEL)
        bad.add(case)
    assert len(bad) >= FEWEST
    assert_planned_without(task, bad)


def test_planning_on_damaged_label_maps(task: Path, tmp_path: Path) -> None:
    bad = set()
    (tmp_path / "damaged").mkdir()
    for name, write in bad_labels().items():
        write(tmp_path / "damaged" / name)
    for name in [*damaged(tmp_path / "damaged"), *bad_labels()]:
        case = stem_of(Path(name))
        shutil.move(tmp_path / "damaged" / name, task / "labelsTr" / name)
        write_scan(task / "imagesTr" / f"{case}_0000.nii.gz", IMAGE)
        bad.add(case)
    assert_planned_without(task, bad)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model that has learned nothing."""
    plan = tiny_plan(inference={"overlap": [0, 0, 0]})
    return save_model(plan, tmp_path / "model", "0")


def predict_words(model: Path, to: str = "out") -> list[str]:
    root = model.parent
    words = ["-i", str(root / "in"), "-o", str(root / to), "-m", str(model)]
    return [*words, "--device", "cpu", "--backend", "torch"]


def test_predicting_damaged_scans(model: Path, tmp_path: Path) -> None:
    bad = {stem_of(Path(name)) for name in damaged(tmp_path / "in")}
    for number in range(2):
        write_scan(tmp_path / "in" / f"good{number}.nii.gz", IMAGE + number)
    before = everything_in(tmp_path, [tmp_path / "out"])
    told = tell("predict", *predict_words(model))
    assert told.status == 2
    refused = [line for line in told.err.splitlines() if line.startswith("refused ")]
    names = {line.removeprefix("refused ").partition(": ")[0] for line in refused}
    assert {stem_of(Path(name)) for name in names} == bad
    assert f"2 predicted, 0 were there already, {len(bad)} refused" in told.err.splitlines()
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written == {"good0.nii.gz", "good1.nii.gz", "labels.json", "predictions.json"}
    assert everything_in(tmp_path, [tmp_path / "out"]) == before


def test_predicting_one_damaged_scan(model: Path, tmp_path: Path) -> None:
    """With nothing else to do, there is no label map, and the status says so."""
    (tmp_path / "in").mkdir()
    write_scan(tmp_path / "in" / "scan.nii.gz", IMAGE)
    whole = (tmp_path / "in" / "scan.nii.gz").read_bytes()
    (tmp_path / "in" / "scan.nii.gz").write_bytes(whole[: len(whole) // 2])
    told = tell("predict", *predict_words(model))
    assert told.status == 2
    assert "refused scan: " in told.err
    assert not list((tmp_path / "out").glob("*.nii.gz"))


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Truths and predictions with one good case."""
    for name in ("truth", "predicted"):
        write_scan(tmp_path / name / "good.nii.gz", LABEL)
    return tmp_path / "truth", tmp_path / "predicted"


@pytest.mark.parametrize("side", [0, 1])
def test_evaluating_damaged_label_maps(
    folders: tuple[Path, Path], tmp_path: Path, side: int
) -> None:
    """Bad files do not stop the good one, but the status is 2 and each of them is named."""
    odd = {k: v for k, v in bad_labels().items() if k != "undeclared.nii.gz"}
    (tmp_path / "bad").mkdir()
    for name, write in odd.items():
        write(tmp_path / "bad" / name)
    words = ["-g", str(folders[0]), "-p", str(folders[1]), "-o", str(tmp_path / "scores")]
    bad = {stem_of(Path(name)): name for name in [*damaged(tmp_path / "bad"), *odd]}
    for case, name in bad.items():
        shutil.move(tmp_path / "bad" / name, folders[side] / name)
        write_scan(folders[1 - side] / f"{case}.nii.gz", LABEL)
    assert len(bad) >= FEWEST
    told = tell("evaluate", *words, "--processes", "1")
    assert told.status == 2
    assert {name for name in bad.values() if name not in told.err} == set()
    summary = json.loads((tmp_path / "scores" / "summary.json").read_text(encoding="utf-8"))
    assert [case["case"] for case in summary["metric_per_case"]] == ["good"]
    for name in bad.values():
        path = folders[side] / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    for case in bad:
        (folders[1 - side] / f"{case}.nii.gz").unlink()
    assert tell("evaluate", *words, "--processes", "1").status == 0
