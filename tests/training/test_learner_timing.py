from pathlib import Path

import pytest
import torch

from autoseg.dataset.task import read_task
from autoseg.training.learner import Stopwatch, is_settled
from tests.dataset.making import HIPPOCAMPUS
from tests.making import tiny_plan


def test_measures_real_cases_and_leaves_nothing_behind():
    cases = read_task(HIPPOCAMPUS).cases[:2]
    plan = tiny_plan(preprocessing=[{"step": "z_score"}])
    with Stopwatch(cases, torch.device("cpu"), workers=0) as watch:
        first = watch.measure(plan)
        second = watch.measure(tiny_plan(preprocessing=[{"step": "z_score"}], task="Task002_Other"))
        coarse = tiny_plan(
            preprocessing=[{"step": "z_score"}, {"step": "resample"}], target_spacing_mm=[4, 4, 4]
        )
        third = watch.measure(coarse)
        folder = watch.folder.name
    for timing in (first, second):
        assert timing.step_seconds > 0
        assert timing.patch_seconds > 0
    assert first.labels_kept == 1  # these plans do not resample
    assert 0.5 < third.labels_kept < 0.9
    assert first.case_seconds == second.case_seconds > 0  # cases are prepared once
    assert not Path(folder).exists()


@pytest.mark.parametrize(
    ("times", "settled"),
    [
        ([9.0], False),
        ([9.0, 4.0], True),  # steps of many seconds: two must do
        ([1.0, 0.3, *[0.1] * 4], False),
        ([1.0, 0.3, *[0.1] * 5], True),
        ([1.0, 0.3, 0.56, 0.04, 0.59, 0.5, 0.1], False),  # scattered: measured again
        ([1.0, 0.3, *[0.56, 0.04, 0.59] * 5], True),  # for long enough
        ([1.0, 0.3, 5.0, 1.0, 5.0], False),
        ([1.0, 0.3, *[5.0, 1.0] * 4], True),
    ],
)
def test_enough_steps(times: list[float], settled: bool) -> None:
    assert is_settled(times) is settled
