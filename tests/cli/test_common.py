"""What all commands share: exit statuses, one-line errors, signals, and common options."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from autoseg import __version__
from autoseg.cli import common, evaluate, experiment, export, pack, plan, predict, train
from autoseg.common.errors import AutosegError, DataError, InUse, PlanError, RunError, Stopped

COMMANDS = {
    "autoseg_plan": plan,
    "autoseg_train": train,
    "autoseg_predict": predict,
    "autoseg_evaluate": evaluate,
    "autoseg_experiment": experiment,
    "autoseg_pack": pack,
    "autoseg_export": export,
}


def raising(error: BaseException) -> Callable[[argparse.Namespace], int]:
    def command(arguments: argparse.Namespace) -> int:
        raise error

    return command


def make_parser() -> argparse.ArgumentParser:
    return common.parser("autoseg_test", "Tests.")


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (AutosegError("bad\n  input"), 2, "error: bad input"),
        (DataError("a.nii is damaged"), 2, "error: a.nii is damaged"),
        (PlanError("unknown key"), 2, "error: unknown key"),
        (InUse("fold 0 is in use by process 7"), 2, "error: fold 0 is in use by process 7"),
        (RunError("the loss became NaN"), 1, "error: the loss became NaN"),
        (OSError(28, "No space left"), 1, "error: [Errno 28] No space left"),
        (RuntimeError(), 1, "error: RuntimeError"),
        (
            ImportError("libx.so: failed to map segment from shared object"),
            1,
            "error: not enough memory (libx.so: failed to map segment from shared object); "
            "use fewer --processes, or close other programs",
        ),
        (
            MemoryError("9 GiB"),
            1,
            "error: not enough memory (9 GiB); use fewer --processes, or close other programs",
        ),
        (
            KeyError("x"),
            1,
            "error: 'x' (KeyError; run again with --debug for the traceback)",
        ),
        (
            AssertionError(),
            1,
            "error: AssertionError (AssertionError; run again with --debug for the traceback)",
        ),
        (
            KeyboardInterrupt(),
            130,
            f"stopped by Ctrl-C; {common.CONTINUE}",
        ),
        (
            Stopped("stopped by SIGTERM after epoch 3", 15),
            143,
            "stopped by SIGTERM after epoch 3",
        ),
    ],
)
def test_an_error_is_one_line_and_a_status(
    error: BaseException, status: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert common.run(make_parser, raising(error), []) == status
    assert capsys.readouterr() == ("", f"{line}\n")


def test_sigterm_ends_a_command_cleanly(capsys: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(signal.SIGTERM)
    cleaned_up = []

    def command(arguments: argparse.Namespace) -> int:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        finally:
            cleaned_up.append(True)
        return 0

    assert common.run(make_parser, command, [], how_to_continue="continue with --resume") == 143
    assert cleaned_up
    assert capsys.readouterr().err == "stopped by SIGTERM; continue with --resume\n"
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="Windows has no SIGHUP")
def test_sighup_ends_a_command_unless_it_is_ignored(capsys: pytest.CaptureFixture[str]) -> None:
    def command(arguments: argparse.Namespace) -> int:
        os.kill(os.getpid(), signal.SIGHUP)
        return 0

    assert common.run(make_parser, command, []) == 129
    assert "SIGHUP" in capsys.readouterr().err
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert common.run(make_parser, command, []) == 0
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="Windows has no SIGHUP")
def test_a_second_signal_does_not_interrupt_the_clean_up() -> None:
    cleaned_up = []

    def command(arguments: argparse.Namespace) -> int:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        finally:
            for number in (signal.SIGTERM, signal.SIGHUP):
                os.kill(os.getpid(), number)
            cleaned_up.append(True)
        return 0

    assert common.run(make_parser, command, []) == 143
    assert cleaned_up


WRITER = """
import os, subprocess, sys
from contextlib import suppress
from autoseg.cli import common
from autoseg.common.progress import progress, say

def command(arguments):
    with open(sys.argv[1], "w") as file:
        for _ in range(3):
            print("Würfel ± 0.1")
            say("Größe ± 0.2")
            with suppress(OSError):
                os.write(2, b"a library writes")
        with progress("counting", 1) as bar:
            bar.advance("± 0.3")
        child = "import os; [os.fstat(number) for number in range(3)]"  # none is closed
        subprocess.run([sys.executable, "-c", child], check=True)
        file.write("results")
    return 0

if sys.argv[2:] == ["none"]:
    sys.stdout = sys.stderr = sys.__stdout__ = sys.__stderr__ = None
sys.exit(common.run(lambda: common.parser("writer", "Writes."), command, []))
"""


def written(tmp_path: Path, redirection: str, *words: str, **environment: str) -> str:
    """What a command prints whose file must be written and whose status must be 0."""
    file = tmp_path / "file"
    script = tmp_path / "writer.py"
    script.write_text(WRITER, encoding="utf-8")
    shell = ["bash", "-c", f'"$@" {redirection}; exit ${{PIPESTATUS[0]}}', "bash"]
    done = subprocess.run(
        [*shell, sys.executable, str(script), str(file), *words],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])} | environment,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done
    assert file.read_text() == "results"
    return (done.stdout + done.stderr).decode("latin-1")


@pytest.mark.skipif(sys.platform == "win32", reason="uses a shell of Unix")
@pytest.mark.parametrize(
    "redirection",
    ["<&- >&- 2>&-", ">&-", "2>&-", ">/dev/full 2>/dev/full", "2>&1 | true", "2>/dev/full"],
)
def test_output_that_cannot_be_written_does_not_end_a_command(
    tmp_path: Path, redirection: str
) -> None:
    if "full" in redirection and not Path("/dev/full").exists():
        pytest.skip("/dev/full is of Linux")
    assert "Error" not in written(tmp_path, redirection)


@pytest.mark.skipif(sys.platform == "win32", reason="uses a shell of Unix")
def test_there_need_not_be_any_output(tmp_path: Path) -> None:
    assert written(tmp_path, "", "none") in ("", 3 * "a library writes")


@pytest.mark.skipif(sys.platform == "win32", reason="uses a shell of Unix")
@pytest.mark.parametrize(
    ("environment", "shown"),
    [
        ({"PYTHONIOENCODING": "ascii"}, "W?rfel ? 0.1"),
        ({"PYTHONIOENCODING": "latin-1"}, "Würfel ± 0.1"),
        ({"PYTHONIOENCODING": "cp437"}, "W\x81rfel \xf1 0.1"),
    ],
)
def test_characters_that_cannot_be_shown_are_replaced(
    tmp_path: Path, environment: dict[str, str], shown: str
) -> None:
    assert shown in written(tmp_path, "", **environment)


@pytest.mark.skipif(sys.platform == "win32", reason="uses a shell of Unix")
def test_any_locale_will_do(tmp_path: Path) -> None:
    assert "counting: 1/1" in written(tmp_path, "", LC_ALL="C", PYTHONUTF8="0")


def test_commands_run_outside_the_main_thread() -> None:
    found = []
    thread = threading.Thread(target=lambda: found.append(common.run(make_parser, lambda _: 0, [])))
    thread.start()
    thread.join()
    assert found == [0]


def test_debug_prints_the_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert common.run(make_parser, raising(DataError("broken")), ["--debug"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert lines[-1] == "error: broken"
    assert any("in command" in line for line in lines)


def test_a_command_returns_its_status() -> None:
    assert common.run(make_parser, lambda arguments: 0, []) == 0
    assert common.run(make_parser, lambda arguments: 2, []) == 2


@pytest.mark.parametrize(("name", "module"), COMMANDS.items())
def test_help_and_version(
    name: str, module: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    assert module.main(["--help"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"usage: {name} ")
    assert "--debug" in printed
    assert module.main(["--version"]) == 0
    assert capsys.readouterr().out == f"autoseg {__version__}\n"


@pytest.mark.parametrize(("name", "module"), COMMANDS.items())
@pytest.mark.parametrize("arguments", [["--nonsense"], ["a", "0", "--process", "2"]])
def test_unknown_options_are_refused(
    name: str, module: ModuleType, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert module.main(arguments) == 2
    assert f"{name}: error: " in capsys.readouterr().err


@pytest.mark.parametrize("number", ["0", "-1", "two", "1.5", "²", ""])
def test_processes_are_positive_integers(number: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert plan.main(["Task", f"--processes={number}"]) == 2
    assert f"{number!r} is not a positive integer" in capsys.readouterr().err


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from autoseg.cli import evaluate, experiment, export, pack, plan, predict, train\n"
        "for module in (evaluate, experiment, export, pack, plan, predict, train):\n"
        "    assert module.main(['--help']) == 0\n"
        "heavy = ('torch', 'SimpleITK', 'numpy', 'scipy', 'matplotlib', 'pydantic', 'rich')\n"
        "print([name for name in heavy if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_a_module_to_run(name: str) -> None:
    module = name.replace("autoseg_", "autoseg.cli.")
    command = [sys.executable, "-m", module, "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, f"autoseg {__version__}\n")
