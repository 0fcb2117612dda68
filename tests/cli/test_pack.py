from __future__ import annotations

from pathlib import Path

import pytest

from autoseg.cli import evaluate, pack, predict
from autoseg.common.files import read_json
from autoseg.models.archive import open_archive
from autoseg.workflow.workspace import Workspace
from tests.export.making import TASK, plan_and_train, trained_workspace
from tests.making import tiny_plan


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    trained_workspace(tmp_path)
    return tmp_path


def error_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    capsys.readouterr()
    assert pack.main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line.removeprefix("error: ")


def test_a_model_is_packed_and_predicts_elsewhere(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate.main([TASK, "--processes", "1"]) == 0
    shown = capsys.readouterr().out
    assert "keep the largest component of" in shown
    assert read_json(root / "models" / TASK / "default" / "postprocessing.json")["steps"]
    assert pack.main(["Task001", "-o", "out/model.zip"]) == 0
    assert capsys.readouterr().out == f"{Path('out/model.zip')}\n"
    assert "postprocessing.json" in open_archive(root / "out" / "model.zip").entries
    command = ["-i", str(root / "raw" / TASK / "imagesTr"), "--device", "cpu"]
    for extra, steps in (([], ["all foreground"]), (["--no-postprocessing"], None)):
        out = root / ("with" if steps else "without")
        models = ["-m", "out/model.zip", "-o", str(out)]
        assert predict.main([*command, *models, *extra]) == 0
        record = read_json(out / "predictions.json")
        assert len(record["cases"]) == 4
        assert record.get("postprocessing") == steps
        assert record["plan_id"] == tiny_plan().id


def test_a_damaged_model_is_one_line(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert pack.main([TASK, "-o", "model.zip"]) == 0
    path = root / "model.zip"
    path.write_bytes(path.read_bytes()[:-10])
    capsys.readouterr()
    assert predict.main(["-i", "raw", "-o", "out", "-m", "model.zip"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: model.zip")


def test_several_plans_need_a_choice(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan_and_train(Workspace(root), tiny_plan(name="5m"), "0")
    assert "several models are trained; choose one" in error_of(capsys, TASK, "-o", "a.zip")
    assert pack.main([TASK, "-p", "5m", "-o", "a.zip"]) == 0
    assert open_archive(root / "a.zip").about["plan"] == "5m"
    assert "a.zip" in error_of(capsys, TASK, "-p", "5m", "-o", "a.zip")


def test_models_that_are_not_trained(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "'Task9' was not found" in error_of(capsys, "Task9", "-o", "a.zip")
    assert "fold 5" in error_of(capsys, TASK, "-f", "5", "-o", "a.zip")
    assert not (root / "a.zip").exists()
