"""The same job for many items, in worker processes where that pays."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from autoseg.errors import RunError
from autoseg.progress import Progress, progress

Item = TypeVar("Item")
Result = TypeVar("Result")

WORKER_START_SECONDS = 3.0


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
    pool = ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn"))
    try:
        futures = [pool.submit(function, item) for item in items]
        for done in as_completed(futures):
            done.result()
            bar.advance()
        return [future.result() for future in futures]
    except BrokenProcessPool as error:
        raise RunError(
            f"{job}: a worker process was killed, most often because memory ran out; "
            "run again with fewer --processes"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)
