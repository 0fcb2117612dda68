from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

from autoseg.cli.common import parser
from autoseg.cli.plan import main
from autoseg.fingerprint import Fingerprint
from autoseg.plan.plan import ConfigurationName, load_plan
from autoseg.workflow.workspace import ENVIRONMENT_VARIABLE
from tests.cli.making import settings, write_ct
from tests.dataset.making import HIPPOCAMPUS

PLANNED = {"plan.json", "fingerprint.json", "splits.json", "other_configurations"}
ONE = ["--processes", "1"]


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "Arbeit für Zoë"
    write_ct(root / "raw" / "Task007_Würfel klein")
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, str(root))
    return root


@pytest.fixture
def task(workspace: Path) -> Path:
    return workspace / "preprocessed" / "Task007_Würfel klein"


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} if folder.exists() else set()


def error_of(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that tells what is wrong."""
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    return line.removeprefix("error: ")


def test_a_plan_is_written(task: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["Task007", *ONE]) == 0
    assert names(task / "default") == PLANNED
    printed = capsys.readouterr()
    assert printed.out == f"{task / 'default' / 'plan.json'}\n"
    plan = load_plan(task / "default" / "plan.json")
    assert plan.task == "Task007_Würfel klein"
    assert plan.id in printed.err
    fingerprint = Fingerprint.load(task / "default" / "fingerprint.json")
    assert fingerprint.labels == plan.labels == {"background": (0,), "tumour": (1,)}
    assert len(json.loads((task / "default" / "splits.json").read_text(encoding="utf-8"))) == 5


def test_a_long_training_comes_with_advice(task: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hint = "--time-budget 2h"
    assert main(["Task007", *ONE]) == 0
    assert hint in capsys.readouterr().err
    assert main(["Task007", "--set", "training.epochs=2", *ONE]) == 0
    assert hint not in capsys.readouterr().err


def test_the_same_task_gives_the_same_bytes(task: Path) -> None:
    assert main(["Task007", "--name", "a", *ONE]) == 0
    shutil.rmtree(task / ".survey")
    assert main(["Task007", "--name", "b", "--processes", "2"]) == 0
    for file in ("fingerprint.json", "splits.json"):
        assert (task / "a" / file).read_bytes() == (task / "b" / file).read_bytes()
    first, second = (
        json.loads((task / name / "plan.json").read_text(encoding="utf-8")) for name in "ab"
    )
    for plan in (first, second):
        del plan["name"], plan["id"]
    assert first == second


def test_values_of_file_and_line(task: Path, tmp_path: Path) -> None:
    overrides = tmp_path / "eigene Werte.json5"
    overrides.write_text("{training: {epochs: 3, /* more */ seed: 3}}")
    values = settings("training.seed=4", "preprocessing.1.window=[-1000,400]")
    assert main(["Task007", "--overrides", str(overrides), *values, *ONE]) == 0
    plan = load_plan(task / "default" / "plan.json")
    assert (plan.training.epochs, plan.training.seed) == (3, 4)
    assert plan.preprocessing[1].model_dump()["window"] == (-1000, 400)
    assert plan.provenance["training.epochs"].source == "overrides eigene Werte.json5"


def test_explain(task: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["Task007", "--explain", *settings("training.epochs=3"), *ONE]) == 0
    printed = capsys.readouterr().out
    lines = printed.splitlines()
    (key,) = [number for number, line in enumerate(lines) if "training.epochs" in line]
    cells = lines[key - 1].split()
    assert (cells[:2], cells[-2:]) == (["epochs", "3"], ["1000", "--set"])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["Task9"], "task 'Task9' was not found in"),
        (["Task9"], "Task007_Würfel klein"),
        (["no/such/folder"], "no/such/folder"),
        (["Task007", "--overrides", "gone.json5"], "gone.json5"),
        (["Task007", "--set", "sampling.batchsize=1"], "'batch_size'"),
        (["Task007", "--set", "sampling.batch_size"], "sampling.batch_size"),
        (["Task007", "--set", "splits.folds=9"], "9 folds"),
        (["Task007", "--name", "../other"], "name is '../other'"),
        (["Task007", "--time-budget", "soon"], "--time-budget 'soon'"),
        (["Task007", "--memory", "-1"], "-1.0 GB"),
        (["Task007", "--memory", "nan"], "nan GB"),
        (["Task007", "--config", "3d_lowres"], "'3d_lowres'"),
        (["Task007", "--reference", "Task9"], "'Task9'"),
        (["Task007", "--set", "target_spacing_mm=[1,1,0]"], "target_spacing_mm.2 is 0"),
    ],
)
def test_an_error_is_one_line_and_leaves_no_plan(
    task: Path, arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments, *ONE]) == 2
    assert words in error_of(capsys)
    assert names(task) <= {"verification.json", ".survey"}
    assert names(task.parent) <= {task.name}


def test_a_bad_option_keeps_the_earlier_plan(task: Path) -> None:
    assert main(["Task007", *ONE]) == 0
    before = {path.name: path.read_bytes() for path in (task / "default").glob("*.json")}
    assert main(["Task007", *settings("splits.folds=9"), *ONE]) == 2
    assert main(["Task007", *settings("training.epochs=0"), *ONE]) == 2
    after = {path.name: path.read_bytes() for path in (task / "default").glob("*.json")}
    assert after == before


def test_an_ambiguous_prefix(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (workspace / "raw" / "Task007_Other").mkdir()
    assert main(["Task007", *ONE]) == 2
    assert "Task007_Other, Task007_Würfel klein;" in error_of(capsys)


def test_a_path_is_a_task_too(workspace: Path, tmp_path: Path) -> None:
    folder = write_ct(tmp_path / "anderswo" / "Aufgabe é")
    assert main([f"{folder}/", *ONE]) == 0
    assert names(workspace / "preprocessed" / "Aufgabe é" / "default") == PLANNED


def test_the_given_workspace_wins(task: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    write_ct(other / "raw" / "Task007_B")
    assert main(["Task007", "--workspace", str(other), *ONE]) == 0
    assert names(other / "preprocessed" / "Task007_B" / "default") == PLANNED
    assert not task.exists()


def test_other_folds_replace_those_of_the_earlier_plan(task: Path) -> None:
    path = task / "default" / "splits.json"
    assert main(["Task007", *ONE]) == 0
    assert main(["Task007", *settings("splits.folds=3"), *ONE]) == 0
    assert len(json.loads(path.read_text(encoding="utf-8"))) == 3
    before = path.read_bytes()
    assert main(["Task007", *settings("splits.folds=3", "splits.seed=1"), *ONE]) == 0
    assert path.read_bytes() != before


def test_the_users_folds_stay(task: Path) -> None:
    assert main(["Task007", *ONE]) == 0
    mine = [{"train": ["case_0", "case_1", "case_2"], "val": ["case_3", "case_4"]}]
    (task / "default" / "splits.json").write_text(json.dumps(mine))
    assert main(["Task007", *settings("splits.folds=3"), *ONE]) == 0
    assert json.loads((task / "default" / "splits.json").read_text(encoding="utf-8")) == mine


def test_a_damaged_earlier_plan_is_replaced(task: Path) -> None:
    assert main(["Task007", *ONE]) == 0
    (task / "default" / "plan.json").write_text("{")
    assert main(["Task007", *ONE]) == 0
    assert load_plan(task / "default" / "plan.json").name == "default"


def test_verify_only(task: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["Task007", "--verify-only", *ONE]) == 0
    assert names(task) == {"verification.json", ".survey"}
    assert json.loads((task / "verification.json").read_text(encoding="utf-8")) == {
        "errors": [],
        "warnings": [],
    }
    assert "5 cases, 0 errors, 0 warnings" in capsys.readouterr().err


def test_all_missing_files_are_reported(
    workspace: Path, task: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = workspace / "raw" / task.name
    (raw / "imagesTr" / "case_1_0000.nii.gz").unlink()
    (raw / "labelsTr" / "case_3.nii.gz").unlink()
    (raw / "labelsTr" / "case_4.nii.gz").write_bytes(b"half a file")
    assert main(["Task007", "--verify-only", *ONE]) == 2
    printed = capsys.readouterr().err
    for case in ("case_1", "case_3", "case_4"):
        assert any(line.split()[:2] == ["error", case] for line in printed.splitlines()), printed
    assert "has 3 errors" in printed.splitlines()[-1]
    written = json.loads((task / "verification.json").read_text(encoding="utf-8"))
    assert [entry["case"] for entry in written["errors"]] == ["case_1", "case_3", "case_4"]
    assert main(["Task007", *ONE]) == 2
    assert not (task / "default").exists()


def test_another_configuration_is_another_plan(
    task: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["Task007", *ONE]) == 0
    assert "--config NAME: 2d (1 x 1 mm" in capsys.readouterr().err
    assert main(["Task007", "--config", "2d", *ONE]) == 0
    assert "--config NAME: 3d_fullres (1 x 1 x 1 mm" in capsys.readouterr().err
    plans = [load_plan(task / name / "plan.json") for name in ("default", "default-2d")]
    assert [plan.configuration for plan in plans] == ["3d_fullres", "2d"]
    assert [plan.sampling.patch_size for plan in plans] == [(16, 16, 16), (16, 16, 1)]


def test_every_configuration_can_be_chosen() -> None:
    (action,) = [a for a in parser("autoseg_plan")._actions if "--config" in a.option_strings]
    assert action.choices == list(get_args(ConfigurationName))


def test_reference_and_no_reference_exclude_each_other(
    workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["Task007", "--reference", "Task001_COVID", "--no-reference"]) == 2
    assert "not allowed with argument" in capsys.readouterr().err


def test_bad_cases_are_skipped_where_asked(
    workspace: Path, task: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = workspace / "raw" / task.name
    (raw / "imagesTr" / "case_1_0000.nii.gz").unlink()
    (raw / "labelsTr" / "case_4.nii.gz").write_bytes(b"half a file")
    folds = settings("splits.folds=3")
    assert main(["Task007", "--skip-bad-cases", *folds, *ONE]) == 0
    assert "2 cases with errors: case_1, case_4" in capsys.readouterr().err
    plan = load_plan(task / "default" / "plan.json")
    assert plan.skipped_cases == ("case_1", "case_4")
    fingerprint = Fingerprint.load(task / "default" / "fingerprint.json")
    assert list(fingerprint.cases) == ["case_0", "case_2", "case_3"]
    splits = json.loads((task / "default" / "splits.json").read_text(encoding="utf-8"))
    assert sorted(name for fold in splits for name in fold["val"]) == list(fingerprint.cases)
    assert main(["Task007", "--skip-bad-cases", "--verify-only", *ONE]) == 2


def test_nothing_is_skipped_where_all_is_well(task: Path) -> None:
    assert main(["Task007", "--skip-bad-cases", *ONE]) == 0
    assert load_plan(task / "default" / "plan.json").skipped_cases == ()


def test_all_cases_bad_is_an_error(
    workspace: Path, task: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in (workspace / "raw" / task.name / "imagesTr").iterdir():
        path.write_bytes(b"half a file")
    assert main(["Task007", "--skip-bad-cases", *ONE]) == 2
    assert "has 5 errors" in error_of(capsys)
    assert not (task / "default").exists()


def test_the_installed_command(tmp_path: Path) -> None:
    script = Path(sys.executable).with_name("autoseg_plan")
    start = [str(script)] if script.exists() else [sys.executable, "-m", "autoseg.cli.plan"]
    command = [*start, str(HIPPOCAMPUS), "--workspace", str(tmp_path), *ONE]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    path = tmp_path / "preprocessed" / "Task004_Hippocampus" / "default" / "plan.json"
    assert done.stdout == f"{path}\n"
    assert load_plan(path).sampling.patch_size == (40, 56, 40)
    assert "\r" not in done.stderr  # no progress bar where nobody watches


def test_the_other_configurations_are_planned_too(task: Path) -> None:
    assert main(["Task007", *ONE]) == 0
    other = load_plan(task / "default" / "other_configurations" / "default-2d.json")
    assert other.configuration == "2d"
    assert 1 in other.sampling.patch_size
    assert main(["Task007", "--config", "2d", *ONE]) == 0
    assert load_plan(task / "default-2d" / "plan.json") == other
