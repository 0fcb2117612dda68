"""Preprocessing of the missing cases of a task, in parallel."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from zlib import crc32

from threadpoolctl import threadpool_limits

from autoseg.common.arrays import ClassMap, LabelMap, Triple
from autoseg.common.errors import DataError
from autoseg.common.locks import locked
from autoseg.common.parallel import in_parallel
from autoseg.common.progress import counted, say
from autoseg.dataset.problems import join_names
from autoseg.dataset.task import Case
from autoseg.image.geometry import Turn, check_same_grid
from autoseg.image.image import files_of, read_geometry, read_image, read_label
from autoseg.plan.labels import annotated_part
from autoseg.plan.plan import Plan
from autoseg.plan.sections import Resample
from autoseg.preprocessing.resample import axis_orders, resample_label
from autoseg.preprocessing.steps import Prepared, prepare, round_trip_dice, to_classes
from autoseg.preprocessing.store import CaseStore, link_from_others


def preprocess(
    plan: Plan, cases: Sequence[Case], store: CaseStore, processes: int, plans: Path | None = None
) -> int:
    """Preprocess the cases that are missing or damaged in the store.

    Several processes may call this at the same time: one works, the others wait.

    Args:
        plan: with the steps.
        cases: of the task.
        store: of the plan.
        processes: number of worker processes.
        plans: folder of the plans of the task. Cases that another plan preprocessed in the same way
            are linked.

    Returns:
        the number of cases that were preprocessed.

    Raises:
        DataError: a case cannot be read.
        RunError: a worker process was killed, usually because memory ran out.
    """
    if not (missing := _missing(plan, cases, store, processes)):
        return 0
    with ExitStack() as locks:
        if plans is not None:  # plans with the same preprocessing wait for each other
            shared = plans / f".{store.preprocessing_id}.lock"
            locks.enter_context(locked(shared, "this preprocessing", wait=True))
        locks.enter_context(locked(store.folder / ".lock", "the case store", wait=True))
        store.remove_leftovers()
        missing = _missing(plan, missing, store, processes)  # another process may have stored them
        for case in missing:
            if store.has(case.name, _source(plan, case)):
                say(f"{store.folder / case.name} is damaged; preprocessing it again")
        if changed := [c.name for c in missing if store.has_older(c.name, _source(plan, c))]:
            say(f"files changed since preprocessing, which is done again: {join_names(changed)}")
        if plans is not None:
            links = partial(link_from_others, store, plans)
            missing = [case for case in missing if not links(case.name, _source(plan, case))]
        in_parallel(partial(preprocess_case, plan, store), missing, processes, "preprocessing")
    return len(missing)


def preprocess_case(plan: Plan, store: CaseStore, case: Case) -> None:
    """Read, preprocess and store one case, in one thread, so that the result is reproducible."""
    with threadpool_limits(limits=1, user_api="blas"):
        prepared = _prepare(plan, case)
        store.write(case.name, prepared, _source(plan, case), plan.classes.members)


def case_round_trip_dice(plan: Plan, case: Case) -> float:
    """The mean Dice of the label map of a case brought to the plan's grid and back."""
    return round_trip_dice(plan, *read_label(case.label))


def _prepare(plan: Plan, case: Case) -> Prepared:
    image = read_image(case.images, own_type=True)
    label, geometry = read_label(case.label)
    check_same_grid(geometry, case.label, image.geometry, case.images[0])
    if len(image.array) != len(plan.channels):
        found = f"{counted(len(image.array), 'channel')}, the plan has {len(plan.channels)}"
        raise DataError(f"{case.images[0]}: has {found}")
    if names := plan.annotated.get(case.name):
        label = annotated_part(label, plan.labels, names)
    return prepare(plan, image, label)


def _missing(plan: Plan, cases: Sequence[Case], store: CaseStore, processes: int) -> list[Case]:
    """Return the cases that are not stored, or whose files are damaged."""
    stored = [case.name for case in cases if store.has(case.name, _source(plan, case))]
    touched = [name for name in stored if not store.is_unchanged(name)]
    intact = in_parallel(store.is_whole, touched, processes, "checking stored cases")
    usable = set(stored) - {n for n, whole in zip(touched, intact, strict=True) if not whole}
    return [case for case in cases if case.name not in usable]


def _source(plan: Plan, case: Case) -> list[tuple[int, int]]:
    """Return size and modification time of each raw file of a case, and what was annotated."""
    paths = (*case.images, case.label)
    stats = [_size_and_time(file) for path in paths for file in files_of(path)]
    names = plan.annotated.get(case.name, ())
    return stats + [(len(name), crc32(name.encode())) for name in names]


def _size_and_time(file: Path) -> tuple[int, int]:
    status = file.stat()
    return status.st_size, status.st_mtime_ns


# The segmentations of the previous stage of a cascade.


def prepare_previous(
    plan: Plan,
    segmentation: LabelMap,
    spacing_mm: Sequence[float],
    box: Sequence[tuple[int, int]],
    shape: Triple,
) -> ClassMap:
    """Preprocess a segmentation like a label map.

    Args:
        plan: of the cascade.
        segmentation: label values (x, y, z) on the turned grid of the raw scan.
        spacing_mm: of that grid.
        box: start and stop along x, y, z of the part of that grid that preprocessing keeps.
        shape: of the preprocessed scan.

    Returns:
        indices of `Plan.classes.parts`, of that shape.
    """
    inside = to_classes(plan, segmentation[tuple(slice(start, stop) for start, stop in box)])
    target = plan.target_spacing_of(spacing_mm)
    for step in plan.preprocessing:
        if isinstance(step, Resample):
            orders = axis_orders(step.label_order, spacing_mm, target, step.anisotropy)
            inside = resample_label(inside, shape, orders, step.label_ties)
    return inside


def add_previous(
    plan: Plan, store: CaseStore, cases: Sequence[Case], files: Mapping[str, Path], processes: int
) -> None:
    """Add missing segmentations of the previous stage to stored cases.

    Args:
        plan: of the cascade.
        store: contains the cases.
        cases: the cases to complete.
        files: case name -> label map of the previous stage.
        processes: number of worker processes.

    Raises:
        DataError: a label map is missing, unreadable, or not on its case's grid.
        RunError: a worker process was killed.
    """
    sources = {case.name: _size_and_time(files[case.name]) for case in cases}
    missing = [case for case in cases if not store.has_previous(case.name, sources[case.name])]
    in_parallel(partial(_add, plan, store, files), missing, processes, "adding the previous stage")


def _add(plan: Plan, store: CaseStore, files: Mapping[str, Path], case: Case) -> None:
    path = files[case.name]
    segmentation, geometry = read_label(path)
    advice = "train the fold of the previous stage again"
    check_same_grid(geometry, path, read_geometry(case.label), case.label, advice)
    (shape, box), turn = store.grid_of(case.name), Turn.of(geometry, plan.orientation)
    spacing_mm = turn.triple(geometry.spacing_mm)
    found = prepare_previous(plan, turn.array(segmentation), spacing_mm, box, shape)
    store.write_previous(case.name, found, _size_and_time(path))
