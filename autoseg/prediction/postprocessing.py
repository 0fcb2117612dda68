"""Postprocessing of label maps that the cross-validation of a model has shown to help.

`postprocessing.json` beside a model's folds lists the steps: of some classes, or of all foreground
together, only the largest connected component is kept. `autoseg.evaluation.learn_postprocessing`
learns the steps on whole scans.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import cc3d
import numpy as np
from numpy.typing import NDArray

from autoseg.common.arrays import members
from autoseg.common.errors import AutosegError

LabelMap = NDArray[np.integer[Any]]

FILE_NAME = "postprocessing.json"
FORMAT_VERSION = 1
BACKGROUND = 0
CONNECTIVITY: Final = 26  # voxels that share a face, an edge or a corner are connected


@dataclass(frozen=True)
class KeepLargest:
    """Keep the largest component of some label values taken together; the rest is background.

    Attributes:
        name: of the class, or of all foreground, for messages.
        values: the label values.
    """

    name: str
    values: tuple[int, ...]


@dataclass(frozen=True)
class Postprocessing:
    """The steps for every label map of a plan's models, in this order."""

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
        """Parse the content of a `postprocessing.json`; `where` is named in messages.

        Raises:
            AutosegError: it is not valid, or has another format version.
        """
        advice = "delete it and run autoseg_evaluate TASK to learn it again"
        version = found.get("format_version") if isinstance(found, dict) else None
        if version != FORMAT_VERSION:
            raise AutosegError(
                f"{where} has postprocessing format {version}; this autoseg reads format "
                f"{FORMAT_VERSION}; {advice}"
            )
        try:
            steps = tuple(step_from_json(step) for step in found["steps"])
            return Postprocessing(str(found["plan_id"]), steps)
        except (KeyError, TypeError, ValueError) as error:
            raise AutosegError(
                f"{where} is not a valid postprocessing file ({type(error).__name__}: {error}); "
                f"{advice}"
            ) from error


def step_from_json(found: dict[str, Any]) -> KeepLargest:
    """Parse one step; raises a KeyError, TypeError or ValueError if it is not valid."""
    values = found["keep_largest"]
    if not values or not all(type(value) is int and 0 < value < 2**16 for value in values):
        raise ValueError(f"keep_largest is {values!r}, not a list of label values")
    return KeepLargest(str(found["name"]), tuple(values))


def find_islands(
    label_map: LabelMap, values: tuple[int, ...]
) -> tuple[tuple[slice, ...], NDArray[np.bool_]] | None:
    """Find the voxels of some values outside of their largest component (the first of equal ones).

    Returns:
        a box of the label map and the mask of the islands in it; None if there are none.
    """
    # The import takes half a second, which a model without postprocessing does not need.
    from acvl_utils.cropping_and_padding.bounding_boxes import get_bbox_from_mask

    inside = members(label_map, values)
    if not inside.any():
        return None
    box = tuple(slice(low, high) for low, high in get_bbox_from_mask(inside))
    inside = np.array(inside[box], order="C")  # the memory order decides between equal components
    # As bytes: cc3d 4.1.1 fails for thin Boolean masks of many pieces.
    components, count = cc3d.connected_components(
        inside.view(np.uint8), connectivity=CONNECTIVITY, return_N=True
    )
    if count == 1:
        return None
    inside &= components != 1 + np.argmax(count_values(components, count)[1:])
    return box, inside


def count_values(array: NDArray[np.integer[Any]], highest: int) -> NDArray[np.int64]:
    """Number of voxels of each value from 0 to `highest`, the largest that occurs."""
    counts = np.zeros(highest + 1, np.int64)
    for plane in array:  # plane by plane: `bincount` takes eight bytes per voxel
        counts += np.bincount(plane.ravel(), minlength=highest + 1)
    return counts
