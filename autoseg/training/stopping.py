"""Ctrl-C and SIGTERM as a wish to stop, which training grants between two steps."""

from __future__ import annotations

import os
import signal
import threading
import time
from types import FrameType
from typing import Any

from autoseg.training.distributed import ALONE, Group

SIGNALS = (signal.SIGINT, signal.SIGTERM)
STANDARD_ERROR = 2
SOON = "\nstopping after this step, to save it; Ctrl-C again stops at once\n"


class StopAsked(Exception):  # noqa: N818
    """Raised by `StopSignals.check`, for the loop to save its state and end."""


class StopSignals:
    """Catches the signals for a `with` block.

    A second Ctrl-C does what it did before the block; a second SIGTERM nothing, as a cluster and
    torchrun may both send one. Signals reach the main thread only: in another one nothing is
    caught. A signal that is ignored (as a shell does for what it starts in the background) stays
    ignored.
    """

    def __init__(self, group: Group = ALONE) -> None:
        self.group = group
        self.number = 0  # of the signal that came
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                if signal.getsignal(number) not in (signal.SIG_IGN, None):
                    self._before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        self._restore(*SIGNALS)

    def _ask(self, number: int, _: FrameType | None) -> None:
        if self.group.leads and not self.number:
            # Not by print: the signal may have come amid one, whose buffer is then in use.
            os.write(STANDARD_ERROR, SOON.encode())
        self.number = number
        self._restore(signal.SIGINT)

    def _restore(self, *numbers: int) -> None:
        for number in numbers:
            if number in self._before:
                signal.signal(number, self._before.pop(number))

    @property
    def name(self) -> str:
        """`Ctrl-C`, or the signal's name, such as `SIGTERM`."""
        name = signal.Signals(self.number).name
        return "Ctrl-C" if name == "SIGINT" else name

    def check(self) -> None:
        """To be called by all processes of the group at the same point of their work.

        Raises:
            StopAsked: a signal came, to this process or to another of the group.
        """
        self.number = self.group.largest(self.number)
        if self.number:
            raise StopAsked

    def wait_a_moment(self) -> None:
        """Give a signal that was sent to many processes at once the time to come here, too."""
        end = time.monotonic() + 1.0
        while not self.number and time.monotonic() < end:
            time.sleep(0.02)
