"""Failures of a run that its last lines and the report name."""

from __future__ import annotations

from dataclasses import replace

import pytest

from autoseg.models.log import Epoch, failures_of

FIRST = Epoch(0, 10, 0.01, 1.2, {"background": 0.9, "lung": 0.02}, 1.0)


def run_of(*losses: float, dice: float = 0.7) -> list[Epoch]:
    shares = {"background": 0.9, "lung": dice}
    return [
        replace(FIRST, epoch=i, training_loss=loss, training_dice=shares)
        for i, loss in enumerate(losses)
    ]


@pytest.mark.parametrize(
    ("done", "planned", "count"), [(7, 10, 0), (6, 10, 1), (1, 1, 0), (7, 30, 1)]
)
def test_far_fewer_epochs_than_planned(done: int, planned: int, count: int) -> None:
    assert len(failures_of(run_of(1.2, *[0.4] * (done - 1)), planned)) == count


@pytest.mark.parametrize(
    ("last", "dice", "count"), [(1.15, 0.02, 1), (1.15, 0.5, 0), (0.9, 0.02, 0), (1.3, 0.0, 1)]
)
def test_a_loss_that_hardly_fell(last: float, dice: float, count: int) -> None:
    assert len(failures_of(run_of(1.2, last, dice=dice), planned=2)) == count
