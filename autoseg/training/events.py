"""Event files for TensorBoard: what the log has, as curves in a browser."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from autoseg.common.errors import AutosegError
from autoseg.models.log import Epoch

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


def check_tensorboard() -> None:
    """Raise an AutosegError unless TensorBoard is installed."""
    if importlib.util.find_spec("tensorboard") is None:
        raise AutosegError(
            "--tensorboard: the package tensorboard is not installed; run: "
            "pip install 'autoseg[tensorboard]'"
        )


class Events:
    """Writes a run's epochs into event files; their step is the epoch's number, from 1.

    The epochs that are done are written anew whenever a run starts or goes on: a run that was
    killed between its checkpoint and its event file lacks no point and has none twice.
    """

    def __init__(self, folder: Path, done: Sequence[Epoch]) -> None:
        """Open `folder`, replace its event files, and write the epochs that are `done`.

        Raises:
            AutosegError: TensorBoard is not installed, or the folder cannot be written.
        """
        check_tensorboard()
        self._writer = _opened(folder)
        at = time.time() - sum(epoch.seconds for epoch in done)
        for epoch in done:
            at += epoch.seconds
            self._write(epoch, at)
        self._writer.flush()

    def write(self, epoch: Epoch) -> None:
        """One more epoch is done."""
        self._write(epoch, time.time())
        self._writer.flush()

    def _write(self, epoch: Epoch, at: float) -> None:
        for name, value in scalars(epoch):
            self._writer.add_scalar(name, value, epoch.epoch + 1, walltime=at)

    def close(self) -> None:
        """Write what is left, and end."""
        self._writer.close()


def scalars(epoch: Epoch) -> Iterator[tuple[str, float]]:
    """The numbers of an epoch by their names in TensorBoard; those that are not there are left."""
    yield "loss/training", epoch.training_loss
    if epoch.validation_loss is not None:
        yield "loss/validation", epoch.validation_loss
    for name, value in epoch.foreground_dice.items():
        if value is not None:
            yield f"dice/{name}", value
    if epoch.mean_dice is not None:
        yield "dice/mean", epoch.mean_dice
    yield "learning rate", epoch.learning_rate
    yield "seconds an epoch", epoch.seconds


def _opened(folder: Path) -> SummaryWriter:
    from torch.utils.tensorboard import SummaryWriter

    try:
        for old in folder.glob("events.out.tfevents.*"):
            old.unlink()
        # A TensorBoard that is watching forgets what it has read from step 0 on.
        return SummaryWriter(str(folder), purge_step=0)
    except OSError as error:
        raise AutosegError(
            f"cannot write {folder}: {error.strerror or error}; choose a folder that is writable "
            "and has free space"
        ) from error
