import multiprocessing
import os
import signal
from itertools import islice
from multiprocessing.connection import wait

import numpy as np
import pytest

from autoseg.augmentation.pipeline import batches
from autoseg.augmentation.sampler import PatchSampler, Position
from autoseg.errors import RunError
from autoseg.preprocessing.store import CaseStore
from tests.making import tiny_plan, tiny_store

AUGMENTATION = [
    {"transform": "spatial", "rotation_probability": 0.5, "image_order": 1},
    {"transform": "gaussian_noise", "probability": 0.5},
    {"transform": "gamma", "probability": 0.5},
    {"transform": "mirror"},
]
STEPS = 3
START = Position(seed=1, fold=2, epoch=0, batch=0, place=0)

# batchgenerators' thread says in its own way that a worker is gone.
dying = pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")


@pytest.fixture(autouse=True)
def spawn():
    before = multiprocessing.get_start_method(allow_none=True)
    multiprocessing.set_start_method("spawn", force=True)
    yield
    multiprocessing.set_start_method(before, force=True)


def make(folder, **changes):
    plan = tiny_plan(augmentation=AUGMENTATION, **changes)
    names = [f"case_{number}" for number in range(3)]
    return plan, PatchSampler(tiny_store(folder, plan, 3), names, plan.sampling, STEPS)


def take(plan, sampler, count, workers=0, epoch=0):
    first = Position(START.seed, START.fold, epoch, 0, 0)
    with batches(sampler, plan.augmentation, first, workers) as stream:
        return list(islice(stream, count))


def assert_same(found, expected):
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one["data"].tobytes() == other["data"].tobytes()
        assert one["label"].tobytes() == other["label"].tobytes()


def test_batches_have_shape_and_type(tmp_path):
    plan, sampler = make(tmp_path)
    for batch in take(plan, sampler, 2 * STEPS):
        assert batch["data"].shape == (2, 1, 8, 8, 8)
        assert batch["label"].shape == (2, 8, 8, 8)
        assert batch["data"].dtype == np.float32
        assert batch["label"].dtype == np.int16


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_batches_do_not_depend_on_the_number_of_workers(tmp_path, workers):
    plan, sampler = make(tmp_path / "with space é")
    expected = take(plan, sampler, 7)
    assert len({batch["data"].tobytes() for batch in expected}) == 7
    assert_same(take(plan, sampler, 7, workers), expected)
    assert not multiprocessing.active_children()


def test_a_restart_at_a_later_epoch_continues_the_stream(tmp_path):
    plan, sampler = make(tmp_path)
    whole = take(plan, sampler, 4 * STEPS)
    for epoch in range(1, 4):
        assert_same(take(plan, sampler, STEPS, epoch=epoch), whole[epoch * STEPS :][:STEPS])


def test_two_streams_at_once_do_not_disturb_each_other(tmp_path):
    plan, sampler = make(tmp_path)
    expected = take(plan, sampler, 4)
    with (
        batches(sampler, plan.augmentation, START, 0) as one,
        batches(sampler, plan.augmentation, START, 0) as other,
    ):
        found = [(next(one), next(other)) for _ in range(4)]
    assert_same([pair[0] for pair in found], expected)
    assert_same([pair[1] for pair in found], expected)


def test_fold_and_seed_make_other_batches(tmp_path):
    plan, sampler = make(tmp_path)
    drawn = set()
    for seed, fold in ((1, 0), (1, 1), (2, 0)):
        with batches(sampler, plan.augmentation, Position(seed, fold, 0, 0, 0), 0) as stream:
            drawn.add(next(stream)["data"].tobytes())
    assert len(drawn) == 3


class Counted(PatchSampler):
    """Leaves a file for each sample that it has drawn."""

    def draw(self, at, size):
        drawn = super().draw(at, size)
        (self.store.folder / f"drawn {at.epoch} {at.batch} {at.place}").touch()
        return drawn


@dying
@pytest.mark.timeout(100)
def test_a_worker_killed_while_it_sends_ends_the_stream(tmp_path):
    # Batches larger than a pipe holds: the dead worker leaves half of one in it.
    large = {"patch_size": [32, 32, 32], "batch_size": 2}
    plan, _ = make(tmp_path, sampling=large, inference={"overlap": [0, 0, 0]})
    sampler = Counted(CaseStore(tmp_path, ""), ["case_0"], plan.sampling, steps_per_epoch=100)
    with batches(sampler, (), START, workers=1) as stream:
        next(stream)
        (victim,) = multiprocessing.active_children()
        assert victim.pid is not None
        # The eighth batch is made when all queues are full, and the sixth waits in the pipe.
        while not (tmp_path / "drawn 0 7 1").exists():
            assert not wait([victim.sentinel], timeout=0.05)
        os.kill(victim.pid, signal.SIGKILL)
        with pytest.raises(RunError, match="worker ended"):
            list(islice(stream, 50))
    assert not multiprocessing.active_children()


@dying
@pytest.mark.timeout(100)
def test_a_worker_that_fails_ends_the_stream(tmp_path, capfd):
    plan, sampler = make(tmp_path)
    (tmp_path / "case_1" / "image.b2nd").unlink()
    with (
        batches(sampler, plan.augmentation, START, workers=1) as stream,
        pytest.raises(RunError, match="worker ended"),
    ):
        list(islice(stream, 50))
    assert "case_1" in capfd.readouterr().out  # its own message, printed by the worker
