"""Clean a label map as a model's cross-validation has shown to be good for it.

What was learned stands in `postprocessing.json` beside the folds of a model: of some classes, or of
all foreground together, only the largest component is kept. It was learned on whole scans by
`autoseg.evaluation.learn_postprocessing`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from autoseg.common.arrays import (
    Box,
    LabelMap,
    Mask,
    bounding_box,
    connected_components,
    count_values,
    members,
)
from autoseg.common.errors import AutosegError

FILE_NAME = "postprocessing.json"
FORMAT_VERSION = 1
BACKGROUND = 0


@dataclass(frozen=True)
class KeepLargest:
    """Keep one component of some label values taken together; the rest becomes background.

    Attributes:
        name: of the class, or of all foreground, for people.
        values: the label values.
    """

    name: str
    values: tuple[int, ...]


@dataclass(frozen=True)
class Postprocessing:
    """What to do with every label map of a plan's models, in this order."""

    plan_id: str
    steps: tuple[KeepLargest, ...]

    def apply(self, label_map: LabelMap) -> None:
        """Change a label map (x, y, z) in place; voxels only ever become background."""
        for step in self.steps:
            if islands := find_islands(label_map, step.values):
                box, outside = islands
                label_map[box][outside] = BACKGROUND

    @staticmethod
    def from_json(found: Any, where: str) -> Postprocessing:
        """Read the content of a `postprocessing.json`; `where` is named in messages.

        Raises:
            AutosegError: it is none, or one of another format.
        """
        version = found.get("format_version") if isinstance(found, dict) else None
        if version != FORMAT_VERSION:
            raise AutosegError(
                f"{where} has postprocessing format {version}; this autoseg reads format "
                f"{FORMAT_VERSION}: delete it, and run autoseg_evaluate TASK to learn it anew"
            )
        try:
            steps = tuple(step_from_json(step) for step in found["steps"])
            return Postprocessing(str(found["plan_id"]), steps)
        except (KeyError, TypeError, ValueError) as error:
            raise AutosegError(
                f"{where} is no postprocessing ({type(error).__name__}: {error}); delete it, and "
                "run autoseg_evaluate TASK to learn it anew"
            ) from error


def step_from_json(found: dict[str, Any]) -> KeepLargest:
    """Read one step; a KeyError, TypeError or ValueError if it is none."""
    values = found["keep_largest"]
    if not values or not all(type(value) is int and 0 < value < 2**16 for value in values):
        raise ValueError(f"keep_largest is {values!r}, not label values")
    return KeepLargest(str(found["name"]), tuple(values))


def find_islands(label_map: LabelMap, values: tuple[int, ...]) -> tuple[Box, Mask] | None:
    """Where some values lie apart from their largest component (of equal ones the first).

    Returns:
        a box of the label map, and the islands in it; None if there are none.
    """
    inside = members(label_map, values)
    box = bounding_box(inside)
    if box is None:
        return None
    inside = np.array(inside[box], order="C")  # of equal components the order decides
    components, count = connected_components(inside)
    if count == 1:
        return None
    sizes = count_values(components, count + 1)
    inside &= components != 1 + np.argmax(sizes[1:])
    return box, inside
