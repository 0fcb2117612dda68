"""`autoseg COMMAND ...`: one command that holds the others, such as `autoseg plan TASK`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from difflib import get_close_matches
from importlib import import_module

from autoseg import __version__

COMMANDS = {
    "plan": "check a raw task, measure it and write a plan for it",
    "train": "train and validate folds of a planned task",
    "predict": "segment scans with a trained model",
    "evaluate": "score predictions, or summarise a cross-validation",
    "experiment": "train and test all models of a study, here or on a Slurm cluster",
    "pack": "pack a trained model into one zip file",
    "export": "write a model for ONNX, OpenVINO, nnU-Net or MONAI",
    "import": "make a model of a trained model of nnU-Net",
}
MODULES = {"import": "import_model"}  # `import` is a word of Python
HELP, VERSION = ("-h", "--help"), "--version"
BAD_INPUT = 2


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command named by the first argument; returns its exit status."""
    name, *arguments = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if name in HELP:
        print(_help())
        return 0
    if name == VERSION:
        print(f"autoseg {__version__}")
        return 0
    if name not in COMMANDS:
        print(f"autoseg: error: {_unknown(name)}", file=sys.stderr)
        return BAD_INPUT
    # Only the module of this command is imported, which keeps --help fast.
    module = import_module(f"autoseg.cli.{MODULES.get(name, name)}")
    return int(module.main(arguments, f"autoseg {name}"))


def _help() -> str:
    width = max(map(len, COMMANDS))
    table = "\n".join(f"  {name:<{width}}  {does}" for name, does in COMMANDS.items())
    return (
        "usage: autoseg COMMAND [options]\n\n"
        "Plan, train and apply 3D segmentation models.\n\n"
        f"commands:\n{table}\n\n"
        "options:\n"
        "  -h, --help  show this help message and exit\n"
        "  --version   show the version and exit\n\n"
        "`autoseg COMMAND --help` lists the options of a command. Each command also exists as a\n"
        "program of its own: `autoseg_plan` is `autoseg plan`."
    )


def _unknown(name: str) -> str:
    kind = "option" if name.startswith("-") else "command"
    nearest = get_close_matches(name.removeprefix("autoseg_"), COMMANDS, n=1)
    hint = f"did you mean {nearest[0]!r}?" if nearest else f"choose from {', '.join(COMMANDS)}"
    return f"unknown {kind} {name!r}; {hint}"


if __name__ == "__main__":
    raise SystemExit(main())
