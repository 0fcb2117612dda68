"""The runs of a study on this machine: a queue, and a few worker processes side by side."""

from __future__ import annotations

import queue
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from autoseg.common.progress import say
from autoseg.experiments.attempt import Order
from autoseg.experiments.finished import is_finished
from autoseg.experiments.hand import Event, Hand
from autoseg.experiments.runs import StudyRun
from autoseg.experiments.status import is_held
from autoseg.experiments.worker import Answer
from autoseg.workflow.workspace import Workspace

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
