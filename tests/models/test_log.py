import json
from dataclasses import replace

import pytest

from autoseg.models.log import from_json, to_json, write_log
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


def test_json_comes_back_equal():
    epochs = [FIRST, replace(FIRST, epoch=1, validation_loss=None, validation_dice={})]
    assert from_json(json.loads(json.dumps(to_json(epochs)))) == epochs


def test_log_has_one_line_an_epoch_and_none_twice(tmp_path):
    path = tmp_path / "log.jsonl"
    second = replace(FIRST, epoch=1, training_loss=1 / 3)
    write_log(path, [FIRST])
    write_log(path, [FIRST, second])
    text = path.read_text(encoding="utf-8")
    assert text.endswith("}\n")
    lines = [json.loads(line) for line in text.splitlines()]
    assert from_json(lines) == [FIRST, second]
    assert lines[1]["training_loss"] == 1 / 3
