"""What `import autoseg` offers, and what it costs."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import autoseg

HEAVY = {"torch", "SimpleITK", "numpy", "pydantic", "scipy", "batchgenerators", "matplotlib"}


def loaded_by(code: str) -> set[str]:
    """The packages that a fresh Python has loaded after running this."""
    shown = f"{code}\nimport sys\nprint(*{{name.partition('.')[0] for name in sys.modules}})"
    ran = subprocess.run(
        [sys.executable, "-c", shown], capture_output=True, text=True, check=True, timeout=120
    )
    return set(ran.stdout.split())


def test_importing_the_package_imports_nothing_heavy() -> None:
    assert not loaded_by("import autoseg\ndir(autoseg)\nautoseg.__version__") & HEAVY


def test_reading_scans_needs_no_torch() -> None:
    loaded = loaded_by("from autoseg import Geometry, Image, read_image, write_label")
    assert not loaded & {"torch", "SimpleITK", "pydantic", "batchgenerators"}


def test_every_name_is_there_and_nothing_else() -> None:
    for name in autoseg.__all__:
        assert name in dir(autoseg)
        assert getattr(autoseg, name).__name__ == name
    with pytest.raises(AttributeError, match="nothing"):
        _ = autoseg.nothing  # type: ignore[attr-defined]
    assert importlib.import_module("autoseg.common.files") is autoseg.common.files


def test_names_lie_where_type_checkers_are_told() -> None:
    stub = Path(autoseg.__file__).with_suffix(".pyi")
    told = {
        alias.name: f"autoseg.{node.module}"
        for node in ast.walk(ast.parse(stub.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert sorted(told) == autoseg.__all__
    for name, home in told.items():
        assert getattr(autoseg, name).__module__ == home
