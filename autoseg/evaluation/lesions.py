"""Lesions as things to find: which of them a prediction hits, and which it invents.

A lesion is a connected component of a class, by 26 neighbours: voxels that share a face, an edge or
a corner belong together. A lesion of the truth is found if the prediction covers at least one of
its voxels; a lesion of the prediction is false if it covers no voxel of the class in the truth.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from autoseg.evaluation.metrics import Masks, ratio

NEIGHBOURS: Literal[26] = 26


@dataclass(frozen=True)
class Lesions:
    """The lesions of one class, in one case or in several.

    Attributes:
        reference: lesions in the truth.
        found: those of them that the prediction hits.
        predicted: lesions in the prediction.
        false: those of them that hit nothing.
        recall: found / reference; None without lesions in the truth.
        precision: (predicted - false) / predicted; None without lesions in the prediction.
    """

    AMOUNTS: ClassVar = ("reference", "found", "predicted", "false")

    reference: int
    found: int
    predicted: int
    false: int
    recall: float | None
    precision: float | None

    @staticmethod
    def of(reference: int, found: int, predicted: int, false: int) -> Lesions:
        """From the counts alone."""
        recall, precision = ratio(found, reference), ratio(predicted - false, predicted)
        return Lesions(reference, found, predicted, false, recall, precision)

    @property
    def missed(self) -> int:
        """Lesions of the truth that the prediction does not hit."""
        return self.reference - self.found


def lesions(masks: Masks) -> Lesions:
    """The lesions of one class in one case."""
    reference, found = _hit(masks.reference, masks.predicted)
    predicted, right = _hit(masks.predicted, masks.reference)
    return Lesions.of(reference, found, predicted, predicted - right)


def pool(of_cases: Iterable[Lesions]) -> Lesions:
    """The lesions of several cases as if they were one: each lesion counts the same."""
    cases = list(of_cases)
    return Lesions.of(*(sum(getattr(one, name) for one in cases) for name in Lesions.AMOUNTS))


def _hit(mask: NDArray[np.bool_], other: NDArray[np.bool_]) -> tuple[int, int]:
    """How many components a mask has, and how many of them the other touches."""
    import cc3d

    # The margin of masks matters: cc3d 4.1 counts wrongly in a single line of voxels.
    components, number = cc3d.connected_components(mask, connectivity=NEIGHBOURS, return_N=True)
    touched = np.bincount(components[other], minlength=number + 1)[1:]
    return number, int(np.count_nonzero(touched))
