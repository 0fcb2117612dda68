"""Postprocessing of label maps that the cross-validation of a model has shown to help.

`postprocessing.json` beside a model's folds lists the steps: of some classes, or of all foreground
together, only the largest connected component is kept. `autoseg.evaluation.learn_postprocessing`
learns the steps on whole scans.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from autoseg.common import arrays
from autoseg.common.errors import AutosegError
from autoseg.common.files import dataclass_from_json

FILE_NAME = "postprocessing.json"
FORMAT_VERSION = 1
BACKGROUND = 0
ForegroundValue = Annotated[int, Field(ge=1, lt=2**16)]


@dataclass(frozen=True)
class KeepLargest:
    """Keep the largest component of some label values taken together; the rest is background.

    Attributes:
        name: of the class, or of all foreground, for messages.
        keep_largest: the label values.
    """

    name: str
    keep_largest: Annotated[tuple[ForegroundValue, ...], Field(min_length=1)]


@dataclass(frozen=True)
class Postprocessing:
    """The steps for every label map of a plan's models, in this order."""

    plan_id: str
    steps: tuple[KeepLargest, ...]

    def apply(self, label_map: arrays.LabelMap) -> None:
        """Change a label map (x, y, z) in place; voxels only ever become background."""
        for step in self.steps:
            if islands := find_islands(label_map, step.keep_largest):
                box, outside = islands
                label_map[box][outside] = BACKGROUND

    @staticmethod
    def from_json(found: Any, where: str) -> Postprocessing:
        """Parse the content of a `postprocessing.json`; `where` is named in messages.

        Raises:
            AutosegError: it is not valid, or has another format version.
        """
        advice = "delete it and run autoseg_evaluate TASK to learn it again"
        version = found.get("format_version") if isinstance(found, dict) else None
        if version != FORMAT_VERSION:
            raise AutosegError(f"{where} has format {version}, not {FORMAT_VERSION}; {advice}")
        return dataclass_from_json(Postprocessing, found, where, advice, extra=None)


def find_islands(
    label_map: arrays.LabelMap, values: tuple[int, ...]
) -> tuple[arrays.Box, arrays.Mask] | None:
    """Find the voxels of some values outside of their largest component (the first of equal ones).

    Returns:
        a box of the label map and the mask of the islands in it; None if there are none.
    """
    inside = arrays.members(label_map, values)
    box = arrays.bounding_box(inside)
    if box is None:
        return None
    inside = np.array(inside[box], order="C")  # the memory order decides between equal components
    components, count = arrays.connected_components(inside)
    if count == 1:
        return None
    inside &= components != 1 + np.argmax(arrays.count_values(components, count + 1)[1:])
    return box, inside
