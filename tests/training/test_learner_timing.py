from pathlib import Path

import torch

from autoseg.dataset.task import read_task
from autoseg.training.learner import Stopwatch
from tests.dataset.making import HIPPOCAMPUS
from tests.making import tiny_plan


def test_measures_real_cases_and_leaves_nothing_behind():
    cases = read_task(HIPPOCAMPUS).cases[:2]
    plan = tiny_plan(preprocessing=[{"step": "z_score"}])
    with Stopwatch(cases, torch.device("cpu"), workers=0) as watch:
        first = watch.measure(plan)
        second = watch.measure(tiny_plan(preprocessing=[{"step": "z_score"}], task="Task002_Other"))
        folder = watch.folder.name
    for timing in (first, second):
        assert timing.step_seconds > 0
        assert timing.patch_seconds > 0
    assert first.case_seconds == second.case_seconds > 0  # cases are prepared once
    assert not Path(folder).exists()
