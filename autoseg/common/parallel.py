"""The same job for many items, in worker processes where that pays."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from itertools import islice
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

from autoseg.common.errors import ENDING, RunError, signal_name
from autoseg.common.machine import fitting, memory_of_this_process, why_killed
from autoseg.common.progress import Progress, progress, waited

Item = TypeVar("Item")
PreparedItem = TypeVar("PreparedItem")
ComputedItem = TypeVar("ComputedItem")
Result = TypeVar("Result")

WORKER_START_SECONDS = 3.0
SIGNAL_SECONDS = 0.5  # until a signal that ended a worker has reached this process as well
CLEAN_UP_SECONDS = 5.0  # for a worker to remove its unfinished files
UNGUARDED = 87  # exit status of a worker that would run the user's script once more


def check_guard() -> None:
    """End a worker process that runs the user's script, as it has no `if __name__ == ...`.

    Spawned processes import the script first. If that starts worker processes again, there would
    be no end of them.
    """
    if getattr(multiprocessing.current_process(), "_inheriting", False):  # still starting
        sys.exit(UNGUARDED)


def cause_of_death(exit_code: int | None) -> str:
    """How a worker process ended that should not have ended, and what to do."""
    if exit_code == UNGUARDED:
        script = getattr(sys.modules["__main__"], "__file__", "the script")
        return (
            f"would run {script} again, because it imports it; move what it does into a function "
            '`main`, and end it with these two lines:\nif __name__ == "__main__":\n    main()'
        )
    if exit_code is None or exit_code >= 0:
        return f"ended with exit status {exit_code}; see the output above for its error message"
    if (name := signal_name(-exit_code)) == "SIGKILL":
        return f"was killed (SIGKILL), {why_killed()}; use fewer --processes"
    return f"was ended by {name}; run again, with fewer --processes if it happens again"


def in_parallel(
    function: Callable[[Item], Result], items: Sequence[Item], processes: int, job: str
) -> list[Result]:
    """Return `[function(item) for item in items]`, with a progress bar.

    The first item runs in this process. Worker processes start only if the rest would take longer
    than starting them. They are spawned, so `function` and the items must be picklable.

    Raises:
        RunError: a worker process was killed.
    """
    check_guard()
    if not items:
        return []
    with progress(job, len(items)) as bar:
        started = time.perf_counter()
        results = [function(items[0])]
        bar.advance()
        rest = items[1:]
        expected = (time.perf_counter() - started) * len(rest)
        if processes > 1 and expected >= WORKER_START_SECONDS:
            each = memory_of_this_process()
            processes = fitting(min(processes, len(rest)), each, f"worker processes of {job!r}")
        if processes > 1 and expected >= WORKER_START_SECONDS:
            return results + _in_workers(function, rest, processes, job, bar)
        for item in rest:
            results.append(function(item))
            bar.advance()
        return results


def _in_workers(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    processes: int,
    job: str,
    bar: Progress,
) -> list[Result]:
    # Not a library: if a worker dies while others start, `concurrent.futures` may wait for ever;
    # loky takes three times as long to start. Here the end of a worker closes its connection.
    context = multiprocessing.get_context("spawn")
    waiting = iter(enumerate(items))
    results: dict[int, Result] = {}
    workers: dict[Connection, BaseProcess] = {}
    is_done = False
    try:
        for _ in range(processes):
            connection, other_end = context.Pipe()
            worker: BaseProcess = context.Process(target=_work, args=(function, other_end))
            worker.start()
            other_end.close()
            workers[connection] = worker
            connection.send(next(waiting))
        while len(results) < len(items):
            for ready in waited(partial(wait, list(workers)), f"a worker process ({job})"):
                assert isinstance(ready, Connection)
                index, result, error = ready.recv()
                if error is not None:
                    raise error
                results[index] = result
                bar.advance()
                if (task := next(waiting, None)) is not None:
                    ready.send(task)
        is_done = True
        return [results[index] for index in range(len(items))]
    except (EOFError, ConnectionError) as error:
        time.sleep(SIGNAL_SECONDS)
        codes = [each.exitcode for each in workers.values() if each.exitcode is not None]
        cause = cause_of_death(codes[0] if codes else None)
        raise RunError(f"{job}: a worker process {cause}") from error
    finally:
        for connection, each in workers.items():
            connection.close()  # an idle worker ends
            if not is_done:
                each.terminate()
        for each in workers.values():
            each.join(CLEAN_UP_SECONDS)
            each.kill()
            each.join(CLEAN_UP_SECONDS)


def _work(function: Callable[[Any], Any], connection: Connection) -> None:
    """Answer (index, item) with (index, result, error) until the other end is closed.

    Ctrl-C is left to the parent. Other signals and the end of the parent end the worker; after a
    signal it removes its unfinished files.
    """

    def end(number: int, _: object) -> None:
        raise SystemExit(128 + number)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for number in ENDING:
        signal.signal(number, end)
    exit_with_parent()
    with suppress(EOFError, ConnectionError):
        while True:
            index, item = connection.recv()
            result, failure = None, None
            try:
                result = function(item)
            except SystemExit:
                raise
            except BaseException as error:
                error.add_note(f"In a worker process:\n{traceback.format_exc()}")
                failure = error
            connection.send((index, result, failure))


def exit_with_parent() -> None:
    """In a worker process: end it when its parent ends, however that happens."""

    def watch(parent: BaseProcess) -> None:
        parent.join()
        os._exit(1)

    if (parent := multiprocessing.parent_process()) is not None:
        threading.Thread(target=watch, args=(parent,), daemon=True).start()


def overlap(
    items: Iterator[Item],
    prepare: Callable[[Item], PreparedItem],
    compute: Callable[[PreparedItem], ComputedItem],
    finish: Callable[[ComputedItem], Result],
) -> Iterator[Result]:
    """`finish(compute(prepare(item)))` of each item in order, three items at a time.

    While one item is computed in the calling thread, the next one is prepared in a second thread
    and the previous one is finished in a third. An item is taken from `items` (in the second
    thread) only when the previous one goes on to be computed: at most three are alive. An error in
    a stage ends the iteration once the other two stages have ended.
    """
    # Threads are enough: readers, compressors, numpy and torch release the interpreter lock.
    # Processes would have to send whole volumes to each other.
    preparing, finishing = ThreadPoolExecutor(1), ThreadPoolExecutor(1)

    def prepare_next() -> list[PreparedItem]:
        return [prepare(item) for item in islice(items, 1)]

    try:
        coming = preparing.submit(prepare_next)
        last: Future[Result] | None = None
        while found := _result(coming, "the next case to be read"):
            coming = preparing.submit(prepare_next)
            computed = compute(found.pop())
            if last is not None:
                yield _result(last, "a case to be written")
            last = finishing.submit(finish, computed)
            del computed
        if last is not None:
            yield _result(last, "a case to be written")
    finally:
        for stage in (preparing, finishing):
            stage.shutdown(cancel_futures=True)


def _result(coming: Future[Result], what: str) -> Result:
    waited(lambda seconds: futures.wait([coming], seconds).done, what)
    return coming.result()
