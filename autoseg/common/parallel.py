"""The same job for many items, in worker processes where cores and memory allow it and it pays.

Cores and memory are those of the machine or of its container, which is limited by control groups
(cgroups, version 1 or 2), and by those above its own.
"""

import math
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
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from autoseg.common.errors import ENDING, RunError, signal_name
from autoseg.common.files import TEXT
from autoseg.common.progress import Progress, progress, say, waited

PROC = Path("/proc")  # portable: without it, there are no control groups
GB = 2**30
QUOTAS = (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us"))  # versions 2 and 1
LIMITS = (
    ("memory.max", "memory.current", "inactive_file"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)
THREAD_LIMITS = (
    *("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"),
    "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS",
)
SYS = Path("/sys")  # portable: without it, no energy is known
KILLS = ("memory.events", "memory.oom_control")


def cores() -> int:
    """Cores for this process: of its affinity (taskset, Slurm), at most the quota of its container.

    Part of a core counts as one: `docker --cpus 1.5` gives 2, as in joblib.
    """
    found = [_affinity()]
    for group in _groups("cpu"):
        for files in QUOTAS:
            quota = [word for file in files for word in _read(group / file).split()]
            if quota and quota[0].isdecimal():  # not "max" or -1
                found.append(max(1, math.ceil(int(quota[0]) / int(quota[1]))))
    return min(found)


def _affinity() -> int:
    if hasattr(os, "sched_getaffinity"):  # not on macOS and Windows
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def limit_threads() -> None:
    """Limit the threads of libraries that are loaded from now on: they know no quotas."""
    if (count := cores()) < _affinity():
        for name in THREAD_LIMITS:
            os.environ.setdefault(name, str(count))


def energy_kwh() -> float | None:
    """What the processors of this machine have used (RAPL); None where they do not tell."""
    counters = SYS.glob("class/powercap/intel-rapl:?/energy_uj")
    found = [int(text) for path in counters if (text := _read(path))]  # often only root may read
    return sum(found) / 3.6e12 if found else None


def _psutil() -> Any:
    import psutil  # here: `--help` needs the cores only

    return psutil


def free_memory() -> int:
    """Bytes that are available to this process."""
    free = [limit - used for limit, used in _limits()]
    return min([int(_psutil().virtual_memory().available), *free])


def memory_limit() -> int | None:
    """The memory of its container in bytes; None without a limit below the machine's memory."""
    total = _psutil().virtual_memory().total
    return min((limit for limit, _ in _limits() if limit < total), default=None)


def used_by_others(seconds: float = 0.3) -> float:
    """The share of the machine's cores that is in use while this process waits some seconds."""
    return float(_psutil().cpu_percent(seconds)) / 100


def fitting(wanted: int, each: int, what: str) -> int:
    """As many processes as fit the free memory, at least one; fewer than `wanted` are told.

    Args:
        wanted: number of processes.
        each: bytes of one.
        what: they are, for the message.
    """
    free = free_memory()
    count = max(1, min(wanted, free // each))
    if count < wanted:
        sizes = f"each takes {each / GB:.2g} GB, and {free / GB:.2g} GB are free"
        say(f"{count} instead of {wanted} {what}: {sizes}")
    return count


def memory_of_this_process() -> int:
    """Bytes of memory that this process has had at its peak; elsewhere than on Linux, now."""
    peak = _read(PROC / "self/status").partition("VmHWM:")[2].split()
    return int(peak[0]) * 1024 if peak else int(_psutil().Process().memory_info().rss)


def _limits() -> Iterator[tuple[int, int]]:
    """Limit and use of each group; file caches, which the kernel drops, are not in use."""
    for group in _groups("memory"):
        for limit, use, cache in LIMITS:
            most, used = _read(group / limit).strip(), _read(group / use)
            if most.isdecimal() and used:
                yield int(most), int(used) - _entry(group / "memory.stat", cache)


def _groups(controller: str) -> Iterator[Path]:
    """The folder of this process's control group for `controller`, and of those above it."""
    entries = [line.split(":", 2)[1:] for line in _read(PROC / "self/cgroup").splitlines()]
    own = {name: path for names, path in entries for name in names.split(",")}
    for line in _read(PROC / "self/mountinfo").splitlines():
        mount, _, system = line.partition(" - ")
        kind, _, options = system.split(" ", 2)
        name = "" if kind == "cgroup2" else controller
        if name in own and (kind == "cgroup2" or controller in options.split(",")):
            _, _, _, top, point, *_ = mount.split(" ")
            path = PurePosixPath(own[name])
            path = path.relative_to(top) if path.is_relative_to(top) else PurePosixPath()
            yield from (Path(point, each) for each in (path, *path.parents))


def _kills() -> int:
    """Processes of the container that the kernel has killed for lack of memory."""
    return sum(_entry(group / file, "oom_kill") for group in _groups("memory") for file in KILLS)


def _entry(path: Path, key: str) -> int:
    """The number after a key in a file of keys and numbers; 0 without it."""
    return int(dict(line.split(" ", 1) for line in _read(path).splitlines()).get(key, 0))


def _read(path: Path) -> str:
    with suppress(OSError):
        return path.read_text(encoding="utf-8")
    return ""


KILLS_BEFORE = _kills()


def why_killed() -> str:
    """Why a process was killed: by the container's limit if the kernel says so, else a guess."""
    limit = memory_limit()
    if limit is not None and _kills() > KILLS_BEFORE:
        return f"by the kernel, as the container's memory limit of {limit / GB:.3g} GB was reached"
    return "most often because memory ran out"


Item = TypeVar("Item")
PreparedItem = TypeVar("PreparedItem")
ComputedItem = TypeVar("ComputedItem")
Result = TypeVar("Result")
Work = Callable[[Item], Result]

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
        return TEXT("unguarded", script=script)
    if exit_code is None or exit_code >= 0:
        return f"ended with exit status {exit_code}; see the output above for its error message"
    if (name := signal_name(-exit_code)) == "SIGKILL":
        return f"was killed (SIGKILL), {why_killed()}; use fewer --processes"
    return f"was ended by {name}; run again, with fewer --processes if it happens again"


def in_parallel(
    function: Work[Item, Result], items: Sequence[Item], processes: int, job: str
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
            if processes > 1:
                return results + _in_workers(function, rest, processes, job, bar)
        for item in rest:
            results.append(function(item))
            bar.advance()
        return results


def _in_workers(
    function: Work[Item, Result], items: Sequence[Item], processes: int, job: str, bar: Progress
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
