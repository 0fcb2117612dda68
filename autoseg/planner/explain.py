"""A plan as a table: each value with its key, the reason for it, and what it replaced.

Titles and units come from the fields of the plan (see `autoseg.plan.sections`).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from autoseg.common.progress import by_axis
from autoseg.plan.plan import Plan, Provenance
from autoseg.plan.sections import Section, about
from autoseg.planner.overrides import closest, publication
from autoseg.planner.rule_values import DECLARED, FOLD_PER_PATIENT, SKIPPED
from autoseg.planner.rules import TABLES

HEADINGS: dict[str, str] = TABLES["headings"]  # of top-level keys; all others are below "data"
GROUPS = ("data", *dict.fromkeys(HEADINGS.values()))
HIDDEN = ("format_version", "provenance", "measured", "task", "name")
DEFAULT = Provenance(source="default")
RULE, REFERENCE = "rule: ", "reference plan "
# Of rules that are not nnU-Net's.
SOURCES = {DECLARED: "dataset.json", SKIPPED: "--skip-bad-cases", FOLD_PER_PATIENT: "own rule"}
Words = dict[str, str]  # title, unit and description of a field
ORDERS = {0: "nearest", 1: "linear", 3: "cubic"}
WIDTH = 120


@dataclass(frozen=True)
class Explained:
    """One value of a plan, as text.

    Attributes:
        key: as `--set` takes it.
        name: the title of the key.
        value: with its unit.
        rule: the rule that chose it, if any.
        evidence: the figures behind the choice.
        source: rules, default, reference plan, overrides file, ...
        replaced: what the rules alone would choose, if it was replaced, and what our own rules
            would, if they were asked.
    """

    key: str
    name: str
    value: str
    rule: str
    evidence: str
    source: str
    replaced: str

    @property
    def why(self) -> str:
        """Rule, evidence and replaced value in one cell."""
        reason = ": ".join(filter(None, (self.rule, self.evidence)))
        replaced = f"rules alone: {self.replaced}" if self.replaced else ""
        return "; ".join(filter(None, (reason, replaced)))


def explain(plan: Plan) -> None:
    """Print the plan as a table on standard output."""
    title = f"Plan {plan.name} of {plan.task} (id {plan.id})"
    table = Table(title=title, box=SIMPLE_HEAD, pad_edge=False)
    for heading, ratio in (("what, and its key", 35), ("value", 27), ("why", 31), ("source", 21)):
        table.add_column(heading, overflow="fold", ratio=ratio)
    found = rows(plan)
    for group in GROUPS:
        table.add_row(group.upper())
        for row in (row for row in found if group_of(row.key) == group):
            table.add_row(f"{row.name}\n  {row.key}", row.value, row.why, row.source)
        table.add_section()
    table.expand = True
    # Names may contain brackets and colons, which must not be parsed as rich markup. Without a
    # terminal there is no width to fit.
    console = Console(markup=False, emoji=False, highlight=False)
    console.width = min(console.width, WIDTH) if console.is_terminal else WIDTH
    console.print(table)
    for name, citation in citations(plan).items():
        console.print(f"{name}: {citation}")


def citations(plan: Plan) -> dict[str, str]:
    """Short name of a publication, as the evidence of values begins -> its citation."""
    cited = sorted((why.evidence, why.citation) for why in plan.provenance.values())
    return {publication(text): citation for text, citation in cited if citation}


def group_of(key: str) -> str:
    """The heading of a key."""
    return HEADINGS.get(key.split(".")[0], "data")


def rows(plan: Plan) -> list[Explained]:
    """One row per value, in the order of the plan."""
    leaves = (leaf for leaf in _leaves(plan) if leaf[0].split(".")[0] not in HIDDEN)
    return [_row(plan, *leaf) for leaf in leaves]


def _leaves(section: Section, prefix: str = "") -> Iterator[tuple[str, Words, Any]]:
    """Key, field and value of everything below a section; lists of sections entry by entry."""
    for name, value in section:
        key, field = f"{prefix}{name}", about(type(section), name)
        if isinstance(value, Section):
            yield from _leaves(value, f"{key}.")
        elif isinstance(value, tuple) and value and isinstance(value[0], Section):
            for index, entry in enumerate(value):
                yield f"{key}.{index}", field, entry
        else:
            yield key, field, value


def _row(plan: Plan, key: str, field: Words, value: Any) -> Explained:
    why, origin = _provenance(plan, key)
    is_rule = why.source.startswith(RULE)
    source = SOURCES.get(why.source.removeprefix(RULE), "nnU-Net's rules")
    around, _, number = key.rpartition(".")
    text = value_text(value, field, plan.channels)
    # What the rules alone would choose is known of a list, not of its entries.
    whole, start = _provenance(plan, around) if number.isdecimal() else (why, origin)
    replaced = "" if is_rule or why is DEFAULT else _replaced(whole.rule_value, key, start, field)
    if replaced == text:
        replaced = "the same"
    if why.own_rule is not None:
        replaced += f"; our rules: {value_text(why.own_rule, field)}"
    if key == "target_spacing_mm" and not plan.resamples:
        text += " (not used: no step resamples)"
    # The evidence of a rule for a list is shown once, with its first entry.
    is_first = key in (origin, f"{origin}.0")
    evidence = why.evidence if is_first or why.source.startswith(REFERENCE) else ""
    has_reason = key == origin or (key == f"{origin}.0" and why.evidence)
    return Explained(
        key=key,
        name=f"{field['title']} {int(number) + 1}" if number.isdecimal() else field["title"],
        value=text,
        rule=why.source.removeprefix(RULE) if is_rule and has_reason else "",
        evidence="; ".join(filter(None, (evidence, *_parts(plan, key)))),
        source=source if is_rule else why.source.removeprefix(REFERENCE),
        replaced=replaced,
    )


def _parts(plan: Plan, key: str) -> Iterator[str]:
    """The evidence of parts of a list entry that have their own, such as `axes: MIScnn`."""
    found: dict[str, list[str]] = {}
    for part, why in plan.provenance.items():
        if part.startswith(f"{key}."):
            others = {"rules alone": why.rule_value, "our rules": why.own_rule}
            text = "; ".join(f"{name}: {_range(v)}" for name, v in others.items() if v is not None)
            evidence = f"{why.evidence} ({text})" if text else why.evidence
            found.setdefault(evidence, []).append(part.removeprefix(f"{key}."))
    return (f"{', '.join(parts)}: {evidence}" for evidence, parts in found.items())


def _provenance(plan: Plan, key: str) -> tuple[Provenance, str]:
    """The provenance of a key, or of the closest section around it, and the key of that."""
    origin = closest(key, plan.provenance)
    return (DEFAULT, key) if origin is None else (plan.provenance[origin], origin)


def _replaced(value: Any, key: str, origin: str, field: Words) -> str:
    """The value of the rules; of a list of steps only their kinds, with its first entry."""
    if key not in (origin, f"{origin}.0"):
        return ""
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return ", ".join(str(next(iter(entry.values()))) for entry in value)
    return "nothing" if value is None or key != origin else value_text(value, field)


def value_text(value: Any, field: Words, channels: Sequence[str] = ()) -> str:
    """A value with its unit.

    Args:
        value: of the plan, or as JSON.
        field: title and unit of the field of the plan that holds it.
        channels: of the plan; intensities of CT channels have the unit HU.
    """
    unit = field.get("unit", "")
    match value:
        case Section():
            return _section_text(value, channels)
        case int() | float() if unit == "share":
            return f"{100 * value:.4g} %"
        case tuple() | list() if unit == "axes":
            return " ".join("xyz"[axis] for axis in value) or "none"
        case tuple() | list() if unit and _is_vector(value):
            return by_axis("own" if each is None else _plain(each) for each in value) + f" {unit}"
        case None:
            return "none"
        case _:
            return f"{_plain(value)} {unit}".rstrip()


def _section_text(section: Section, channels: Sequence[str]) -> str:
    """An entry of a list: a step, a transform, a volume share, or an entry of the evaluation."""
    channel = getattr(section, "channel", None)
    names = channels if channel is None else [channels[channel]]
    unit = " HU" if all(name.casefold() == "ct" for name in names) else ""
    of = "" if channel is None or len(channels) == 1 else f" ({channels[channel]})"
    text = TEMPLATE.render(kind=type(section).__name__, entry=section, unit=unit, of=of)
    return text.strip() or _transform_text(section)


def _transform_text(transform: Section) -> str:
    """Title and settings; settings with probability 0 are left out."""
    settings = ", ".join(
        _setting(name, value, about(type(transform), name))
        for name, value in transform
        if name != "transform"
        and getattr(transform, f"{name.rpartition('_')[0]}_probability", 1) != 0
    )
    return f"{about(type(transform), 'transform')['title']}: {settings}"


def _setting(name: str, value: Any, field: Words) -> str:
    if name.endswith("degrees"):
        text = " ".join(f"{axis} {_range(turn)}°" for axis, turn in zip("xyz", value, strict=True))
    elif name.endswith("_order"):
        text = ORDERS[value]
    elif isinstance(value, tuple) and "unit" not in field:
        text = _range(value)
    else:
        text = value_text(value, field)
    return f"{name.replace('_', ' ')} {text}"


def _range(limits: Sequence[float]) -> str:
    low, high = limits
    return f"{low:.6g} to {high:.6g}"


def _plain(value: Any) -> str:
    match value:
        case bool():
            return "yes" if value else "no"
        case float():
            return f"{value:.6g}"
        case dict():
            return ", ".join(f"{name} {_plain(entry)}" for name, entry in value.items())
        case tuple() | list():
            entries = (by_axis(map(_plain, e)) if _is_vector(e) else _plain(e) for e in value)
            return ", ".join(entries) or "none"
        case _:
            return str(value)


def _is_vector(value: Any) -> bool:
    """Whether `value` has one number (or None) per axis."""
    is_triple = isinstance(value, tuple | list) and len(value) == 3
    return is_triple and all(each is None or isinstance(each, int | float) for each in value)


NAMES = {"range": _range, "plain": _plain, "orders": ORDERS}
SOURCE = Path(__file__).with_name("explain.j2").read_text("utf-8")
TEMPLATE = Environment(undefined=StrictUndefined).from_string(SOURCE, NAMES)
