"""Several models of one task as one: the mean of their probabilities, plan by plan.

Plans may differ in spacing, patches, crops and network. So their probabilities meet on the scan's
own grid, a few planes and one class at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from autoseg.common.errors import AutosegError
from autoseg.image.geometry import Geometry
from autoseg.image.image import Image
from autoseg.prediction.label_map import around
from autoseg.prediction.native_grid import Patch, Planes
from autoseg.prediction.predictor import Predictor
from autoseg.prediction.segmenter import LabelMap, Segmenter
from autoseg.preprocessing.steps import Prepared


@dataclass(frozen=True)
class PreparedEach:
    """A scan as each of several plans' networks see it."""

    each: tuple[Prepared, ...]

    @property
    def geometry(self) -> Geometry:
        """The grid of the scan."""
        return self.each[0].geometry


class Ensemble(Segmenter[PreparedEach]):
    """Segments scans with several plans' models, averaging their probabilities.

    Each model counts as much as the others, however many folds it has. What was learned of
    postprocessing is for one model alone: it is not done here.

    Args:
        members: the models.

    Raises:
        AutosegError: they do not segment the same classes of the same channels.
    """

    def __init__(self, members: Sequence[Predictor]) -> None:
        self.members, self.plan = tuple(members), members[0].plan
        for member in self.members[1:]:
            for what in ("channels", "labels", "regions_class_order"):
                ours, theirs = getattr(self.plan, what), getattr(member.plan, what)
                if _in_order(ours) != _in_order(theirs):
                    raise AutosegError(
                        f"plans {self.plan.name} and {member.plan.name} cannot be averaged: they "
                        f"have other {what} ({ours} and {theirs}); name plans of one task"
                    )

    @property
    def device(self) -> torch.device:
        """What the networks run on."""
        return self.members[0].device

    @property
    def backend_name(self) -> str:
        """What runs the networks, in which version and precision."""
        return ", ".join(dict.fromkeys(member.backend_name for member in self.members))

    def prepare(self, image: Image, previous: LabelMap | None = None) -> PreparedEach:
        """A scan as each plan's networks see it.

        Args:
            image: the scan.
            previous: is for a single cascade; here each cascade predicts its own.
        """
        assert previous is None, "each cascade has another previous stage"
        return PreparedEach(tuple(member.prepare(image) for member in self.members))

    def window_bytes(self, prepared: PreparedEach, axis: int) -> int:
        """Memory that the sliding windows take along one axis."""
        pairs = zip(self.members, prepared.each, strict=True)
        return sum(member.window_bytes(ready, axis) for member, ready in pairs)

    def planes(self, prepared: PreparedEach, axis: int) -> Iterator[Planes]:
        """Mean probabilities on the scan's own grid by planes across one axis, swapped with x."""
        pairs = zip(self.members, prepared.each, strict=True)
        each = [member.planes(ready, axis) for member, ready in pairs]
        return (_Mean(planes) for planes in zip(*each, strict=True))


class _Mean:
    """The mean of several models' probabilities on the same planes."""

    def __init__(self, members: Sequence[Planes]) -> None:
        self.members = members
        self.rows, self.shape = members[0].rows, members[0].shape

    def reach(self, index: int, least: float) -> Patch | None:
        # A mean above `least` takes one of them above it.
        parts = [member.reach(index, least) for member in self.members]
        found = [part for part in parts if part is not None]
        return around(found) if found else None

    def shares(self, index: int, part: Patch) -> NDArray[np.float32]:
        total = self.members[0].shares(index, part)
        for member in self.members[1:]:
            total = total + member.shares(index, part)
        return total / np.float32(len(self.members))


def _in_order(value: object) -> object:
    """Objects with their order of keys: that of the labels is that of the classes."""
    return list(value.items()) if isinstance(value, dict) else value
