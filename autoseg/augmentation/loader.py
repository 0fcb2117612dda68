"""Patch sampling, and the stream of batches, made by worker processes or in this process.

(seed, fold, epoch, batch, place) alone determines the patch.
"""

from __future__ import annotations

import atexit
import itertools
import math
import multiprocessing
import os
import queue
import signal
import threading
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

import blosc2
import numpy as np
from acvl_utils.cropping_and_padding.bounding_boxes import crop_and_pad_nd
from numpy.typing import NDArray
from threadpoolctl import ThreadpoolController

from autoseg.augmentation.on_device import postpone
from autoseg.augmentation.spatial import Border, Rng, random_box
from autoseg.augmentation.transforms import Augmenter, Sides
from autoseg.common.arrays import Array, ClassMap, Floats, Triple
from autoseg.common.errors import ENDING, AutosegError, RunError, signal_handled
from autoseg.common.parallel import GB, cause_of_death, exit_with_parent, fitting
from autoseg.common.progress import waited
from autoseg.networks.devices import one_thread
from autoseg.plan.augmentation import Sampling
from autoseg.plan.plan import Plan
from autoseg.preprocessing.store import CaseStore, StoredArray, StoredCase

OPEN_BYTES = 128 << 20  # of open cases in one process
CASE_BYTES = 1 << 20  # of an open case without the voxels of its classes
Patch = tuple[Floats, ClassMap]


@dataclass(frozen=True)
class Position:
    """The position of a sample in a training run."""

    seed: int
    fold: int
    epoch: int
    batch: int
    place: int  # index in the batch

    def rng(self) -> np.random.Generator:
        """Return a new random generator that depends on the position only."""
        key = (self.seed, self.fold, self.epoch, self.batch, self.place)
        return np.random.default_rng(np.random.SeedSequence(key))


class PatchSampler:
    """Draws patches from a case store.

    Cases are visited in a shuffled order, each once before any is visited again.
    """

    def __init__(
        self, store: CaseStore, cases: Sequence[str], sampling: Sampling, steps_per_epoch: int
    ) -> None:
        self.store = store
        self.cases = sorted(cases)
        self.sampling = sampling
        self.steps_per_epoch = steps_per_epoch
        self._open: dict[str, StoredCase] = {}

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_open": {}}  # open files cannot be sent to a worker process

    def draw(self, at: Position, size: Triple, border: Border = "constant") -> Patch:
        """Return the patch at a position, with `size` voxels.

        Beyond the case it is padded with zeros, or with the nearest voxel of the case if `border`
        is "nearest". With the plan's `mix_probability`, a box of it comes from another case.

        Returns:
            image (channel, *size) and label (*size); for a cascade label (2, *size), where the
            second one is the segmentation of the previous stage.
        """
        rng, names = at.rng(), self.names_at(at)
        (image, label), *others = (self._patch(name, at, rng, size, border) for name in names)
        for other_image, other_label in others:
            x, y, z = random_box(size, rng)
            image[..., x, y, z] = other_image[..., x, y, z]
            label[..., x, y, z] = other_label[..., x, y, z]
        return image, label

    def names_at(self, at: Position) -> list[str]:
        """Return the case of the patch at a position and, if it is mixed, that of its box."""
        name, share = self.name_at(at), self.sampling.mix_probability
        rng = at.rng().spawn(2)[1]  # the first is for the transforms
        others = [case for case in self.cases if case != name] if rng.random() < share else []
        return [name, *rng.permutation(others)[:1]]

    def _patch(self, name: str, at: Position, rng: Rng, size: Triple, border: Border) -> Patch:
        case = self._case(name)
        centre = self._centre(case, at, rng)
        box = [[c - s // 2, c - s // 2 + s] for c, s in zip(centre, size, strict=True)]
        image, label = _cut(case.image, box, border), _cut(case.label, box, border)
        if case.previous is not None:
            label = np.stack([label, _cut(case.previous, box, border)])
        return image, label

    def name_at(self, at: Position) -> str:
        """Return the case that the patch at a position is drawn from."""
        batches = at.epoch * self.steps_per_epoch + at.batch
        round_, index = divmod(batches * self.sampling.batch_size + at.place, len(self.cases))
        key = (at.seed, at.fold, round_)
        return self.cases[int(_permutation(key, len(self.cases))[index])]

    def _case(self, name: str) -> StoredCase:
        """Return an open case; those used longest ago are closed beyond `OPEN_BYTES`."""
        case = self._open.pop(name, None) or self.store.open(name)
        self._open[name] = case  # last, as the one used most recently
        while len(self._open) > 1 and sum(map(_bytes_of, self._open.values())) > OPEN_BYTES:
            del self._open[next(iter(self._open))]
        return case

    def _centre(self, case: StoredCase, at: Position, rng: np.random.Generator) -> list[int]:
        """Return a foreground voxel if the plan requires one, else a random voxel.

        A foreground voxel belongs to a class that is drawn uniformly from the classes of the case.
        If the case has an ignore label, random voxels are drawn from the annotated ones. The patch
        around the voxel is shifted to lie within the case.
        """
        shape, patch = case.label.shape, self.sampling.patch_size
        centre = [_random_centre(rng, n, p) for n, p in zip(shape, patch, strict=True)]
        voxels = case.annotated
        sampling = self.sampling
        wanted = at.place >= round(sampling.batch_size * (1 - sampling.foreground_share))
        if sampling.foreground_mode == "chance":
            wanted = bool(rng.random() < sampling.foreground_share)
        if wanted and case.foreground:
            classes = sorted(case.foreground)
            voxels = case.foreground[classes[rng.integers(len(classes))]]
        if voxels is None:
            return centre
        voxel = voxels[rng.integers(len(voxels))]
        return [_shifted_inside(int(v), n, p) for v, n, p in zip(voxel, shape, patch, strict=True)]


def _bytes_of(case: StoredCase) -> int:
    return CASE_BYTES + sum(voxels.nbytes for voxels in case.foreground.values())


@lru_cache(maxsize=8)
def _permutation(key: tuple[int, ...], count: int) -> NDArray[np.int64]:
    return np.random.default_rng(np.random.SeedSequence(key)).permutation(count)


def _cut(array: StoredArray, box: Sequence[Sequence[int]], border: Border) -> Array:
    """Cut a box of the last three axes, padded where it exceeds the array."""
    mode = "edge" if border == "nearest" else "constant"
    return np.asarray(crop_and_pad_nd(array, box, pad_mode=mode))


def _random_centre(rng: np.random.Generator, size: int, patch: int) -> int:
    """Return a random centre whose patch lies within the axis, or the middle of a shorter axis."""
    if size <= patch:
        return size // 2
    return int(rng.integers(patch // 2, size - (patch - patch // 2) + 1))


def _shifted_inside(voxel: int, size: int, patch: int) -> int:
    """Return the centre nearest to `voxel` whose patch lies within the axis."""
    if size <= patch:
        return size // 2
    return min(max(voxel, patch // 2), size - (patch - patch // 2))


# A batch has "data" (B, C, X, Y, Z) float32 and "label" (B, X, Y, Z) int16. For a cascade the label
# is (B, 2, X, Y, Z), where the second one is the segmentation of the previous stage. If images are
# augmented on the device, "data" is replaced by "postponed", a list of PostponedImage. If the plan
# has partly annotated cases, "unannotated" (B, outputs) bool tells the outputs without annotation.
Batch = dict[str, Any]
Failure = dict[str, str]  # what a worker sends if it cannot make a batch

VALIDATION_STREAM = 1_000_000  # separates the random numbers of validation from those of training
WAITING_PER_WORKER = 1  # batches, beside the one being sent and the one being made
WORKER_GB = 0.4  # with torch and without patches
COPIES = 8  # of a batch in a worker: made, waiting, being sent, and temporary ones
FLOAT = 4  # bytes
SECONDS_TO_DIE = 10.0  # after the pipe of a worker was closed


@contextmanager
def batches(
    sampler: PatchSampler,
    plan: Plan,
    first: Position,
    workers: int,
    places: range | None = None,
    validation: PatchSampler | None = None,
) -> Iterator[Iterator[Batch]]:
    """Open the stream that starts at the epoch and batch of `first`; workers end with the block.

    After the training batches of each epoch come those of validation, if there are any.

    Args:
        sampler: draws the patches.
        plan: how patches are augmented, and where.
        first: seed, fold, epoch and batch to start from.
        workers: number of processes, or 0 for this one; the batches do not depend on it.
        places: the samples of a training batch to make, of a distributed run this process's share.
        validation: draws the validation batches, which are equal in all epochs without transforms.

    Raises:
        RunError: from the stream, if a batch cannot be made or a worker died.
    """
    if workers > 1:
        values = sampler.sampling.batch_size * math.prod(sampler.sampling.patch_size)
        each = round(WORKER_GB * GB) + COPIES * FLOAT * values
        workers = fitting(workers, each, "augmentation workers")
    loader = BatchLoader(sampler, plan, first, workers, places, validation)
    if workers == 0:
        yield _checked(loader)
        return
    with worker_stream(loader, workers) as stream:
        yield _checked(stream)


def _checked(stream: Iterator[Batch | Failure]) -> Iterator[Batch]:
    """Yield the batches; raise the first failure as a RunError."""
    for item in stream:
        if "failed" in item:
            error = RunError(str(item["failed"]))
            error.add_note(str(item["traceback"]))  # shown by --debug
            raise error
        yield item


@dataclass
class BatchLoader:
    """Endless iterator over every `workers`-th batch of a run, from a first epoch and batch on.

    Each worker process has a copy and a number of its own. Taking batches from the workers in turn
    gives them in order, whatever the number of workers.
    """

    sampler: PatchSampler
    plan: Plan
    first: Position
    workers: int
    places: range | None = None
    validation: PatchSampler | None = None
    thread_id: int = 0
    made: int = 0

    def set_thread_id(self, thread_id: int) -> None:
        """Called in each worker process."""
        self.thread_id = thread_id
        blosc2.set_nthreads(1)
        live_with_parent()

    def __iter__(self) -> Iterator[Batch | Failure]:
        return self

    def __next__(self) -> Batch | Failure:
        """Return the next batch, or an exception as text."""
        index = self.first.batch + self.made * max(1, self.workers) + self.thread_id
        self.made += 1
        checks = self.validation.steps_per_epoch if self.validation else 0
        epochs, batch = divmod(index, self.sampler.steps_per_epoch + checks)
        at = replace(self.first, epoch=self.first.epoch + epochs, batch=batch)
        try:
            with one_thread(), _threadpools().limit(limits=1):
                return self._make(at)
        except Exception as error:
            return {"failed": _failure(error, at), "traceback": traceback.format_exc()}

    def _make(self, at: Position) -> Batch:
        sampler, transforms, places = self.sampler, self.plan.augmentation, self.places
        if self.validation and (check := at.batch - sampler.steps_per_epoch) >= 0:
            sampler, places, augment = self.validation, None, self.plan.training.augment_validation
            transforms, epoch = (transforms, at.epoch) if augment else ((), 0)
            at = Position(at.seed, VALIDATION_STREAM + at.fold, epoch, check, 0)
        places = places or range(sampler.sampling.batch_size)
        augmenter = Augmenter(transforms, sampler.sampling.patch_size, Sides.of(self.plan))
        on_device = self.plan.training.augment_on == "device"
        images: list[Any] = []
        labels: list[ClassMap] = []
        exchanged = augmenter.sides.exchanged if augmenter.sides else []
        unannotated = np.zeros((len(places), self.plan.classes.outputs), bool)
        for place in places:
            here = replace(at, place=place)
            exchanged.clear()
            drawn = augmenter.draw(here.rng().spawn(1)[0])
            patch = sampler.draw(here, drawn.box_size, drawn.border)
            image, label = postpone(drawn, *patch) if on_device else drawn(*patch)
            images.append(image)
            labels.append(label)
            missing = self.plan.unannotated_outputs(sampler.name_at(here))
            if len(exchanged) % 2:
                missing = [self.plan.exchanged_outputs[output] for output in missing]
            unannotated[len(labels) - 1, missing] = True
        batch: Batch = {"label": np.stack(labels)}
        if self.plan.annotated:
            batch["unannotated"] = unannotated
        return batch | ({"postponed": images} if on_device else {"data": np.stack(images)})


def _failure(error: Exception, at: Position) -> str:
    if isinstance(error, AutosegError | RunError):
        return str(error)
    where = f"epoch {at.epoch + 1}, batch {at.batch + 1}"
    if isinstance(error, MemoryError):
        return f"not enough memory to make {where}; use fewer --processes"
    return f"cannot make {where}: {error} ({type(error).__name__}); --debug shows the traceback"


@lru_cache(maxsize=1)
def _threadpools() -> ThreadpoolController:
    return ThreadpoolController()


# Worker processes. Each sends through a pipe of its own and shares no lock, so that it can be
# killed at any time and its death is noticed at once.


@contextmanager
def worker_stream(loader: Any, workers: int) -> Iterator[Iterator[Any]]:
    """Open a stream of the items of worker processes, taken in turn; they end with the block.

    Args:
        loader: an iterator; in each worker, `set_thread_id` of its copy is called first.
        workers: number of processes; they also end with this one, however it ends.

    Raises:
        RunError: from the stream, if a worker died.
    """
    context = multiprocessing.get_context("spawn")  # fork would copy torch's threads mid-work
    pipes = [context.Pipe(duplex=False) for _ in range(workers)]
    every_args = [(loader, number, writer) for number, (_, writer) in enumerate(pipes)]
    processes = [context.Process(target=_work, args=args, daemon=True) for args in every_args]

    def end() -> None:
        atexit.unregister(end)
        started = [process for process in processes if process.pid is not None]
        for process in started:
            process.kill()  # it holds nothing that needs cleaning up
        for process in started:
            process.join()
        for pipe in pipes:
            for connection in pipe:
                connection.close()

    atexit.register(end)  # in case the block is never left: workers ignore SIGTERM
    try:
        # Workers ignore Ctrl-C from the beginning; those of other threads once they run.
        with signal_handled(signal.SIGINT, signal.SIG_IGN):
            for process in processes:
                process.start()
        for _, writer in pipes:  # only the worker holds it now: the pipe ends when it dies
            writer.close()
        yield _in_turn([reader for reader, _ in pipes], processes)
    finally:
        end()


def _in_turn(
    readers: Sequence[Connection[Any, Any]], processes: Sequence[BaseProcess]
) -> Iterator[Any]:
    sentinels = [process.sentinel for process in processes]
    for reader in itertools.cycle(readers):
        connections: list[Any] = [reader, *sentinels]
        if waited(partial(wait, connections), "an augmentation worker") != [reader]:
            raise _death_of(processes)
        try:
            item = reader.recv()
        except (EOFError, OSError):  # the worker died while sending
            raise _death_of(processes) from None
        yield item


def _death_of(processes: Sequence[BaseProcess]) -> RunError:
    """Return an error that explains how the first dead worker ended."""
    dead = wait([process.sentinel for process in processes], SECONDS_TO_DIE)
    for process in processes:
        if process.sentinel in dead:
            process.join()
            return RunError(f"an augmentation worker {cause_of_death(process.exitcode)}")
    return RunError("an augmentation worker closed its pipe; run again")


def _work(loader: Any, number: int, connection: Connection[Any, Any]) -> None:
    """In a worker: send items through its pipe while the next ones are made."""
    loader.set_thread_id(number)
    waiting: queue.Queue[Any] = queue.Queue(WAITING_PER_WORKER)
    threading.Thread(target=_send, args=(waiting, connection), daemon=True).start()
    while True:
        waiting.put(next(loader))


def _send(waiting: queue.Queue[Any], connection: Connection[Any, Any]) -> None:
    try:
        while True:
            connection.send(waiting.get())
    except Exception as error:
        if not isinstance(error, OSError):  # which means that the parent is gone
            traceback.print_exc()
        os._exit(1)


def live_with_parent() -> None:
    """In a worker: ignore signals, which the parent handles (Ctrl-C), and exit when it ends."""
    for number in (signal.SIGINT, *ENDING):
        signal.signal(number, signal.SIG_IGN)
    exit_with_parent()
