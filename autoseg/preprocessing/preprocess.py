"""Preprocess what is missing of a task's cases, in parallel."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from autoseg.common.errors import DataError
from autoseg.common.locks import locked
from autoseg.common.parallel import in_parallel
from autoseg.common.progress import counted, say
from autoseg.dataset.layouts import Case
from autoseg.image.image import files_of, read_image, read_label
from autoseg.plan.plan import Plan
from autoseg.preprocessing.sharing import link_from_others
from autoseg.preprocessing.steps import Prepared, prepare
from autoseg.preprocessing.store import CaseStore


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
    if wrong := image.geometry.differences(geometry):
        raise DataError(
            f"{case.label}: not on its image's grid: {', '.join(wrong)}; resample it onto the image"
        )
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
