"""A real Slurm on this one machine, for the tests: munged, slurmctld and slurmd in a folder.

It has two nodes: this machine, and this machine again as `localhost`.
"""

from __future__ import annotations

import os
import platform
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

DAEMONS = ("munged", "slurmctld", "slurmd")
COMMANDS = ("sbatch", "srun", "squeue", "scontrol", "sinfo")
CORES = 2

# Jobs of `high` put those of `low` back into the queue. A job that was put back waits as long as a
# credential is valid before it starts again: cred_expire, 120 s where it is less than 5.
CONFIGURATION = """\
ClusterName=autoseg
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,sched_interval=1,batch_sched_delay=0,sched_min_interval=100000
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
MpiDefault=none
ReturnToService=2
SlurmctldPort={ports[0]}
NodeName={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs={cores} State=UNKNOWN
NodeName=localhost NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs={cores} State=UNKNOWN
PartitionName=low Nodes={host} Default=YES PriorityTier=1 MaxTime=10 State=UP
PartitionName=high Nodes={host} PriorityTier=2 MaxTime=10 State=UP
PartitionName=both Nodes={host},localhost PriorityTier=1 MaxTime=10 State=UP
"""


def why_not() -> str | None:
    """Why Slurm cannot be started here; None if it can."""
    if missing := [name for name in (*DAEMONS, *COMMANDS) if _find(name) is None]:
        return f"{', '.join(missing)} not installed (Debian: slurmctld slurmd slurm-client munge)"
    return None if os.getuid() == 0 else "only root can start Slurm's daemons"


def _find(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")


@dataclass(frozen=True)
class OneBox:
    """A running Slurm: its commands read `configuration`."""

    configuration: Path

    def run(self, *command: str) -> str:
        """Run one of Slurm's commands; returns what it prints."""
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 0, f"{command}: {done.stderr}\n{self.logs()}"
        return done.stdout

    def wait_until(self, what: Callable[[], bool], seconds: float = 240) -> None:
        """Look again and again, but not for ever."""
        end = time.monotonic() + seconds
        while not what():
            assert time.monotonic() < end, f"in vain\n{self.run('squeue', '--array')}{self.logs()}"
            time.sleep(0.2)

    def is_idle(self) -> bool:
        """Are all jobs over?"""
        return not self.run("squeue", "--noheader", "--array").strip()

    def logs(self) -> str:
        """The end of what the daemons wrote."""
        files = sorted(self.configuration.parent.glob("*.log"))
        return "\n".join(f"{file.name}:\n{file.read_text()[-2000:]}" for file in files)


@contextmanager
def started(folder: Path) -> Iterator[OneBox]:
    """Start Slurm in a folder, for the block; its environment variables are the caller's affair."""
    with TemporaryDirectory(prefix="slurm") as near:  # the paths of sockets have few characters
        short = Path(near, "s")
        short.symlink_to(folder.resolve(), target_is_directory=True)
        yield from _started(short)


def _started(folder: Path) -> Iterator[OneBox]:
    configuration = folder / "slurm.conf"
    host = platform.node().partition(".")[0]
    text = CONFIGURATION.format(folder=folder, host=host, ports=_free_ports(3), cores=CORES)
    configuration.write_text(text)
    for name in ("state", f"spool.{host}", "spool.localhost"):
        (folder / name).mkdir()
    key = folder / "munge.key"
    key.write_bytes(secrets.token_bytes(128))
    key.chmod(0o400)
    munge = [f"--{name}={folder}/munge.{name.partition('-')[0]}" for name in MUNGE_FILES]
    daemons: list[subprocess.Popen[bytes]] = []
    try:
        daemons.append(_start("munged", "--foreground", "--force", f"--key-file={key}", *munge))
        _wait_for(folder / "munge.socket")
        daemons.append(_start("slurmctld", "-D", "-f", str(configuration)))
        for node in (host, "localhost"):
            daemons.append(_start("slurmd", "-D", "-f", str(configuration), "-N", node))
        box = OneBox(configuration)
        listed = ("sinfo", "--noheader", "--Node", "--partition=both", "--format=%T")
        box.wait_until(lambda: box.run(*listed).split() == ["idle", "idle"])
        yield box
    finally:
        for daemon in reversed(daemons):
            daemon.terminate()
            try:
                daemon.wait(20)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()


MUNGE_FILES = ("socket", "pid-file", "log-file", "seed-file")


def _start(name: str, *arguments: str) -> subprocess.Popen[bytes]:
    program = _find(name)
    assert program is not None
    quiet = subprocess.DEVNULL
    return subprocess.Popen([program, *arguments], stdin=quiet, stdout=quiet, stderr=quiet)


def _wait_for(path: Path) -> None:
    end = time.monotonic() + 20
    while not path.exists():
        assert time.monotonic() < end, f"{path} does not come up"
        time.sleep(0.05)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports
