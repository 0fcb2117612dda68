"""The runs of studies on this machine: a queue, and one process per run, a few at a time."""

import os
import subprocess
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

from rich.console import Console
from rich.live import Live

from autoseg.common.errors import ENDING, signal_name
from autoseg.common.parallel import THREAD_LIMITS, cores, why_killed
from autoseg.common.progress import counted, say, waited
from autoseg.experiments.attempt import IN_USE, RunOrder, make_orders
from autoseg.experiments.results import gather
from autoseg.experiments.runs import StudyRun, prepare_plans
from autoseg.experiments.status import held_by, in_short, is_finished, read_record, status_of, table
from autoseg.experiments.study import TEXT, Study
from autoseg.workflow.workspace import Workspace

COMMAND = (sys.executable, "-m", "autoseg.experiments.attempt")
SECONDS_BETWEEN_LOOKS = 1.0


def run_studies(
    studies: Sequence[Study], workspace: Workspace, jobs: int, processes: int, device: str | None
) -> dict[StudyRun, Path]:
    """Carry out all missing runs of the studies on this machine, and gather the results.

    Args:
        studies: they share their runs.
        workspace: where data, models and results are.
        jobs: runs at a time; each has its share of the cores and, of several GPUs, its own.
        processes: worker processes of all runs together.
        device: `cpu`, `cuda` or one GPU; None for the best ones.

    Returns:
        the failed runs, with their log files.

    Raises:
        AutosegError: the studies contradict each other, a plan, or the data.
    """
    prepare_plans(studies, workspace, processes, device)
    orders = make_orders(studies, workspace, max(1, processes // jobs), device)
    threads = choose_threads(list(orders), workspace, jobs)
    try:
        with _live_table(list(orders), workspace) as show:
            failed = run_all(list(orders.values()), workspace, jobs, threads, show)
    finally:
        for study in studies:
            gather(study, workspace)
    return {run: orders[run].log for run in failed}


def choose_threads(runs: Sequence[StudyRun], workspace: Workspace, jobs: int) -> int:
    """Computing threads of each run: those of earlier runs, as they change the last digits."""
    share = max(1, cores() // jobs)
    records = [read_record(run.folder(workspace)) for run in runs]
    used = Counter(record.threads for record in records if record and record.threads)
    threads = used.most_common(1)[0][0] if used else share
    if threads != share or len(used) > 1:
        say(TEXT("threads", threads=counted(threads, "thread")))
    return threads


def run_all(
    orders: Sequence[RunOrder],
    workspace: Workspace,
    jobs: int,
    threads: int,
    show: Callable[[], None] = lambda: None,
) -> dict[StudyRun, str]:
    """Carry out the unfinished runs, several at a time; a run that fails does not stop the others.

    Runs that other processes work on are waited for. When this function is left, by whatever
    exception, all its processes have saved their state and ended; a second Ctrl-C kills them.

    Args:
        orders: the runs, in sequence.
        workspace: where they are.
        jobs: how many at a time.
        threads: computing threads of each.
        show: called about once a second.

    Returns:
        the failed runs, with the reasons.
    """
    unfinished = deque(order for order in orders if not is_finished(order.run, workspace))
    todo = RunQueue(workspace, len(orders), unfinished, done=len(orders) - len(unfinished))
    running: dict[int, RunProcess] = {}
    try:
        while running or not todo.is_empty:
            todo.update_held()
            for slot in sorted({*range(jobs)} - running.keys()):
                if (order := todo.next_free()) is not None:
                    order = order.model_copy(update={"slot": slot})
                    running[slot] = RunProcess(order, threads)
            show()
            time.sleep(SECONDS_BETWEEN_LOOKS)
            for process in list(running.values()):
                if process.has_ended():
                    todo.note(process.order, process.outcome)
                    del running[process.order.slot]
        show()
        return todo.failed
    finally:
        for process in running.values():
            process.stop()
        try:
            for process in running.values():
                process.wait()
        except BaseException:
            for process in running.values():
                process.process.kill()
            raise


class Outcome(NamedTuple):
    """How the process of a run ended; `elsewhere` means that another process works on the run."""

    state: Literal["done", "failed", "stopped", "elsewhere"]
    reason: str = ""


class RunProcess:
    """A process that carries out one order, and appends its output to the log.

    Args:
        order: the run.
        threads: limit of its computing threads.
    """

    def __init__(self, order: RunOrder, threads: int) -> None:
        self.order = order
        order.log.parent.mkdir(parents=True, exist_ok=True)
        environment = os.environ | dict.fromkeys(THREAD_LIMITS, str(threads))
        with order.log.open("ab") as log:
            self.process = subprocess.Popen(
                COMMAND,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=environment,
                start_new_session=True,  # Ctrl-C reaches the parent only, which stops each process
            )
        assert self.process.stdin is not None
        self.input = self.process.stdin
        with suppress(OSError):  # if it has died already, its exit status says so
            self.input.write(f"{order.model_dump_json()}\n".encode())
            self.input.flush()

    def has_ended(self, seconds: float = 0.0) -> bool:
        """Whether the process ends within some seconds."""
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(seconds)
        return self.process.returncode is not None

    def stop(self) -> None:
        """Ask the process to save its state and end."""
        with suppress(OSError):
            self.input.close()

    def wait(self) -> None:
        """Wait until the process has ended."""
        waited(self.has_ended, f"{self.order.run} to save its state; Ctrl-C kills it")

    @property
    def outcome(self) -> Outcome:
        """How the process ended: by its exit status and the record of its attempt."""
        status = self.process.returncode
        if status == 0:
            return Outcome("done")
        if status == IN_USE:
            return Outcome("elsewhere", "another process works on it")
        record = read_record(self.order.run.folder(Workspace(self.order.workspace)))
        recorded = record.error if record is not None and record.pid == self.process.pid else None
        stopped = status in {code for each in ENDING for code in (128 + each, -each)}
        return Outcome("stopped" if stopped else "failed", recorded or describe_exit(status))


def describe_exit(status: int) -> str:
    """Describe the exit status of a process that recorded no reason."""
    if status >= 0:
        return f"its process ended with exit status {status}"
    hint = f", {why_killed()}" if signal_name(-status) == "SIGKILL" else ""
    return f"its process was ended by {signal_name(-status)}{hint}"


@dataclass
class RunQueue:
    """The runs that are not carried out yet, and the outcome of the others.

    Attributes:
        total: number of runs, finished ones included.
        waiting: runs to start.
        held: runs that another process works on.
        failed: run -> reason.
        done: number of finished runs.
    """

    workspace: Workspace
    total: int
    waiting: deque[RunOrder]
    held: list[RunOrder] = field(default_factory=list)
    failed: dict[StudyRun, str] = field(default_factory=dict)
    done: int = 0

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing left to start or to wait for."""
        return not (self.waiting or self.held)

    def next_free(self) -> RunOrder | None:
        """Take the next run that no other process works on."""
        while self.waiting:
            order = self.waiting.popleft()
            if (holder := held_by(order.run, self.workspace)) is None:
                return order
            self._hold(order, f"{holder} works on it")
        return None

    def update_held(self) -> None:
        """Sort the runs that their processes have released: finished, or to be started here."""
        for order in [each for each in self.held if not held_by(each.run, self.workspace)]:
            self.held.remove(order)
            if is_finished(order.run, self.workspace):
                self.done += 1
            else:
                self.waiting.append(order)

    def note(self, order: RunOrder, outcome: Outcome) -> None:
        """Note and print how a run ended."""
        state, reason = outcome
        if state == "elsewhere":
            self._hold(order, reason)
            return
        self.done += state == "done"
        if state != "done":
            self.failed[order.run] = reason
        left = self.total - self.done - len(self.failed)
        text = f"{state}: {reason}" if reason else state
        say(f"{order.run}: {text} ({self.done} of {self.total} done, {left} to go)")

    def _hold(self, order: RunOrder, reason: str) -> None:
        self.held.append(order)
        say(f"{order.run}: {reason}; waiting for it")


@contextmanager
def _live_table(runs: Sequence[StudyRun], workspace: Workspace) -> Iterator[Callable[[], None]]:
    """On a terminal, show the active and failed runs; yields a function that updates the table."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda: None
        return

    def show() -> None:
        statuses = [status_of(run, workspace) for run in runs]
        shown = [each for each in statuses if each.state in ("running", "failed")]
        live.update(table(shown, in_short(statuses)), refresh=True)

    with Live(console=console, auto_refresh=False) as live:
        yield show
