"""Signs of life between the ends of epochs, which may be hours apart."""

from __future__ import annotations

import time

from autoseg.common.progress import Progress, in_fine_words, in_words
from autoseg.training.state import State


class Pulse:
    """Tells how far an epoch is, and how long the whole run takes at this pace.

    Steps of a graphics card are counted when they are handed over, a few before they are done.
    """

    def __init__(self, bar: Progress | None, steps: int) -> None:
        """Tell `bar`, or nobody, of epochs with so many steps."""
        self.bar, self.steps = bar, steps
        self._since = time.monotonic()
        self._steps_since = 0
        self._is_first = True

    def beat(self, state: State, done: int) -> None:
        """A step is taken; `done` are, of the epoch that the state comes to next."""
        now = time.monotonic()
        self._steps_since += 1
        step = (now - self._since) / self._steps_since
        if self.bar is not None and done < self.steps:
            left = (self.steps * (state.epochs - state.done) - done) * step
            self.bar.tell(
                f"epoch {state.done + 1} of {state.epochs}, step {done} of {self.steps}, "
                f"{in_fine_words(step)} a step, about {in_words(left)} left"
            )
        if self._is_first:  # it pays for starting up: the pace is that of the others
            self._since, self._steps_since, self._is_first = now, 0, False
