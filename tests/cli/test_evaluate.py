from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from autoseg.cli.evaluate import main
from autoseg.evaluation.scores import Summary
from autoseg.image.image import read_label
from autoseg.image.label_writer import write_label
from tests.evaluation.scores import HIPPOCAMPUS, case, shifted_hippocampus

TRUTH, IMAGES = str(HIPPOCAMPUS / "labelsTr"), str(HIPPOCAMPUS / "imagesTr")
WRITTEN = {"summary.json", "table.md", "table.csv", "dice.png", "report.html"}


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    code = "import sys; from autoseg.cli.evaluate import main; sys.exit(main())"
    command = [sys.executable, "-c", code, *arguments]
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def test_two_folders_with_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = shifted_hippocampus(tmp_path / "p", (1, 0, 2))
    out = tmp_path / "out"
    assert main(["-g", TRUTH, "-p", str(tmp_path / "p"), "-i", IMAGES, "-o", str(out)]) == 0
    pictures = [f"overlay_{names[place]}.png" for place in (2, 0, 1)]
    assert {path.name for path in out.iterdir()} == WRITTEN | set(pictures)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["Dice", "Anterior", "Posterior", "mean"]
    assert lines[2].split() == [names[1], "1.0000", "1.0000", "1.0000"]
    assert [s for s in lines if s.startswith("picture:")] == [
        f"picture: {out / name}" for name in pictures
    ]
    assert lines[-1] == f"report: {out / 'report.html'}"
    page = (out / "report.html").read_text(encoding="utf-8")
    assert page.count('<article class="case"') == 3
    summary = Summary.load(out / "summary.json")
    assert [c.case for c in summary.cases] == names
    assert len(summary.missing) == 37


def test_as_a_command_beside_the_predictions(tmp_path: Path) -> None:
    shifted_hippocampus(tmp_path, (0,))
    done = run("-g", TRUTH, "-p", str(tmp_path), "--processes", "1")
    assert done.returncode == 0, done.stderr
    assert WRITTEN.issubset(path.name for path in tmp_path.iterdir())
    assert f"summary: {tmp_path / 'summary.json'}" in done.stdout
    assert "no prediction for 39 of 40 cases" in done.stderr


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from autoseg.cli.evaluate import main; status = main(['--help']); "
        "print(status, [m for m in ('torch', 'SimpleITK', 'matplotlib', 'scipy') "
        "if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "0 []"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "give either TASK, or both -g"),
        (["-g", "x"], "give either TASK, or both -g"),
        (["Task004", "-g", "x", "-p", "y"], "give either TASK or -g and -p"),
        (["Task004", "-o", "x"], "give either TASK or -g and -p"),
        (["-g", "x", "-p", "y", "--plan", "z"], "--plan"),
        (["-g", "x", "-p", "y", "-i", "nowhere"], "-i nowhere: "),
        (["-g", "nowhere", "-p", "y"], "nowhere: no such folder"),
        (["Task004", "--map", "3:1"], "--labels, --map, --merge and --tolerance"),
        (["Task004", "--tolerance", "1"], "--labels, --map, --merge and --tolerance"),
        (["-g", "x", "-p", "y", "--map", "3"], "--map 3"),
        (["-g", TRUTH, "-p", TRUTH, "--merge", "both=1,5"], "'5'"),
        (["-g", TRUTH, "-p", TRUTH, "--tolerance", "lungs=1"], "'lungs'"),
    ],
)
def test_bad_arguments(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1


def test_mapped_merged_and_within_a_tolerance(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The labels of the prediction are the other way round."""
    (name,) = shifted_hippocampus(tmp_path, (1,))
    label, geometry = read_label(tmp_path / f"{name}.nii.gz")
    write_label(tmp_path / f"{name}.nii.gz", np.array([0, 2, 1], np.uint8)[label], geometry)
    words = ["--map", "2:1", "1:2", "--merge", "hippocampus=1,2", "--tolerance", "1,Posterior=0.5"]
    assert main(["-g", TRUTH, "-p", str(tmp_path), *words]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["Dice", "Anterior", "Posterior", "hippocampus", "mean"]
    summary = Summary.load(tmp_path / "summary.json")
    dice = {c: summary.statistic(c).mean or 0 for c in summary.labels}
    assert dice["hippocampus"] == (dice["Anterior"] + dice["Posterior"]) / 2
    assert dice["hippocampus"] == summary.foreground_mean()
    assert summary.tolerance_mm == {"Anterior": 1.0, "Posterior": 0.5}
    assert summary.statistic("Anterior", "NSD").mean == 1.0  # all is moved by one millimetre
    assert (summary.statistic("Posterior", "NSD").mean or 0) < 0.9
    assert summary.statistic("Anterior", "HD95_mm").mean == 1.0


def test_a_missing_scan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (name,) = shifted_hippocampus(tmp_path / "p", (0,))
    (tmp_path / "i").mkdir()
    assert main(["-g", TRUTH, "-p", str(tmp_path / "p"), "-i", str(tmp_path / "i")]) == 2
    assert name in capsys.readouterr().err.splitlines()[-1]
    assert (tmp_path / "p" / "summary.json").is_file()


def save_fold(root: Path, plan: str, fold: int, **tenths: int) -> None:
    scores = tuple(case(name, x=(n, 10 - n, 10 - n, n)) for name, n in tenths.items())
    folder = root / "models" / "Task001_X" / plan / f"fold_{fold}" / "validation"
    Summary(scores).save(folder / "summary.json")


def test_a_task(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_fold(tmp_path, "plan", 0, a=2, b=4, c=9)
    save_fold(tmp_path, "plan", 1, d=8)
    splits = tmp_path / "preprocessed" / "Task001_X" / "plan" / "splits.json"
    splits.parent.mkdir(parents=True)
    splits.write_text("[{}, {}, {}]")
    assert main(["Task001", "--workspace", str(tmp_path)]) == 0
    out = tmp_path / "models" / "Task001_X" / "plan" / "cross_validation"
    assert {path.name for path in out.iterdir()} == WRITTEN | {"tables", "figures"}
    printed = capsys.readouterr().out
    assert "mean of the medians" in printed
    assert "missing folds: 2" in printed
    assert len(Summary.load(out / "summary.json").cases) == 4
    assert "0.5750 ± 0.3304" in (out / "report.html").read_text(encoding="utf-8")
    assert "## Dice of the folds" in (out / "table.md").read_text(encoding="utf-8")


def test_a_task_with_several_plans(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_fold(tmp_path, "big", 0, a=2)
    save_fold(tmp_path, "small", 0, a=4)
    workspace = ["--workspace", str(tmp_path)]
    assert main(["Task001", *workspace]) == 2
    assert "Task001_X has the plans big, small; " in capsys.readouterr().err
    assert main(["Task001", "--plan", "other", *workspace]) == 2
    error = capsys.readouterr().err
    assert "autoseg_train Task001_X fold 0 --plan other" in error
    assert "big, small" in error
    assert main(["Task001", "--plan", "small", *workspace]) == 0


def test_a_task_that_is_not_trained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "raw" / "Task001_X").mkdir(parents=True)
    assert main(["Task001", "--workspace", str(tmp_path)]) == 2
    assert "autoseg_train Task001_X fold 0" in capsys.readouterr().err
