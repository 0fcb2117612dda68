from __future__ import annotations

from pathlib import Path

import pytest

from autoseg.common.errors import AutosegError
from autoseg.workflow.workspace import ENVIRONMENT_VARIABLE, RAW_FOLDER, Workspace


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    for name in ("Task001_COVID", "Task002_Heart", "Task002_HeartMR", "Dataset012_Lung", ".hidden"):
        (tmp_path / "raw" / name).mkdir(parents=True)
    (tmp_path / "preprocessed" / "Task003_Liver").mkdir(parents=True)
    return Workspace(tmp_path)


def test_the_given_folder_wins_over_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(ENVIRONMENT_VARIABLE, raising=False)
    assert Workspace.find().root == tmp_path
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, str(tmp_path / "a"))
    assert Workspace.find().root == tmp_path / "a"
    assert Workspace.find(Path("b")).root == tmp_path / "b"


def test_paths(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    assert workspace.raw("T") == tmp_path / "raw" / "T"
    assert workspace.preprocessed("T") == tmp_path / "preprocessed" / "T"
    assert workspace.preprocessed("T", "P") == tmp_path / "preprocessed" / "T" / "P"
    assert workspace.models("T") == tmp_path / "models" / "T"
    assert workspace.models("T", "P") == tmp_path / "models" / "T" / "P"
    assert workspace.fold("T", "P", 3) == tmp_path / "models" / "T" / "P" / "fold_3"
    assert workspace.fold("T", "P", "all") == tmp_path / "models" / "T" / "P" / "fold_all"
    assert workspace.study("S") == tmp_path / "experiments" / "S"


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("Task001", "Task001_COVID"),
        ("Task001_COVID", "Task001_COVID"),
        ("Task002_Heart", "Task002_Heart"),
        ("Task002_HeartM", "Task002_HeartMR"),
        ("1", "Task001_COVID"),
        ("001", "Task001_COVID"),
        ("12", "Dataset012_Lung"),
    ],
)
def test_a_unique_beginning_names_a_task(workspace: Workspace, given: str, name: str) -> None:
    assert workspace.find_task_folder(given) == workspace.root / "raw" / name
    assert workspace.find_task_name(given) == name


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("Task002", "'Task002' .*Task002_Heart, Task002_HeartMR"),
        ("2", "'2' .*Task002_Heart, Task002_HeartMR"),
        ("9", "'9' was not found in .*: Dataset012_Lung, Task001_COVID"),
        ("Task009", "'Task009' was not found in .*: Dataset012_Lung, "),
        ("", "'' was not found"),
        (".hid", "'.hid' was not found"),
    ],
)
def test_a_name_of_no_task_or_of_several_is_an_error(
    workspace: Workspace, given: str, message: str
) -> None:
    with pytest.raises(AutosegError, match=message):
        workspace.find_task_folder(given)


def test_an_empty_workspace_has_no_task(tmp_path: Path) -> None:
    with pytest.raises(AutosegError, match=r"Task001.*empty"):
        Workspace(tmp_path).find_task_folder("Task001")


def test_a_task_may_be_a_path(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = workspace.root / "elsewhere" / "Task007"
    elsewhere.mkdir(parents=True)
    assert workspace.find_task_folder(str(elsewhere)) == elsewhere
    assert workspace.find_task_name(str(elsewhere)) == "Task007"
    monkeypatch.chdir(elsewhere)
    assert workspace.find_task_folder(".") == elsewhere
    with pytest.raises(AutosegError, match="missing"):
        workspace.find_task_folder(str(elsewhere / "missing"))


def test_a_path_may_be_a_link_and_may_end_in_a_slash(workspace: Workspace) -> None:
    target = workspace.root / "nnUNet_raw" / "Dataset007_Knee"
    target.mkdir(parents=True)
    link = workspace.root / "raw" / "Task007_Knee"
    link.symlink_to(target)
    assert workspace.find_task_folder(f"{target}/") == target
    assert workspace.find_task_folder(str(link)) == workspace.find_task_folder("Task007") == link


def test_a_folder_here_may_be_named_without_its_path(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = workspace.root / "nnUNet_raw"
    for name in ("Dataset007_Knee", "Task001_COVID"):
        (here / name).mkdir(parents=True)
    monkeypatch.chdir(here)
    assert workspace.find_task_folder("Dataset007_Knee") == here / "Dataset007_Knee"
    assert workspace.find_task_folder("Task001_COVID") == workspace.raw("Task001_COVID")


def test_the_name_of_a_task_planned_from_elsewhere_finds_it(workspace: Workspace) -> None:
    elsewhere = workspace.root / "elsewhere" / "Dataset007_Knee"
    elsewhere.mkdir(parents=True)
    workspace.remember_raw_folder(elsewhere)
    for given in ("7", "Dataset007", "Dataset007_Knee"):
        assert workspace.find_task_folder(given) == elsewhere
        assert workspace.find_task_name(given) == "Dataset007_Knee"
    elsewhere.rename(elsewhere.with_name("moved"))
    with pytest.raises(AutosegError, match="elsewhere/Dataset007_Knee"):
        workspace.find_task_folder("7")
    workspace.raw("Dataset007_Knee").mkdir()
    assert workspace.find_task_folder("7") == workspace.raw("Dataset007_Knee")
    workspace.remember_raw_folder(workspace.raw("Dataset007_Knee"))
    assert not (workspace.preprocessed("Dataset007_Knee") / RAW_FOLDER).exists()


def test_two_tasks_of_one_name_are_refused(workspace: Workspace) -> None:
    elsewhere = workspace.root / "elsewhere" / "Task001_COVID"
    elsewhere.mkdir(parents=True)
    with pytest.raises(AutosegError, match=r"elsewhere/Task001_COVID.*raw/Task001_COVID"):
        workspace.remember_raw_folder(elsewhere)


@pytest.mark.parametrize("text", ["[]", "{}", '{"folder": 3}'])
def test_a_damaged_record_of_a_folder_is_an_error(workspace: Workspace, text: str) -> None:
    record = workspace.preprocessed("Task003_Liver") / RAW_FOLDER
    record.write_text(text, encoding="utf-8")
    with pytest.raises(AutosegError, match=r"raw_folder\.json.*\"folder\""):
        workspace.find_task_folder("Task003")


def test_a_planned_task_needs_no_raw_folder(workspace: Workspace) -> None:
    assert workspace.find_task_name("Task003") == "Task003_Liver"


def test_plans_are_found_by_name_or_by_being_the_only_one(workspace: Workspace) -> None:
    folder = workspace.preprocessed("Task003_Liver")
    with pytest.raises(AutosegError, match="autoseg_plan Task003_Liver"):
        workspace.find_plan_name("Task003_Liver", None)
    for name in ("small", "large", "unfinished"):
        (folder / name).mkdir()
    (folder / "small" / "plan.json").touch()
    assert workspace.find_plan_name("Task003_Liver", None) == "small"
    (folder / "large" / "plan.json").touch()
    assert workspace.find_plan_name("Task003_Liver", "l") == "large"
    with pytest.raises(AutosegError, match=r"large, small.*--plan"):
        workspace.find_plan_name("Task003_Liver", None)
    with pytest.raises(AutosegError, match="'unf'"):
        workspace.find_plan_name("Task003_Liver", "unf")


def test_trained_models_have_a_finished_fold(workspace: Workspace) -> None:
    for path in ("T/P/fold_0", "T/P/fold_1", "T/Q/fold_0", "S/P/fold_all"):
        (workspace.root / "models" / path).mkdir(parents=True)
    for path in ("T/P/fold_0", "T/P/fold_1", "S/P/fold_all"):
        (workspace.root / "models" / path / "final.safetensors").touch()
    assert workspace.trained() == [("S", "P"), ("T", "P")]
