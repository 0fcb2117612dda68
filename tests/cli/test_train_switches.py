from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from autoseg.cli.plan import main as plan_task
from autoseg.cli.train import main
from autoseg.common.errors import install_hint
from autoseg.workflow.workspace import Workspace
from tests.cli.making import TINY, settings, write_ct
from tests.making import tiny_plan
from tests.training.test_transfer import model


@pytest.fixture
def root(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    write_ct(tmp_path / "raw" / "Task001_Tiny")
    planned = settings(*TINY[1:], "network.features=[4,8,8]")
    assert plan_task(["Task001", "--workspace", str(tmp_path), "--processes", "1", *planned]) == 0
    capsys.readouterr()
    return tmp_path


def error_of(root: Path, capsys: pytest.CaptureFixture[str], *switches: str) -> str:
    """The one line of a command with bad arguments, before it has written anything."""
    assert main(["Task001", "0", "--workspace", str(root), *switches]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert not Workspace(root).models("Task001_Tiny").exists()
    assert not (Workspace(root).preprocessed("Task001_Tiny", "default") / "cases").exists()
    return line


def test_a_missing_model(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = error_of(root, capsys, "--pretrained", str(root / "gone"))
    assert line.startswith(f"error: --pretrained {root / 'gone'}: ")


def test_a_model_of_another_architecture(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model(root / "other", plan=tiny_plan())
    line = error_of(root, capsys, "--pretrained", str(root / "other"))
    assert "2-4 feature maps" in line
    assert "4-8-8 feature maps" in line


def test_tensorboard_is_not_installed(
    root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    line = error_of(root, capsys, "--tensorboard")
    assert "--tensorboard needs" in line
    assert install_hint("tensorboard") in line
