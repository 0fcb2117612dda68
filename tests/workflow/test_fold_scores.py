"""The scores of the validation cases, and pretrained weights."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from autoseg.cli.plan import main as plan_task
from autoseg.common.errors import AutosegError
from autoseg.models.checkpoint import load_checkpoint
from autoseg.plan.plan import load_plan
from autoseg.workflow.fold import FoldJob, run_fold
from autoseg.workflow.workspace import Workspace
from tests.cli.making import TINY, settings
from tests.dataset.making import V2, declare, write_case
from tests.evaluation.reference_scores import check_summary
from tests.training.making import without_pictures


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FoldJob:
    """Two folds of four cases, two of which have no tumour."""
    without_pictures(monkeypatch)
    task = tmp_path / "raw" / "Task001_Würfel"
    declare(task, V2)
    rng = np.random.default_rng(0)
    for number in range(4):
        label = np.zeros((12, 12, 12), np.uint8)
        label[3:8, 3:9, 2:7] = number % 2
        image = label * 300.0 + rng.normal(0, 100, label.shape)
        write_case(task, f"case_{number}", image.astype(np.float32), label)
    planned = settings(*TINY[1:], "network.features=[4,8]")
    assert plan_task(["Task001", "--workspace", str(tmp_path), "--processes", "1", *planned]) == 0
    return FoldJob(
        workspace=Workspace(tmp_path),
        task=task,
        plan="default",
        fold="0",
        device=torch.device("cpu"),
        processes=1,
        resume=False,
        started=time.monotonic(),
    )


def test_complete_validation_cases_are_scored_and_the_model_can_be_fine_tuned(
    job: FoldJob, capsys: pytest.CaptureFixture[str]
) -> None:
    summary = run_fold(job)
    assert summary is not None
    labels = load_plan(job.plan_folder / "plan.json").labels
    foreground = dict(list(labels.items())[1:])
    written = check_summary(
        job.folder / "validation" / "summary.json", job.task / "labelsTr", foreground
    )
    names = {case["case"] for case in written["metric_per_case"]}
    assert names == {case.case for case in summary.cases}
    assert len(names) == 2
    _start_from_the_weights_of(job, capsys)


def _start_from_the_weights_of(job: FoldJob, capsys: pytest.CaptureFixture[str]) -> None:
    """Fold 1 from those of fold 0."""
    other = replace(job, fold="1", pretrained=job.folder)
    assert run_fold(other) is not None
    assert "pretrained on Task001_Würfel default" in capsys.readouterr().err
    about = load_checkpoint(other.folder / "final.safetensors")[1]
    assert about["pretrained"]["plan_id"] == about["plan_id"]
    assert (other.folder / "pretrained.json").is_file()


def test_a_wrong_pretrained_model_is_refused_before_preprocessing(job: FoldJob) -> None:
    wrong = replace(job, pretrained=job.task)
    with pytest.raises(AutosegError, match=r"--pretrained.*Task001_Würfel"):
        run_fold(wrong)
    assert not job.folder.exists()
    assert not (job.plan_folder / "cases").exists()
