"""Folds: their cases, their errors, and training of skipped cases and slices."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from autoseg.cli.plan import main as plan_task
from autoseg.common.errors import AutosegError, PlanError, RunError
from autoseg.common.locks import locked
from autoseg.dataset.splits import Split
from autoseg.dataset.task import read_task
from autoseg.image.image import read_label
from autoseg.models.folder import FINGERPRINT, FolderFiles
from autoseg.plan.plan import load_plan
from autoseg.planner.patch_rule import training_memory
from autoseg.prediction.model import training_set_of
from autoseg.prediction.sliding_window import count_tiles
from autoseg.workflow import fold as module
from autoseg.workflow.fold import FoldJob, check_fold, count_patches, run_fold
from autoseg.workflow.task_plan import find_split
from autoseg.workflow.workspace import Workspace
from tests.cli.making import TINY, settings, write_ct
from tests.making import CASCADE, tiny_plan, tiny_store

NAMES = tuple(f"case_{number}" for number in range(5))
SMALL = [*TINY[1:], "network.features=[4,8,8]"]


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    write_ct(tmp_path / "raw" / "Task001_Würfel")
    assert plan_task(["Task001", "--workspace", str(tmp_path), "--processes", "1"]) == 0
    return Workspace(tmp_path)


def job(workspace: Workspace, fold: str = "0") -> FoldJob:
    return FoldJob(
        workspace=workspace,
        task=workspace.raw("Task001_Würfel"),
        plan="default",
        fold=fold,
        device=torch.device("cpu"),
        processes=1,
        resume=False,
        started=time.monotonic(),
    )


def files_below(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize(("dtype", "warned"), [(torch.float32, True), (torch.bfloat16, False)])
def test_too_little_memory_for_the_precision_of_the_cpu(
    dtype: torch.dtype,
    warned: bool,
    workspace: Workspace,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    made = job(workspace)
    plan = load_plan(made.plan_folder / "plan.json")
    half, whole = (training_memory(plan, value_bytes=size).peak for size in (2, 4))
    monkeypatch.setattr(module, "free_memory", lambda: (half + whole) // 2)
    monkeypatch.setattr(module, "autocast_type", lambda *_: dtype)
    capsys.readouterr()
    check_fold(made)
    assert ("training step takes about" in capsys.readouterr().err) is warned


def test_folders(workspace: Workspace) -> None:
    made = job(workspace, "all")
    assert made.folder == workspace.root / "models/Task001_Würfel/default/fold_all"
    assert made.plan_folder == workspace.root / "preprocessed/Task001_Würfel/default"


def test_folds_are_those_of_the_plan(workspace: Workspace) -> None:
    task = read_task(workspace.raw("Task001_Würfel"))
    folder = job(workspace).plan_folder
    plan = load_plan(folder / "plan.json")
    splits = [find_split(plan, task, folder, str(fold)) for fold in range(5)]
    assert sorted(name for split in splits for name in split.validation) == list(NAMES)
    for split in splits:
        assert sorted((*split.train, *split.validation)) == list(NAMES)
    assert find_split(plan, task, folder, "all") == Split(NAMES, ())


@pytest.mark.parametrize("fold", ["5", "-1", "x", "", "²", "0.0"])
def test_other_folds_do_not_exist(workspace: Workspace, fold: str) -> None:
    task = read_task(workspace.raw("Task001_Würfel"))
    folder = job(workspace).plan_folder
    plan = load_plan(folder / "plan.json")
    with pytest.raises(AutosegError, match=r"does not exist; .*0 to 4, or all"):
        find_split(plan, task, folder, fold)


def test_patches_of_stored_cases_are_counted(tmp_path: Path) -> None:
    plan = tiny_plan()
    store = tiny_store(tmp_path, plan, cases=3, size=13)
    one = count_tiles((13, 13, 13), (8, 8, 8), (4, 4, 4))
    assert one == 27  # starts at 0, 2 or 3, and 5
    assert count_patches(plan, store, ("case_0", "case_2")) == 2 * one
    assert count_patches(plan, store, ()) == 0


@pytest.mark.parametrize("weights", ["final.safetensors", "latest.safetensors"])
def test_models_of_another_plan_are_left_alone(workspace: Workspace, weights: str) -> None:
    models = job(workspace).folder.parent
    tiny_plan().save(models / "plan.json")
    (models / "fold_1").mkdir()
    (models / "fold_1" / weights).write_bytes(b"")
    before = (models / "plan.json").read_bytes()
    with pytest.raises(AutosegError, match=r"another plan \(fold_1\)"):
        run_fold(job(workspace))
    assert (models / "plan.json").read_bytes() == before
    assert [path.name for path in files_below(models)] == [weights, "plan.json"]


def test_a_fold_is_trained_by_one_process(workspace: Workspace) -> None:
    made = job(workspace)
    with (
        locked(made.folder / ".lock", "the fold"),
        pytest.raises(RunError, match="fold 0 of Task001_Würfel is in use"),
    ):
        run_fold(made)


def test_a_plan_with_an_error(workspace: Workspace) -> None:
    path = job(workspace).plan_folder / "plan.json"
    path.write_text(path.read_text(encoding="utf-8").replace('"batch_size": 2', '"batch_size": 0'))
    with pytest.raises(PlanError, match=r"plan\.json: sampling\.batch_size is 0"):
        run_fold(job(workspace))
    assert not job(workspace).folder.exists()


def test_planning_anew_is_seen(workspace: Workspace) -> None:
    arguments = ["Task001", "--workspace", str(workspace.root), "--processes", "1"]
    assert plan_task([*arguments, *settings("splits.folds=2")]) == 0
    with pytest.raises(AutosegError, match=r"fold '3' does not exist; .*0 to 1"):
        run_fold(job(workspace, "3"))


def test_skipped_cases_are_not_needed(workspace: Workspace) -> None:
    raw = workspace.raw("Task001_Würfel")
    (raw / "imagesTr" / "case_2_0000.nii.gz").unlink()
    arguments = ["Task001", "--workspace", str(workspace.root), "--processes", "1"]
    (job(workspace).plan_folder / "splits.json").unlink()
    assert plan_task([*arguments, "--skip-bad-cases", *settings(*SMALL)]) == 0
    summary = run_fold(job(workspace, "0"))
    assert summary is not None
    models = job(workspace).folder.parent
    copied = (models / FINGERPRINT).read_bytes()
    assert copied == (job(workspace).plan_folder / FINGERPRINT).read_bytes()
    found = training_set_of(FolderFiles(models))
    assert found is not None
    assert found.has_bodies
    names = {case.case for case in summary.cases}
    assert names
    assert "case_2" not in names
    assert not list((job(workspace).plan_folder / "cases").glob("case_2*"))


def test_a_cascade_before_its_previous_stage_ends_with_one_line(workspace: Workspace) -> None:
    plan = tiny_plan(task="Task001_Würfel", labels={"background": [0], "tumour": [1]}, **CASCADE)
    plan.save(job(workspace).plan_folder / "plan.json")
    with pytest.raises(AutosegError, match="tiny-3d_lowres, which is not planned"):
        run_fold(job(workspace))
    assert not list(job(workspace).folder.rglob("*"))


def test_slices_are_trained_and_predicted(workspace: Workspace) -> None:
    arguments = ["Task001", "--workspace", str(workspace.root), "--processes", "1"]
    assert plan_task([*arguments, "--config", "2d", *settings(*SMALL)]) == 0
    made = replace(job(workspace), plan="default-2d")
    summary = run_fold(made)
    assert summary is not None
    assert load_plan(made.plan_folder / "plan.json").sampling.patch_size[2] == 1
    for case in summary.cases:
        predicted = read_label(made.folder / "validation" / f"{case.case}.nii.gz")[0]
        assert predicted.shape == (16, 16, 16)
