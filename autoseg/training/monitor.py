"""What shows a run while it lasts: progress bar, `log.jsonl`, `progress.png`, TensorBoard."""

from __future__ import annotations

import importlib.util
import math
import textwrap
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from autoseg.common.errors import AutosegError, install_hint
from autoseg.common.figures import DARK_COLOURS, LINES, take_literally
from autoseg.common.files import cannot_write, replacing
from autoseg.common.progress import Progress, counted, in_fine_words, in_words, note, progress, say
from autoseg.dataset.splits import Split
from autoseg.models.log import (
    ADVICE,
    Epoch,
    draw_curve,
    draw_curves,
    new_figure,
    overfitting_of,
    write_log,
)
from autoseg.plan.plan import Plan
from autoseg.training.learner import Learner
from autoseg.training.state import Run, State

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from torch.utils.tensorboard import SummaryWriter


PICTURE, EVENTS = "progress.png", "tensorboard"
SHARE_OF_TIME = 0.02  # of a run, which drawing may take at most
COLOURS = (*DARK_COLOURS, "#56B4E9", "#E69F00", "#000000")  # Okabe and Ito's, without yellow
LONG_STEP_SECONDS = 20.0  # clusters leave a run 30 seconds to end
MOST_CLASSES = 12  # with colours of their own; more classes are all grey, and their mean is black
Values = Sequence[float | None]


class Monitor:
    """Shows a run in the process that leads; in the others it does nothing.

    Use as a context manager around the epochs.
    """

    def __init__(self, plan: Plan, split: Split, run: Run, learner: Learner, state: State) -> None:
        self.plan, self.split, self.run, self.learner, self.state = plan, split, run, learner, state
        self._painter = Painter(run.folder / PICTURE)
        self._events: Events | None = None
        self._bar: Progress | None = None
        self._stack = ExitStack()

    def __enter__(self) -> Monitor:
        run, state, training = self.run, self.state, self.plan.training
        if run.group.leads and run.tensorboard:
            self._events = Events(run.folder / EVENTS, state.history)
            self._stack.callback(self._events.close)
        if run.group.leads and not state.is_finished(training):
            for line in self._introduction():
                say(line)
            name = f"training {run.folder.name.replace('_', ' ')}"
            bar = progress(name, state.epochs, state.done, every_seconds=0)
            self._bar = self._stack.enter_context(bar)
        self._heartbeat = Heartbeat(self._bar, training.steps_per_epoch)
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)

    def _introduction(self) -> Iterator[str]:
        training, learner = self.plan.training, self.learner
        if training.precision == "float16" and learner.dtype is not torch.float16:
            used = str(learner.dtype).removeprefix("torch.")
            yield f"float16 is supported on CUDA only: on {learner.device} the network uses {used}"
        if learner.is_to_compile:
            yield "the first step compiles the network, which takes a minute or more"
        cases = counted(len(self.split.train), "case")
        if self.split.validation:
            cases += f", validating on {counted(len(self.split.validation), 'case')}"
        epochs = counted(self.state.epochs - self.state.done, "epoch")
        steps = counted(training.steps_per_epoch, "step")
        shared = f" in {counted(n, 'process')}" if (n := self.run.group.size) > 1 else ""
        yield f"training on {self.run.device}{shared}: {cases}; {epochs} of {steps}"

    def after_step(self, state: State, done: int) -> None:
        """Show that `done` steps of the next epoch are finished."""
        self._heartbeat.beat(state, done)

    def after_epoch(self, state: State) -> None:
        """Show one more epoch, the last one of the state's history."""
        with _optional():
            write_log(self.run.folder, state.history)
        with _optional():
            self._painter.draw_if_due(state.history)
        if self._events is not None:
            with _optional():
                self._events.write(state.history[-1])
        if self._bar is not None:
            *earlier, last = (epoch.mean_dice or 0 for epoch in state.history)
            mark = "  best" if last > max(earlier, default=0) else ""
            self._bar.advance(state.history[-1].note() + mark, state.epochs)

    def finish(self, state: State) -> None:
        """Write log and picture again, as an interrupted run may lack them; report overfitting."""
        with _optional():
            write_log(self.run.folder, state.history)
        with _optional():
            draw_progress(self.run.folder / PICTURE, state.history)
        if overfitting := overfitting_of(state.history):
            say(f"note: {overfitting}; {ADVICE}")


@contextmanager
def _optional() -> Iterator[None]:
    """Say once what cannot be written in the block: training goes on without it."""
    try:
        yield
    except (AutosegError, OSError) as error:
        note(f"{error}; training goes on without it")


class Heartbeat:
    """Shows how far an epoch is, and how long the rest of the run takes at the present pace.

    Steps on a GPU are counted when they are submitted, a few steps before they are finished.
    """

    def __init__(self, bar: Progress | None, steps: int) -> None:
        self.bar, self.steps = bar, steps  # of an epoch
        self._since = time.monotonic()
        self._steps_since = 0
        self._is_first = True

    def beat(self, state: State, done: int) -> None:
        """Count a step; `done` steps of the state's next epoch are finished."""
        now = time.monotonic()
        self._steps_since += 1
        step = (now - self._since) / self._steps_since
        if self.bar is not None and done < self.steps:
            left = (self.steps * (state.epochs - state.done) - done) * step
            self.bar.tell(
                f"epoch {state.done + 1} of {state.epochs}, step {done} of {self.steps}, "
                f"{in_fine_words(step)} a step, about {in_words(left)} left"
            )
            if self._steps_since == 1 and not self._is_first and step > LONG_STEP_SECONDS:
                say(
                    f"warning: a step takes {in_words(step)}. A run that is told to stop finishes "
                    f"and saves its step: let it take {in_words(2 * step + 10)} (Slurm: KillWait "
                    "or --signal; Kubernetes: terminationGracePeriodSeconds), or minutes are lost"
                )
        if self._is_first:  # it includes the start-up, so the pace is that of the other steps
            self._since, self._steps_since, self._is_first = now, 0, False


class Painter:
    """Draws a run's picture as often as `SHARE_OF_TIME` allows: after each epoch if it is long."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._due = -math.inf

    def draw_if_due(self, epochs: Sequence[Epoch]) -> None:
        """Draw, unless it is too early after the previous picture."""
        started = time.monotonic()
        if started < self._due:
            return
        draw_progress(self.path, epochs)
        ended = time.monotonic()
        self._due = ended + (ended - started) / SHARE_OF_TIME


def draw_progress(path: Path, epochs: Sequence[Epoch]) -> None:
    """Draw losses, Dice of each class, learning rate and seconds over the epochs, as a PNG."""
    figure = new_figure(10.5, 7.5)
    (losses, dice), (rate, seconds) = figure.subplots(2, 2, height_ratios=(2, 1), sharex=True)
    draw_curves(losses, epochs)
    losses.set_title("loss", loc="left", fontsize=10)
    _add_legend(losses)
    _draw_dice(dice, epochs)
    _draw_rate(rate, epochs)
    _draw_seconds(seconds, epochs)
    for axes in (losses, dice, rate, seconds):
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in (rate, seconds):
        axes.set(xlabel="epoch", xlim=(0, 1.02 * max(2, epochs[-1].epoch + 1)))
        axes.xaxis.get_major_locator().set_params(integer=True)
    duration = in_words(sum(epoch.seconds for epoch in epochs))
    *names, fold = path.absolute().parts[-4:-1]  # as in models/TASK/PLAN/fold_K/progress.png
    run = ", ".join([*names, fold.replace("_", " ")])
    title = textwrap.fill(f"{run}: epoch {len(epochs)} of {epochs[-1].epochs}, {duration}", 110)
    if overfitting := overfitting_of(epochs):
        title += "\n" + textwrap.fill(str(overfitting), 110)
    figure.suptitle(title, parse_math=False)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)


def _draw_dice(axes: Axes, epochs: Sequence[Epoch]) -> None:
    shown = [epoch.foreground_dice for epoch in epochs]
    names = list(shown[-1])
    x = _numbers(epochs)
    curves: dict[str, Values] = {name: [of.get(name) for of in shown] for name in names}
    if len(names) <= MOST_CLASSES:
        for index, (name, values) in enumerate(curves.items()):
            colour, style = COLOURS[index % len(COLOURS)], LINES[index // len(COLOURS)]
            draw_curve(axes, x, values, name, colour, style)
    else:
        for values in curves.values():
            gaps = [math.nan if value is None else value for value in values]
            axes.plot(x, gaps, color="0.8", linewidth=0.6)
        means = [epoch.mean_dice for epoch in epochs]
        draw_curve(axes, x, means, f"mean of {len(names)} classes", "#000000", "solid")
    where = "validation" if epochs[-1].validation_dice else "training"
    axes.set_ylim(0, 1)
    axes.set_title(f"Dice on {where} patches", loc="left", fontsize=10)
    _add_legend(axes, ncols=2 if 4 < len(names) <= MOST_CLASSES else 1)


def _draw_rate(axes: Axes, epochs: Sequence[Epoch]) -> None:
    rates = [epoch.learning_rate for epoch in epochs]
    axes.plot(_numbers(epochs), rates, color=COLOURS[0], marker="o" if len(epochs) == 1 else "")
    axes.set_title("learning rate", loc="left", fontsize=10)
    if min(rates) > 0:  # full decades, as labels within a single one would overlap
        low, high = math.log10(min(rates)) - 0.05, math.log10(max(rates)) + 0.05
        axes.set(yscale="log", ylim=(10 ** math.floor(low), 10 ** math.ceil(high)))


def _draw_seconds(axes: Axes, epochs: Sequence[Epoch]) -> None:
    """Epochs that took much longer than the others are marked at the upper edge."""
    x, values = np.array(_numbers(epochs)), np.array([epoch.seconds for epoch in epochs])
    top = min(1.15 * values.max(), 3 * float(np.median(values))) or 1.0
    long = values > top
    axes.plot(x[~long], values[~long], ".", color=COLOURS[0], markersize=4)
    if long.any():
        axes.plot(x[long], np.full(long.sum(), top), "^", color=COLOURS[1], clip_on=False)
    axes.set_ylim(0, top)
    axes.set_title("seconds per epoch", loc="left", fontsize=10)


def _add_legend(axes: Axes, **options: Any) -> None:
    take_literally(axes.legend(frameon=False, **options).get_texts())


def _numbers(epochs: Sequence[Epoch]) -> list[int]:
    """The numbers of the epochs, from 1."""
    return [epoch.epoch + 1 for epoch in epochs]


def check_tensorboard() -> None:
    """Raise an AutosegError if TensorBoard is not installed."""
    if importlib.util.find_spec("tensorboard") is None:
        raise AutosegError(f"--tensorboard needs tensorboard; run: {install_hint('tensorboard')}")


class Events:
    """Writes the epochs of a run to TensorBoard event files; the step is the epoch, from 1.

    Whenever a run starts or resumes, its finished epochs are written again. So after a run was
    killed between checkpoint and event file, no point is missing and none is there twice.
    """

    def __init__(self, folder: Path, done: Sequence[Epoch]) -> None:
        """Replace the event files in `folder` by one with the `done` epochs.

        Raises:
            AutosegError: TensorBoard is not installed, or the folder is not writable.
        """
        check_tensorboard()
        self._writer = _opened(folder)
        at = time.time() - sum(epoch.seconds for epoch in done)
        for epoch in done:
            at += epoch.seconds
            self.write(epoch, at)

    def write(self, epoch: Epoch, at: float | None = None) -> None:
        """Add an epoch that ended at a time; by default now."""
        for name, value in scalars(epoch):
            self._writer.add_scalar(name, value, epoch.epoch + 1, walltime=at)
        self._writer.flush()

    def close(self) -> None:
        """Write the rest and close the file."""
        self._writer.close()


def scalars(epoch: Epoch) -> Iterator[tuple[str, float]]:
    """The known numbers of an epoch, with their names in TensorBoard."""
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
        # A running TensorBoard discards what it has read, from step 0 on.
        return SummaryWriter(str(folder), purge_step=0)
    except OSError as error:
        raise cannot_write(folder, error) from error
