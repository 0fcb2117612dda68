"""Golden logs of real runs on five training cases, and the rule's properties."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from autoseg.models.log import WAIT_EPOCHS, WINDOW, find_overfitting

# 15 minutes on two soft-tissue sarcoma sets: training loss and Dice of validation patches.
CT_LOSS = [1.434, 1.024, 0.695, 0.549, 0.489, 0.383, 0.388, 0.287, 0.316, 0.257, 0.223, 0.219]
CT_DICE = [0.211, 0.269, 0.324, 0.115, 0.094, 0.019, 0.054, 0.006, 0.012, 0.013, 0.018, 0.029]
MR_LOSS = [1.605, 1.228, 0.913, 0.726, 0.682, 0.583, 0.52, 0.404, 0.438, 0.407, 0.378, 0.409]
MR_DICE = [0.126, 0.156, 0.207, 0.447, 0.668, 0.704, 0.735, 0.715, 0.712, 0.731, 0.704, 0.693]


def test_a_run_that_learnt_its_cases_by_heart() -> None:
    found = find_overfitting(CT_LOSS, CT_DICE)
    assert found is not None
    assert str(found) == (
        "the Dice of validation patches fell from 0.27 (epoch 3) to 0.02 in 9 epochs while the "
        "training loss fell, too: the network learns its training cases by heart"
    )


def test_a_run_that_learns_and_one_that_wavers() -> None:
    assert find_overfitting(MR_LOSS, MR_DICE) is None
    assert find_overfitting(CT_LOSS[:7], CT_DICE[:7]) is None  # too early to tell


def test_a_loss_that_rises_is_something_else() -> None:
    assert find_overfitting(CT_LOSS[::-1], CT_DICE) is None


def test_epochs_without_validation_are_left_out() -> None:
    gaps: list[float | None] = [None, *CT_DICE]
    found = find_overfitting([2.0, *CT_LOSS], gaps)
    assert found is not None
    assert found.best_epoch == 4
    assert find_overfitting(CT_LOSS, [None] * len(CT_LOSS)) is None


@given(st.lists(st.floats(0, 1), min_size=0, max_size=30))
def test_only_a_dice_that_fell_is_told(dice: Sequence[float]) -> None:
    falling = [2 - 0.01 * n for n in range(len(dice))]
    found = find_overfitting(falling, dice)
    if found is None:
        return
    assert found.last_dice < 0.8 * found.best_dice
    assert found.epochs >= WAIT_EPOCHS
    assert WINDOW <= found.best_epoch <= len(dice) - WAIT_EPOCHS
    assert find_overfitting(falling, sorted(dice)) is None
