"""The stream of training batches, made in worker processes or in this one."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from threadpoolctl import ThreadpoolController

from autoseg.augmentation.postponed import Postponer
from autoseg.augmentation.sampler import PatchSampler, Position
from autoseg.augmentation.transforms import Augmenter
from autoseg.augmentation.workers import live_with_parent, worker_stream
from autoseg.common.errors import AutosegError, RunError
from autoseg.plan.augmentation import Transform

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
