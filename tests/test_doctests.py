"""The examples of all docstrings, in a workspace with real scans; every public name has one."""

from __future__ import annotations

import doctest
import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from pathlib import Path

import pytest

import autoseg
from tests.cli.making import UNSEEN, copy_hippocampus
from tests.forking import forked_workers

__all__ = ["forked_workers"]


def find_examples() -> dict[str, doctest.DocTest]:
    """Name -> the examples of its docstring, everywhere in the package."""
    finder = doctest.DocTestFinder(exclude_empty=True)
    modules = pkgutil.walk_packages(autoseg.__path__, "autoseg.")
    found = [
        test
        for name in ["autoseg", *(module.name for module in modules)]
        for test in finder.find(importlib.import_module(name), name)
    ]
    return {test.name: test for test in found if test.examples}


EXAMPLES = find_examples()
FIRST = (
    "autoseg.workflow.api.plan_task",
    "autoseg.workflow.api.train_fold",
)  # the others need what they make


def run(name: str) -> str:
    """What is wrong with the examples of a docstring; nothing if all is well."""
    said: list[str] = []
    doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(
        EXAMPLES[name], out=said.append, clear_globs=False
    )
    return "".join(said)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, dict[str, str]]]:
    """A folder with a task that was planned and trained by the examples, and what they said."""
    root = tmp_path_factory.mktemp("workspace")
    task = root / "raw" / "Task004_Hippocampus"
    copy_hippocampus(task, 6, UNSEEN)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.delenv("AUTOSEG_WORKSPACE", raising=False)
        yield root, {name: run(name) for name in FIRST}


@pytest.mark.parametrize("name", FIRST)
def test_planning_and_training(name: str, workspace: tuple[Path, dict[str, str]]) -> None:
    assert workspace[1][name] == ""


@pytest.mark.parametrize("name", sorted(EXAMPLES.keys() - set(FIRST)))
def test_an_example(name: str, workspace: tuple[Path, dict[str, str]]) -> None:
    assert run(name) == ""


def test_every_public_name_has_a_docstring_with_an_example() -> None:
    for name in autoseg.__all__:
        thing = getattr(autoseg, name)
        where = f"{thing.__module__}.{thing.__qualname__}"
        assert where in EXAMPLES, name
        assert f"autoseg.{name}" in str(inspect.getdoc(thing)), name
