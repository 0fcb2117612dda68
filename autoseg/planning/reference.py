"""Reference plans: published pipelines as commented JSON5 files in `plans/`.

Beside plan values such a file may hold `configuration` (the one that it is made for), `citation`
(where its values come from) and `extends` (another reference plan, whose values lie below its own).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from autoseg.common.errors import PlanError
from autoseg.planning.layers import Layer, read_layer

ENDING = ".json5"


@dataclass(frozen=True)
class Reference:
    """A reference plan.

    Attributes:
        name: its file's name without the ending.
        layers: its values, those that it extends first.
        configuration: the only one that it is made for; None if it fits all.
    """

    name: str
    layers: tuple[Layer, ...]
    configuration: str | None


def plans_folder() -> Path:
    """`plans/` inside the installed package, or at the top of a checkout."""
    package = Path(__file__).resolve().parent.parent
    shipped = package / "plans"
    return shipped if shipped.is_dir() else package.parent / "plans"


def reference_names() -> list[str]:
    """The names of all reference plans, sorted."""
    return sorted(path.name.removesuffix(ENDING) for path in plans_folder().glob(f"*{ENDING}"))


def find_reference(task: str, name: str | None = None) -> Reference | None:
    """The reference plan of this name, or without a name that of the task, if there is one.

    Raises:
        PlanError: there is none of this name, a file is damaged, or plans extend each other.
    """
    if name is None:
        return read_reference(task) if task in reference_names() else None
    return read_reference(name)


def read_reference(name: str, above: tuple[str, ...] = ()) -> Reference:
    """Read a reference plan and what it extends.

    Args:
        name: the file's name without the ending.
        above: the plans that extend this one.

    Raises:
        PlanError: as `find_reference`.
    """
    if name in above:
        raise PlanError(f"reference plans extend each other: {' -> '.join((*above, name))}")
    if name not in reference_names():
        by = f", which {above[-1]} extends," if above else ""
        raise PlanError(
            f"there is no reference plan {name!r}{by} in {plans_folder()}; "
            f"there: {', '.join(reference_names()) or 'none'}"
        )
    path = plans_folder() / f"{name}{ENDING}"
    source = f"reference plan {path.name}"
    values = dict(read_layer(path, source).values)
    citation = _take_text(values, "citation", source) or ""
    configuration = _take_text(values, "configuration", source)
    extended = _take_text(values, "extends", source)
    own = Layer(source, values, citation)
    if extended is None:
        return Reference(name, (own,), configuration)
    below = read_reference(extended, (*above, name))
    return Reference(name, (*below.layers, own), configuration or below.configuration)


def _take_text(values: dict[str, object], key: str, source: str) -> str | None:
    found = values.pop(key, None)
    if found is not None and not isinstance(found, str):
        raise PlanError(f"{source}: {key} is {found!r}; it must be text")
    return found
