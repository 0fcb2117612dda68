"""`autoseg COMMAND`: the table of commands, the commands, and unknown names."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import autoseg
from autoseg.__main__ import COMMANDS, MODULES, main

PROJECT = Path(autoseg.__file__).parents[1] / "pyproject.toml"


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], []])
def test_help_lists_all_commands(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("usage: autoseg COMMAND")
    rows = [line.split(maxsplit=1) for line in printed.splitlines() if line.startswith("  ")]
    assert dict(rows).items() >= COMMANDS.items()


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"autoseg {autoseg.__version__}\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_has_its_own_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help"]) == 0
    assert capsys.readouterr().out.startswith(f"usage: autoseg {command} [-h]")


def test_arguments_and_the_exit_status_are_passed_on(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "Task001", "fold", "x"]) == 2
    assert "'fold x'" in capsys.readouterr().err
    assert main(["predict"]) == 2
    assert "autoseg predict: error: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("trian", ["command 'trian'", "train?"]),
        ("autoseg_plan", ["command 'autoseg_plan'", "plan?"]),
        ("zebra", ["command 'zebra'", "plan, train, predict"]),
        ("--nonsense", ["option '--nonsense'"]),
    ],
)
def test_an_unknown_command_is_one_line_with_the_nearest_name(
    name: str, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([name]) == 2
    printed = capsys.readouterr()
    (line,) = printed.err.splitlines()
    assert printed.out == ""
    assert all(word in line for word in words)


def test_it_runs_as_a_module() -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "autoseg", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    done = run("--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert "evaluate" in done.stdout
    assert run("pack", "--help").stdout.startswith("usage: autoseg pack ")
    done = run("pakc")
    assert (done.returncode, done.stdout) == (2, "")
    assert "did you mean pack?" in done.stderr


def test_the_programs_are_installed_under_these_names() -> None:
    scripts = tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]["scripts"]
    modules = {name: MODULES.get(name, name) for name in COMMANDS}
    programs = {f"autoseg_{name}": f"autoseg.cli.{module}:main" for name, module in modules.items()}
    assert scripts == {"autoseg": "autoseg.__main__:main"} | programs


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from autoseg.__main__ import COMMANDS, main\n"
        "for arguments in ([], *([name, '--help'] for name in COMMANDS)):\n"
        "    assert main(arguments) == 0\n"
        "heavy = ('torch', 'SimpleITK', 'numpy', 'scipy', 'psutil', 'pydantic', 'rich')\n"
        "print([name for name in heavy if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
