"""Cores and memory of containers: control groups in a made-up /proc, and real ones."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from autoseg.common import parallel as machine
from autoseg.common.parallel import cores, fitting, free_memory, memory_limit, why_killed

GB = 2**30
V1, V2 = "1", "2"
MANY = 64  # cores of the made-up machine


@pytest.fixture(autouse=True)
def big_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_affinity", lambda: MANY)


def contained(
    root: Path, monkeypatch: pytest.MonkeyPatch, version: str, own: str, top: str = "/"
) -> Path:
    """A /proc of a process in the group `own`, whose file system shows the groups below `top`."""
    proc, groups = root / "proc", root / "cgroup"
    (proc / "self").mkdir(parents=True)
    groups.mkdir()
    names = {V2: [("0", "")], V1: [("5", "cpu,cpuacct"), ("4", "memory"), ("0", "")]}[version]
    lines = [f"{number}:{name}:{own}" for number, name in names]
    (proc / "self" / "cgroup").write_text("\n".join(lines) + "\n")
    kinds = {V2: [("cgroup2", "rw,nsdelegate")], V1: [("cgroup", "rw,cpu,cpuacct")]}[version]
    if version == V1:
        kinds.append(("cgroup", "rw,memory"))
    mounts = [
        f"{number} 24 0:{number} {top} {groups} rw,nosuid shared:9 - {kind} cgroup {options}"
        for number, (kind, options) in enumerate(kinds, 30)
    ]
    other = "23 1 8:1 / / rw,relatime - ext4 /dev/sda1 rw"
    (proc / "self" / "mountinfo").write_text("\n".join([other, *mounts]) + "\n")
    monkeypatch.setattr(machine, "PROC", proc)
    return groups


def fill(group: Path, **files: str) -> None:
    group.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (group / name.replace("__", ".")).write_text(text + "\n")


def test_without_groups_the_affinity_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "PROC", tmp_path / "nothing")
    assert cores() == MANY
    assert memory_limit() is None
    assert 0 < free_memory() <= psutil.virtual_memory().total


@pytest.mark.parametrize(
    ("quota", "expected"),
    [("max 100000", MANY), ("150000 100000", 2), ("10000 100000", 1), ("800000 100000", 8)],
)
def test_the_quota_of_version_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quota: str, expected: int
) -> None:
    fill(contained(tmp_path, monkeypatch, V2, "/"), cpu__max=quota)
    assert cores() == expected


@pytest.mark.parametrize(("quota", "expected"), [("-1", MANY), ("150000", 2), ("400000", 4)])
def test_the_quota_of_version_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quota: str, expected: int
) -> None:
    groups = contained(tmp_path, monkeypatch, V1, "/docker/abc", top="/docker/abc")
    fill(groups, cpu__cfs_quota_us=quota, cpu__cfs_period_us="100000")
    assert cores() == expected


@pytest.mark.parametrize("limited", ["slurm", "slurm/job_7", "slurm/job_7/step_0"])
def test_a_limit_of_any_group_above_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limited: str
) -> None:
    groups = contained(tmp_path, monkeypatch, V2, "/slurm/job_7/step_0")
    for name in ("slurm", "slurm/job_7", "slurm/job_7/step_0"):
        fill(groups / name, cpu__max="max 100000", memory__max="max", memory__current="5")
    fill(
        groups / limited,
        cpu__max="300000 100000",
        memory__max=str(2 * GB),
        memory__current=str(GB),
        memory__stat=f"anon 1\ninactive_file {GB // 2}\nactive_file 7",
    )
    assert cores() == 3
    assert memory_limit() == 2 * GB
    assert free_memory() == GB + GB // 2  # the kernel drops file caches


def test_the_memory_of_version_1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    groups = contained(tmp_path, monkeypatch, V1, "/docker/abc")
    fill(groups, memory__limit_in_bytes="9223372036854771712", memory__usage_in_bytes="99")
    assert memory_limit() is None
    fill(
        groups / "docker" / "abc",
        memory__limit_in_bytes=str(GB),
        memory__usage_in_bytes=str(GB // 2),
        memory__stat="total_inactive_file 1000\ninactive_file 7",
    )
    assert memory_limit() == GB
    assert free_memory() == GB // 2 + 1000


def test_a_kill_of_the_kernel_is_named_with_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    groups = contained(tmp_path, monkeypatch, V2, "/")
    fill(groups, memory__max=str(GB), memory__current="1", memory__events="oom 3\noom_kill 2")
    monkeypatch.setattr(machine, "KILLS_BEFORE", 2)
    assert "1 GB" not in why_killed()
    fill(groups, memory__events="oom 3\noom_kill 3")
    assert "1 GB" in why_killed()


def test_as_many_processes_as_fit(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(machine, "free_memory", lambda: 4 * GB)
    assert fitting(4, GB, "workers") == 4
    assert capsys.readouterr().err == ""
    assert fitting(12, GB, "workers") == 4
    assert "4 instead of 12 workers" in capsys.readouterr().err
    assert fitting(12, 9 * GB, "workers") == 1


# On this machine.

FIGURES = """
import json, os
from autoseg.common import parallel as machine
machine.limit_threads()
print(json.dumps([machine.cores(), machine.memory_limit(), os.environ.get("OMP_NUM_THREADS")]))
"""


def figures(*before: str) -> list[int | str | None]:
    environment = {k: v for k, v in os.environ.items() if k not in machine.THREAD_LIMITS}
    done = subprocess.run(
        [*before, sys.executable, "-c", FIGURES],
        capture_output=True,
        text=True,
        check=True,
        env=environment,
    )
    found: list[int | str | None] = json.loads(done.stdout)
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="taskset is Linux's")
def test_taskset() -> None:
    core = min(os.sched_getaffinity(0))
    assert figures("taskset", "-c", str(core))[0] == 1


@pytest.fixture
def small_group() -> Iterator[list[str]]:
    """The start of a command that runs in a group of 1.5 GB and half a core."""
    made = []
    try:
        for kind, limits in (
            ("memory", {"memory.limit_in_bytes": str(3 * GB // 2)}),
            ("cpu", {"cpu.cfs_quota_us": "50000"}),
        ):
            group = Path("/sys/fs/cgroup", kind, f"autoseg-test-{os.getpid()}")
            group.mkdir()
            made.append(group)
            for name, value in limits.items():
                (group / name).write_text(value)
    except OSError as error:
        for group in made:
            group.rmdir()
        pytest.skip(f"control groups of version 1 cannot be made here: {error}")
    enter = "; ".join(f"echo $$ > {group}/cgroup.procs" for group in made)
    yield ["sh", "-c", f'{enter}; exec "$@"', "sh"]
    for group in made:
        for _ in range(100):  # until the last killed process has left it
            with suppress(OSError):
                group.rmdir()
                break
            time.sleep(0.1)


def test_a_real_group(small_group: list[str]) -> None:
    assert figures(*small_group) == [1, 3 * GB // 2, "1" if os.cpu_count() != 1 else None]


KILLED = """
from autoseg.common import parallel
parallel.WORKER_START_SECONDS = 0
def hold(size):
    return len(bytearray(size))
if __name__ == "__main__":
    parallel.in_parallel(hold, [1, 4 << 30, 4 << 30], 2, "holding")
"""


def test_a_worker_that_the_kernel_kills_is_named_with_the_limit(
    small_group: list[str], tmp_path: Path
) -> None:
    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    done = subprocess.run(
        [*small_group, sys.executable, script], capture_output=True, text=True, check=False
    )
    assert "SIGKILL" in done.stderr
    assert "limit of 1.5 GB" in done.stderr
