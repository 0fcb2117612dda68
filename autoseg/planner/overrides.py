"""Plan values in layers: rules < reference plan < time budget < overrides file < --set.

Each layer replaces values of the layers below it. A value's provenance names the last layer that
set it and the value that the rules alone would choose.
"""

import copy
import re
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import reduce
from pathlib import Path
from typing import Any

import json5
from pydantic import BaseModel, ConfigDict, ValidationError

from autoseg.common.errors import PlanError
from autoseg.common.files import read_text
from autoseg.common.progress import nearest
from autoseg.plan.plan import Plan, Provenance, describe_error, make_plan
from autoseg.planner.rule_values import Evidence, PlanValues
from autoseg.planner.rules import TABLES

KINDS = ("step", "transform", "loss", "optimizer", "schedule")
NOT_MERGED = ("labels", "measured")  # objects with free keys: replaced as a whole
EXAMPLES = {"--set": "sampling.batch_size=4", "--slurm": "gpus=1"}
MISSING = object()
NOT_IN_LAYERS: dict[str, str] = TABLES["not_in_layers"]  # key -> what sets it


@dataclass(frozen=True)
class Layer:
    """PlanValues that replace those of the layers below, and their source.

    Attributes:
        source: of all values.
        values: of the plan.
        evidence: the figures behind all values.
        origins: dotted key -> evidence and citation of what is at that key and below it.
    """

    source: str
    values: PlanValues
    evidence: str = ""
    origins: Mapping[str, tuple[str, str]] = field(default_factory=dict)

    def provenance(self, key: str, rule_value: Any = None) -> Provenance:
        """Why the value of a key was chosen."""
        origin = closest(key, self.origins)
        evidence, citation = self.origins[origin] if origin else (self.evidence, "")
        return Provenance(
            source=self.source, evidence=evidence, citation=citation, rule_value=rule_value
        )


def closest(key: str, known: Container[str]) -> str | None:
    """The key itself or the section or list around it that is known."""
    parts = key.split(".")
    around = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
    return next((each for each in around if each in known), None)


def stack(rules: PlanValues, evidence: Evidence, layers: Sequence[Layer], name: str) -> Plan:
    """Merge the layers over the rules into a plan with the provenance of each value.

    Raises:
        PlanError: a layer has an unknown key, an invalid value, or does not fit the others.
    """
    merged = copy.deepcopy(rules)
    given = evidence.items()
    provenance = {k: Provenance(source=f"rule: {rule}", evidence=why) for k, (rule, why) in given}
    for layer in layers:
        for key, owner in NOT_IN_LAYERS.items():
            if key in layer.values:
                raise PlanError(f"{layer.source}: {key} is set by {owner}; remove it")
        for path in leaves(layer.values):
            key = ".".join(path)
            provenance = {k: v for k, v in provenance.items() if not k.startswith(f"{key}.")}
            provenance[key] = layer.provenance(key, value_at(rules, path))
            inside = (k for k in layer.origins if k.startswith(f"{key}."))  # entries of a list
            provenance |= {k: layer.provenance(k) for k in inside}
        merged = merge(merged, layer.values)
        for key, kept in _without_deeper_stages(merged, layer).items():
            merged["network"] = merged["network"] | {key: kept}
            provenance[f"network.{key}"] = Provenance(
                source=layer.source,
                evidence="cut to the stages of network.features",
                rule_value=value_at(rules, ["network", key]),
            )
    where = " + ".join(["the rules", *(layer.source for layer in layers)])
    records = {
        key: entry.model_dump(mode="json")
        for key, entry in sorted(provenance.items())
        if _exists(merged, key)  # values of a replaced optimiser no longer exist
    }
    return make_plan(merged | {"name": name, "provenance": records}, where)


def _without_deeper_stages(merged: PlanValues, layer: Layer) -> PlanValues:
    """What else a layer cuts off the network by giving fewer features than there are stages."""
    given = layer.values.get("network", {})
    if not isinstance(given, dict) or not isinstance(features := given.get("features"), list):
        return {}
    lengths = dict.fromkeys(("strides", "kernels", "blocks_encoder"), len(features))
    lengths["blocks_decoder"] = max(0, len(features) - 1)
    cut = {key: (merged["network"].get(key), n) for key, n in lengths.items() if key not in given}
    return {k: v[:n] for k, (v, n) in cut.items() if isinstance(v, list) and len(v) > n}


def complete(values: PlanValues, where: str) -> PlanValues:
    """Fill in all defaults, so that a layer can replace a part of any value."""
    plan = make_plan(values, where)
    return plan.model_dump(mode="json", exclude={"name", "provenance", "measured"})


def merge(below: PlanValues, above: PlanValues) -> PlanValues:
    """Merge `above` over `below`, object by object.

    Lists, labels, and objects of another kind (adam instead of sgd) are replaced.
    """
    merged = dict(below)
    for key, value in above.items():
        if key not in NOT_MERGED and _can_merge(merged.get(key), value):
            merged[key] = merge(merged[key], value)
        else:
            merged[key] = copy.deepcopy(value)
    return merged


def _can_merge(old: Any, new: Any) -> bool:
    """Whether both are objects of the same kind."""
    both = isinstance(old, dict) and isinstance(new, dict)
    return both and not any(isinstance(new.get(k), str) and new[k] != old.get(k) for k in KINDS)


def leaves(values: PlanValues, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Paths of all values that are not objects with plan keys."""
    for key, value in values.items():
        if isinstance(value, dict) and key not in NOT_MERGED:
            yield from leaves(value, (*path, key))
        else:
            yield (*path, key)


def _exists(values: Any, key: str) -> bool:
    return value_at(values, key.split("."), MISSING) is not MISSING


def value_at(values: Any, path: Sequence[str], missing: Any = None) -> Any:
    """The value at a path of keys and indices; `missing` if it does not exist."""
    for key in path:
        if isinstance(values, list):
            values = {str(index): entry for index, entry in enumerate(values)}
        values = values.get(key, missing) if isinstance(values, dict) else missing
    return values


def read_layer(path: Path, source: str) -> Layer:
    """Read a hand-written JSON5 file of plan values.

    Raises:
        PlanError: the file is missing, not JSON5, or not an object.
    """
    try:
        values = json5.loads(read_text(path), allow_duplicate_keys=False)
    except OSError as error:
        raise PlanError(f"cannot read {path}: {error.strerror}") from error
    except RecursionError as error:
        raise PlanError(f"{path} is nested too deeply") from error
    except ValueError as error:
        raise PlanError(f"{path} is not valid JSON5: {error}") from error
    if not isinstance(values, dict):
        raise PlanError(f"{path} holds {type(values).__name__}, not an object of plan values")
    return Layer(source, values)


def set_layer(settings: Sequence[str], base: PlanValues, option: str = "--set") -> Layer:
    """`--set key=value ...` as a layer; a value is JSON5, or else plain text.

    Args:
        settings: such as `sampling.batch_size=4` or `preprocessing.0.window=[-1000, 400]`.
        base: the values of the layers below; a number in a key is an index of a list in them.
        option: the command-line option, named in errors.

    Raises:
        PlanError: a setting has no `=`, or an index is not valid.
    """
    values: PlanValues = {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals or not key:
            raise PlanError(f"{option} {setting}: write key=value, as in {EXAMPLES[option]}")
        added = _nest(key.split("."), _parse(text), merge(base, values), f"{option} {setting}")
        values = merge(values, added)
    return Layer(option, values)


def _nest(path: list[str], value: Any, base: Any, setting: str) -> Any:
    """Wrap `value` in the objects and lists of its path."""
    if not path:
        return value
    first, rest = path[0], path[1:]
    if not isinstance(base, list):
        inner = base.get(first) if isinstance(base, dict) else None
        nested = _nest(rest, value, inner, setting)
        if first in NOT_MERGED and rest and isinstance(inner, dict):
            nested = inner | nested
        return {first: nested}
    if not (first.isdecimal() and int(first) < len(base)):
        valid = f"use 0 to {len(base) - 1}" if base else "the list is empty"
        raise PlanError(f"{setting}: {first!r} is not an index of this list; {valid}")
    index = int(first)
    changed = _nest(rest, value, base[index], setting)
    if _can_merge(base[index], changed):
        changed = merge(base[index], changed)
    return [*base[:index], changed, *base[index + 1 :]]


def _parse(text: str) -> Any:
    with suppress(ValueError, RecursionError):
        return json5.loads(text)
    return text  # such as bfloat16


# Reference plans: published pipelines as commented JSON5 files in `plans/`.
#
# A dotted key, as `--set` takes it, changes a part of a list of the plan that the file extends.
# Besides plan values, such a file may hold
#
# * `configuration`: the only one that it is valid for,
# * `extends`: another reference plan, whose values it overrides,
# * `memory_gb`: of the graphics card that its values were chosen for,
# * `citations`: short name of a publication -> its citation,
# * `sources`: dotted key -> where everything at that key and below comes from, which is the short
#   name of a publication and the place in it, or `OURS` and why. The closest key counts, as in
#   {"network": "paper, section 2", "network.norm_epsilon": "ours"}.

SUFFIX = ".json5"
OURS = "ours"


class Reference(BaseModel):
    """A reference plan.

    Attributes:
        name: the file name without suffix.
        layers: its values, preceded by those of the plans that it extends.
        extends, configuration, memory_gb, citations, sources: as in the file, or else as in the
            plan that it extends.
    """

    model_config = ConfigDict(frozen=True, strict=True)

    name: str
    layers: tuple[Layer, ...] = ()
    extends: str | None = None
    configuration: str | None = None
    memory_gb: float | None = None
    citations: dict[str, str] = {}
    sources: dict[str, str] = {}


ABOUT = Reference.model_fields.keys() - {"name", "layers"}


def plans_folder() -> Path:
    """`plans/` in the installed package, or at the top level of a checkout."""
    package, checkout = Path(__file__).resolve().parents[1:3]
    return package / "plans" if (package / "plans").is_dir() else checkout / "plans"


def reference_names() -> list[str]:
    """The names of all reference plans, sorted."""
    return sorted(path.name.removesuffix(SUFFIX) for path in plans_folder().glob(f"*{SUFFIX}"))


def find_reference(task: str, name: str | None = None) -> Reference | None:
    """The reference plan with this name; without a name, that of the task, if there is one.

    Raises:
        PlanError: the name is unknown, a file is invalid, or plans extend each other.
    """
    is_missing = name is None and task not in reference_names()
    return None if is_missing else read_reference(task if name is None else name)


def read_reference(name: str, above: tuple[str, ...] = ()) -> Reference:
    """Read a reference plan and the plans that it extends.

    Args:
        name: the file name without suffix.
        above: the plans that extend this one.

    Raises:
        PlanError: as `find_reference`.
    """
    if name in above:
        raise PlanError(f"reference plans extend each other: {' -> '.join((*above, name))}")
    if name not in reference_names():
        by = f", which {above[-1]} extends," if above else ""
        known = ", ".join(reference_names()) or "none"
        meant = nearest(name, reference_names())
        where = f"{plans_folder()}; available: {known}{meant}"
        raise PlanError(f"no reference plan {name!r}{by} in {where}")
    path = plans_folder() / f"{name}{SUFFIX}"
    source = f"reference plan {path.name}"
    values = dict(read_layer(path, source).values)
    about = {"name": name} | {key: values.pop(key) for key in ABOUT if key in values}
    try:
        found = Reference.model_validate(about)
    except ValidationError as error:
        key = ".".join(map(str, error.errors()[0]["loc"]))
        raise PlanError(f"{source}: {describe_error(error, key, ())}") from None
    layers: tuple[Layer, ...] = ()
    if found.extends is not None:
        below = read_reference(found.extends, (*above, name))
        found = Reference.model_validate(merge(below.model_dump(include=ABOUT), about))
        layers, values = below.layers, _expanded(values, below, source)
    own = Layer(source, values, origins=_origins(values, found, source))
    return found.model_copy(update={"layers": (*layers, own)})


def _expanded(values: PlanValues, below: Reference, source: str) -> PlanValues:
    """The values, with dotted keys as nested objects and lists."""
    expanded: PlanValues = {}
    base = reduce(merge, (layer.values for layer in below.layers), expanded)
    for key, value in values.items():
        nested = _nest(key.split("."), value, merge(base, expanded), f"{source}: {key}")
        expanded = merge(expanded, nested)
    return expanded


def _origins(values: PlanValues, reference: Reference, where: str) -> dict[str, tuple[str, str]]:
    """The `origins` of a reference plan's layer."""
    known, origins = {**reference.citations, OURS: ""}, {}
    for key, text in reference.sources.items():
        if (name := publication(text)) not in known:
            names = ", ".join(known)
            raise PlanError(f"{where}: sources.{key} is {text!r}; begin with one of {names}")
        if _exists(values, key):
            origins[key] = (text, known[name])
    return origins


def publication(source: str) -> str:
    """The short name of the publication with which a source begins."""
    return re.split("[,:]", source, maxsplit=1)[0]
