"""The same job for many items, in worker processes where that pays."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from autoseg.common.errors import RunError
from autoseg.common.progress import Progress, progress

Item = TypeVar("Item")
Result = TypeVar("Result")

WORKER_START_SECONDS = 3.0
SECONDS_OF_SILENCE = 2.0


def in_parallel(
    function: Callable[[Item], Result], items: Sequence[Item], processes: int, job: str
) -> list[Result]:
    """`[function(item) for item in items]`, with a progress bar.

    The first item runs here; worker processes are started only if the rest would take longer than
    starting them. They are spawned, so `function` and the items must be picklable.

    Raises:
        RunError: a worker process was killed.
    """
    if not items:
        return []
    with progress(job, len(items)) as bar:
        started = time.perf_counter()
        first = function(items[0])
        bar.advance()
        rest = items[1:]
        expected = (time.perf_counter() - started) * len(rest)
        if processes == 1 or expected < WORKER_START_SECONDS:
            results = [first]
            for item in rest:
                results.append(function(item))
                bar.advance()
            return results
        return [first, *_in_pool(function, rest, min(processes, len(rest)), job, bar)]


def _in_pool(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    processes: int,
    job: str,
    bar: Progress,
) -> list[Result]:
    others = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn"))
    # All workers at once, as with "fork": the pool's thread goes through its list of workers when
    # one dies, and fails if another is being added just then.
    pool._safe_to_dynamically_spawn_children = False  # type: ignore[attr-defined]
    try:
        futures = _submitted(pool, function, items)
        for done in _as_completed(futures, pool):
            done.result()
            bar.advance()
        return [future.result() for future in futures]
    except BrokenProcessPool as error:
        for worker in set(multiprocessing.active_children()) - others:
            worker.kill()  # the pool may wait for one that was starting while another died
            worker.join()
        raise RunError(
            f"{job}: a worker process was killed, most often because memory ran out; "
            "run again with fewer --processes"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _submitted(
    pool: ProcessPoolExecutor, function: Callable[[Item], Result], items: Sequence[Item]
) -> list[Future[Result]]:
    try:
        return [pool.submit(function, item) for item in items]
    except OSError:  # a worker is started into a pool that was closed as another worker died
        pool.submit(_nothing)  # a broken pool says so
        raise


def _as_completed(
    futures: Sequence[Future[Result]], pool: ProcessPoolExecutor
) -> Iterator[Future[Result]]:
    """The futures as they are done.

    A future that is handed in at the moment in which a worker dies may be forgotten by the pool, so
    a pool that has been silent for a while is given something to do: a broken one refuses it.

    Raises:
        BrokenProcessPool: a worker died.
    """
    waiting = set(futures)
    while waiting:
        done, waiting = wait(waiting, SECONDS_OF_SILENCE, FIRST_COMPLETED)
        yield from done
        if not done:
            pool.submit(_nothing)


def _nothing() -> None:
    """What every worker can do."""
