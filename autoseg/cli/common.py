"""What the commands share: exit statuses, error lines, and the same arguments everywhere."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from autoseg import __version__
from autoseg.common.errors import AutosegError, Stopped, is_lack_of_memory

LONGEST_WORD, LONGEST_LINE = 5000, 20_000
DONE, FAILED, BAD_INPUT = 0, 1, 2
GO_ON = "what was finished is kept, and the same command goes on"


def parser(
    name: str, does: str, habits: Mapping[str, str] | None = None
) -> argparse.ArgumentParser:
    """A parser with the options that every command has.

    Args:
        name: the command's.
        does: what it does, in a sentence.
        habits: options of nnU-Net's like command -> what to write instead.
    """
    made = argparse.ArgumentParser(prog=name, description=does, allow_abbrev=False)
    for option, instead in (habits or {}).items():
        made.add_argument(option, action=Refused, const=instead, help=argparse.SUPPRESS)
    made.add_argument("--version", action="version", version=f"autoseg {__version__}")
    made.add_argument(
        "--debug", action="store_true", help="print the traceback of an error, not one line"
    )
    return made


class Refused(argparse.Action):
    """An option of nnU-Net that is an error here; `const` says what to write instead."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(nargs=0, **settings | {"dest": argparse.SUPPRESS})

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: Any, values: Any, option: Any = None
    ) -> None:
        """Stop with what to write instead."""
        parser.error(f"{option} is an option of nnU-Net; {self.const}")


def add_workspace(to: argparse.ArgumentParser) -> None:
    """`--workspace`: where raw, preprocessed and models lie."""
    to.add_argument(
        "--workspace",
        type=Path,
        metavar="DIR",
        help="folder that holds raw/, preprocessed/ and models/ "
        "(default: $AUTOSEG_WORKSPACE, else the current folder)",
    )


def add_processes(to: argparse.ArgumentParser) -> None:
    """`--processes`: how many worker processes; never changes a result."""
    to.add_argument(
        "--processes",
        type=at_least_one,
        default=min(os.cpu_count() or 1, 12),
        metavar="N",
        help="worker processes (default: one per core, at most 12: %(default)s); "
        "results do not depend on it",
    )


def add_device(to: argparse.ArgumentParser) -> None:
    """`--device`: where the network runs."""
    to.add_argument(
        "--device", metavar="NAME", help="cpu, cuda, cuda:1 or mps (default: the best one there)"
    )


def spawn_workers() -> None:
    """Let batchgenerators start its workers afresh: a fork would copy torch's threads midway."""
    import multiprocessing

    multiprocessing.set_start_method("spawn", force=True)


def at_least_one(text: str) -> int:
    """An argparse type: a whole number from 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1")
    return int(text)


def run(
    make_parser: Callable[[], argparse.ArgumentParser],
    command: Callable[[argparse.Namespace], int],
    argv: Sequence[str] | None,
    go_on: str = GO_ON,
) -> int:
    """Parse, run, and turn errors into one line and an exit status.

    Args:
        make_parser: the command's arguments.
        command: what it does with them.
        argv: the words after the command's name; those that Python was called with if None.
        go_on: what to tell who has stopped the command.
    """
    try:
        arguments = make_parser().parse_args(argv)
    except SystemExit as stop:  # argparse has printed help or what is wrong
        return int(stop.code or 0)
    try:
        with _ended_cleanly(go_on):
            return command(arguments)
    except (Exception, KeyboardInterrupt) as error:
        if arguments.debug:
            traceback.print_exc()
        if isinstance(error, KeyboardInterrupt):
            error = Stopped(f"stopped by Ctrl-C; {go_on}", signal.SIGINT)
        if isinstance(error, Stopped):
            _print_line(str(error))
            return error.status
        status, text = _in_words(error, arguments.debug)
        print_error(text)
        return status


def print_error(text: str) -> None:
    """One line that begins with `error:`."""
    _print_line(f"error: {text}")


def _print_line(text: str) -> None:
    words = (word if len(word) <= LONGEST_WORD else _shortened(word) for word in text.split())
    print(" ".join(words)[:LONGEST_LINE], file=sys.stderr, flush=True)


def _shortened(word: str) -> str:
    """What a damaged file holds may have any length; paths are not so long."""
    return f"{word[:100]}... ({len(word)} characters)"


@contextmanager
def _ended_cleanly(go_on: str) -> Iterator[None]:
    """Let SIGTERM end the block as Ctrl-C does: locks are released and workers end, too."""

    def stop(number: int, _: FrameType | None) -> None:
        raise Stopped(f"stopped by SIGTERM; {go_on}", number)

    if threading.current_thread() is not threading.main_thread():
        yield  # signals reach the main thread alone
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _in_words(error: Exception, debug: bool) -> tuple[int, str]:
    """Exit status and what to say."""
    if isinstance(error, AutosegError):
        return BAD_INPUT, str(error)
    if is_lack_of_memory(error):
        details = f" ({error})" if str(error) else ""
        return FAILED, f"not enough memory{details}; use fewer --processes, or close other programs"
    text = str(error) or type(error).__name__
    if not debug and not isinstance(error, RuntimeError | OSError):
        text += f" ({type(error).__name__}; run again with --debug for the traceback)"
    return FAILED, text


# Which trained model a command means: the same arguments wherever one is read.


def add_model(to: argparse.ArgumentParser, several: bool = False) -> None:
    """`-t`, `-p` or `-m`: which model, or which ones; `-f`: which of its folds."""
    nargs = "+" if several else None
    more = "; of several the mean probabilities are taken" if several else ""
    to.add_argument(
        "-t", "--task", metavar="TASK", help="which task's model, if several are trained"
    )
    to.add_argument("-p", "--plan", metavar="NAME", nargs=nargs, help=f"which plan's model{more}")
    to.add_argument(
        "-m",
        "--model",
        type=Path,
        metavar="MODEL",
        nargs=nargs,
        help=f"a model anywhere: a folder models/TASK/PLAN, or a zip of autoseg_pack{more}",
    )
    to.add_argument(
        "-f", "--folds", nargs="+", metavar="K", help="which folds (default: all trained)"
    )


def model_folders(arguments: argparse.Namespace) -> list[Path]:
    """The folders of all models that are named, or of the only one, where `several` may be.

    Raises:
        AutosegError: a name fits none, or several.
    """
    if arguments.model is None and not arguments.plan:
        return [model_folder(arguments)]
    named = {"model": arguments.model or [None], "plan": arguments.plan or [None]}
    return [
        model_folder(argparse.Namespace(**{**vars(arguments), "model": model, "plan": plan}))
        for model in named["model"]
        for plan in named["plan"]
    ]


def model_folder(arguments: argparse.Namespace) -> Path:
    """The folder given, or the workspace's only trained model that fits.

    Raises:
        AutosegError: none fits, or several.
    """
    from autoseg.workflow.workspace import Workspace

    if arguments.model is not None:
        if arguments.task or arguments.plan:
            raise AutosegError("-m names a model already; leave out -t and -p")
        model: Path = arguments.model
        return model
    workspace = Workspace.find(arguments.workspace)
    there = workspace.trained()
    if not there:
        raise AutosegError(
            f"there is no trained model in {workspace.root / 'models'}; run autoseg_train first, "
            "or name a model with -m"
        )
    fitting = there
    if arguments.task:
        task = workspace.find_task_name(arguments.task)
        fitting = [pair for pair in fitting if pair[0] == task]
    if arguments.plan:
        fitting = [pair for pair in fitting if pair[1] == arguments.plan]
    if len(fitting) == 1:
        return workspace.models(*fitting[0])
    if not fitting:
        wished = " ".join(
            f"{option} {name}"
            for option, name in (("-t", arguments.task), ("-p", arguments.plan))
            if name
        )
        raise AutosegError(f"no trained model fits {wished}; there: {_named(there)}")
    raise AutosegError(f"several models are trained; choose one: {_named(fitting)}")


def _named(models: Iterable[tuple[str, str]]) -> str:
    return ", ".join(f"-t {task} -p {plan}" for task, plan in models)


# What users of nnU-Net type by habit, and what to write here: option -> words of a message.

_PLAN_DECIDES = "the plan decides: autoseg_plan TASK --set"
_DEVICE = {"-device": "write --device NAME"}

PLAN = _DEVICE | {
    "-d": "the task comes first, without an option: autoseg_plan TASK",
    "-c": "write --config NAME",
    "-pl": "write --planner default, resenc_m, resenc_l or resenc_xl",
    "-np": "write --processes N",
    "-npfp": "write --processes N",
    "-gpu_memory_target": "write --memory GB",
    "-overwrite_target_spacing": "write --set target_spacing_mm=[X,Y,Z], in the order x, y, z",
    "-overwrite_plans_name": "write --name NAME",
    "--verify_dataset_integrity": "leave it out; every plan begins with it",
    "--clean": "leave it out; what no longer fits is made anew",
    "--no_pp": "leave it out; autoseg_train preprocesses what is missing",
    "--no_pbar": "leave it out; there are bars on a terminal only",
    "-fpe": "leave it out; there is one way to measure the data",
    "-preprocessor_name": "leave it out; the steps are plan values: --set preprocessing=[...]",
    "-plans_name": "write --name NAME",
    "--verbose": "leave it out; --explain tells why each value was chosen",
}

TRAIN = _DEVICE | {
    "-d": "the task comes first, without an option: autoseg_train TASK fold 0",
    "-f": "write autoseg_train TASK fold 0",
    "-c": "write --plan NAME of a plan made by autoseg_plan TASK --config CONFIG",
    "-tr": f"{_PLAN_DECIDES} training.epochs=250, or another value",
    "-p": "write --plan NAME",
    "--c": "write --resume",
    "-pretrained_weights": "write --pretrained MODEL",
    "-num_gpus": "write torchrun --nproc-per-node=N -m autoseg.cli.train TASK fold 0",
    "--npz": "leave it out; nothing needs the probabilities",
    "--val": "write --resume, which does what is missing of a trained fold",
    "--val_best": "leave it out; the final weights are used, an average over the last steps",
    "--disable_checkpointing": "leave it out; the latest state is kept to resume from",
}

PREDICT = _DEVICE | {
    "-d": "write -t TASK, if several are trained",
    "-c": "write -p NAME of the plan, if several are trained",
    "-tr": "leave it out; -p NAME of the plan decides",
    "-chk": "leave it out; a fold has one file of weights, final.safetensors",
    "-step_size": f"{_PLAN_DECIDES} inference.overlap=[X,Y,Z], in voxels",
    "--disable_tta": "leave it out; nothing is mirrored without --tta",
    "--save_probabilities": "write --save-probabilities",
    "--continue_prediction": "leave it out; what is there is kept without --overwrite",
    "--c": "leave it out; what is there is kept without --overwrite",
    "-npp": "leave it out; one case is read while another is segmented",
    "-nps": "leave it out; one case is written while another is segmented",
    "-prev_stage_predictions": "leave it out; the first stage is run, too",
    "-num_parts": "start one command several times; such runs share the output folder",
    "-part_id": "start one command several times; such runs share the output folder",
    "--not_on_device": "leave it out; no volume of all classes is ever held",
    "--disable_progress_bar": "leave it out; there are bars on a terminal only",
    "--verbose": "leave it out",
}

EVALUATE = {
    "-d": "the task comes first, without an option: autoseg_evaluate TASK",
    "-ref": "write -g TRUTH",
    "-pred": "write -p PREDICTED",
    "-djfile": "leave it out; the labels are found, or chosen with --map",
    "-pfile": "leave it out; the labels are found, or chosen with --map",
    "-np": "write --processes N",
    "--chill": "leave it out; a missing prediction is told and counted as missing",
    "-l": "leave it out; --map P:T chooses labels",
}

PACK = {
    "-d": "the task comes first, without an option: autoseg_pack TASK",
    "-c": "write -p NAME of the plan, if several are trained",
    "-tr": "leave it out; -p NAME of the plan decides",
    "-chk": "leave it out; a fold has one file of weights, final.safetensors",
    "--not_strict": "leave it out; the folds that are trained are packed, or those of -f",
    "--exp_cv_preds": "leave it out; scores are packed, segmentations are not",
}
