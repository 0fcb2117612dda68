"""From probabilities on the scan's grid to a label map, some planes at a time.

Of classes the most probable wins, and the first of those that tie; regions are painted in order
wherever they are more probable than not.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from autoseg.common.arrays import Triple
from autoseg.plan.labels import Classes
from autoseg.prediction.native_grid import Patch, Planes, whole
from autoseg.prediction.probabilities import ProbabilityFile

LabelMap = NDArray[np.unsignedinteger]


def label_map(
    planes: Iterable[Planes], classes: Classes, size: Triple, saved: ProbabilityFile | None = None
) -> LabelMap:
    """The label values (x, y, z) of a whole grid; 0 is the background.

    Args:
        planes: all planes of the grid.
        classes: what the probabilities are of, and the value that each class paints.
        size: voxels of the grid.
        saved: where to put the probabilities too.
    """
    out: LabelMap = np.zeros(size, np.uint8 if max(classes.painted) < 256 else np.uint16)
    for some in planes:
        if classes.are_regions:
            _paint_regions(some, classes.painted[1:], out[some.rows])
        else:
            _paint_classes(some, classes.painted, out[some.rows])
        if saved is not None:
            for index in range(classes.outputs):
                saved.write(index, some.rows, some.shares(index, whole(some.shape)))
    return out


def _paint_classes(planes: Planes, values: tuple[int, ...], out: LabelMap) -> None:
    # The winner has at least 1 / classes of a sum of one: who has less than half of that anywhere
    # cannot win there.
    least = 0.5 / len(values)
    reached = {index: planes.reach(index, least) for index in range(1, len(values))}
    parts = {index: part for index, part in reached.items() if part is not None}
    if not parts:
        return
    hull = around(list(parts.values()))
    best = planes.shares(0, hull)
    for index, part in parts.items():
        shares = planes.shares(index, part)
        rival = best[:, *_inside(part, hull)]
        np.copyto(out[:, *part], values[index], where=shares > rival)
        np.maximum(shares, rival, out=rival)


def _paint_regions(planes: Planes, values: tuple[int, ...], out: LabelMap) -> None:
    for index, value in enumerate(values):
        if (part := planes.reach(index, 0.5)) is not None:
            np.copyto(out[:, *part], value, where=planes.shares(index, part) > 0.5)


def around(parts: list[Patch]) -> Patch:
    """The smallest part that holds all of these."""
    ys, zs = zip(*parts, strict=True)
    y, z = (slice(min(s.start for s in side), max(s.stop for s in side)) for side in (ys, zs))
    return y, z


def _inside(part: Patch, hull: Patch) -> Patch:
    (y, z), (first_y, first_z) = part, (hull[0].start, hull[1].start)
    return slice(y.start - first_y, y.stop - first_y), slice(z.start - first_z, z.stop - first_z)
