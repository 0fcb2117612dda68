"""Which trained model a command means: the same arguments wherever one is read."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path

from autoseg.common.errors import AutosegError


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
