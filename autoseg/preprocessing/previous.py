"""What a cascade's previous stage made of a case, on the grid of this stage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autoseg.common.arrays import Triple
from autoseg.common.errors import DataError
from autoseg.common.parallel import in_parallel
from autoseg.dataset.layouts import Case
from autoseg.image.image import read_geometry, read_label
from autoseg.plan.plan import Plan
from autoseg.plan.sections import Resample
from autoseg.preprocessing.resample import axis_orders
from autoseg.preprocessing.resample_label import resample_label
from autoseg.preprocessing.steps import to_classes
from autoseg.preprocessing.store import CaseStore

Box = Sequence[tuple[int, int]]


def prepare_previous(
    plan: Plan,
    segmentation: NDArray[np.integer[Any]],
    spacing_mm: Sequence[float],
    box: Box,
    shape: Triple,
) -> NDArray[np.int16]:
    """Bring a segmentation to where the plan's steps bring the scan, as they bring its label.

    Args:
        plan: the cascade's.
        segmentation: label values (x, y, z) on the scan's own grid.
        spacing_mm: of that grid.
        box: start and stop along x, y, z of the part of that grid that the steps keep.
        shape: voxels of the scan after the steps.

    Returns:
        the indices of the plan's parts, of that shape.
    """
    inside = to_classes(plan, segmentation[tuple(slice(start, stop) for start, stop in box)])
    target = plan.target_spacing_of(spacing_mm)
    for step in plan.preprocessing:
        if isinstance(step, Resample):
            orders = axis_orders(step.label_order, spacing_mm, target, step.anisotropy)
            inside = resample_label(inside, shape, orders)
    return inside


def add_previous(
    plan: Plan, store: CaseStore, cases: Sequence[Case], files: Mapping[str, Path], processes: int
) -> None:
    """Add to the stored cases what the previous stage made of them, where it is not there yet.

    Args:
        plan: the cascade's.
        store: holds all the cases.
        cases: which ones.
        files: case name -> the previous stage's label map.
        processes: worker processes.

    Raises:
        DataError: a label map is missing, unreadable, or not on its case's grid.
        RunError: a worker process was killed.
    """
    missing = [case for case in cases if not store.has_previous(case.name, _source(files, case))]
    job = "adding the previous stage"
    in_parallel(partial(_add, plan, store, files), missing, processes, job)


def _add(plan: Plan, store: CaseStore, files: Mapping[str, Path], case: Case) -> None:
    path = files[case.name]
    segmentation, geometry = read_label(path)
    if wrong := geometry.differences(read_geometry(case.label)):
        raise DataError(
            f"{path}: not on the grid of {case.label}: {', '.join(wrong)}; train the previous "
            "stage's fold again"
        )
    grid = store.grid_of(case.name)
    found = prepare_previous(plan, segmentation, geometry.spacing_mm, grid.box, grid.shape)
    store.write_previous(case.name, found, _source(files, case))


def _source(files: Mapping[str, Path], case: Case) -> tuple[int, int]:
    status = files[case.name].stat()
    return status.st_size, status.st_mtime_ns
