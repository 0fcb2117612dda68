"""Processes of the tests as forks of one that has imported everything: torch takes seconds.

A process that is spawned, as autoseg's workers are, imports everything anew. Where that is not what
a test is about, `forked_workers` and `ForkedRun` save it.
"""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from multiprocessing.context import BaseContext, ForkServerContext
from multiprocessing.process import BaseProcess
from typing import Any

import pytest
import torch

from autoseg.common import figures
from autoseg.experiments import attempt, local, slurm
from autoseg.experiments.attempt import RunOrder
from autoseg.experiments.local import RunProcess

COMMANDS = ("plan", "train", "predict", "evaluate", "pack", "export", "experiment")
PRELOADED = [f"autoseg.cli.{command}" for command in COMMANDS] + [
    "SimpleITK",
    "autoseg.augmentation.loader",
    "autoseg.workflow.fold",
    "autoseg.evaluation.evaluate",
    "autoseg.experiments.attempt",
    "autoseg.experiments.report",
    "autoseg.export.model_zip",
    "autoseg.prediction.batch",
    "autoseg.export.networks",
    "autoseg.prediction.predictor",
    "matplotlib.backends.backend_agg",
    "matplotlib.figure",
    "scipy.ndimage",
    "tests.forking",
    "tests.warm",
    "torch",
]
spawned_context = multiprocessing.get_context
COARSE = 40  # dots per inch: a picture takes a second with 150


def forks() -> ForkServerContext:
    """What starts processes as forks of one that has imported everything."""
    context = spawned_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


def _forked_context(method: str | None = None) -> BaseContext:
    return forks() if method == "spawn" else spawned_context(method)


def fork_workers() -> None:
    """In a process that was forked: let its workers and runs be forks, its pictures coarse."""
    figures.DOTS_PER_INCH = COARSE
    server = forkserver._forkserver
    if getattr(server, "_forkserver_address", None) is not None:  # of the server it comes from
        server.ensure_running = lambda: None  # type: ignore[method-assign]
        multiprocessing.get_context = _forked_context  # type: ignore[assignment]
        for module in (local, slurm):
            setattr(module, "RunProcess", ForkedRun)  # noqa: B010  (mypy: the class of another)


def spawn_workers() -> None:
    """Undo `fork_workers`: let worker processes be spawned, as they are in use."""
    multiprocessing.get_context = spawned_context


@pytest.fixture(autouse=True, scope="package")
def forked_workers() -> Iterator[None]:
    """Fork the worker processes and runs of a room's tests."""
    if sys.platform != "linux":
        yield
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(multiprocessing, "get_context", _forked_context)
        for module in (local, slurm):
            patch.setattr(module, "RunProcess", ForkedRun)
        yield


def begin(function: Callable[..., Any], *args: Any) -> tuple[BaseProcess, Connection]:
    """Call a function in a fork; its result comes through the connection."""
    context = forks()
    told, telling = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(telling, function, args))
    process.start()
    telling.close()
    return process, told


def _send(telling: Connection, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    fork_workers()
    telling.send(function(*args))


@pytest.fixture(autouse=True, scope="session")
def coarse_pictures() -> Iterator[None]:
    """Write pictures of few pixels, which is faster."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "DOTS_PER_INCH", COARSE)
        yield


@pytest.fixture(autouse=True, scope="module")
def fine_pictures() -> Iterator[None]:
    """In a module that looks at pictures: write them as in use."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "DOTS_PER_INCH", 150)
        yield


class _Forked:
    """What `RunProcess` needs of `subprocess.Popen`."""

    def __init__(self, process: BaseProcess, stdin: Connection) -> None:
        self.process, self.stdin = process, stdin

    @property
    def pid(self) -> int | None:
        return self.process.pid

    @property
    def returncode(self) -> int | None:
        return self.process.exitcode

    def kill(self) -> None:
        self.process.kill()

    def wait(self, timeout: float | None = None) -> int:
        self.process.join(timeout)
        if self.process.exitcode is None:
            raise subprocess.TimeoutExpired("fork", timeout or 0.0)
        return self.process.exitcode


class ForkedRun(RunProcess):
    """The process of a run as a fork, with the same standard input, log and exit status."""

    def __init__(self, order: RunOrder, threads: int) -> None:
        self.order = order
        order.log.parent.mkdir(parents=True, exist_ok=True)
        context = forks()
        reading, writing = context.Pipe(duplex=False)
        process = context.Process(target=_carry_out, args=(reading, str(order.log), threads))
        process.start()
        reading.close()
        os.write(writing.fileno(), f"{order.model_dump_json()}\n".encode())
        self.process = _Forked(process, writing)  # type: ignore[assignment]
        self.input = writing  # type: ignore[assignment]


def _carry_out(reading: Connection, log: str, threads: int) -> None:
    os.setsid()
    fork_workers()
    os.dup2(reading.fileno(), 0)
    reading.close()
    opened = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    for number in (1, 2):
        os.dup2(opened, number)
    os.close(opened)
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
    torch.set_num_threads(threads)
    sys.exit(attempt.main())
