"""Shared by all commands: common options, exit statuses and one-line errors."""

import argparse
import atexit
import gc
import inspect
import multiprocessing
import signal
import traceback
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from autoseg import __version__
from autoseg.common import errors
from autoseg.common.files import read_json, texts_in
from autoseg.common.parallel import cores, limit_threads
from autoseg.common.progress import nearest, say, tolerate_output

if TYPE_CHECKING:
    from autoseg.workflow.workspace import Workspace

TEXT = texts_in(Path(__file__).with_name("messages.json"))
LONGEST_WORD, LONGEST_LINE = 5000, 20_000
DONE, FAILED, BAD_INPUT = 0, 1, 2
CONTINUE = "finished work is kept; run the same command again to continue"


def at_least_one(text: str) -> int:
    """An argparse type: a positive integer."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive integer")
    return int(text)


TYPES = {"path": Path, "number": float, "integer": int, "count": at_least_one}  # in `options.json`


class Parser(argparse.ArgumentParser):
    """Words and options in any order; an error is one line, with the nearest known option."""

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse all arguments, or exit with a message."""
        found, unknown = self.parse_known_intermixed_args(args, namespace)
        for word in (each.partition("=")[0] for each in unknown if each.startswith("-")):
            visible = (each for each in self._actions if each.help != argparse.SUPPRESS)
            names = [name for action in visible for name in action.option_strings]
            self.error(f"unknown option {word}{nearest(word, names)}; see {self.prog} --help")
        if unknown:
            self.error(f"unexpected {' '.join(unknown)!r}; see {self.prog} --help")
        return found

    def error(self, message: str) -> NoReturn:
        """Exit with one line, without the usage."""
        self.exit(BAD_INPUT, f"{self.prog}: error: {message}\n")


def one_of(choices: Sequence[str], aliases: Mapping[str, str]) -> Callable[[str], str]:
    """An argparse type: one of some names; another program's name for one is translated."""

    def chosen(text: str) -> str:
        if text in aliases:
            say(f"{text} is called {aliases[text]} here")
        elif text not in choices:
            meant = nearest(text, choices)
            raise argparse.ArgumentTypeError(f"{text!r} is not one of {', '.join(choices)}{meant}")
        return aliases.get(text, text)

    return chosen


def parser(name: str, description: str | None = None) -> argparse.ArgumentParser:
    """The parser of a command with the options of every command.

    Args:
        name: of the command; `options.json` declares its other options, and those of nnU-Net's
            corresponding command and of other commands, which are errors with advice.
        description: of a command that is not declared there.
    """
    declared = declarations().get(name, {"description": description, "options": {}})
    made = Parser(prog=name, description=declared["description"], allow_abbrev=False)
    for program, head in (("nnunet", "is an option of nnU-Net; "), ("elsewhere", "")):
        for option, instead in declared.get(program, {}).items():
            made.add_argument(option, action=NoOption, const=head + instead, help=argparse.SUPPRESS)
    made.add_argument("--version", action="version", version=f"autoseg {__version__}")
    made.add_argument("--debug", action="store_true", help="print the full traceback of an error")
    add_options(made, declared["options"])
    return made


def declarations() -> dict[str, Any]:
    """The content of `options.json`: command -> its options, with the arguments of argparse."""
    return dict(read_json(Path(__file__).with_name("options.json")))


def add_options(to: argparse.ArgumentParser, options: Mapping[str, dict[str, Any] | None]) -> None:
    """Add options by their names; None: declared in `shared`, for several commands."""
    shared = declarations()["shared"]
    # Of the options of a group, only one may be given.
    groups: dict[str | None, Any] = defaultdict(to.add_mutually_exclusive_group, {None: to})
    for names, declared in options.items():
        settings = {"help": argparse.SUPPRESS} | (declared or shared[names])
        if "type" in settings:
            settings["type"] = TYPES[settings["type"]]
        if "choices" in settings:
            settings["type"] = one_of(settings["choices"], settings.pop("aliases", {}))
        groups[settings.pop("group", None)].add_argument(*names.split(), **settings)
    to.set_defaults(processes=min(cores(), 12))


class NoOption(argparse.Action):
    """An option of another program, which is an error; `const` is what to write instead."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(nargs=0, **settings | {"dest": argparse.SUPPRESS})

    def __call__(self, parser: argparse.ArgumentParser, *given: Any, **_: Any) -> None:
        """Exit with a message; the last argument of argparse is the option."""
        parser.error(f"{given[-1]} {self.const}")


def named_in(function: Callable[..., Any], arguments: argparse.Namespace) -> dict[str, Any]:
    """The arguments of a command that a function or a dataclass has parameters for."""
    names = inspect.signature(function).parameters
    return {name: value for name, value in vars(arguments).items() if name in names}


def find_workspace(arguments: argparse.Namespace) -> "Workspace":
    """The workspace of `--workspace`."""
    from autoseg.workflow.workspace import Workspace

    return Workspace.find(arguments.workspace)


def take_task(arguments: argparse.Namespace, more: str | None = "") -> str:
    """The task of `-t`, or else the first word, which is removed.

    Args:
        arguments: of the command.
        more: how to write what needs more words, which are an error; None: they are not.

    Raises:
        AutosegError: there is none, or words are left over.
    """
    folds = getattr(arguments, "folds", None) or []
    if arguments.task is None and not arguments.words:  # `-f 0 TASK`: -f takes what follows it
        arguments.words = [word for word in folds if not is_fold(word)]
        arguments.folds = [word for word in folds if is_fold(word)]
    if arguments.task is None and arguments.words:
        arguments.task = arguments.words.pop(0)
    if arguments.task is None:
        known = ", ".join(find_workspace(arguments).tasks()) or "none"
        raise errors.AutosegError(f"TASK is missing; the workspace's tasks: {known}")
    if arguments.words and more is not None:
        names = " ".join([arguments.task, *arguments.words])
        raise errors.AutosegError(f"{names!r}: give one TASK{more}")
    return str(arguments.task)


def is_fold(word: str) -> bool:
    """Whether a word is the number of a fold, or `all`."""
    return word == "all" or word.isdecimal()


def spawn_workers() -> None:
    """Start worker processes afresh: a fork would copy locks that torch's threads hold."""
    multiprocessing.set_start_method("spawn", force=True)


def run(
    make_parser: Callable[[], argparse.ArgumentParser],
    command: Callable[[argparse.Namespace], int],
    argv: Sequence[str] | None = None,
    prog: str | None = None,
    how_to_continue: str = CONTINUE,
) -> int:
    """Parse the arguments and run a command; returns the exit status, errors become one line.

    Args:
        make_parser: makes the command's parser.
        command: the command itself.
        argv: the arguments; those of this Python process if None.
        prog: name of the program in the usage line, if not the parser's.
        how_to_continue: advice for a user who has interrupted the command.
    """

    atexit.register(gc.freeze)  # no last garbage collection: 1 s with torch
    tolerate_output()
    made = make_parser()
    made.prog = prog or made.prog
    try:
        arguments = made.parse_args(argv)
    except SystemExit as stop:  # argparse has printed help or an error
        return int(stop.code or 0)
    limit_threads()
    try:
        with errors.stopped_by_signals(how_to_continue):  # releases locks and ends workers
            return command(arguments)
    except (Exception, KeyboardInterrupt) as error:
        if arguments.debug:
            traceback.print_exc()
        if isinstance(error, KeyboardInterrupt):
            error = errors.Stopped(f"stopped by Ctrl-C; {how_to_continue}", signal.SIGINT)
        if isinstance(error, errors.Stopped):
            _print_line(str(error))
            return error.status
        status, text = _describe(error, arguments.debug)
        print_error(text)
        return status


def command(
    name: str, do: Callable[[argparse.Namespace], int], how_to_continue: str = CONTINUE
) -> Callable[..., int]:
    """The function `main` of a command: `run` with the parser of this name."""
    return partial(run, partial(parser, name), do, how_to_continue=how_to_continue)


def print_error(text: str) -> None:
    """Print one line that begins with `error:`."""
    _print_line(f"error: {text}")


def _print_line(text: str) -> None:
    words = text.split()
    for i, word in enumerate(words):
        if len(word) > LONGEST_WORD:  # longer than any path: the content of a damaged file
            words[i] = f"{word[:100]}... ({len(word)} characters)"
    say(" ".join(words)[:LONGEST_LINE])


def _describe(error: Exception, debug: bool) -> tuple[int, str]:
    """Exit status and message."""
    if isinstance(error, errors.AutosegError | errors.InUse):
        return BAD_INPUT, str(error)
    if isinstance(error, PermissionError):
        return BAD_INPUT, f"{error.filename}: {errors.DENIED}"
    if errors.is_lack_of_memory(error):
        details = f" ({error})" if str(error) else ""
        return FAILED, f"not enough memory{details}; use fewer --processes, or close other programs"
    text = str(error) or type(error).__name__
    if not debug and not isinstance(error, RuntimeError | OSError):
        text += f" ({type(error).__name__}; run again with --debug for the traceback)"
    return FAILED, text


def model_folders(arguments: argparse.Namespace) -> list[Path]:
    """The folders of the models of `-m` and `-p`, of which there may be several.

    Raises:
        AutosegError: a name matches no model, or several.
    """
    models, plans = arguments.model or [None], arguments.plan or [None]
    return [model_folder(arguments, model, plan) for model in models for plan in plans]


def model_folder(arguments: argparse.Namespace, model: Path | None, plan: str | None) -> Path:
    """The given folder, or the workspace's only trained model of the task and this plan.

    Raises:
        AutosegError: no model matches, or several.
    """
    if model is not None:
        if arguments.task or plan:
            raise errors.AutosegError("-m already names a model; leave out -t and -p")
        return model
    workspace = find_workspace(arguments)
    trained = workspace.trained()
    if not trained:
        raise errors.AutosegError(TEXT("no model", folder=workspace.root / "models"))
    task = workspace.find_task_name(arguments.task) if arguments.task else None
    matches = workspace.trained(task, plan or "")
    if len(matches) == 1:
        return workspace.models(*matches[0])
    if not matches:
        given = {"-t": arguments.task, "-p": plan}
        options = " ".join(f"{option} {name}" for option, name in given.items() if name)
        names = [name for _, name in workspace.trained(task)]
        known = _listed(trained) + nearest(plan or "", names)
        raise errors.AutosegError(f"no trained model matches {options}; available: {known}")
    raise errors.AutosegError(f"several models are trained; choose one: {_listed(matches)}")


def _listed(models: Iterable[tuple[str, str]]) -> str:
    return ", ".join(f"-t {task} -p {plan}" for task, plan in models)
