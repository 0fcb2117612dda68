"""`autoseg_train` in several processes on real scans: stopped, side by side, and together."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import torch

from autoseg.cli import plan, train
from autoseg.dataset.task import read_task
from autoseg.models.checkpoint import load_checkpoint
from autoseg.models.log import count_epochs
from autoseg.plan.plan import load_plan
from autoseg.preprocessing.preprocess import preprocess
from autoseg.preprocessing.store import CaseStore
from autoseg.workflow.task_plan import find_split
from tests.cli.making import TINY, copy_hippocampus, settings
from tests.faults.killing import attempt
from tests.one_thread import one_thread
from tests.training.making import assert_same_run, log_of, start

__all__ = ["one_thread"]  # other numbers of threads add in another order

TASK = "Task004_Hippocampus"
PATCH = (
    "sampling.patch_size=[16,16,16]",
    "inference.overlap=[0,0,0]",
    "training.precision=float32",
)
LONG = ("training.epochs=8", "training.steps_per_epoch=10")


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with the plans `short` and `long`."""
    root = tmp_path_factory.mktemp("planned")
    copy_hippocampus(root / "raw" / TASK, 4)
    for name, more in (("short", ()), ("long", LONG)):
        arguments = [TASK, "--workspace", str(root), "--name", name, "--processes", "1"]
        assert plan.main([*arguments, *settings(*TINY, *PATCH, *more)]) == 0
    return root


def copied(planned: Path, folder: Path) -> Path:
    return Path(shutil.copytree(planned, folder / "workspace"))


def words(root: Path, name: str, *more: str) -> list[str]:
    where = ["--workspace", str(root), "--plan", name, "--device", "cpu", "--processes", "1"]
    return [TASK, *where, "fold", *more]


def begin(
    root: Path, name: str, *more: str, starter: tuple[str, ...] = ()
) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *starter, "-m", "autoseg.cli.train", *words(root, name, *more)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def fold(root: Path, name: str, number: int) -> Path:
    return root / "models" / TASK / name / f"fold_{number}"


def train_alone(root: Path, name: str, resume: bool = False) -> None:
    """Train fold 0 in this process, without what comes after training."""
    folder = root / "preprocessed" / TASK / name
    made = load_plan(folder / "plan.json")
    task = read_task(root / "raw" / TASK, made.labels)
    store = CaseStore(folder / "cases", made.preprocessing_id)
    preprocess(made, task.cases, store, 1)
    start(made, store, fold(root, name, 0), find_split(made, task, folder, "0"), resume=resume)
    made.save(fold(root, name, 0).parent / "plan.json")


@pytest.fixture(scope="module")
def alone(planned: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same plans trained by one process that nothing disturbs."""
    root = copied(planned, tmp_path_factory.mktemp("alone"))
    for name in ("short", "long"):
        train_alone(root, name)
    return root


def stop_after_an_epoch(folder: Path) -> Callable[[BaseProcess], None]:
    """What sends SIGTERM to a process when it has trained an epoch."""

    def stop(process: BaseProcess) -> None:
        while count_epochs(folder) < 1 and process.is_alive():
            process.join(0.02)
        assert process.pid is not None
        os.kill(process.pid, signal.SIGTERM)

    return stop


def test_two_folds_at_once_of_which_one_is_stopped(
    planned: Path, alone: Path, tmp_path: Path
) -> None:
    root = copied(planned, tmp_path)
    folder = fold(root, "long", 0)
    with ThreadPoolExecutor(1) as beside:
        other = beside.submit(attempt, "train", words(root, "long", "1"))
        stop = stop_after_an_epoch(folder)
        stopped = attempt("train", words(root, "long", "0"), meanwhile=stop)
    last = stopped.said.splitlines()[-1]
    assert stopped.status == 128 + signal.SIGTERM
    assert last.startswith("stopped by SIGTERM after epoch ")
    assert last.endswith("; continue with --resume")
    files = {"latest.safetensors", "log.jsonl", "progress.png"}
    assert {path.name for path in folder.iterdir()} == files
    train_alone(root, "long", resume=True)
    assert_same_run(folder, fold(alone, "long", 0))

    assert other.result().status == 0, other.result()
    assert (fold(root, "long", 1) / "validation" / "summary.json").is_file()
    cases = root / "preprocessed" / TASK / "long" / "cases"
    assert len([path for path in cases.iterdir() if not path.name.startswith(".")]) == 4


def test_torchrun_trains_what_one_process_trains(
    planned: Path, alone: Path, tmp_path: Path
) -> None:
    root = copied(planned, tmp_path)
    starter = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    process = begin(root, "short", "0", starter=starter)
    printed, said = process.communicate()
    assert process.returncode == 0, said
    found, expected = fold(root, "short", 0), fold(alone, "short", 0)
    assert printed.splitlines()[-1] == str(found)
    assert printed.count(str(found)) == 1  # one of the two talks
    weights, about = load_checkpoint(found / "final.safetensors")
    others, other_about = load_checkpoint(expected / "final.safetensors")
    assert about == other_about
    for name, tensor in others.items():
        torch.testing.assert_close(weights[name], tensor, rtol=1e-3, atol=1e-4, msg=name)
    for one, other in zip(log_of(found), log_of(expected), strict=True):
        assert one["learning_rate"] == other["learning_rate"]
        assert one["training_loss"] == pytest.approx(other["training_loss"], rel=1e-4)
        assert one["training_dice"] == pytest.approx(other["training_dice"], abs=1e-3)
        assert one["validation_loss"] == pytest.approx(other["validation_loss"], rel=1e-3)
    assert (found / "validation" / "summary.json").is_file()


def test_a_fold_that_fails_does_not_keep_the_others_from_their_turn(
    alone: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = copied(alone, tmp_path)
    shutil.copytree(fold(root, "short", 0), fold(root, "short", 1))
    before = (fold(root, "short", 0) / "final.safetensors").read_bytes()
    assert train.main(words(root, "short", "0", "1")) == 1
    lines = capsys.readouterr().err.splitlines()
    errors = [line for line in lines if line.startswith("error:")]
    for number in (0, 1):
        assert errors[number].startswith(f"error: fold {number}: {fold(root, 'short', number)} ")
        assert "epoch 2 of 2, saved " in errors[number]
    assert [line.partition(" failed;")[0] for line in errors[2:]] == ["error: folds 0, 1"]
    assert (fold(root, "short", 0) / "final.safetensors").read_bytes() == before


def test_a_missing_fold_is_an_error_before_others_train(
    planned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = copied(planned, tmp_path)
    assert train.main(words(root, "short", "0", "7")) == 2
    assert "fold '7' does not exist; choose 0 to 1, or all" in capsys.readouterr().err
    assert not (root / "models").exists()


def test_a_finished_run_is_extended_by_a_longer_plan(
    alone: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = copied(alone, tmp_path)
    longer = [TASK, "--workspace", str(root), "--name", "short", "--processes", "1"]
    assert plan.main([*longer, *settings(*TINY, *PATCH, "training.epochs=3")]) == 0
    before = (fold(root, "short", 0) / "final.safetensors").read_bytes()
    assert train.main(words(root, "short", "0")) == 2
    message = "differs only in training.epochs (fold_0); extend them with --resume"
    assert message in capsys.readouterr().err
    assert (fold(root, "short", 0) / "final.safetensors").read_bytes() == before
    assert train.main([*words(root, "short", "0"), "--resume"]) == 0
    printed = capsys.readouterr().err
    assert "from 2 to 3 epochs" in printed
    assert "after epoch 2 of 3" in printed
    assert load_checkpoint(fold(root, "short", 0) / "final.safetensors")[1]["epoch"] == 2
