"""How predictions are scored. It changes no model, so it is no part of a plan's id."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

from autoseg.plan.labels import Labels
from autoseg.plan.sections import LabelValue, Part, Positive

DEFAULT_TOLERANCE_MM = 1.0


class Tolerance(Part):
    """How far the surfaces of some classes may lie apart and still agree."""

    labels: Annotated[tuple[LabelValue, ...], Field(min_length=1)]
    mm: Positive


class Merged(Part):
    """Classes that tables also report together: the mean of each metric, such as of both lungs."""

    name: Annotated[str, Field(min_length=1)]
    labels: Annotated[tuple[LabelValue, ...], Field(min_length=2)]


class Colour(Part):
    """The colour of some classes in figures."""

    labels: Annotated[tuple[LabelValue, ...], Field(min_length=1)]
    colour: str = Field(pattern="^#[0-9A-Fa-f]{6}$", description="as in #D55E00")


class Evaluation(Part):
    """How predictions are scored."""

    tolerance_mm: Positive = Field(
        DEFAULT_TOLERANCE_MM,
        description="how far surfaces may lie apart and agree, in the normalised surface Dice",
    )
    tolerances: tuple[Tolerance, ...] = Field(
        (), description="the same for single classes; the largest that fits a class counts"
    )
    merged: tuple[Merged, ...] = ()
    colours: tuple[Colour, ...] = Field(
        (), description="of classes in figures; others get those of Okabe and Ito's palette"
    )

    def check(self, labels: Labels) -> None:
        """Raise a ValueError if a label is in no class, or a name is taken."""
        parts: dict[str, Sequence[Tolerance | Merged | Colour]] = {
            "tolerances": self.tolerances,
            "merged": self.merged,
            "colours": self.colours,
        }
        for key, entries in parts.items():
            for entry in entries:
                for value in entry.labels:
                    if class_of(value, labels) is None:
                        raise ValueError(f"evaluation.{key}: no class covers the label {value}")
        names = [*labels, *(entry.name for entry in self.merged)]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"evaluation.merged: the name {twice[0]!r} is taken; choose another")

    def tolerance_of(self, labels: Labels) -> dict[str, float]:
        """Class -> its tolerance in mm."""
        return {
            name: max(
                (of.mm for of in self.tolerances if set(of.labels) & set(covered)),
                default=self.tolerance_mm,
            )
            for name, covered in labels.items()
        }

    def colours_of(self, labels: Labels) -> dict[str, str]:
        """Class or merged row -> its colour, for those that have one.

        A merged row has the colour of its classes, if they have the same.
        """
        found = {
            name: entry.colour
            for name, covered in labels.items()
            for entry in self.colours
            if set(entry.labels) & set(covered)
        }
        for row, classes in self.rows(labels).items():
            of_row = {found.get(name) for name in classes}
            if len(of_row) == 1 and (colour := of_row.pop()):
                found[row] = colour
        return found

    def rows(self, labels: Labels) -> dict[str, tuple[str, ...]]:
        """Name of a merged row -> its classes; without the rows whose classes are not there."""
        found = {}
        for entry in self.merged:
            classes = [class_of(value, labels) for value in entry.labels]
            if None not in classes:
                found[entry.name] = tuple(dict.fromkeys(name for name in classes if name))
        return {name: classes for name, classes in found.items() if len(classes) > 1}


def class_of(value: int, labels: Labels) -> str | None:
    """The class of a label value: the smallest, where several cover it; None where none does."""
    covering = [name for name, covered in labels.items() if value in covered]
    return min(covering, key=lambda name: len(labels[name]), default=None)
