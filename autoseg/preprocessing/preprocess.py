"""Preprocess what is missing of a task's cases, in parallel."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from autoseg.dataset.task import Case
from autoseg.errors import DataError
from autoseg.files import locked
from autoseg.image import read_image, read_label
from autoseg.parallel import in_parallel
from autoseg.planning.plan import Plan
from autoseg.preprocessing.steps import prepare
from autoseg.preprocessing.store import CaseStore


def preprocess(plan: Plan, cases: Sequence[Case], store: CaseStore, processes: int) -> int:
    """Bring every case into the store that is not there yet; several runs may call it at once.

    Returns:
        how many cases were preprocessed.

    Raises:
        DataError: a case that cannot be read, by name.
        RunError: a worker process was killed, usually for want of memory.
    """
    if not (missing := _missing(cases, store)):
        return 0
    with locked(store.folder / ".lock", "the case store", wait=True):
        store.remove_leftovers()
        missing = _missing(cases, store)  # another run may have been faster
        in_parallel(partial(preprocess_case, plan, store), missing, processes, "preprocessing")
    return len(missing)


def preprocess_case(plan: Plan, store: CaseStore, case: Case) -> None:
    """Read, prepare and store one case."""
    image = read_image(case.images)
    label, geometry = read_label(case.label)
    if wrong := image.geometry.differences(geometry):
        raise DataError(
            f"{case.label}: not on its image's grid: {', '.join(wrong)}; resample it onto the image"
        )
    if len(image.array) != len(plan.channels):
        raise DataError(
            f"{case.images[0]}: has {len(image.array)} channels, the plan {len(plan.channels)}"
        )
    store.write(case.name, prepare(plan, image, label), _source(case))


def _missing(cases: Sequence[Case], store: CaseStore) -> list[Case]:
    return [case for case in cases if not store.has(case.name, _source(case))]


def _source(case: Case) -> list[tuple[int, int]]:
    found = [path.stat() for path in (*case.images, case.label)]
    return [(status.st_size, status.st_mtime_ns) for status in found]
