import json
from dataclasses import replace

import pytest
from PIL import Image

from autoseg.training.history import Epoch, draw_progress, from_json, to_json, write_log

FIRST = Epoch(
    epoch=0,
    epochs=3,
    learning_rate=1e-3,
    training_loss=1.2344,
    training_dice={"background": 0.9, "organ": 0.5, "tumour": 0.25},
    seconds=2.5,
    validation_loss=1.5,
    validation_dice={"background": 0.9, "organ": 0.75, "tumour": None},
)


def test_note_shows_the_validation():
    assert FIRST.note() == "loss 1.234  validation 1.500  Dice 0.750  rate 1.0e-03"


def test_note_without_validation_shows_the_training_patches():
    epoch = replace(FIRST, validation_loss=None, validation_dice={})
    assert epoch.note() == "loss 1.234  Dice 0.375 (0.50 0.25)  rate 1.0e-03"


def test_note_without_any_class():
    epoch = replace(FIRST, validation_dice={"background": 0.9, "organ": None})
    assert epoch.note() == "loss 1.234  validation 1.500  rate 1.0e-03"


def test_note_of_many_classes_has_only_their_mean():
    many: dict[str, float | None] = {f"organ {n}": 0.5 for n in range(10)}
    assert "(" not in replace(FIRST, validation_dice=many).note()


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


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"validation_loss": None, "validation_dice": {}},
        {"validation_dice": {"background": None, "organ": None, "tumour": None}},
        {"learning_rate": 0.0},
        {"training_dice": {f"class {n}": 0.1 * n for n in range(11)}, "validation_dice": {}},
    ],
)
@pytest.mark.parametrize("count", [1, 3])
def test_the_picture_is_drawn(tmp_path, changes, count):
    path = tmp_path / "progress.png"
    epochs = [replace(FIRST, epoch=n, **changes) for n in range(count)]
    draw_progress(path, epochs)
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        assert picture.size == (880, 880)
        shades = set(picture.convert("L").tobytes())
    assert min(shades) < 100 < max(shades)
    assert list(tmp_path.iterdir()) == [path]
