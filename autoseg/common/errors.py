"""Error types, which errors mean that memory ran out, and signals."""

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

# What ends a run in order: `kill`, a cluster's limit; a terminal that was closed (not on Windows).
ENDING = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))
DISTRIBUTION = "autoseg-med"  # the package's name for pip; "autoseg" is another project's

DENIED = "permission denied; ask its owner for access"

# How the loader, threads, C++, torch and ITK report that memory ran out.
OUT_OF_MEMORY_SIGNS = (
    *("failed to map segment", "Cannot allocate memory", "can't start new thread"),
    *("std::bad_alloc", "can't allocate memory", "Failed to allocate memory"),
)


class AutosegError(ValueError):
    """Invalid input. The message says what is wrong, in which file, and what to do.

    The command line prints it as one line and exits with status 2.

    >>> import autoseg
    >>> try:
    ...     autoseg.read_image("no_such_scan.nii.gz")
    ... except autoseg.AutosegError as error:
    ...     print(error)
    no_such_scan.nii.gz: no such file
    """


class DataError(AutosegError):
    """A scan, a label map or a data set is missing, damaged or inconsistent."""


class VoxelError(DataError):
    """A readable file contains values that a scan or a label map cannot have."""


class PlanError(AutosegError):
    """A plan has an unknown key or an invalid value, or belongs to other data."""


class RunError(RuntimeError):
    """A run failed for another reason than invalid input (exit status 1)."""


class InUse(RunError):  # noqa: N818
    """Another living process holds the lock."""


class Stopped(RunError):  # noqa: N818
    """A signal ended the run after it saved its state (exit status 128 + signal number)."""

    def __init__(self, text: str, signal_number: int) -> None:
        super().__init__(text)
        self.status = 128 + signal_number


def raise_if(wrong: object, error: Exception | str) -> None:
    """Raise an error, or a ValueError with a text, if something is wrong."""
    if wrong:
        raise ValueError(error) if isinstance(error, str) else error


def is_lack_of_memory(error: BaseException) -> bool:
    """Whether an error of Python or a library means that memory ran out."""
    return isinstance(error, MemoryError) or any(sign in str(error) for sign in OUT_OF_MEMORY_SIGNS)


def signal_name(number: int) -> str:
    """Such as `SIGKILL`, or `signal 99` for an unknown number."""
    with suppress(ValueError):
        return signal.Signals(number).name
    return f"signal {number}"


@contextmanager
def signal_handled(number: int, handler: Any) -> Iterator[None]:
    """Handle a signal in the block, unless it is ignored, as nohup does with SIGHUP.

    Nothing changes outside the main thread, which gets them.
    """
    ignored = signal.getsignal(number) in (signal.SIG_IGN, None)
    if ignored or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(number, handler)
    try:
        yield
    finally:
        signal.signal(number, before)


@contextmanager
def stopped_by_signals(advice: str) -> Iterator[None]:
    """Raise `Stopped` in the block at the first SIGTERM or SIGHUP, so that it ends in order."""

    def stop(number: int, _: object) -> None:
        for each in ENDING:  # a second one must not interrupt the clean-up
            signal.signal(each, signal.SIG_IGN)
        stopped.append(Stopped(f"stopped by {signal_name(number)}; {advice}", number))
        raise stopped[0]

    def again(lost: Any) -> None:
        """Send the signal once more if it came in a finaliser, where Python ignores exceptions."""
        if not isinstance(lost.exc_value, Stopped):
            usual(lost)
            return
        number = lost.exc_value.status - 128
        signal.signal(number, stop)
        threading.Timer(0.01, signal.raise_signal, [number]).start()

    stopped: list[Stopped] = []
    with ExitStack() as stack:
        usual, sys.unraisablehook = sys.unraisablehook, again
        stack.callback(setattr, sys, "unraisablehook", usual)
        for number in ENDING:
            stack.enter_context(signal_handled(number, stop))
        try:
            yield
        except Exception as error:
            if stopped and not isinstance(error, Stopped):  # such as an import it interrupted
                raise stopped[0] from error
            raise


def install_hint(extra: str) -> str:
    """The command that installs an optional extra such as `cpu`.

    Where the package is installed, pip needs only its name; where it runs from a source tree, pip
    needs the path of that.
    """
    from importlib.metadata import PackageNotFoundError, distribution  # slow, for messages only

    try:
        package = distribution(DISTRIBUTION).name
    except PackageNotFoundError:
        package = str(Path(__file__).parents[2])
    return f"pip install '{package}[{extra}]'"
