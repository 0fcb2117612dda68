"""`progress.png`: a run at a glance, drawn anew while it lasts."""

from __future__ import annotations

import importlib.util
import math
import textwrap
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from autoseg.common.errors import AutosegError, install_hint
from autoseg.common.figures import smooth
from autoseg.common.files import replacing
from autoseg.common.progress import in_words
from autoseg.models.log import Epoch, overfitting_of
from autoseg.training.state import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from torch.utils.tensorboard import SummaryWriter


SHARE_OF_TIME = 0.02  # that drawing may take
# Of Okabe and Ito's palette, which colour-blind people can tell apart too, what is dark enough for
# thin lines on white paper.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
LINES = ("-", "--", ":")  # the second and third time that a colour is used
MOST_CLASSES = 12  # that are told apart; of more, all are grey and their mean is black
Values = Sequence[float | None]


class Painter:
    """Draws a run's picture as often as `SHARE_OF_TIME` allows: long epochs get one each."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._due = -math.inf

    def draw_if_due(self, epochs: Sequence[Epoch]) -> None:
        """Draw, unless the last picture took so long that it is too early."""
        started = time.monotonic()
        if started < self._due:
            return
        draw_progress(self.path, epochs)
        ended = time.monotonic()
        self._due = ended + (ended - started) / SHARE_OF_TIME


def draw_progress(path: Path, epochs: Sequence[Epoch]) -> None:
    """Draw losses, Dice of each class, learning rate and seconds over the epochs, as a PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.5, 7.5), layout="constrained")
    (losses, dice), (rate, seconds) = figure.subplots(2, 2, height_ratios=(2, 1), sharex=True)
    _draw_losses(losses, epochs)
    _draw_dice(dice, epochs)
    _draw_rate(rate, epochs)
    _draw_seconds(seconds, epochs)
    for axes in (losses, dice, rate, seconds):
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in (rate, seconds):
        axes.set(xlabel="epoch", xlim=(0, 1.02 * max(2, epochs[-1].epoch + 1)))
        axes.xaxis.get_major_locator().set_params(integer=True)
    taken = in_words(sum(epoch.seconds for epoch in epochs))
    *names, fold = path.absolute().parts[-4:-1]  # as in models/TASK/PLAN/fold_K/progress.png
    whose = ", ".join([*names, fold.replace("_", " ")])
    title = textwrap.fill(f"{whose}: epoch {len(epochs)} of {epochs[-1].epochs}, {taken}", 110)
    if found := overfitting_of(epochs):
        title += "\n" + textwrap.fill(str(found), 110)
    figure.suptitle(title, parse_math=False)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)


def _draw_losses(axes: Axes, epochs: Sequence[Epoch]) -> None:
    """Each epoch as a faint point, the curve beneath them with its 95 % confidence band."""
    curves: dict[str, Values] = {
        "training": [epoch.training_loss for epoch in epochs],
        "validation": [epoch.validation_loss for epoch in epochs],
    }
    for index, (name, values) in enumerate(curves.items()):
        if any(value is not None for value in values):
            _draw_curve(axes, epochs, values, name, index, banded=True)
    axes.set_ylabel("loss")
    _explain(axes)


def _draw_dice(axes: Axes, epochs: Sequence[Epoch]) -> None:
    shown = [epoch.foreground_dice for epoch in epochs]
    names = list(shown[-1])
    curves: dict[str, Values] = {name: [of.get(name) for of in shown] for name in names}
    if len(names) <= MOST_CLASSES:
        for index, (name, values) in enumerate(curves.items()):
            _draw_curve(axes, epochs, values, name, index)
    else:
        for values in curves.values():
            axes.plot(_numbers(epochs), _gaps(values), color="0.8", linewidth=0.6)
        means = [epoch.mean_dice for epoch in epochs]
        _draw_curve(axes, epochs, means, f"mean of {len(names)} classes", COLOURS.index("#000000"))
    where = "validation" if epochs[-1].validation_dice else "training"
    axes.set(ylabel=f"Dice on {where} patches", ylim=(0, 1))
    _explain(axes, ncols=2 if 4 < len(names) <= MOST_CLASSES else 1)


def _draw_rate(axes: Axes, epochs: Sequence[Epoch]) -> None:
    rates = [epoch.learning_rate for epoch in epochs]
    axes.plot(_numbers(epochs), rates, color=COLOURS[0], marker="o" if len(epochs) == 1 else "")
    axes.set_ylabel("learning rate")
    if min(rates) > 0:  # whole decades: what lies within one would be labelled on top of each other
        low, high = math.log10(min(rates)) - 0.05, math.log10(max(rates)) + 0.05
        axes.set(yscale="log", ylim=(10 ** math.floor(low), 10 ** math.ceil(high)))


def _draw_seconds(axes: Axes, epochs: Sequence[Epoch]) -> None:
    """Epochs that took far longer than the others are marks at the upper edge."""
    x, values = np.array(_numbers(epochs)), np.array([epoch.seconds for epoch in epochs])
    top = min(1.15 * values.max(), 3 * float(np.median(values))) or 1.0
    long = values > top
    axes.plot(x[~long], values[~long], ".", color=COLOURS[0], markersize=4)
    if long.any():
        axes.plot(x[long], np.full(long.sum(), top), "^", color=COLOURS[1], clip_on=False)
    axes.set(ylabel="seconds an epoch", ylim=(0, top))


def _draw_curve(
    axes: Axes,
    epochs: Sequence[Epoch],
    values: Values,
    name: str,
    index: int,
    banded: bool = False,
) -> None:
    """Faint points and the smoothed curve; a plain line while there are too few for a curve."""
    colour = COLOURS[index % len(COLOURS)]
    line = LINES[index // len(COLOURS) % len(LINES)]
    x, points = _numbers(epochs), _gaps(values)
    curve = smooth(x, values)
    if curve is None:
        axes.plot(x, points, color=colour, linestyle=line, marker="o", markersize=3, label=name)
        return
    size = 4 if len(x) > 100 else 7
    axes.plot(x, points, ".", color=colour, markersize=size, alpha=0.35, markeredgewidth=0)
    axes.plot(curve.x, curve.mean, color=colour, linestyle=line, label=name)
    if banded:
        axes.fill_between(curve.x, curve.low, curve.high, color=colour, alpha=0.25, linewidth=0)


def _explain(axes: Axes, **how: Any) -> None:
    """The legend; it takes the names of classes literally."""
    for text in axes.legend(frameon=False, **how).get_texts():
        text.set_parse_math(False)


def _numbers(epochs: Sequence[Epoch]) -> list[int]:
    """The epochs' numbers as people count, from 1."""
    return [epoch.epoch + 1 for epoch in epochs]


def _gaps(values: Values) -> list[float]:
    """None as NaN, which leaves a gap."""
    return [math.nan if value is None else value for value in values]


# Event files for TensorBoard: what the log has, as curves in a browser.


def check_tensorboard() -> None:
    """Raise an AutosegError unless TensorBoard is installed."""
    if importlib.util.find_spec("tensorboard") is None:
        raise AutosegError(
            "--tensorboard: the package tensorboard is not installed; run: "
            f"{install_hint('tensorboard')}"
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


# What people watch while a run lasts: its picture, and TensorBoard's event files.

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
