"""The runs of a study on this machine: a queue, and a few worker processes side by side."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Literal, NamedTuple, TextIO

from autoseg.common.errors import AutosegError, InUse, Stopped
from autoseg.common.progress import say
from autoseg.experiments.attempt import Order, _logs, order_for
from autoseg.experiments.results import gather
from autoseg.experiments.runs import StudyRun, prepare_plans
from autoseg.experiments.status import in_short, is_finished, is_held, status_of, table
from autoseg.experiments.study import Study
from autoseg.workflow.workspace import Workspace

if TYPE_CHECKING:
    from autoseg.experiments.attempt import Order


# A process that does one run after the other, as another process tells it.
#
# python -m autoseg.experiments.local
#
# Orders come as lines of JSON on standard input, answers go as lines of JSON to standard output;
# what a run prints goes to its log file. So importing torch is paid once, and what a run does to
# its process, such as being killed for its memory, stays in this one. When the other process
# ends, by whatever means, the run saves its state and this process ends, too.

Ended = Literal["done", "failed", "stopped", "elsewhere"]
STOPPED_STATUS = 128 + signal.SIGTERM


@dataclass(frozen=True)
class Answer:
    """How a run ended, and why; `elsewhere` means that another process works on it."""

    state: Ended
    text: str = ""

    def to_line(self) -> str:
        """As it is sent."""
        return json.dumps(asdict(self)) + "\n"

    @staticmethod
    def of(line: str) -> Answer:
        """Read what was sent."""
        return Answer(**json.loads(line))


def main() -> int:
    """Do what comes in until nothing more comes; returns the exit status."""
    import multiprocessing

    multiprocessing.set_start_method("spawn", force=True)
    _take_signals()
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # nothing else may print among the answers
    try:
        for order in _orders(sys.stdin):
            answers.write(_do(order).to_line())
            answers.flush()
    except (Stopped, BrokenPipeError):
        return STOPPED_STATUS
    return 0


def _take_signals() -> None:
    """Ctrl-C and what a cluster sends are for the other process to judge."""
    for name in ("SIGINT", "SIGUSR1", "SIGUSR2"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    _stop_at_sigterm()


def _stop_at_sigterm() -> None:
    """The first SIGTERM from now on stops in order; more of them must not disturb that."""

    def stop(number: int, _: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise Stopped("stopped by SIGTERM; what was finished is kept", number)

    signal.signal(signal.SIGTERM, stop)


def _orders(lines: TextIO) -> Iterator[Order]:
    """The orders as they come; when no more can come, SIGTERM ends what this process does."""
    from autoseg.experiments.attempt import Order

    inbox: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    busy = threading.Event()

    def receive() -> None:
        for line in lines:
            inbox.put(line)
        inbox.put(None)
        if busy.is_set():
            os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=receive, daemon=True).start()
    while (line := inbox.get()) is not None:
        busy.set()
        yield Order.model_validate_json(line)
        busy.clear()


def _do(order: Order) -> Answer:
    from autoseg.experiments.attempt import attempt

    _stop_at_sigterm()
    with _printing_to(Path(order.log)):
        print(f"---- {order.run}, {datetime.now():%Y-%m-%d %H:%M:%S}", file=sys.stderr)
        try:
            attempt(order)
        except InUse as error:
            return Answer("elsewhere", str(error))
        except Stopped as error:
            print(f"stopped: {error}", file=sys.stderr)
            return Answer("stopped", str(error))
        except Exception as error:
            if isinstance(error, AutosegError):
                print(f"error: {error}", file=sys.stderr)
            else:
                traceback.print_exc()
            return Answer("failed", str(error) or type(error).__name__)
    return Answer("done")


@contextmanager
def _printing_to(log: Path) -> Iterator[None]:
    """Whatever this process and its children print in the block goes to the log file."""
    log.parent.mkdir(parents=True, exist_ok=True)
    before = os.dup(2)
    with log.open("a", encoding="utf-8") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        try:
            yield
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os.dup2(before, 1)
            os.dup2(before, 2)
            os.close(before)


if __name__ == "__main__":
    raise SystemExit(main())


# A worker process from outside: give it a run, hear how it ended, stop it, start it anew.

ITK_THREADS = "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"
COMMAND = (sys.executable, "-m", "autoseg.experiments.local")


class Event(NamedTuple):
    """A run of this slot has ended."""

    slot: int
    answer: Answer


class Hand:
    """One worker process at a time: a new one after it has died.

    Args:
        slot: its number.
        threads: how many its computing may take.
        events: where to put how its runs ended.
    """

    def __init__(self, slot: int, threads: int, events: queue.SimpleQueue[Event]) -> None:
        self.slot, self.threads, self.events = slot, threads, events
        self.process: subprocess.Popen[str] | None = None
        self._reader: threading.Thread | None = None
        self._lock = threading.Lock()  # of the two below, which the reader changes, too
        self._is_open = False
        self._owes_answer = False

    def give(self, order: Order) -> None:
        """Let the worker do a run; it must be idle. How the run ends will be an event."""
        with self._lock:
            if not self._is_open:
                self._start()
            self._owes_answer = True
        stdin = self.process.stdin if self.process is not None else None
        assert stdin is not None
        with suppress(OSError):  # it has died: its reader tells
            stdin.write(order.model_dump_json() + "\n")
            stdin.flush()

    def stop(self) -> None:
        """Let the worker end: at once if it is idle, else when its run has saved its state."""
        if self.process is not None and self.process.stdin is not None:
            with suppress(OSError):
                self.process.stdin.close()

    def wait(self) -> None:
        """Until the worker has ended."""
        if self.process is not None and self._reader is not None:
            self.process.wait()
            self._reader.join()

    def kill(self) -> None:
        """End the worker in the middle of what it does."""
        if self.process is not None:
            self.process.kill()

    def _start(self) -> None:
        names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", ITK_THREADS)
        self.process = subprocess.Popen(
            COMMAND,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            env=os.environ | dict.fromkeys(names, str(self.threads)),
            start_new_session=True,  # Ctrl-C is for the queue, which tells each worker once
        )
        self._is_open = True
        self._reader = threading.Thread(target=self._read, args=(self.process,), daemon=True)
        self._reader.start()

    def _read(self, process: subprocess.Popen[str]) -> None:
        """Hand on the answers; if the worker ends and owes one, say how it ended."""
        assert process.stdout is not None
        for line in process.stdout:
            with self._lock:
                self._owes_answer = False
            self.events.put(Event(self.slot, Answer.of(line)))
        status = process.wait()
        with self._lock:
            self._is_open = False
            owed, self._owes_answer = self._owes_answer, False
        if owed:
            self.events.put(Event(self.slot, Answer("failed", how_it_ended(status))))


def how_it_ended(status: int) -> str:
    """The exit status of a process that ended without an answer, in words."""
    if status >= 0:
        return f"its process ended with exit status {status}"
    try:
        name = signal.Signals(-status).name
    except ValueError:
        name = f"signal {-status}"
    hint = ", most often because memory ran out" if name == "SIGKILL" else ""
    return f"its process was ended by {name}{hint}"


SECONDS_BETWEEN_LOOKS = 1.0

MakeOrder = Callable[[StudyRun, int], Order]


@dataclass
class Progress:
    """How far the queue is; it changes while the queue runs.

    Attributes:
        waiting: runs that nobody has begun.
        elsewhere: runs that another process works on: looked after until they are finished.
        running: slot -> its run.
        failed: run -> why.
        done: how many are finished.
    """

    waiting: deque[StudyRun]
    elsewhere: list[StudyRun] = field(default_factory=list)
    running: dict[int, StudyRun] = field(default_factory=dict)
    failed: dict[StudyRun, str] = field(default_factory=dict)
    done: int = 0

    @property
    def is_over(self) -> bool:
        """Is there nothing left to do or to wait for?"""
        return not (self.waiting or self.elsewhere or self.running)


def run_here(
    runs: Sequence[StudyRun],
    workspace: Workspace,
    jobs: int,
    threads: int,
    make_order: MakeOrder,
    show: Callable[[], None] = lambda: None,
) -> dict[StudyRun, str]:
    """Do the runs that are not finished, several at a time; one that fails stops no other.

    However the call ends, its processes have ended before, and have saved how far they were; a
    second Ctrl-C kills them.

    Args:
        runs: what to do, in this order; what other processes work on is waited for.
        workspace: where.
        jobs: how many at a time.
        threads: that each may compute on.
        make_order: the order to do a run in a slot (0 to jobs - 1).
        show: called about once a second.

    Returns:
        the runs that failed, and why.
    """
    left = [run for run in runs if not is_finished(run, workspace)]
    progress = Progress(deque(left), done=len(runs) - len(left))
    events: queue.SimpleQueue[Event] = queue.SimpleQueue()
    hands = [Hand(slot, threads, events) for slot in range(min(jobs, len(left)))]
    try:
        while not progress.is_over:
            _look_after_others(progress, workspace)
            _give_out(progress, workspace, hands, make_order)
            show()
            try:
                event = events.get(timeout=SECONDS_BETWEEN_LOOKS)
            except queue.Empty:
                continue
            _note(progress, progress.running.pop(event.slot), event.answer, len(runs))
        show()
        return progress.failed
    finally:
        _end(hands)


def _give_out(
    progress: Progress, workspace: Workspace, hands: Sequence[Hand], make_order: MakeOrder
) -> None:
    """A run that nobody works on for every idle worker."""
    for hand in hands:
        while hand.slot not in progress.running and progress.waiting:
            run = progress.waiting.popleft()
            if is_held(run, workspace):
                progress.elsewhere.append(run)
                say(f"{run}: another process works on it; waiting for it")
            else:
                progress.running[hand.slot] = run
                hand.give(make_order(run, hand.slot))


def _look_after_others(progress: Progress, workspace: Workspace) -> None:
    """Runs of other processes: those that are finished are done; those that were left are ours."""
    for run in list(progress.elsewhere):
        if is_held(run, workspace):
            continue
        progress.elsewhere.remove(run)
        if is_finished(run, workspace):
            progress.done += 1
        else:
            progress.waiting.append(run)


def _note(progress: Progress, run: StudyRun, answer: Answer, total: int) -> None:
    if answer.state == "elsewhere":
        progress.elsewhere.append(run)
        say(f"{run}: {answer.text.partition(';')[0]}; waiting for it")
        return
    if answer.state == "done":
        progress.done += 1
    else:
        progress.failed[run] = answer.text
    left = total - progress.done - len(progress.failed)
    reason = "" if answer.state == "done" else f": {answer.text}"
    say(f"{run}: {answer.state}{reason} ({progress.done} of {total} done, {left} to go)")


def _end(hands: Sequence[Hand]) -> None:
    """Let the workers save and end; a Ctrl-C meanwhile kills them."""
    for hand in hands:
        hand.stop()
    try:
        for hand in hands:
            hand.wait()
    except BaseException:
        for hand in hands:
            hand.kill()
        raise


def conduct_here(
    studies: Sequence[Study],
    workspace: Workspace,
    jobs: int,
    processes: int,
    device: str | None = None,
) -> dict[StudyRun, Path]:
    """Do all that is missing of the studies on this machine, and gather their results.

    Args:
        studies: they share their runs.
        workspace: where.
        jobs: runs at a time; each has a graphics card of its own where there are several, and its
            share of the cores.
        processes: worker processes of all runs together.
        device: `cpu`, `cuda` or one card; None takes the best ones.

    Returns:
        the runs that failed, and their log files.

    Raises:
        AutosegError: the studies contradict each other, a plan, or the data.
    """
    prepare_plans(studies, workspace, processes, device)
    logs = _logs(studies, workspace)
    share = max(1, processes // jobs)

    def order(run: StudyRun, slot: int) -> Order:
        return order_for(run, workspace, logs[run], share).model_copy(
            update={"device": device, "slot": slot}
        )

    threads = max(1, (os.cpu_count() or 1) // jobs)
    try:
        with _shown(list(logs), workspace) as show:
            failed = run_here(list(logs), workspace, jobs, threads, order, show)
    finally:
        for study in studies:
            gather(study, workspace)
    return {run: logs[run] for run in failed}


@contextmanager
def _shown(runs: Sequence[StudyRun], workspace: Workspace) -> Iterator[Callable[[], None]]:
    """On a terminal, a table of what runs and what failed; its yield brings it up to date."""
    from rich.console import Console
    from rich.live import Live

    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda: None
        return
    with Live(console=console, auto_refresh=False) as live:

        def show() -> None:
            statuses = [status_of(run, workspace) for run in runs]
            shown = [each for each in statuses if each.state in ("running", "failed")]
            live.update(table(shown, in_short(statuses)), refresh=True)

        yield show
