"""Reference plans: published pipelines as commented JSON5 files in `plans/`."""

from __future__ import annotations

from pathlib import Path

from autoseg.planning.layers import Layer, read_layer


def plans_folder() -> Path:
    """`plans/` inside the installed package, or at the top of a checkout."""
    package = Path(__file__).resolve().parent.parent
    shipped = package / "plans"
    return shipped if shipped.is_dir() else package.parent / "plans"


def reference_layer(task: str) -> Layer | None:
    """The reference plan of this task's name, if there is one."""
    path = plans_folder() / f"{task}.json5"
    return read_layer(path, f"reference plan {path.name}") if path.is_file() else None
