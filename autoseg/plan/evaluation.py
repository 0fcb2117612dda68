"""How predictions are evaluated. This affects no model and is not part of a plan's id."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from autoseg.plan.labels import ClassValues
from autoseg.plan.sections import MM, LabelValue, Positive, Section

DEFAULT_TOLERANCE_MM = 1.0


class Tolerance(Section):
    """The tolerance of the normalised surface Dice for some classes."""

    labels: Annotated[tuple[LabelValue, ...], Field(min_length=1)]
    mm: Positive


class Merged(Section):
    """Classes that tables also report together, by the mean of each metric (e.g. both lungs)."""

    name: Annotated[str, Field(min_length=1)]
    labels: Annotated[tuple[LabelValue, ...], Field(min_length=2)]


class Colour(Section):
    """The colour of some classes in figures."""

    labels: Annotated[tuple[LabelValue, ...], Field(min_length=1)]
    colour: str = Field(pattern="^#[0-9A-Fa-f]{6}$", description="as in #D55E00")


class Evaluation(Section):
    """How predictions are evaluated."""

    tolerance_mm: Positive = Field(
        DEFAULT_TOLERANCE_MM,
        title="surface tolerance",
        description="surfaces within this distance agree in the normalised surface Dice",
        json_schema_extra=MM,
    )
    tolerances: tuple[Tolerance, ...] = Field(
        (),
        title="surface tolerance of some classes",
        description="instead of tolerance_mm; if several match a class, the largest is used",
    )
    merged: tuple[Merged, ...] = Field((), title="classes reported together")
    colours: tuple[Colour, ...] = Field(
        (),
        title="colour of some classes",
        description="in figures; other classes get colours of the Okabe-Ito palette",
    )

    def check(self, labels: ClassValues) -> None:
        """Raise a ValueError if a label belongs to no class, or a name is used twice."""
        for key in ("tolerances", "merged", "colours"):
            for value in (value for entry in getattr(self, key) for value in entry.labels):
                if class_of(value, labels) is None:
                    raise ValueError(f"evaluation.{key}: label {value} belongs to no class")
        names = [*labels, *(entry.name for entry in self.merged)]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"evaluation.merged: the name {twice[0]!r} occurs twice; change one")

    def tolerance_of(self, labels: ClassValues) -> dict[str, float]:
        """Class -> tolerance in mm."""
        return {
            name: max(
                (entry.mm for entry in self.tolerances if set(entry.labels) & set(covered)),
                default=self.tolerance_mm,
            )
            for name, covered in labels.items()
        }

    def colours_of(self, labels: ClassValues) -> dict[str, str]:
        """Class or merged row -> colour, for those that have one.

        A merged row has the colour of its classes if they share one.
        """
        found = {
            name: entry.colour
            for name, covered in labels.items()
            for entry in self.colours
            if set(entry.labels) & set(covered)
        }
        for row, classes in self.rows(labels).items():
            colours = {found.get(name) for name in classes}
            if len(colours) == 1 and (colour := colours.pop()):
                found[row] = colour
        return found

    def rows(self, labels: ClassValues) -> dict[str, tuple[str, ...]]:
        """Name of each merged row -> its classes; rows with missing classes are left out."""
        found = {}
        for entry in self.merged:
            classes = [class_of(value, labels) for value in entry.labels]
            if None not in classes:
                found[entry.name] = tuple(dict.fromkeys(name for name in classes if name))
        return {name: classes for name, classes in found.items() if len(classes) > 1}


def class_of(value: int, labels: ClassValues) -> str | None:
    """The class of a label value; of several classes the smallest; None if there is none."""
    covering = [name for name, covered in labels.items() if value in covered]
    return min(covering, key=lambda name: len(labels[name]), default=None)
