"""The cores and the memory that this process may use: of the machine, or of its container.

A container is limited by control groups (cgroups, version 1 or 2), and by those above its own.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any

from autoseg.common.progress import say

PROC = Path("/proc")  # portable: without it, there are no control groups
GB = 2**30
QUOTAS = (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us"))  # versions 2 and 1
LIMITS = (
    ("memory.max", "memory.current", "inactive_file"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)
THREAD_LIMITS = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS",
)
RAPL = Path("/sys/class/powercap")  # counters of energy, on Linux
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


def peak_memory_gb() -> float | None:
    """The largest memory of this process so far; None where the system does not tell."""
    with suppress(OSError, ValueError, IndexError):  # there is no such file but on Linux
        kilobytes = (PROC / "self/status").read_text().split("VmHWM:")[1].split()[0]
        return int(kilobytes) * 1024 / 1e9
    return None


def energy_kwh() -> float | None:
    """What the processors of this machine have used (RAPL); None where they do not tell."""
    try:
        found = [int(path.read_text()) for path in RAPL.glob("intel-rapl:?/energy_uj")]
    except (OSError, ValueError):  # often only root may read it
        return None
    return sum(found) / 3.6e12 if found else None
