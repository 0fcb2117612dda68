"""What the cross-validation of a model teaches: postprocessing of label maps, reliability.

`postprocessing.json` beside a model's folds lists the steps: of some classes, or of all foreground
together, only the largest connected component is kept. `autoseg.evaluation.learn_postprocessing`
learns the steps on whole scans, and from the `Reliability` of the folds a temperature of saved
probabilities.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field
from scipy.special import expit, softmax

from autoseg.common import arrays
from autoseg.common.errors import AutosegError
from autoseg.common.files import dataclass_from_json, write_json
from autoseg.image.geometry import Turn
from autoseg.image.image import read_label
from autoseg.plan.plan import Plan
from autoseg.prediction.native_grid import Planes, to_logits

FILE_NAME = "postprocessing.json"
FORMAT_VERSION = 1
BACKGROUND = 0
RELIABILITY = "reliability.json"  # in the folder of a fold's validation
TEMPERATURE = "temperature"  # in calibration.json
TEMPERATURES = tuple(2 ** (k / 4) for k in range(-4, 9))
BINS, WINDOW, VOXELS = 15, 12, 512  # of a probability; half of y and z; of each chunk of planes
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
    def from_json(found: Any, where: str) -> "Postprocessing":
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


class Reliability:
    """How often outputs are right, by their probability: sums over voxels near the labels.

    A random window of each chunk of planes with labels is looked at, so that memory and time are
    small. The voxels depend on the name of the case alone.

    Args:
        labels: case -> its label map.
        plan: of the model.

    Attributes:
        case: the one that is predicted now.
        sums: (temperature, output, bin, of which 0 voxels, 1 probabilities, 2 voxels of the class).
    """

    def __init__(self, labels: Mapping[str, Path], plan: Plan) -> None:
        self.labels, self.plan, self.case = labels, plan, ""
        self.sums = np.zeros((len(TEMPERATURES), plan.classes.outputs, BINS, 3))

    def watch(self, planes: Iterable[Planes], view: Turn, logits: bool) -> Iterator[Planes]:
        """The planes of a case, unchanged.

        Args:
            planes: of its probabilities, or logits.
            view: from the grid of the label map to that of the planes.
            logits: which of both.
        """
        if self.case in self.plan.annotated:  # what its other voxels are is not known
            yield from planes
            return
        truth, ignored = view.array(read_label(self.labels[self.case])[0]), self.plan.ignore_label
        rng = np.random.default_rng(list(self.case.encode()))
        for some in planes:
            part = truth[some.rows]
            places = np.argwhere(((part > 0) & (part != ignored)).any(axis=0))
            if len(places):
                middle = zip(rng.choice(places), part.shape[1:], strict=True)
                area = tuple(slice(max(0, c - WINDOW), min(c + WINDOW, n)) for c, n in middle)
                known = np.flatnonzero(part[:, *area] != ignored)
                at = rng.choice(known, min(VOXELS, len(known)), replace=False)
                outputs = range(self.plan.classes.outputs)
                found = np.array([some.probabilities(i, area).ravel()[at] for i in outputs])
                self._add(found, logits, part[:, *area].ravel()[at])
            yield some

    def _add(self, found: arrays.Floats, logits: bool, truth: arrays.LabelMap) -> None:
        """Count voxels: (output, voxel) and their label values."""
        regions, values = self.plan.classes.are_regions, list(self.plan.labels.values())
        scores = found if logits else to_logits(found, regions)
        hits = np.array([arrays.members(truth, of) for of in values[-len(found) :]])
        for sums, temperature in zip(self.sums, TEMPERATURES, strict=True):
            p = expit(scores / temperature) if regions else softmax(scores / temperature, axis=0)
            bins = np.minimum((p * BINS).astype(int), BINS - 1)
            for output, at in enumerate(bins):
                weights = np.ones(len(at)), p[output], hits[output]
                sums[output] += np.transpose([np.bincount(at, w, BINS) for w in weights])

    def save(self, folder: Path) -> None:
        """Write the sums into the folder of a fold's validation."""
        found = {"plan_id": self.plan.id, "sums": np.round(self.sums, 3).tolist()}
        write_json(folder / RELIABILITY, found)
