from __future__ import annotations

from pathlib import Path

import pytest

from autoseg.cli.predict import main
from autoseg.workflow.workspace import ENVIRONMENT_VARIABLE
from tests.making import tiny_plan


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "Arbeit für Zoë"
    (root / "in").mkdir(parents=True)
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, str(root))
    monkeypatch.chdir(root)
    return root


def pretend_trained(workspace: Path, task: str, plan: str) -> Path:
    """A model folder whose weights are no weights."""
    folder = workspace / "models" / task / plan
    tiny_plan(task=task, name=plan).save(folder / "plan.json")
    (folder / "fold_0").mkdir()
    (folder / "fold_0" / "final.safetensors").write_bytes(b"no weights")
    return folder


def error_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["-i", "in", "-o", "out", *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert not Path("out").exists()
    return line.removeprefix("error: ")


def test_without_a_model(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert f"{workspace / 'models'} has no trained model" in error_of(capsys)


def test_several_models_are_listed(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for task, plan in (("Task001_A", "default"), ("Task001_A", "5m"), ("Task002_B", "default")):
        pretend_trained(workspace, task, plan)
    assert error_of(capsys) == (
        "several models are trained; choose one: "
        "-t Task001_A -p 5m, -t Task001_A -p default, -t Task002_B -p default"
    )
    assert "choose one: -t Task001_A -p 5m, -t Task001_A -p d" in error_of(capsys, "-t", "Task001")
    assert "Task001_A, Task002_B;" in error_of(capsys, "-t", "Task")
    assert error_of(capsys, "-t", "Task002", "-p", "5m") == (
        "no trained model matches -t Task002 -p 5m; available: "
        "-t Task001_A -p 5m, -t Task001_A -p default, -t Task002_B -p default"
    )


def test_the_only_model_is_used_and_its_damage_is_an_error(
    workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = pretend_trained(workspace, "Task001_A", "default")
    assert f"{folder / 'fold_0' / 'final.safetensors'} is damaged" in error_of(capsys)
    pretend_trained(workspace, "Task002_B", "default")
    assert "Task002_B/default/fold_0" in error_of(capsys, "-t", "Task002")
    assert "Task001_A/default/fold_0" in error_of(capsys, "-m", str(folder))
    pretend_trained(workspace, "Task001_A", "default-2d")
    assert "Task001_A/default/fold_0" in error_of(capsys, "-t", "1", "-p", "default")
    assert "Task001_A/default-2d/fold_0" in error_of(capsys, "-t", "1", "-p", "default-")


def test_missing_folds(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pretend_trained(workspace, "Task001_A", "default")
    assert "folds 1, all" in error_of(capsys, "-f", "0", "1", "all")


def test_a_model_folder_names_everything(
    workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "leave out -t and -p" in error_of(capsys, "-m", "in", "-t", "Task001")
    assert "plan.json" in error_of(capsys, "-m", "in")


def test_input_and_output_are_needed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["-i", "in"]) == 2
    assert "-o" in capsys.readouterr().err
