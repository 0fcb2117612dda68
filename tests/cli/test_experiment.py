"""`autoseg_experiment`: interrupted and started again, its status, and its errors."""

from __future__ import annotations

import os
import signal
import time
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from autoseg.cli.common import CONTINUE
from autoseg.cli.experiment import EXAMPLE, main
from autoseg.experiments.runs import runs_of
from autoseg.experiments.status import held_by, read_record
from autoseg.experiments.study import HeldOut, Study, StudyPlan, read_study
from autoseg.models.log import count_epochs
from autoseg.workflow.workspace import Workspace
from tests.experiments.studying import TEST_SET, longer, write_study, write_task
from tests.faults.killing import attempt

EPOCHS = 7


def command(file: Path, workspace: Workspace) -> list[str]:
    where = ["--workspace", str(workspace.root), "--device", "cpu", "--processes", "1"]
    where += ["--jobs", "2"]  # one thread each: two are slower where the cores are busy
    return [str(file), *where]


def interrupt_after_an_epoch(fold: Path, process: BaseProcess) -> None:
    end = time.monotonic() + 120
    while count_epochs(fold) < 1:
        assert process.is_alive()
        assert time.monotonic() < end
        time.sleep(0.02)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGINT)


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_an_interrupted_study_continues_when_started_again(tmp_path: Path) -> None:
    workspace = write_task(tmp_path)
    file = write_study(tmp_path, folds=[0], overrides=longer(EPOCHS))
    run = runs_of(read_study(str(file)), workspace)[0]
    fold = run.folder(workspace)
    arguments = command(file, workspace)

    interrupt = partial(interrupt_after_an_epoch, fold)
    ended = attempt("experiment", arguments, meanwhile=interrupt)
    assert ended.status == 130
    assert ended.said.splitlines()[-1] == f"stopped by Ctrl-C; {CONTINUE}"
    record = read_record(run.folder(workspace))
    assert record is not None
    assert record.state == "stopped"
    assert not held_by(run, workspace)
    assert count_epochs(fold) < EPOCHS

    assert main(arguments) == 0
    assert count_epochs(fold) == EPOCHS
    record = read_record(run.folder(workspace))
    assert record is not None
    assert (record.state, record.attempts) == ("done", 2)
    assert Path(record.log).read_text(encoding="utf-8").count("resuming after epoch") == 1


def test_the_status_before_anything_is_done(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workspace = write_task(tmp_path)
    plans = [{"name": "a"}, {"name": "b", "k": []}]
    file = write_study(tmp_path, plans=plans)
    assert main([*command(file, workspace), "--status"]) == 0
    out = capsys.readouterr().out
    assert "tiny: 2 runs: 2 waiting" in out
    assert "a-k2     1  waiting" in out
    assert "not planned yet: b" in out
    assert not (workspace.root / "preprocessed").exists()


def test_a_run_that_fails_is_named_with_its_log(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workspace = write_task(tmp_path)
    test_set = TEST_SET | {"images": "nowhere"}
    file = write_study(tmp_path, folds=[1], held_out=[test_set])
    assert main(command(file, workspace)) == 1
    err = capsys.readouterr().err
    log = tmp_path / "experiments" / "tiny" / "logs" / "default-k2.fold_1.log"
    assert f"default-k2 fold 1 failed; log: {log}" in err
    assert err.splitlines()[-1].startswith("error: 1 run failed")
    assert f"error: {tmp_path / 'nowhere'}" in log.read_text(encoding="utf-8")


def test_a_report_that_cannot_be_written_is_written_the_next_time(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workspace = write_task(tmp_path)
    file = write_study(tmp_path, folds=[0])
    figures = tmp_path / "experiments" / "tiny" / "figures"
    figures.parent.mkdir(parents=True)
    figures.touch()  # where the folder should be
    assert main(command(file, workspace)) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: all runs are done")
    assert str(figures) in last
    figures.unlink()
    assert main(command(file, workspace)) == 0
    assert (figures / "loss.png").is_file()


def test_help_shows_a_study_with_every_key(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "wider.json5"
    file.write_text(EXAMPLE, encoding="utf-8")
    study = read_study(str(file))
    assert [plan.name for plan in study.plans] == ["narrow", "wide"]
    assert study.held_out[0].classes == {"Anterior": (1,), "Posterior": (2,)}
    assert main(["--help"]) == 0
    printed = capsys.readouterr().out
    assert printed.endswith(f"{EXAMPLE}")
    keys = {*Study.model_fields, *StudyPlan.model_fields, *HeldOut.model_fields}
    assert {key for key in keys if key not in EXAMPLE} == set()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nothing"], ["'nothing'"]),
        (["covid"], ["phantom_sensitivity", "covid.json5"]),
        (["covid_ablation"], ["'Task001_COVID' was not found"]),
        (["covid_ablation", "--slurm", "gpu=1"], ["'slurm.gpu'", "'gpus'"]),
        (["covid_ablation", "./covid_ablation.json5"], ["covid_ablation, covid_ablation"]),
    ],
)
def test_an_error_is_one_line(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    words: list[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    write_study(tmp_path, "covid_ablation")
    write_study(tmp_path, "covid")
    assert main([*arguments, "--workspace", str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert all(word in line for word in words)


def test_slurm_without_slurm(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    workspace = write_task(tmp_path)
    assert main([*command(write_study(tmp_path), workspace), "--slurm"]) == 2
    assert "error: --slurm: no squeue" in capsys.readouterr().err
