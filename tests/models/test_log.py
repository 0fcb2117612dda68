"""The log of a run: notes, writing and reading, overfitting (logs of real runs), and curves."""

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoseg.common.errors import DataError
from autoseg.common.figures import smooth
from autoseg.models.folder import LOG
from autoseg.models.log import (
    WAIT_EPOCHS,
    WINDOW,
    Training,
    count_epochs,
    draw_dice,
    draw_losses,
    find_overfitting,
    read_log,
    read_training,
    write_log,
)
from tests.training.making import FIRST_EPOCH as FIRST


@pytest.mark.parametrize(
    ("changes", "note"),
    [
        ({}, "loss 1.234  validation 1.500  Dice 0.750 (organ 0.75, tumour -)  rate 1.0e-03"),
        (  # without validation the training patches are shown
            {"validation_loss": None, "validation_dice": {}},
            "loss 1.234  Dice 0.375 (organ 0.50, tumour 0.25)  rate 1.0e-03",
        ),
        (
            {"validation_dice": {"background": 0.9, "organ": None}},
            "loss 1.234  validation 1.500  rate 1.0e-03",
        ),
        (
            {"validation_dice": {"background": None, "organ": 0.5}, "validation_loss": None},
            "loss 1.234  Dice organ 0.500  rate 1.0e-03",
        ),
        (  # of many classes the mean alone
            {"validation_dice": {"background": 0.9} | {f"organ {n}": 0.5 for n in range(7)}},
            "loss 1.234  validation 1.500  Dice 0.500  rate 1.0e-03",
        ),
    ],
)
def test_note(changes, note):
    assert replace(FIRST, **changes).note() == note


def test_dice_of_the_foreground():
    assert FIRST.foreground_dice == {"organ": 0.75, "tumour": None}
    assert FIRST.mean_dice == 0.75
    training = replace(FIRST, validation_dice={})
    assert training.foreground_dice == {"organ": 0.5, "tumour": 0.25}
    assert training.mean_dice == 0.375
    assert replace(FIRST, validation_dice={"background": 1.0, "organ": None}).mean_dice is None


def test_a_log_has_one_line_per_epoch(tmp_path):
    second = replace(FIRST, epoch=1, training_loss=1 / 3, validation_loss=None, validation_dice={})
    write_log(tmp_path, [FIRST])
    write_log(tmp_path, [FIRST, second])
    text = (tmp_path / LOG).read_text(encoding="utf-8")
    assert text.endswith("}\n")
    lines = [json.loads(line) for line in text.splitlines()]
    assert lines == [asdict(FIRST), asdict(second)]
    assert lines[1]["training_loss"] == 1 / 3
    assert read_log(tmp_path) == [FIRST, second]
    assert count_epochs(tmp_path) == 2


def test_without_a_log(tmp_path):
    assert read_log(tmp_path) is None
    assert read_training(tmp_path) is None
    assert count_epochs(tmp_path) == 0


@pytest.mark.parametrize("line", ["{", "3", '{"epoch": "x"}', "{}", '{"epoch": 0}', "\0"])
def test_a_damaged_log(tmp_path, line):
    write_log(tmp_path, [FIRST])
    with (tmp_path / LOG).open("a") as log:
        log.write(f"{line}\n")
    for read in (read_log, read_training):
        with pytest.raises(DataError, match=r"log\.jsonl.* line 2") as error:
            read(tmp_path)
        assert "\n" not in str(error.value)


def test_the_summary_of_a_log(tmp_path):
    dice = {"background": 1.0, "a": 0.25, "b": 0.75}
    epochs = [
        replace(FIRST, seconds=2.0, training_dice=dice, validation_dice={}),
        replace(FIRST, epoch=1, seconds=3.0, validation_dice=dice | {"a": None, "c": None}),
        replace(FIRST, epoch=2, seconds=1.0, training_dice={}, validation_dice={}),
    ]
    write_log(tmp_path, epochs)
    assert read_training(tmp_path) == Training(3, 6.0, {1: 0.5, 2: 0.75})


# 15 minutes on two soft-tissue sarcoma sets: training loss and Dice of validation patches.
CT_LOSS = [1.434, 1.024, 0.695, 0.549, 0.489, 0.383, 0.388, 0.287, 0.316, 0.257, 0.223, 0.219]
CT_DICE = [0.211, 0.269, 0.324, 0.115, 0.094, 0.019, 0.054, 0.006, 0.012, 0.013, 0.018, 0.029]
MR_LOSS = [1.605, 1.228, 0.913, 0.726, 0.682, 0.583, 0.52, 0.404, 0.438, 0.407, 0.378, 0.409]
MR_DICE = [0.126, 0.156, 0.207, 0.447, 0.668, 0.704, 0.735, 0.715, 0.712, 0.731, 0.704, 0.693]


def test_overfitting():
    found = find_overfitting(CT_LOSS, CT_DICE)
    assert found is not None
    assert (found.best_epoch, found.epochs) == (3, 9)
    for number in ("0.27 (epoch 3)", "0.02 in 9 epochs", "is overfitting"):
        assert number in str(found)


def test_no_overfitting_while_the_dice_rises_or_early():
    assert find_overfitting(MR_LOSS, MR_DICE) is None
    assert find_overfitting(CT_LOSS[:7], CT_DICE[:7]) is None  # too early to tell


def test_a_rising_loss_is_not_overfitting():
    assert find_overfitting(CT_LOSS[::-1], CT_DICE) is None


def test_epochs_without_validation_are_left_out():
    gaps = [None, *CT_DICE]
    found = find_overfitting([2.0, *CT_LOSS], gaps)
    assert found is not None
    assert found.best_epoch == 4
    assert find_overfitting(CT_LOSS, [None] * len(CT_LOSS)) is None


@given(st.lists(st.floats(0, 1), min_size=0, max_size=30))
def test_only_a_decreasing_dice_is_overfitting(dice):
    falling = [2 - 0.01 * n for n in range(len(dice))]
    found = find_overfitting(falling, dice)
    if found is None:
        return
    assert found.last_dice < 0.8 * found.best_dice
    assert found.epochs >= WAIT_EPOCHS
    assert WINDOW <= found.best_epoch <= len(dice) - WAIT_EPOCHS
    assert find_overfitting(falling, sorted(dice)) is None


def test_one_line_per_fold():
    folds = {k: Training(3, 1.0, {1: 0.1 * k, 2: 0.2, 3: 0.3}) for k in range(6)}
    lines = draw_dice(folds).axes[0].get_lines()
    assert [line.get_label() for line in lines] == [f"fold {k}" for k in range(6)]
    styles = {(line.get_color(), line.get_linestyle()) for line in lines}
    assert len(styles) == 6  # all are distinguishable
    assert np.array_equal(lines[2].get_ydata(), [0.2, 0.2, 0.3])


def test_losses_of_all_folds_make_one_curve():
    noise = np.random.default_rng(0).normal(0, 0.05, (3, 20))
    folds = [
        [
            replace(FIRST, epoch=n, training_loss=value, validation_loss=1.1 if n % 2 else None)
            for n, value in enumerate(1 / np.arange(1, 21) + of)
        ]
        for of in noise
    ]
    figure = draw_losses({"plan": folds, "other": [], "third": folds[:1]})
    shown = [axes for axes in figure.axes if axes.get_visible()]
    titles = [axes.get_title() for axes in shown]
    assert titles == ["plan (3 folds)", "other (missing)", "third (1 fold)"]
    points, curve, *_ = shown[0].lines
    assert np.size(points.get_xdata()) == 60
    epochs = [epoch for fold in folds for epoch in fold]
    expected = smooth([e.epoch + 1 for e in epochs], [e.training_loss for e in epochs])
    assert expected is not None
    assert np.array_equal(curve.get_ydata(), expected.mean)
    styles = {found.get_linestyle() for found in shown[0].lines if found.get_marker() == "None"}
    assert styles == {"-", "--"}
    legend = figure.axes[0].get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == [
        "training",
        "validation",
    ]


def test_few_epochs_of_two_folds_are_two_lines():
    folds = [[replace(FIRST, epoch=n, training_loss=float(n)) for n in range(4)]] * 2
    line = draw_losses({"a": folds}).axes[0].lines[0]
    expected = [1, 2, 3, 4, np.nan, 1, 2, 3, 4]
    np.testing.assert_array_equal(line.get_xdata(), expected)
    np.testing.assert_array_equal(line.get_ydata(), np.subtract(expected, 1))


def test_losses_of_few_epochs():
    assert draw_losses({"a": [[FIRST]]}).axes[0].lines
