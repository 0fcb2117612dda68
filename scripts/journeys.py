#!/usr/bin/env python3
"""Count the files of autoseg that each command imports.

For each command: the modules reached from its file through import statements, also those inside
functions; imports for type checking do not count.

Usage: python scripts/journeys.py [CHECKOUT]
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

COMMANDS = ("predict", "evaluate", "train")


def statements(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes below one, without those below `if TYPE_CHECKING:`."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and getattr(child.test, "id", None) == "TYPE_CHECKING":
            continue
        yield child
        yield from statements(child)


def imports(path: Path) -> Iterator[str]:
    """Names of everything that a file imports."""
    for node in statements(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def reached(files: dict[str, Path], start: str) -> set[str]:
    """Modules reached from one, itself included."""
    seen: set[str] = set()
    left = [start]
    while left:
        name = left.pop()
        if name not in seen:
            seen.add(name)
            left.extend(target for target in imports(files[name]) if target in files)
    return seen


def main() -> None:
    """Print a line for each command."""
    root = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parents[1])
    files = {
        ".".join(path.relative_to(root).with_suffix("").parts): path
        for path in root.glob("autoseg/**/*.py")
        if path.name != "__init__.py"
    }
    for command in COMMANDS:
        found = reached(files, f"autoseg.cli.{command}")
        lines = sum(len(files[name].read_text(encoding="utf-8").splitlines()) for name in found)
        print(f"autoseg_{command}: {len(found)} files, {lines} lines")


if __name__ == "__main__":
    main()
