import importlib.util
import math
from dataclasses import replace
from types import SimpleNamespace

import pytest

from autoseg.common.errors import AutosegError
from autoseg.models.folder import LATEST
from autoseg.models.log import Epoch
from autoseg.training import monitor as module
from autoseg.training.monitor import Events, check_tensorboard, scalars
from tests.training.making import log_of, start, store_of, training_plan, without_pictures

needs_tensorboard = pytest.mark.skipif(
    importlib.util.find_spec("tensorboard") is None, reason="tensorboard is not installed"
)
FIRST = Epoch(
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
    return [replace(FIRST, epoch=n, training_loss=1 / (n + 1)) for n in range(count)]


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
    assert dict(scalars(FIRST)) == {
        "loss/training": 1.25,
        "loss/validation": 1.5,
        "dice/organ": 0.75,
        "dice/mean": 0.75,
        "learning rate": 1e-3,
        "seconds an epoch": 2.5,
    }
    alone = replace(FIRST, validation_loss=None, validation_dice={})
    assert dict(scalars(alone))["dice/tumour"] == 0.25
    assert "loss/validation" not in dict(scalars(alone))


def test_without_the_package_the_error_says_how_to_install_it(tmp_path, monkeypatch):
    missing = SimpleNamespace(util=SimpleNamespace(find_spec=lambda name: None))
    monkeypatch.setattr(module, "importlib", missing)
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
    assert found.keys() == dict(scalars(FIRST)).keys()


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
            start(plan, store, folder, tensorboard=True)
    assert (folder / LATEST).exists()
    start(plan, store, folder, tensorboard=True, resume=True)
    found = points_in(folder / "tensorboard")
    log = log_of(folder)
    assert [step for step, _ in found["loss/training"]] == [1, 2, 3]
    for (_, value), line in zip(found["loss/training"], log, strict=True):
        assert math.isclose(value, line["training_loss"], rel_tol=1e-6)
