"""What the commands share: exit statuses, error lines, and the same arguments everywhere."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
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
