"""How much of each class a label map holds."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autoseg.image.geometry import Geometry
from autoseg.plan.plan import Plan, VolumeShare


def volumes(label: NDArray[Any], geometry: Geometry, plan: Plan) -> dict[str, Any]:
    """Volume of each class in ml, and the shares that the plan names."""
    counts = _count(
        label, highest=max(value for covered in plan.labels.values() for value in covered)
    )
    voxel_ml = prod(geometry.spacing_mm) / 1000
    classes = dict(list(plan.labels.items())[1:])
    record: dict[str, Any] = {
        "volume_ml": {
            name: round(float(counts[list(covered)].sum() * voxel_ml), 6)
            for name, covered in classes.items()
        }
    }
    if plan.shares:
        record["share"] = {
            _name_of(share.label, plan.labels): _share(counts, share, plan) for share in plan.shares
        }
    return record


def _count(label: NDArray[Any], highest: int) -> NDArray[np.intp]:
    """Voxels of each value; plane by plane, as `bincount` turns what it counts into 64 bits."""
    counts = np.zeros(highest + 1, np.intp)
    for plane in label:
        counts += np.bincount(plane.ravel(), minlength=highest + 1)
    return counts


def _share(counts: NDArray[np.intp], share: VolumeShare, plan: Plan) -> float | None:
    part = _voxels(counts, {share.label}, plan)
    whole = part + _voxels(counts, set(share.container), plan)
    return round(part / whole, 6) if whole else None


def _voxels(counts: NDArray[np.intp], labels: set[int], plan: Plan) -> int:
    """Voxels of the classes of these labels; a prediction holds one value for a whole class."""
    if plan.classes.are_regions:  # it holds the values of regions, in which classes overlap
        return int(counts[list(labels)].sum())
    classes = [covered for covered in plan.labels.values() if labels & set(covered)]
    return sum(int(counts[list(covered)].sum()) for covered in classes)


def _name_of(value: int, classes: dict[str, tuple[int, ...]]) -> str:
    """The class of a value; of regions the smallest one."""
    covering = [name for name, covered in classes.items() if value in covered]
    return min(covering, key=lambda name: len(classes[name]))
