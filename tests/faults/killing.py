"""Commands in processes of their own that can be killed at any moment, without slow imports."""

from __future__ import annotations

import importlib
import io
import multiprocessing
import sys
import time
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch

COMMANDS = ("plan", "train", "predict", "evaluate")
PRELOADED = [f"autoseg.cli.{command}" for command in COMMANDS] + [
    "SimpleITK",
    "autoseg.experiments.fold",
    "autoseg.evaluation.evaluate",
    "autoseg.prediction.batch",
    "autoseg.prediction.predictor",
    "matplotlib.figure",
    "scipy.ndimage",
    "torch",
]


def _run(command: str, words: Sequence[str]) -> None:
    torch.set_num_threads(1)
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()) as said:
        status = importlib.import_module(f"autoseg.cli.{command}").main(list(words))
    if status:
        sys.stderr.write(said.getvalue())
    sys.exit(status)


def start(command: str, words: Sequence[str]) -> BaseProcess:
    """One of autoseg's commands, as a fork of a process that has imported everything."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    process = context.Process(target=_run, args=(command, words))
    process.start()
    return process


def finish(command: str, words: Sequence[str]) -> float:
    """Run a command to its end; returns its seconds."""
    begun = time.monotonic()
    process = start(command, words)
    process.join()
    assert process.exitcode == 0, (command, words)
    return time.monotonic() - begun


def kill_after(seconds: float, command: str, words: Sequence[str]) -> bool:
    """Kill a command that long after its start; returns whether it was still at work."""
    process = start(command, words)
    process.join(seconds)
    process.kill()
    process.join()
    return process.exitcode != 0


def visible(folder: Path) -> dict[str, Path]:
    """The files that a person sees, by their path in the folder; what begins with a dot is not."""
    found = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
    parts = {name: Path(name).parts for name in found}
    return {n: p for n, p in sorted(found.items()) if not any(x.startswith(".") for x in parts[n])}
