"""A plan as a table: every value, why it was chosen, and what it replaced."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from autoseg.plan.plan import Plan, Provenance
from autoseg.planning.defaults import A_FOLD_EACH, DECLARED, LEFT_OUT
from autoseg.planning.words import GROUPS, group_of, name_of, value_of

HIDDEN = ("format_version", "provenance", "measured", "task", "name")
DEFAULT = Provenance(source="default")
RULE, REFERENCE = "rule: ", "reference plan "
WIDTH = 120
SOURCES = {  # of rules that are not nnU-Net's
    DECLARED: "dataset.json",
    LEFT_OUT: "--skip-bad-cases",
    A_FOLD_EACH: "own rule",
}


@dataclass(frozen=True)
class Row:
    """One value of a plan, in words.

    Attributes:
        key: as `--set` takes it.
        name: the key in words.
        value: with its unit.
        rule: which rule chose it, if one did.
        evidence: the figures that decided.
        source: rules, default, reference plan, overrides file, ...
        replaced: what the rules alone would have chosen, where it was replaced.
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
        """Rule, evidence and what was replaced, in one cell."""
        parts = [": ".join(part for part in (self.rule, self.evidence) if part)]
        if self.replaced:
            parts.append(f"the rules alone: {self.replaced}")
        return "; ".join(part for part in parts if part)


def explain(plan: Plan) -> None:
    """Print the plan as a table on standard output."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    # Names and figures may hold brackets and colons: they are text, not rich's markup.
    table = Table(
        title=f"Plan {plan.name} of {plan.task} (id {plan.id})", box=SIMPLE_HEAD, pad_edge=False
    )
    for heading, share in (("what, and its key", 35), ("value", 28), ("why", 32), ("source", 19)):
        table.add_column(heading, overflow="fold", ratio=share)
    found = rows(plan)
    for group in GROUPS:
        table.add_row(group.upper())
        for row in (row for row in found if group_of(row.key) == group):
            table.add_row(f"{row.name}\n  {row.key}", row.value, row.why, row.source)
        table.add_section()
    table.expand = True
    # Without a terminal there is no width to fit; a wide one makes lines that nobody can follow.
    console = Console(markup=False, emoji=False)
    width = min(console.width, WIDTH) if console.is_terminal else WIDTH
    narrow = Console(width=width, markup=False, emoji=False, highlight=False)
    narrow.print(table)
    for name, citation in citations(plan).items():
        narrow.print(f"{REFERENCE}{name}: {citation}")


def citations(plan: Plan) -> dict[str, str]:
    """Reference plan -> where its values come from."""
    sources = {why.source: why.evidence for why in plan.provenance.values()}
    return {
        source.removeprefix(REFERENCE): citation
        for source, citation in sorted(sources.items())
        if source.startswith(REFERENCE) and citation
    }


def rows(plan: Plan) -> list[Row]:
    """One row for each value, in the plan's order."""
    values = plan.model_dump(mode="json", exclude=set(HIDDEN))
    return [_row(plan, key, value) for key, value in _leaves(values)]


def _row(plan: Plan, key: str, value: Any) -> Row:
    why, origin = _provenance(plan, key)
    ruled, published = why.source.startswith(RULE), why.source.startswith(REFERENCE)
    told = value_of(key, value, plan.channels)
    if key == "target_spacing_mm" and not plan.resamples:
        told += " (not used: no step resamples)"
    replaced = "" if ruled or why is DEFAULT else _replaced(why.rule_value, key, origin, plan)
    if key not in (origin, f"{origin}.0"):  # of a list, the first entry tells it for all
        why = why.model_copy(update={"evidence": "", "rule_value": None})
    return Row(
        key=key,
        name=name_of(key),
        value=told,
        rule=why.source.removeprefix(RULE) if ruled and (why.evidence or key == origin) else "",
        evidence="" if published else why.evidence,
        source=_source(why.source),
        replaced="the same" if replaced == told else replaced,
    )


def _source(source: str) -> str:
    if source.startswith(RULE):
        return SOURCES.get(source.removeprefix(RULE), "nnU-Net's rules")
    return source.removeprefix(REFERENCE)


def _replaced(value: Any, key: str, origin: str, plan: Plan) -> str:
    """The rules' value; of a list of steps only their kinds, and only once."""
    if isinstance(value, list) and value and isinstance(value[0], dict):
        kinds = [str(next(iter(entry.values()))).replace("_", " ") for entry in value]
        return ", ".join(kinds) if key in (origin, f"{origin}.0") else ""
    if value is None or key != origin:
        return "nothing" if key in (origin, f"{origin}.0") else ""
    return value_of(key, value, plan.channels)


def _leaves(values: dict[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        whole = f"{path}{key}"
        if isinstance(value, dict) and value and whole != "labels":
            yield from _leaves(value, f"{whole}.")
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            for index, entry in enumerate(value):
                yield f"{whole}.{index}", entry
        else:
            yield whole, value


def _provenance(plan: Plan, key: str) -> tuple[Provenance, str]:
    """That of the key, or of the closest part that it belongs to, and that part's key."""
    parts: Sequence[str] = key.split(".")
    for length in range(len(parts), 0, -1):
        part = ".".join(parts[:length])
        found = plan.provenance.get(part)
        if found is not None:
            return found, part
    return DEFAULT, key
