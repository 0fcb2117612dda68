"""Preprocess what is missing of a task's cases, in parallel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autoseg.common.arrays import Triple
from autoseg.common.errors import DataError
from autoseg.common.locks import locked
from autoseg.common.parallel import in_parallel
from autoseg.common.progress import counted, say
from autoseg.dataset.layouts import Case
from autoseg.image.geometry import check_same_grid
from autoseg.image.image import files_of, read_geometry, read_image, read_label
from autoseg.plan.plan import Plan
from autoseg.plan.sections import Resample
from autoseg.preprocessing.resample import axis_orders, resample_label
from autoseg.preprocessing.steps import Prepared, prepare, to_classes
from autoseg.preprocessing.store import CaseStore, link_from_others


def preprocess(
    plan: Plan,
    cases: Sequence[Case],
    store: CaseStore,
    processes: int,
    plans: Path | None = None,
) -> int:
    """Bring every case into the store that is not there whole; several runs may call it at once.

    Args:
        plan: decides the steps.
        cases: of the task.
        store: the plan's.
        processes: worker processes.
        plans: the folder of the task's plans: cases that another of them has preprocessed alike
            are linked.

    Returns:
        how many cases were preprocessed.

    Raises:
        DataError: a case that cannot be read, by name.
        RunError: a worker process was killed, usually for want of memory.
    """
    if not (missing := _missing(cases, store, processes)):
        return 0
    with ExitStack() as locks:
        if plans is not None:  # plans that preprocess alike go one after the other
            alike = plans / f".{store.preprocessing_id}.lock"
            locks.enter_context(locked(alike, "this preprocessing", wait=True))
        locks.enter_context(locked(store.folder / ".lock", "the case store", wait=True))
        store.remove_leftovers()
        missing = _missing(missing, store, processes)  # another run may have been faster
        for case in missing:
            if _is_there(case, store):
                say(f"{store.folder / case.name} is damaged; it is preprocessed anew")
        if plans is not None:
            missing = [case for case in missing if not _linked(store, plans, case)]
        in_parallel(partial(preprocess_case, plan, store), missing, processes, "preprocessing")
    return len(missing)


def _linked(store: CaseStore, plans: Path, case: Case) -> bool:
    return link_from_others(store, plans, case.name, _source(case))


def preprocess_case(plan: Plan, store: CaseStore, case: Case) -> None:
    """Read, prepare and store one case.

    Single-threaded: each process has its own case, and the same bytes come out of any number.
    """
    from threadpoolctl import threadpool_limits

    with threadpool_limits(limits=1, user_api="blas"):
        prepared = _prepare(plan, case)
        store.write(case.name, prepared, _source(case), plan.classes.members)


def _prepare(plan: Plan, case: Case) -> Prepared:
    image = read_image(case.images, own_type=True)
    label, geometry = read_label(case.label)
    check_same_grid(geometry, case.label, image.geometry, case.images[0])
    if len(image.array) != len(plan.channels):
        raise DataError(
            f"{case.images[0]}: has {counted(len(image.array), 'channel')}, the plan has "
            f"{len(plan.channels)}"
        )
    return prepare(plan, image, label)


def _missing(cases: Sequence[Case], store: CaseStore, processes: int) -> list[Case]:
    """The cases that are not there, and those whose files are damaged."""
    there = [case.name for case in cases if _is_there(case, store)]
    whole = in_parallel(store.is_whole, there, processes, "checking stored cases")
    good = {name for name, is_whole in zip(there, whole, strict=True) if is_whole}
    return [case for case in cases if case.name not in good]


def _is_there(case: Case, store: CaseStore) -> bool:
    return store.has(case.name, _source(case))


def _source(case: Case) -> list[tuple[int, int]]:
    """Size and time of change of every raw file of a case."""
    files = [file for path in (*case.images, case.label) for file in files_of(path)]
    return [(status.st_size, status.st_mtime_ns) for status in (file.stat() for file in files)]


# What a cascade's previous stage made of a case, on the grid of this stage.

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
    missing = [
        case for case in cases if not store.has_previous(case.name, _previous_source(files, case))
    ]
    job = "adding the previous stage"
    in_parallel(partial(_add, plan, store, files), missing, processes, job)


def _add(plan: Plan, store: CaseStore, files: Mapping[str, Path], case: Case) -> None:
    path = files[case.name]
    segmentation, geometry = read_label(path)
    advice = "train the fold of the previous stage again"
    check_same_grid(geometry, path, read_geometry(case.label), case.label, advice)
    grid = store.grid_of(case.name)
    found = prepare_previous(plan, segmentation, geometry.spacing_mm, grid.box, grid.shape)
    store.write_previous(case.name, found, _previous_source(files, case))


def _previous_source(files: Mapping[str, Path], case: Case) -> tuple[int, int]:
    status = files[case.name].stat()
    return status.st_size, status.st_mtime_ns
