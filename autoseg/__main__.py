"""`autoseg COMMAND ...`: one command that holds the others, such as `autoseg plan TASK`."""

import json
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from autoseg import __version__
from autoseg.common.progress import nearest, tolerate_output

DECLARED = json.loads((Path(__file__).parent / "cli/options.json").read_text("utf-8"))["autoseg"]
COMMANDS: dict[str, str] = DECLARED["commands"]
MODULES = {"import": "import_model"}  # `import` is a word of Python
HELP, VERSION, COMPLETION = ("-h", "--help"), "--version", "--print-completion"
BAD_INPUT = 2


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command named by the first argument; returns its exit status."""
    tolerate_output()
    name, *arguments = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if name in HELP:
        print(_help())
        return 0
    if name == VERSION:
        print(f"autoseg {__version__}")
        return 0
    if name == COMPLETION:
        return _print_completion(arguments)
    if name not in COMMANDS:
        kind = "option" if name.startswith("-") else "command"
        meant = (
            nearest(name.removeprefix("autoseg_"), COMMANDS) or f"; choose {', '.join(COMMANDS)}"
        )
        print(f"autoseg: error: unknown {kind} {name!r}{meant}", file=sys.stderr)
        return BAD_INPUT
    # Only the module of this command is imported, which keeps --help fast.
    module = import_module(f"autoseg.cli.{MODULES.get(name, name)}")
    return int(module.main(arguments, f"autoseg {name}"))


def _help() -> str:
    width = max(map(len, COMMANDS))
    table = "\n".join(f"  {name:<{width}}  {does}" for name, does in COMMANDS.items())
    return str(DECLARED["help"]).replace("{table}", table)


def _print_completion(arguments: Sequence[str]) -> int:
    import shtab

    from autoseg.cli.common import Parser, parser  # argparse and others take a while

    together: Any = Parser(prog="autoseg")
    together.add_argument(COMPLETION, choices=shtab.SUPPORTED_SHELLS)
    shell = together.parse_args([COMPLETION, *arguments]).print_completion
    commands = together.add_subparsers()
    for name, does in COMMANDS.items():
        alone = parser(f"autoseg_{name}")
        for action in alone._actions:
            if action.type is Path or not action.option_strings:
                action.complete = shtab.FILE  # type: ignore[attr-defined]
        commands.add_parser(name, help=does, parents=[alone], add_help=False)
        print(shtab.complete(alone, shell))
    print(shtab.complete(together, shell))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
