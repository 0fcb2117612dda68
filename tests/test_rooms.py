"""The house: order of rooms, absence of circles, size of files, imports inside functions."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import autoseg

PACKAGE = Path(autoseg.__file__).parent

# A room imports only rooms of earlier groups. Rooms of one group do not import each other.
ORDER = (
    {"common"},
    {"image", "plan"},
    {"dataset", "networks", "models"},
    {"fingerprint", "preprocessing"},
    {"planner", "augmentation", "prediction"},
    {"training", "evaluation"},
    {"workflow"},
    {"experiments", "export"},
    {"cli"},
)
PLACE = {room: place for place, rooms in enumerate(ORDER) for room in rooms}

# Rooms and packages that a room must not import although their place would allow it.
FORBIDDEN = {
    "common": {"torch", "SimpleITK", "pydicom"},
    "image": {"torch", "pydantic"},
    "plan": {"torch", "SimpleITK"},
    "dataset": {"torch"},
    "networks": {"image", "SimpleITK"},
    "fingerprint": {"networks", "torch"},
    "preprocessing": {"SimpleITK"},
    "planner": {"torch", "image", "SimpleITK"},
    "augmentation": {"image", "dataset", "fingerprint", "SimpleITK"},
    "prediction": {"fingerprint"},
    "training": {"image", "fingerprint", "SimpleITK"},
    "evaluation": {"networks", "torch"},
    "experiments": {"augmentation"},
    "cli": {"augmentation", "networks", "preprocessing"},
}

MOST_MODULES = 145  # with the packages' own files
MOST_LINES = 420
MOST_SHORT = 10  # modules below 60 lines
MOST_LATE_IMPORTS = 65  # imports inside functions


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in FILES.items()}
ROOMS = sorted({name.split(".")[1] for name in FILES if name.count(".") > 1})


def imported(node: ast.AST) -> Iterator[str]:
    """Full names of what an import statement names: modules, and names that may be modules."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        assert node.level == 0, "relative imports are not used"
        base = node.module or ""
        yield base
        yield from (f"{base}.{alias.name}" for alias in node.names)


def type_checking_only(tree: ast.AST) -> set[ast.AST]:
    """Nodes below `if TYPE_CHECKING:`."""
    return {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If)
        and isinstance(node.test, ast.Name)
        and node.test.id == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }


def imports_of(name: str) -> set[str]:
    """Everything that a module imports, also inside functions and for type checking."""
    return {target for node in ast.walk(TREES[name]) for target in imported(node)}


def rooms_of(name: str) -> set[str]:
    """Rooms of autoseg and top-level names of other packages that a module imports."""
    found = set()
    for target in imports_of(name):
        parts = target.split(".")
        found.add(parts[1] if parts[0] == "autoseg" and len(parts) > 1 else parts[0])
    return found


def modules_in(room: str) -> list[str]:
    found = [name for name in FILES if f"{name}.".startswith(f"autoseg.{room}.")]
    assert found
    return found


def broken(room: str, forbidden: set[str]) -> dict[str, set[str]]:
    """Module -> what it imports although it must not."""
    bad = {name: rooms_of(name) & forbidden for name in modules_in(room)}
    return {name: rooms for name, rooms in bad.items() if rooms}


def test_every_room_has_its_place() -> None:
    assert set(ROOMS) == PLACE.keys()


def test_no_module_lies_loose() -> None:
    loose = {path.name for path in PACKAGE.glob("*.py")}
    assert loose <= {"__init__.py", "__main__.py"}


@pytest.mark.parametrize("room", sorted(PLACE))
def test_nothing_flows_backwards(room: str) -> None:
    later = {other for other, place in PLACE.items() if place >= PLACE[room]} - {room}
    assert broken(room, later) == {}


@pytest.mark.parametrize("room", FORBIDDEN)
def test_a_room_keeps_its_walls(room: str) -> None:
    assert broken(room, FORBIDDEN[room]) == {}


@pytest.mark.parametrize("room", sorted(PLACE.keys() - {"cli"}))
def test_only_the_command_line_parses_arguments(room: str) -> None:
    assert broken(room, {"argparse"}) == {}


@pytest.mark.parametrize("room", sorted(PLACE))
def test_a_room_says_what_it_knows(room: str) -> None:
    assert ast.get_docstring(TREES[f"autoseg.{room}"])


def circles() -> list[list[str]]:
    """Groups of modules that import each other, also through imports inside functions."""
    graph = {}
    for name, tree in TREES.items():
        skipped = type_checking_only(tree)
        targets = {
            target for node in ast.walk(tree) if node not in skipped for target in imported(node)
        }
        graph[name] = (targets & FILES.keys()) - {name, "autoseg"}

    def reached(start: str) -> set[str]:
        seen: set[str] = set()
        left = list(graph[start])
        while left:
            name = left.pop()
            if name not in seen:
                seen.add(name)
                left.extend(graph[name])
        return seen

    reach = {name: reached(name) for name in graph}
    return sorted(
        sorted(other for other in reach[name] if name in reach[other])
        for name in graph
        if name in reach[name]
    )


def test_no_circles() -> None:
    assert circles() == []


def test_sizes() -> None:
    lines = {name: path.read_text(encoding="utf-8").count("\n") for name, path in FILES.items()}
    assert {name: count for name, count in lines.items() if count > MOST_LINES} == {}
    short = {
        name: count
        for name, count in lines.items()
        if count < 60 and FILES[name].name != "__init__.py"
    }
    assert len(short) <= MOST_SHORT, short
    assert len(lines) <= MOST_MODULES


def test_few_imports_inside_functions() -> None:
    late = {
        name: len(
            {
                node
                for function in ast.walk(tree)
                if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
                for node in ast.walk(function)
                if isinstance(node, ast.Import | ast.ImportFrom)
            }
        )
        for name, tree in TREES.items()
    }
    assert sum(late.values()) <= MOST_LATE_IMPORTS, {n: c for n, c in late.items() if c}


def test_the_check_sees_every_form_of_import() -> None:
    text = """
import autoseg.cli.plan
from autoseg import training
def f():
    from autoseg.networks import unet
    import torch.nn as nn
"""
    found = {target for node in ast.walk(ast.parse(text)) for target in imported(node)}
    assert found == {
        "autoseg",
        "autoseg.cli.plan",
        "autoseg.training",
        "autoseg.networks",
        "autoseg.networks.unet",
        "torch.nn",
    }
