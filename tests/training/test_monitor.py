import time
from dataclasses import replace

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from autoseg.training import monitor
from autoseg.training.monitor import COLOURS, SHARE_OF_TIME, Painter, draw_progress
from tests.training.making import FIRST_EPOCH as FIRST


def pixels_of(path):
    """Red, green and blue, 0 to 255: an array (rows, columns, 3)."""
    with Image.open(path) as drawn:
        assert drawn.format == "PNG"
        return np.asarray(drawn.convert("RGB"))


def count_of(path, colour):
    """How many pixels have exactly this colour, #RRGGBB."""
    wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return int((pixels_of(path) == wanted).all(-1).sum())


@pytest.mark.parametrize(
    ("count", "changes"),
    [
        (1, {}),
        (2, {}),
        (3, {}),
        (6, {}),
        (6, {"validation_loss": None, "validation_dice": {}}),
        (6, {"validation_dice": {"background": None, "organ": None, "tumour": None}}),
        (2, {"learning_rate": 0.0, "seconds": 0.0}),
        (
            2,
            {"training_dice": {f"$x_{n}$ [b]": 0.07 * n for n in range(12)}, "validation_dice": {}},
        ),
        (6, {"training_dice": {f"class {n}": 0.02 * n for n in range(40)}, "validation_dice": {}}),
    ],
)
def test_it_is_drawn_whatever_the_epochs_hold(tmp_path, count, changes):
    path = tmp_path / "progress.png"
    draw_progress(path, [replace(FIRST, epoch=n, **changes) for n in range(count)])
    assert list(tmp_path.iterdir()) == [path]
    dark = pixels_of(path).max(-1) < 64
    rows, columns = dark.any(1).nonzero()[0], dark.any(0).nonzero()[0]
    height, width = dark.shape
    # No panel was squeezed to nothing: they fill the picture, and there are two in a row, whose
    # axes are dark lines as long as the panels are high.
    assert rows[0] < 0.1 * height
    assert rows[-1] > 0.9 * height
    assert columns[-1] > 0.9 * width
    axes = (dark.sum(0) > 0.7 * height).nonzero()[0] / width
    assert axes.min() < 0.2
    assert 0.4 < axes.max() < 0.7


def test_the_title_names_the_run(tmp_path, monkeypatch):
    titles = []
    monkeypatch.setattr(Figure, "suptitle", lambda _, text, **how: titles.append(text))
    for folder in ("models/Task001_A/default-2d/fold_0", "models/" + "T" * 90 + "/5m/fold_all"):
        (tmp_path / folder).mkdir(parents=True)
        draw_progress(tmp_path / folder / "progress.png", [FIRST])
    assert titles[0].startswith("Task001_A, default-2d, fold 0: epoch 1 of ")
    assert titles[1].startswith("T" * 90 + ", 5m, fold all:\nepoch 1 of ")


def test_each_curve_has_its_colour(tmp_path):
    path = tmp_path / "progress.png"
    epochs = [
        replace(FIRST, epoch=n, training_loss=2 / (n + 1), validation_loss=2.5 / (n + 1))
        for n in range(30)
    ]
    draw_progress(path, epochs)
    blue, orange = COLOURS[:2]
    both = {colour: count_of(path, colour) for colour in (blue, orange)}
    assert min(both.values()) > 300
    draw_progress(path, [replace(e, validation_loss=None, validation_dice={}) for e in epochs])
    assert count_of(path, orange) < both[orange]


def test_the_title_reports_overfitting(tmp_path):
    def top(losses):
        dice = [0.5, 0.5, 0.5, 0.2, 0.1, 0.1, 0.0, 0.0, 0.0]
        epochs = [
            replace(FIRST, epoch=n, training_loss=loss, validation_dice={"b": 1.0, "x": d})
            for n, (loss, d) in enumerate(zip(losses, dice, strict=True))
        ]
        draw_progress(tmp_path / "progress.png", epochs)
        dark = pixels_of(tmp_path / "progress.png").max(-1) < 64
        left = dark[:, : dark.shape[1] // 10]  # beside the title
        return int(left[:, left.sum(0).argmax()].argmax())  # where the first panel's axis begins

    falling = [1 - 0.1 * n for n in range(9)]
    assert top(falling) > top(falling[::-1]) + 20  # two more lines of text


@pytest.fixture
def clock(monkeypatch):
    """A clock that only drawing moves; returns it, and the epochs that were drawn."""

    class Clock:
        now = 1000.0
        cost = 0.6

    drawn = []

    def draw(path, epochs):
        drawn.append(len(epochs))
        Clock.now += Clock.cost

    monkeypatch.setattr(monitor, "draw_progress", draw)
    monkeypatch.setattr(time, "monotonic", lambda: Clock.now)
    return Clock, drawn


@pytest.mark.parametrize("seconds", [0.1, 1.0, 7.0])
def test_short_epochs_share_a_picture(tmp_path, clock, seconds):
    time_, drawn = clock
    painter = Painter(tmp_path / "progress.png")
    started = time_.now
    for done in range(1, 1001):
        time_.now += seconds
        painter.draw_if_due([FIRST] * done)
    share = time_.cost * (len(drawn) - 1) / (time_.now - started)  # the first has no rule
    assert 0.5 * SHARE_OF_TIME < share < 1.1 * SHARE_OF_TIME
    assert drawn[0] == 1


def test_long_epochs_get_one_each(tmp_path, clock):
    time_, drawn = clock
    painter = Painter(tmp_path / "progress.png")
    for done in range(1, 11):
        time_.now += 60
        painter.draw_if_due([FIRST] * done)
    assert drawn == list(range(1, 11))
