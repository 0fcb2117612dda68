"""Commands in containers: PID namespaces of their own, in which each is process 1, one host name.

AUTOSEG_ROUNDS sets how often training is killed and started again (default: 2).
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random

import pytest

from autoseg.models.log import count_epochs
from tests.cli.making import TINY, copy_hippocampus, settings
from tests.faults.jobs import TASK, Undisturbed, predict_words
from tests.faults.killing import finish

CONTAINER = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]
ROUNDS = int(os.environ.get("AUTOSEG_ROUNDS", "1"))
LONGEST_SECONDS = 30.0  # that a command may take longer because another was killed
STEPS = (f"training.epochs={4 + 3 * ROUNDS}", "training.steps_per_epoch=2")
ENVIRONMENT = os.environ | {
    "PYTHONPATH": str(Path(__file__).parents[2]),
    "OMP_NUM_THREADS": "1",
}

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux")
    or subprocess.run([*CONTAINER, "true"], capture_output=True, check=False).returncode != 0,
    reason="makes PID namespaces with unshare",
)


class Container:
    """A command as process 1 of a PID namespace; its output is in a file."""

    def __init__(self, command: str, *words: str | Path, log: Path) -> None:
        self.log, self.started = log, time.monotonic()
        run = [sys.executable, "-m", "autoseg", command, *map(str, words)]
        with log.open("w") as file:
            self.process = subprocess.Popen(
                [*CONTAINER, *run], stdout=file, stderr=file, env=ENVIRONMENT
            )

    def until(self, what: Callable[[], bool]) -> float:
        """Wait until something is so; returns the seconds since the start."""
        while not what():
            assert self.process.poll() is None, self.said
            assert time.monotonic() - self.started < 300, self.said
            time.sleep(0.02)
        return time.monotonic() - self.started

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    @property
    def said(self) -> str:
        return self.log.read_text()


@contextmanager
def container(command: str, *words: str | Path, log: Path) -> Iterator[Container]:
    running = Container(command, *words, log=log)
    try:
        yield running
    finally:
        running.kill()


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with a plan of many short epochs, and an undisturbed model of it."""
    root = tmp_path_factory.mktemp("planned")
    copy_hippocampus(root / "raw" / TASK, 4)
    words = [TASK, "--workspace", str(root), "--processes", "1"]
    finish("plan", [*words, *settings(*TINY), *settings(*STEPS)])
    finish("train", [*train_words(root), "--processes", "1"])
    (root / "models").rename(root / "undisturbed")
    return root


def train_words(root: Path) -> list[str]:
    return [TASK, "fold", "0", "--workspace", str(root), "--device", "cpu"]


@pytest.fixture
def fold(planned: Path) -> Iterator[Path]:
    """The folder of a fold of which nothing is trained yet."""
    yield planned / "models" / TASK / "default" / "fold_0"
    shutil.rmtree(planned / "models", ignore_errors=True)


def test_killed_and_started_again_as_the_same_process_training_goes_on(
    planned: Path, fold: Path, tmp_path: Path
) -> None:
    rng, waits = Random(1), []
    words = [*train_words(planned), "--resume", "--processes", "2"]
    for number in range(ROUNDS + 1):
        before = count_epochs(fold)
        with container("train", *words, log=tmp_path / f"{number}.log") as run:
            waits.append(run.until(lambda: count_epochs(fold) > before))  # noqa: B023
            if number < ROUNDS:
                time.sleep(0.2 * rng.random())
            else:
                assert run.process.wait(300) == 0, run.said
    print(f"seconds until the next epoch: {', '.join(f'{seconds:.1f}' for seconds in waits)}")
    assert max(waits) < waits[0] + LONGEST_SECONDS
    undisturbed = planned / "undisturbed" / TASK / "default" / "fold_0"
    final = "final.safetensors"
    assert (fold / final).read_bytes() == (undisturbed / final).read_bytes()
    assert not [path for path in fold.rglob(".*") if path.is_file()]


def test_two_containers_of_one_name_never_train_one_fold(
    planned: Path, fold: Path, tmp_path: Path
) -> None:
    words = [*train_words(planned), "--processes", "1"]
    with container("train", *words, log=tmp_path / "first.log") as first:
        first.until(lambda: count_epochs(fold) > 0)
        first.process.send_signal(signal.SIGSTOP)
        os.kill(_child_of(first.process.pid), signal.SIGSTOP)
        with container("train", *words, "--resume", log=tmp_path / "second.log") as second:
            assert second.process.wait(120) == 2
            (error,) = [line for line in second.said.splitlines() if line.startswith("error:")]
            assert all(part in error for part in ("in use by process 1", "since", str(fold)))
        os.kill(_child_of(first.process.pid), signal.SIGCONT)
        first.process.send_signal(signal.SIGCONT)
        assert first.process.wait(300) == 0, first.said


def _child_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])


def test_a_prediction_that_was_killed_goes_on(undisturbed: Undisturbed, tmp_path: Path) -> None:
    root = undisturbed.prepare("predict", tmp_path)
    scan = next((root / "in").iterdir())
    for number in range(20):
        shutil.copy(scan, root / "in" / f"more_{number:02d}_0000.nii.gz")
    cases, out = len(list((root / "in").iterdir())), root / "out"
    with container("predict", *predict_words(root), log=tmp_path / "1.log") as first:
        first.until(lambda: len(list(out.glob("*.nii.gz"))) >= 3)
    done = len(list(out.glob("*.nii.gz")))
    assert done < cases
    assert list(out.glob(".claim-*"))
    with container("predict", *predict_words(root), log=tmp_path / "2.log") as second:
        assert second.process.wait(120) == 0, second.said
        assert time.monotonic() - second.started < LONGEST_SECONDS + undisturbed.seconds["predict"]
    assert len(list(out.glob("*.nii.gz"))) == cases
    assert not list(out.glob(".claim-*"))
