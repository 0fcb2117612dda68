from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from autoseg.cli.plan import main
from autoseg.workflow.workspace import ENVIRONMENT_VARIABLE
from tests.cli.making import write_ct

ONE = ["--processes", "1"]


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "workspace"
    (root / "raw").mkdir(parents=True)
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, str(root))
    return root


def _names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_folder_anywhere_is_planned_and_its_name_stands_for_it_afterwards(
    workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = write_ct(tmp_path / "nnUNet_raw" / "Dataset012_Niere")
    assert main([f"{elsewhere}/", *ONE]) == 0
    monkeypatch.chdir(tmp_path / "nnUNet_raw")
    for again in ("Dataset012_Niere", "12", "Dataset012"):
        assert main([again, "--name", "again", *ONE]) == 0
    monkeypatch.chdir(tmp_path)
    assert main(["12", "--name", "again", *ONE]) == 0
    assert _names(workspace / "preprocessed" / "Dataset012_Niere") >= {"default", "again"}
    assert _names(workspace / "raw") == set()


def test_a_linked_task_keeps_the_name_of_the_link(workspace: Path, tmp_path: Path) -> None:
    target = write_ct(tmp_path / "nnUNet_raw" / "Dataset012_Niere")
    (workspace / "raw" / "Task012_Kidney").symlink_to(target)
    assert main(["Task012", *ONE]) == 0
    assert _names(workspace / "preprocessed") == {"Task012_Kidney"}


def test_few_cases_get_a_fold_each_and_a_single_one_none(
    workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_ct(workspace / "raw" / "Task003", cases=3)
    assert main(["Task003", *ONE]) == 0
    folder = workspace / "preprocessed" / "Task003" / "default"
    assert len(json.loads((folder / "splits.json").read_text(encoding="utf-8"))) == 3
    write_ct(workspace / "raw" / "Task001", cases=1)
    assert main(["Task001", *ONE]) == 0
    assert "only `fold all` can be trained" in capsys.readouterr().err
    folder = workspace / "preprocessed" / "Task001" / "default"
    assert (folder / "plan.json").exists()
    assert not (folder / "splits.json").exists()


def test_cases_without_an_image_are_errors_with_advice(
    workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task = write_ct(workspace / "raw" / "Task001", cases=3)
    (task / "imagesTr" / "case_1_0000.nii.gz").unlink()
    assert main(["Task001", *ONE]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert "case_1" in line
    assert "--skip-bad-cases" in line
    assert main(["Task001", "--skip-bad-cases", *ONE]) == 0
    shutil.rmtree(task / "imagesTr")
    capsys.readouterr()
    assert main(["Task001", *ONE]) == 2
    assert "--skip-bad-cases" not in capsys.readouterr().err


def test_the_splits_of_nnunet_are_offered_and_taken_where_asked(
    workspace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task = write_ct(tmp_path / "nnUNet_raw" / "Dataset012_Niere", cases=4)
    names = sorted(path.name.removesuffix(".nii.gz") for path in (task / "labelsTr").iterdir())
    theirs = [{"train": names[:2], "val": names[2:]}, {"train": names[2:], "val": names[:2]}]
    file = tmp_path / "nnUNet_preprocessed" / task.name / "splits_final.json"
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps(theirs), encoding="utf-8")
    plan = [str(task), *ONE]
    assert main(plan) == 0
    assert f"--splits {file}" in capsys.readouterr().err
    used = workspace / "preprocessed" / task.name / "default" / "splits.json"
    assert len(json.loads(used.read_text(encoding="utf-8"))) == 4
    assert main([*plan, "--splits", str(file)]) == 0
    assert json.loads(used.read_text(encoding="utf-8")) == theirs
    assert main(plan) == 0  # they stay
    assert json.loads(used.read_text(encoding="utf-8")) == theirs
    assert "--splits" not in capsys.readouterr().err


def test_splits_of_other_cases_and_of_trained_folds_are_refused(
    workspace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task = write_ct(workspace / "raw" / "Task003", cases=3)
    file = tmp_path / "mine.json"
    file.write_text('[{"train": ["unknown"], "val": ["case_1"]}]', encoding="utf-8")
    plan = [str(task), *ONE, "--splits", str(file)]
    assert main(plan) == 2
    assert "unknown" in capsys.readouterr().err
    assert not (workspace / "preprocessed" / task.name / "default").exists()
    names = sorted(path.name.removesuffix(".nii.gz") for path in (task / "labelsTr").iterdir())
    file.write_text(json.dumps([{"train": names[:1], "val": names[1:]}]), encoding="utf-8")
    (workspace / "models" / task.name / "default" / "fold_1").mkdir(parents=True)
    assert main(plan) == 2
    assert "fold 1" in capsys.readouterr().err
    assert main([*plan, "--name", "other"]) == 0
