"""The training loop: executes a plan on one fold."""

from __future__ import annotations

import json
import time
from contextlib import ExitStack
from dataclasses import replace
from typing import NoReturn

import torch

from autoseg.augmentation.loader import batches
from autoseg.augmentation.sampler import PatchSampler, Position
from autoseg.common.errors import Stopped
from autoseg.common.progress import counted, in_words, progress, say
from autoseg.dataset.splits import Split
from autoseg.models.checkpoint import load_checkpoint, save_checkpoint
from autoseg.models.folder import FINAL
from autoseg.models.log import ADVICE, LOG, Epoch, overfitting_of, write_log
from autoseg.networks.devices import fast_convolutions
from autoseg.plan.plan import Plan
from autoseg.plan.reading import recipe_id
from autoseg.plan.sections import Plateau
from autoseg.preprocessing.store import CaseStore
from autoseg.training.distributed import Group
from autoseg.training.epoch import Loop, Pulse, StopAsked, StopSignals, Validation, train_epoch
from autoseg.training.learner import Learner
from autoseg.training.monitor import PICTURE, Views, draw_progress
from autoseg.training.state import (
    BEST,
    LATEST,
    EpochSoFar,
    Pace,
    PlateauState,
    Run,
    State,
    check_vacant,
    epochs_within,
    load_run,
    save_run,
    steps_in_words,
)
from autoseg.training.transfer import begin_with

GO_ON = "continue with --resume"
SETTLED_EPOCHS = 3  # the first ones pay for starting up and would mislead


def train(plan: Plan, store: CaseStore, split: Split, run: Run) -> State:
    """Train one fold and leave `final.safetensors`, `log.jsonl` and `progress.png` in its folder.

    Raises:
        AutosegError: there is a run already and `resume` is false, or it belongs to another plan.
        RunError: the loss became NaN, or a worker died.
        Stopped: Ctrl-C or SIGTERM came; the state after the last step is saved.
    """
    learner = Learner(plan, run.device, run.group)
    state, so_far = _begin(plan, learner, run)
    with (
        fast_convolutions(run.device),
        Views(run, state.history) as views,
        StopSignals(run.group) as stop,
    ):
        if not _is_finished(state, plan):
            state = _train(plan, store, split, run, learner, state, so_far, stop, views)
        if run.group.leads:
            _finish(plan, learner, run, state)
        try:
            stop.check()
        except StopAsked:
            raise Stopped(f"stopped by {stop.name} after training; {GO_ON}", stop.number) from None
    return state


def _begin(plan: Plan, learner: Learner, run: Run) -> tuple[State, EpochSoFar]:
    """A new state, or the saved one with its tensors in the learner."""
    resumed = run.resume and (run.folder / LATEST).exists()
    if resumed:
        state, so_far = load_run(run.folder, plan, learner)
    else:
        check_vacant(run.folder)
        rate = PlateauState(plan.training.optimizer.learning_rate)
        source = begin_with(run.pretrained, learner, run.folder) if run.pretrained else None
        recipe = recipe_id(plan)
        state = State(plan.id, plan.training.epochs, rate, recipe_id=recipe, pretrained=source)
        so_far = EpochSoFar()
    if run.group.leads:
        _tell_begin(plan, learner, state, so_far, resumed)
        if resumed and run.pretrained:
            say(f"--pretrained {run.pretrained} is not read: a resumed run keeps its own weights")
    return state, so_far


def _tell_begin(
    plan: Plan, learner: Learner, state: State, so_far: EpochSoFar, resumed: bool
) -> None:
    if _is_finished(state, plan):
        say(f"training is finished already: {state.done} of {counted(state.epochs, 'epoch')} done")
        return
    if resumed:
        steps = steps_in_words(so_far.steps)
        say(f"resuming after epoch {state.done}{steps} of {counted(state.epochs, 'epoch')}")
    if plan.training.precision == "float16" and learner.dtype is not torch.float16:
        told = str(learner.dtype).removeprefix("torch.")
        say(f"float16 is for CUDA: on {learner.device} the network computes in {told}")
    if plan.training.compile:
        say("the first step compiles the network, which takes a minute or more")


def _train(
    plan: Plan,
    store: CaseStore,
    split: Split,
    run: Run,
    learner: Learner,
    state: State,
    so_far: EpochSoFar,
    stop: StopSignals,
    views: Views,
) -> State:
    sampler = PatchSampler(store, split.train, plan.sampling, plan.training.steps_per_epoch)
    first = Position(plan.training.seed, run.fold, state.done, so_far.steps, 0)
    places = run.group.places(plan.sampling.batch_size)
    with ExitStack() as stack:
        on_device = plan.training.augment_on == "device"
        stream = stack.enter_context(
            batches(sampler, plan.augmentation, first, run.workers, places, on_device)
        )
        validation = Validation(plan, store, split, run.fold) if run.group.leads else None
        name = f"training {run.folder.name.replace('_', ' ')}"
        bar = None
        if run.group.leads:
            say(_in_short(plan, split, run, state))
            bar = stack.enter_context(progress(name, state.epochs, state.done, every_seconds=0))
        pace, pulse = Pace(time.monotonic()), Pulse(bar, plan.training.steps_per_epoch)
        loop = Loop(plan, run, learner, sampler, stream, validation, stop, pace, views, pulse)
        while not _is_finished(state, plan):
            state = _next_state(loop, state, so_far)
            so_far = EpochSoFar()
            if bar is not None:
                bar.advance(state.history[-1].note(), state.epochs)
    return state


def _in_short(plan: Plan, split: Split, run: Run, state: State) -> str:
    """What begins now: where, on how many cases, and how long in steps."""
    cases = counted(len(split.train), "case")
    if split.validation:
        cases += f", and {counted(len(split.validation), 'other')} to validate with"
    epochs = counted(state.epochs - state.done, "epoch")
    steps = counted(plan.training.steps_per_epoch, "step")
    return f"training on {run.device}: {cases}; {epochs} of {steps}"


def _next_state(loop: Loop, state: State, so_far: EpochSoFar) -> State:
    """Train the epoch that the state comes to next, or what is left of it, and save."""
    try:
        epoch = train_epoch(loop, state, so_far)
    except StopAsked:
        _stop(loop, state, so_far)
    loop.pace.tick(time.monotonic())
    if loop.run.group.leads:
        state = _after_epoch(loop, state, epoch)
    return _shared(state, loop.run.group)


def _after_epoch(loop: Loop, state: State, epoch: Epoch) -> State:
    """Update the state and save it."""
    plan, run, training = loop.plan, loop.run, loop.plan.training
    state = replace(state, history=[*state.history, epoch], progress=state.next_progress)
    if isinstance(training.schedule, Plateau):
        plateau = state.plateau.after_epoch(epoch.training_loss, training.schedule)
        state = replace(state, plateau=plateau)
    if epoch.training_loss < state.best_loss:
        state = replace(state, best_loss=epoch.training_loss, best_epoch=epoch.epoch)
        if training.keep == "best_training_loss":
            save_checkpoint(run.folder / BEST, loop.learner.weights(), {"epoch": epoch.epoch})
    used = _seconds_used(state, run)
    settled = loop.pace.ticks >= SETTLED_EPOCHS or (
        training.seconds and used > training.seconds / 4
    )
    # After the last epoch the learning rate is at its end: more epochs would learn nothing.
    if training.seconds is not None and settled and state.done < state.epochs:
        state = _keep_budget(training.seconds, plan, run, state, used, loop.pace.epoch_seconds)
    save_run(run.folder, loop.learner, replace(state, seconds=used), EpochSoFar())
    write_log(run.folder / LOG, state.history)
    loop.views.after_epoch(state.history)
    return state


def _seconds_used(state: State, run: Run) -> float:
    return state.seconds + time.monotonic() - run.started


def _shared(state: State, group: Group) -> State:
    """The leader's state, in all processes."""
    if not group.is_shared:
        return state
    return State.from_json(json.loads(group.shared_text(json.dumps(state.to_json()))))


def _stop(loop: Loop, state: State, so_far: EpochSoFar) -> NoReturn:
    """Save the state after the last step, and end."""
    run, stop = loop.run, loop.stop
    mean = EpochSoFar.from_tensors(
        {name: run.group.mean(t) for name, t in so_far.tensors().items()}, run.device
    )
    if run.group.leads:
        saved = replace(state, seconds=_seconds_used(state, run))
        save_run(run.folder, loop.learner, saved, mean)
    run.group.wait()  # torchrun ends all processes when the first one has ended
    steps = steps_in_words(so_far.steps)
    raise Stopped(f"stopped by {stop.name} after epoch {state.done}{steps}; {GO_ON}", stop.number)


def _keep_budget(
    budget: float, plan: Plan, run: Run, state: State, used: float, epoch_seconds: float
) -> State:
    """Re-count the epochs where the planned number would miss the budget."""
    step = epoch_seconds / plan.training.steps_per_epoch
    # A forward pass takes about a third of a training step.
    reserve = 3 + 0.4 * run.patches_after * step / plan.sampling.batch_size
    epochs = epochs_within(budget, used, epoch_seconds, reserve, state.done, state.epochs)
    if epochs != state.epochs:
        say(
            f"an epoch takes {in_words(epoch_seconds)}: {counted(epochs, 'epoch')} instead of "
            f"{state.epochs} fit the budget of {in_words(budget)}"
        )
    return replace(state, epochs=epochs)


def _is_finished(state: State, plan: Plan) -> bool:
    """Are all epochs done, or has the training loss not fallen for as long as the plan waits?"""
    if state.done >= state.epochs:
        return True
    wait = plan.training.early_stopping_epochs
    return wait is not None and state.done > 0 and state.done - 1 - state.best_epoch >= wait


def _finish(plan: Plan, learner: Learner, run: Run, state: State) -> None:
    weights, epoch = learner.weights(), state.done - 1
    if plan.training.keep == "best_training_loss":
        weights, found = load_checkpoint(run.folder / BEST)
        epoch = found["epoch"]
    # Again: an interrupted run may have saved its last epoch and no more.
    write_log(run.folder / LOG, state.history)
    draw_progress(run.folder / PICTURE, state.history)
    if overfitting := overfitting_of(state.history):
        say(f"note: {overfitting}; {ADVICE}")
    about = {"plan_id": plan.id, "fold": run.fold, "epoch": epoch}
    if state.pretrained is not None:
        about["pretrained"] = state.pretrained
    save_checkpoint(run.folder / FINAL, weights, about)
