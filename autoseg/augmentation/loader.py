"""The stream of training batches, made in worker processes or in this one."""

from __future__ import annotations

import atexit
import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from multiprocessing.connection import wait
from typing import Any, NoReturn, Protocol

import numpy as np
import torch
from threadpoolctl import ThreadpoolController

from autoseg.augmentation.on_device import Postponer
from autoseg.augmentation.sampler import PatchSampler, Position
from autoseg.augmentation.transforms import Augmenter
from autoseg.common.errors import AutosegError, RunError
from autoseg.plan.augmentation import Transform

# batchgenerators' worker processes, watched: none dies unnoticed, hangs, or outlives its stream.
#
# Each worker has a queue of its own and shares no lock with the others, so that it can be killed
# at any moment. batchgenerators' own receiving end shares locks and waits for what a dead worker
# has begun to send; this one waits for a batch or for a death.

CACHED_PER_WORKER = 2
SECONDS_BETWEEN_TRIES = 0.005
SECONDS_TO_DIE = 10.0  # after its queue has closed


class Loader(Protocol):
    """What makes the items; batchgenerators copies it into each worker."""

    def set_thread_id(self, thread_id: int) -> None:
        """Called first in each worker, with its number."""

    def __next__(self) -> Any: ...


@contextmanager
def worker_stream(loader: Loader, workers: int) -> Iterator[Iterator[Any]]:
    """Items of worker processes that run `loader`, taken from them in turn.

    The workers end with the block, and with this process however it ends.

    Raises:
        RunError: from the stream, when a worker has died: how.
    """
    stream = _Stream(loader, workers)
    try:
        stream.start()
        yield stream
    finally:
        stream.end()


class _Stream:
    def __init__(self, loader: Loader, workers: int) -> None:
        from batchgenerators.dataloading.multi_threaded_augmenter import producer

        context = multiprocessing.get_context("spawn")  # a fork would copy torch's threads midway
        self.queues = [context.Queue(CACHED_PER_WORKER) for _ in range(workers)]
        self.processes = [
            context.Process(
                target=producer,
                args=(queue, loader, None, number, number, NeverSet(), None, SECONDS_BETWEEN_TRIES),
                daemon=True,
            )
            for number, queue in enumerate(self.queues)
        ]
        self.taken = 0

    def start(self) -> None:
        atexit.register(self.end)  # where the block is never left: the workers ignore SIGTERM
        with _interrupts_ignored():
            for process in self.processes:
                process.start()
        for queue in self.queues:
            # The worker has the other copy: when it dies, who reads meets the end.
            queue._writer.close()  # type: ignore[attr-defined]

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        queue = self.queues[self.taken % len(self.queues)]
        reader = queue._reader  # type: ignore[attr-defined]
        ready = wait([reader, *(process.sentinel for process in self.processes)])
        if ready != [reader]:
            self._explain()
        try:
            item = queue.get()
        except (EOFError, OSError):  # it died while it sent
            self._explain()
        self.taken += 1
        return item

    def _explain(self) -> NoReturn:
        """Raise a RunError that says how the first dead worker ended."""
        by_sentinel = {process.sentinel: process for process in self.processes}
        for sentinel in wait(by_sentinel, SECONDS_TO_DIE):
            process = by_sentinel[sentinel]  # type: ignore[index]
            process.join()
            raise RunError(f"an augmentation worker {_how_it_ended(process.exitcode)}")
        raise RunError("an augmentation worker closed its queue; run again")

    def end(self) -> None:
        atexit.unregister(self.end)
        started = [process for process in self.processes if process.pid is not None]
        for process in started:
            process.kill()  # it holds nothing that must be put in order
        for process in started:
            process.join()
        for queue in self.queues:
            queue.close()


class NeverSet:
    """For batchgenerators' event that ends its workers: ours are killed, and share no lock."""

    def is_set(self) -> bool:
        """Always false."""
        return False

    def set(self) -> None:
        """The worker ends by itself after an exception; its end is noticed."""


def live_with_parent() -> None:
    """For a worker: leave signals to the parent, and end when it ends.

    A signal to the whole group, such as Ctrl-C, must not end workers while training stops in order.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


@contextmanager
def _interrupts_ignored() -> Iterator[None]:
    """Processes started in the block ignore Ctrl-C from their first moment.

    Elsewhere than in the main thread nothing is changed: they ignore it once they run.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _how_it_ended(exit_code: int | None) -> str:
    if exit_code is None or exit_code >= 0:
        return f"ended with exit status {exit_code}; its own message stands above, if it left one"
    try:
        name = signal.Signals(-exit_code).name
    except ValueError:
        name = f"signal {-exit_code}"
    if name == "SIGKILL":
        return (
            "was killed by the system (SIGKILL), most often because memory ran out; "
            "use fewer --processes"
        )
    return f"was ended by {name}; run again, and use fewer --processes if it comes back"


# For a cascade the label is (B, 2, X, Y, Z): the second one is its previous stage.
# For images left to the device there is `postponed` in place of data: a list of Postponed.
Batch = dict[str, Any]  # data (B, C, X, Y, Z) float32, label (B, X, Y, Z) int16
Failure = dict[str, str]  # what a worker sends in place of a batch


class BatchLoader:
    """Every `workers`-th batch of a run, from a first epoch and batch on, for ever.

    batchgenerators copies it into each worker process and tells it its number there; taking the
    workers in turn gives the batches in order, whatever their number.
    """

    def __init__(
        self,
        sampler: PatchSampler,
        transforms: tuple[Transform, ...],
        first: Position,
        workers: int,
        places: range | None = None,
        on_device: bool = False,
    ) -> None:
        self.sampler = sampler
        self.transforms = transforms
        self.first = first
        self.workers = max(1, workers)
        self.places = range(sampler.sampling.batch_size) if places is None else places
        self.on_device = on_device
        self.thread_id = 0
        self.made = 0
        self._augmenter: Augmenter | Postponer | None = None

    def set_thread_id(self, thread_id: int) -> None:
        """Called by batchgenerators in each worker."""
        import blosc2

        self.thread_id = thread_id
        blosc2.set_nthreads(1)
        live_with_parent()

    def __iter__(self) -> Iterator[Batch | Failure]:
        return self

    def __next__(self) -> Batch | Failure:
        """The next batch; an exception as text, which batchgenerators would print and forget."""
        index = self.first.batch + self.made * self.workers + self.thread_id
        self.made += 1
        epochs, batch = divmod(index, self.sampler.steps_per_epoch)
        at = replace(self.first, epoch=self.first.epoch + epochs, batch=batch)
        try:
            with _one_thread():
                return self._make(at)
        except Exception as error:
            return {"failed": _in_words(error, at), "traceback": traceback.format_exc()}

    def _make(self, at: Position) -> Batch:
        if self._augmenter is None:
            kind = Postponer if self.on_device else Augmenter
            self._augmenter = kind(self.transforms, self.sampler.sampling.patch_size)
        images: list[Any] = []
        labels = []
        for place in self.places:
            here = replace(at, place=place)
            drawn = self._augmenter.draw(here.rng().spawn(1)[0])
            patch = self.sampler.draw(here, drawn.box_size, drawn.border)
            image, label = drawn(*patch)
            images.append(image)
            labels.append(label)
        if self.on_device:
            return {"postponed": images, "label": np.stack(labels)}
        return {"data": np.stack(images), "label": np.stack(labels)}


@contextmanager
def batches(
    sampler: PatchSampler,
    transforms: tuple[Transform, ...],
    first: Position,
    workers: int,
    places: range | None = None,
    on_device: bool = False,
) -> Iterator[Iterator[Batch]]:
    """Open the stream that starts at `first`'s epoch and batch; its workers end with the block.

    Args:
        sampler: draws the patches.
        transforms: the plan's augmentation.
        first: seed, fold, epoch and batch to start from.
        workers: processes; 0 makes the batches in this process. The batches do not depend on it.
        places: the samples of each batch to make, all if None: each process of a distributed run
            makes its own, the same ones that a single process would.
        on_device: leave the images to `on_device.finish`.

    Raises:
        RunError: from the stream, when a batch cannot be made or a worker has died: why.
    """
    loader = BatchLoader(sampler, transforms, first, workers, places, on_device)
    if workers == 0:
        yield _checked(loader)
        return
    with worker_stream(loader, workers) as stream:
        yield _checked(stream)


def _checked(stream: Iterator[Batch | Failure]) -> Iterator[Batch]:
    """The batches, and the first failure as a RunError."""
    for item in stream:
        if "failed" in item:
            error = RunError(str(item["failed"]))
            error.add_note(str(item["traceback"]))  # shown by --debug
            raise error
        yield item


def _in_words(error: Exception, at: Position) -> str:
    if isinstance(error, AutosegError | RunError):
        return str(error)
    where = f"epoch {at.epoch + 1}, batch {at.batch + 1}"
    if isinstance(error, MemoryError):
        return f"not enough memory to make {where}; use fewer --processes"
    return (
        f"cannot make {where}: {error} ({type(error).__name__}; "
        "run again with --debug for the traceback)"
    )


@contextmanager
def _one_thread() -> Iterator[None]:
    """Compute on one core: a worker for each is there, and sums come out alike everywhere."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with _threadpools().limit(limits=1):
            yield
    finally:
        torch.set_num_threads(before)


@lru_cache(maxsize=1)
def _threadpools() -> ThreadpoolController:
    return ThreadpoolController()
