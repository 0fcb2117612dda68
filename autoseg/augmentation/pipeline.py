"""The stream of training batches, made by batchgenerators' worker processes."""

from __future__ import annotations

import multiprocessing.connection
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autoseg.augmentation.sampler import PatchSampler, Position
from autoseg.augmentation.transforms import Augmenter
from autoseg.errors import RunError
from autoseg.planning.transforms import Transform

Batch = dict[str, NDArray[Any]]  # data (B, C, X, Y, Z) float32, label (B, X, Y, Z) int16


class BatchLoader:
    """Every `workers`-th batch of a run, from a first epoch on, for ever.

    batchgenerators copies it into each worker process and tells it its number there; taking the
    workers in turn gives the batches in order, whatever their number.
    """

    def __init__(
        self,
        sampler: PatchSampler,
        transforms: tuple[Transform, ...],
        first: Position,
        workers: int,
    ) -> None:
        self.sampler = sampler
        self.transforms = transforms
        self.first = first
        self.workers = max(1, workers)
        self.thread_id = 0
        self.made = 0
        self._augmenter: Augmenter | None = None

    def set_thread_id(self, thread_id: int) -> None:
        """Called by batchgenerators in each worker."""
        from threadpoolctl import threadpool_limits

        self.thread_id = thread_id
        threadpool_limits(limits=1)
        threading.Thread(target=_end_with_parent, daemon=True).start()

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        if self._augmenter is None:
            self._augmenter = Augmenter(self.transforms, self.sampler.sampling.patch_size)
        index = self.made * self.workers + self.thread_id
        self.made += 1
        epochs, batch = divmod(index, self.sampler.steps_per_epoch)
        at = replace(self.first, epoch=self.first.epoch + epochs, batch=batch)
        return self._make(at)

    def _make(self, at: Position) -> Batch:
        assert self._augmenter is not None
        images, labels = [], []
        for place in range(self.sampler.sampling.batch_size):
            here = replace(at, place=place)
            patch = self.sampler.draw(here, self._augmenter.draw_size)
            image, label = self._augmenter(*patch, here.rng().spawn(1)[0])
            images.append(image)
            labels.append(label)
        return {"data": np.stack(images), "label": np.stack(labels)}


def _end_with_parent() -> None:
    """End this worker when the training process was killed and could not end it."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


@contextmanager
def batches(
    sampler: PatchSampler, transforms: tuple[Transform, ...], first: Position, workers: int
) -> Iterator[Iterator[Batch]]:
    """Open the stream that starts at `first`'s epoch; its workers end with the block.

    Args:
        sampler: draws the patches.
        transforms: the plan's augmentation.
        first: seed, fold and epoch to start from.
        workers: processes; 0 makes the batches in this process. The batches do not depend on it.
    """
    loader = BatchLoader(sampler, transforms, first, workers)
    if workers == 0:
        yield loader
        return
    from batchgenerators.dataloading.multi_threaded_augmenter import MultiThreadedAugmenter

    stream = MultiThreadedAugmenter(
        loader, None, workers, num_cached_per_queue=2, seeds=list(range(workers)), wait_time=0.005
    )
    stream._start()
    done = threading.Event()
    threading.Thread(target=_end_with_worker, args=(stream, done), daemon=True).start()
    try:
        yield _watched(stream)
    finally:
        done.set()
        stream._finish()


def _end_with_worker(stream: Any, done: threading.Event) -> None:
    """When a worker dies before the stream is done, end the others and the stream.

    batchgenerators looks for dead workers only between two batches: where the system killed one in
    the midst of sending a batch, it would wait for the other half for ever.
    """
    workers, queues = list(stream._processes), list(stream._queues)
    multiprocessing.connection.wait([worker.sentinel for worker in workers])
    if done.is_set():
        return
    for worker in workers:
        worker.kill()
    for queue in queues:
        queue._writer.close()  # ours was the last: whoever reads meets the end
    stream.abort_event.set()


def _watched(stream: Any) -> Iterator[Batch]:
    """The stream, with a dead worker explained."""
    while True:
        try:
            yield next(stream)
        except RuntimeError as error:
            raise RunError(
                "an augmentation worker ended; its own message stands above. With no message there "
                "the system killed it, most often because memory ran out: use fewer --processes"
            ) from error
