"""A small study on a real Slurm: one job is preempted and continues where it was."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from autoseg.common.errors import AutosegError
from autoseg.common.files import read_json
from autoseg.experiments.results import read_jobs
from autoseg.experiments.runs import StudyRun, runs_of
from autoseg.experiments.slurm import submit_studies
from autoseg.experiments.status import is_finished, read_record, status_of
from autoseg.workflow.workspace import Workspace
from tests.experiments import one_box
from tests.experiments.one_box import OneBox
from tests.experiments.studying import longer, study, write_task

EPOCHS = 30
SLURM = {"partition": "low", "time": "5m", "gpus": 0, "cpus": 1, "save_seconds": 30}
STUDY = study(overrides=longer(EPOCHS), slurm=SLURM)

reason = one_box.why_not()
pytestmark = pytest.mark.skipif(reason is not None, reason=f"no Slurm: {reason}")


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[OneBox]:
    pytest.importorskip("submitit")
    folder = tmp_path / "slurm"
    folder.mkdir()
    monkeypatch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
    with one_box.started(folder) as made:
        yield made


def epochs(run: StudyRun, workspace: Workspace) -> int:
    return status_of(run, workspace).epochs


def test_a_preempted_job_continues_where_it_was(cluster: OneBox, tmp_path: Path) -> None:
    workspace = write_task(tmp_path / "work")
    numbers = submit_studies([STUDY], workspace, processes=1, device="cpu")
    runs = runs_of(STUDY, workspace)
    jobs = read_jobs(STUDY, workspace)
    assert [jobs[str(run)] for run in runs] == numbers[:2]
    array = numbers[0].partition("_")[0]
    assert numbers[:2] == [f"{array}_0", f"{array}_1"]
    assert len(numbers) == 3  # the last one gathers
    assert submit_studies([STUDY], workspace, processes=1, device="cpu") == []  # all have a job

    cluster.wait_until(lambda: epochs(runs[0], workspace) >= 1)
    assert status_of(runs[0], workspace).state == "running"
    # A job of the higher partition that needs the whole machine.
    cores = str(one_box.CORES)
    cluster.run("sbatch", "-p", "high", "-c", cores, "-o", "/dev/null", "--wrap", "true")
    cluster.wait_until(lambda: status_of(runs[0], workspace).state == "stopped")
    reached = epochs(runs[0], workspace)
    assert reached < EPOCHS
    cluster.wait_until(cluster.is_idle)

    for run in runs:
        assert is_finished(run, workspace), cluster.logs()
        assert epochs(run, workspace) == EPOCHS
    record = read_record(runs[0].folder(workspace))
    assert record is not None
    assert (record.state, record.attempts, record.slurm_job) == ("done", 2, numbers[0])
    log = Path(record.log).read_text(encoding="utf-8")
    assert "stopped by SIGTERM after epoch" in log
    assert f"resuming after epoch {reached}" in log
    gathered = read_json(workspace.study(STUDY.name) / "study.json")
    assert gathered["finished"] is True
    assert [run["attempt"]["slurm_job"] for run in gathered["runs"]] == numbers[:2]
    assert submit_studies([STUDY], workspace, processes=1, device="cpu") == []


def test_two_machines_share_a_run_and_continue_it_together(cluster: OneBox, tmp_path: Path) -> None:
    workspace = write_task(tmp_path / "work")
    shared = study(overrides=longer(10), slurm=SLURM | {"partition": "both", "nodes": 2}, folds=[0])
    numbers = submit_studies([shared], workspace, processes=1, device="cpu")
    (run,) = runs_of(shared, workspace)
    cluster.wait_until(lambda: epochs(run, workspace) >= 1)
    cluster.run("scancel", "--signal=USR2", numbers[0])  # as before the end of the job's time
    cluster.wait_until(lambda: status_of(run, workspace).state == "stopped")
    cluster.wait_until(cluster.is_idle)
    record = read_record(run.folder(workspace))
    assert record is not None, cluster.logs()
    assert is_finished(run, workspace), Path(record.log).read_text(encoding="utf-8")
    assert (record.state, record.attempts, epochs(run, workspace)) == ("done", 2, 10)
    log = Path(record.log).read_text(encoding="utf-8")
    assert "training on cpu in 2 processes" in log
    assert "resuming after epoch" in log


def test_processes_that_cannot_share_a_batch(cluster: OneBox, tmp_path: Path) -> None:
    workspace = write_task(tmp_path / "work")
    shared = study(slurm=SLURM | {"partition": "both", "nodes": 3}, folds=[0])
    with pytest.raises(AutosegError, match=r"batch_size=2 .* 3 processes"):
        submit_studies([shared], workspace, processes=1, device="cpu")
    assert cluster.is_idle()
