"""What people watch while a run lasts: its picture, and TensorBoard's event files."""

from __future__ import annotations

from collections.abc import Sequence

from autoseg.models.log import Epoch
from autoseg.training.events import Events
from autoseg.training.picture import Painter
from autoseg.training.run import Run

PICTURE, EVENTS = "progress.png", "tensorboard"


class Views:
    """Shows the epochs of a run, for a `with` block, in the process that leads."""

    def __init__(self, run: Run, done: Sequence[Epoch]) -> None:
        self._painter = Painter(run.folder / PICTURE)
        wanted = run.tensorboard and run.group.leads
        self._events = Events(run.folder / EVENTS, done) if wanted else None

    def __enter__(self) -> Views:
        return self

    def __exit__(self, *_: object) -> None:
        if self._events is not None:
            self._events.close()

    def after_epoch(self, epochs: Sequence[Epoch]) -> None:
        """Show one more epoch, the last of `epochs`."""
        self._painter.draw_if_due(epochs)
        if self._events is not None:
            self._events.write(epochs[-1])
