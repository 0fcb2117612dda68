"""The picture of a run, its heartbeat within an epoch, and TensorBoard event files."""

from __future__ import annotations

import importlib.util
import math
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from autoseg.common.errors import AutosegError
from autoseg.common.progress import progress
from autoseg.models.folder import FINAL, LATEST
from autoseg.models.log import Epoch
from autoseg.training import monitor
from autoseg.training.monitor import (
    COLOURS,
    SHARE_OF_TIME,
    Events,
    Heartbeat,
    Painter,
    check_tensorboard,
    draw_progress,
    scalars,
)
from autoseg.training.state import PlateauState, State
from tests.common.test_progress import Clock
from tests.forking import fine_pictures
from tests.training.making import FIRST_EPOCH as FIRST
from tests.training.making import log_of, start, store_of, training_plan, without_pictures

__all__ = ["fine_pictures"]


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


def test_a_log_that_cannot_be_written_does_not_end_training(tmp_path, capsys):
    plan = training_plan(epochs=3, steps_per_epoch=1)
    for name in ("log.jsonl", "progress.png"):
        (tmp_path / "fold_0" / name / "in the way").mkdir(parents=True)
    state = start(plan, store_of(tmp_path, plan), tmp_path / "fold_0")
    assert state.done == 3
    assert (tmp_path / "fold_0" / FINAL).is_file()
    told = capsys.readouterr().err
    assert [told.count(f"fold_0/{name}") for name in ("log.jsonl", "progress.png")] == [1, 1]


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
    draw_progress(path, [replace(e, validation_loss=None) for e in epochs])
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


STATE = State("plan", 1000, PlateauState(0.01))


@pytest.fixture
def step_clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time, "monotonic", clock)
    return clock


def test_a_slow_epoch_shows_its_steps(
    step_clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with progress("training fold 0", 1000, every_seconds=0) as bar:
        heartbeat = Heartbeat(bar, 250)
        for done, seconds in enumerate((60, 25, 25), start=1):
            step_clock.seconds += seconds
            heartbeat.beat(STATE, done)
    *lines, warning = capsys.readouterr().err.splitlines()
    assert warning.startswith("warning: a step takes 25 s")  # more than half of a cluster's 30
    assert lines == [
        "training fold 0: epoch 1 of 1000, step 1 of 250, 1 min 00 s a step, about 173 days 14 h "
        "left",
        "training fold 0: epoch 1 of 1000, step 2 of 250, 25 s a step, about 72 days 8 h left",
        # 25 seconds later it is silent: heartbeats become rarer
    ]


def test_fast_epochs_and_last_steps_are_silent(
    step_clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with progress("training fold 0", 1000, every_seconds=0) as bar:
        heartbeat = Heartbeat(bar, 2)
        for seconds, done in ((4, 1), (40, 2)):
            step_clock.seconds += seconds
            heartbeat.beat(STATE, done)
    assert capsys.readouterr().err == ""


def test_without_a_bar_nothing_is_printed(
    step_clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    heartbeat = Heartbeat(None, 3)
    step_clock.seconds += 100
    heartbeat.beat(STATE, 1)
    assert capsys.readouterr().err == ""


needs_tensorboard = pytest.mark.skipif(
    importlib.util.find_spec("tensorboard") is None, reason="tensorboard is not installed"
)
LOGGED = Epoch(
    epoch=0,
    epochs=9,
    learning_rate=1e-3,
    training_loss=1.25,
    training_dice={"background": 0.9, "organ": 0.5, "tumour": 0.25},
    seconds=2.5,
    validation_loss=1.5,
    validation_dice={"background": 0.9, "organ": 0.75, "tumour": None},
)


def epochs(count):
    return [replace(LOGGED, epoch=n, training_loss=1 / (n + 1)) for n in range(count)]


def points_in(folder):
    """name -> [(step, value)] of all event files, read as plain records: none is left out."""
    from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

    found: dict[str, list[tuple[int, float]]] = {}
    for path in sorted(folder.glob("events.*")):
        for event in LegacyEventFileLoader(str(path)).Load():
            for value in event.summary.value:
                found.setdefault(value.tag, []).append((event.step, value.simple_value))
    return found


def test_the_numbers_of_an_epoch():
    assert dict(scalars(LOGGED)) == {
        "loss/training": 1.25,
        "loss/validation": 1.5,
        "dice/organ": 0.75,
        "dice/mean": 0.75,
        "learning rate": 1e-3,
        "seconds an epoch": 2.5,
    }
    alone = replace(LOGGED, validation_loss=None, validation_dice={})
    assert dict(scalars(alone))["dice/tumour"] == 0.25
    assert "loss/validation" not in dict(scalars(alone))


def test_without_the_package_the_error_says_how_to_install_it(tmp_path, monkeypatch):
    missing = SimpleNamespace(util=SimpleNamespace(find_spec=lambda name: None))
    monkeypatch.setattr(monitor, "importlib", missing)
    for refused in (check_tensorboard, lambda: Events(tmp_path / "tensorboard", [])):
        with pytest.raises(AutosegError, match=r"pip install .*\[tensorboard\]"):
            refused()
    assert not list(tmp_path.iterdir())


@needs_tensorboard
def test_every_epoch_has_one_point_after_any_number_of_starts(tmp_path):
    folder = tmp_path / "fold_0 é" / "tensorboard"
    done = epochs(6)
    events = Events(folder, [])
    for epoch in done[:4]:
        events.write(epoch)  # the fourth one's checkpoint is not saved: the run is killed
    for last, now in ((3, 5), (5, 6), (6, 6)):
        events = Events(folder, done[:last])
        for epoch in done[last:now]:
            events.write(epoch)
        events.close()
    found = points_in(folder)
    expected = [(n + 1, pytest.approx(1 / (n + 1))) for n in range(6)]
    assert found["loss/training"] == expected
    assert [step for step, _ in found["seconds an epoch"]] == [1, 2, 3, 4, 5, 6]
    assert found.keys() == dict(scalars(LOGGED)).keys()


@needs_tensorboard
def test_other_files_in_the_folder_stay(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    Events(tmp_path, epochs(1)).close()
    Events(tmp_path, epochs(2)).close()
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert len(list(tmp_path.glob("events.*"))) == 1


@needs_tensorboard
def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "fold_0").write_text("a file")
    with pytest.raises(AutosegError, match=r"cannot write .*tensorboard: "):
        Events(tmp_path / "fold_0" / "tensorboard", [])


@needs_tensorboard
def test_a_run_writes_what_its_log_has_and_a_resumed_one_continues(tmp_path, monkeypatch):
    plan = training_plan(epochs=3)
    store, folder = store_of(tmp_path, plan), tmp_path / "run"
    without_pictures(monkeypatch)
    write = Events.write

    def die_after_two(events, epoch):
        write(events, epoch)
        if epoch.epoch == 1:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Events, "write", die_after_two)
        with pytest.raises(KeyboardInterrupt):
            start(plan, store, folder, tensorboard=True, save_seconds=0.0)
    assert (folder / LATEST).exists()
    start(plan, store, folder, tensorboard=True, resume=True)
    found = points_in(folder / "tensorboard")
    log = log_of(folder)
    assert [step for step, _ in found["loss/training"]] == [1, 2, 3]
    for (_, value), line in zip(found["loss/training"], log, strict=True):
        assert math.isclose(value, line["training_loss"], rel_tol=1e-6)
