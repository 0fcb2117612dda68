"""batchgenerators' worker processes, watched: none dies unnoticed, hangs, or outlives its stream.

Each worker has a queue of its own and shares no lock with the others, so that it can be killed at
any moment. batchgenerators' own receiving end shares locks and waits for what a dead worker has
begun to send; this one waits for a batch or for a death.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import wait
from typing import Any, NoReturn, Protocol

from autoseg.common.errors import RunError

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
