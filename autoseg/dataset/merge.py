"""One task from several, whose cases may have been annotated for different labels."""

from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autoseg.common.arrays import count_labels
from autoseg.common.errors import AutosegError, DataError
from autoseg.common.files import replacing_folder, write_json
from autoseg.common.parallel import in_parallel
from autoseg.dataset.declaration import DATASET_FILE, IGNORE, declaration_of
from autoseg.dataset.problems import TEXT, Problem
from autoseg.dataset.task import LABELS, Case, Task
from autoseg.image.image import read_label
from autoseg.image.label_writer import write_label

BACKGROUND = "background"


def merge_tasks(tasks: Sequence[Task], folder: Path, processes: int) -> list[tuple[str, ...]]:
    """Write a task with the cases of several; scans are not copied, label maps get new values.

    Labels with the same name are one label. A case is annotated for the labels of its task only.

    Args:
        tasks: at least two, with the same channels, without regions.
        folder: of the new task; must not exist.
        processes: number of label maps that are written at a time.

    Returns:
        a table: each label, its value, and its value in each of the tasks.

    Raises:
        DataError: the tasks differ in their channels, codes or mirrored labels, one has regions,
            or a label map has values that its task does not declare.
        AutosegError: the folder exists, or cannot be written.
    """
    first = tasks[0]
    for task in tasks:
        if task.regions_class_order:
            raise DataError(f"{task.path}: tasks with regions cannot be merged; declare its values")
        if task.channels != first.channels:
            here, there = ", ".join(task.channels), ", ".join(first.channels)
            raise DataError(TEXT("channels differ", task=task, here=here, first=first, there=there))
    names = dict.fromkeys(name for task in tasks for name in _foreground(task))
    values = {name: value for value, name in enumerate(names, start=1)}
    ignored = len(values) + 1 if any(task.ignore_label is not None for task in tasks) else None
    counts = Counter(case.name for task in tasks for case in task.cases)
    if folder.exists():
        raise AutosegError(f"{folder} exists; choose another --merge NAME, or delete it")
    with replacing_folder(folder) as temporary:
        (temporary / LABELS).mkdir(parents=True)
        listed, annotated, groups = {}, {}, {}
        for task in tasks:
            table = np.zeros(1 + max(task.declared_values), np.uint16)
            for name, covered in _foreground(task).items():
                table[list(covered)] = values[name]
            if task.ignore_label is not None and ignored is not None:
                table[task.ignore_label] = ignored
            old = [case.name for case in task.cases]
            new = {name: name if counts[name] == 1 else f"{task.name}_{name}" for name in old}
            maps = [(case, temporary / LABELS / f"{new[case.name]}.nii.gz") for case in task.cases]
            write = partial(_write, table, task.declared_values)
            in_parallel(write, maps, processes, f"label maps of {task.name}")
            for case in task.cases:
                name = new[case.name]
                label = f"{LABELS}/{name}.nii.gz"
                listed[name] = {"images": [str(path) for path in case.images], "label": label}
                own = task.annotated.get(case.name, tuple(_foreground(task)))
                if set(own) != set(names):
                    annotated[name] = list(own) or "present"
                groups[name] = f"{task.name} {task.groups.get(case.name, case.name)}"
        channels = {str(i): name for i, name in enumerate(first.channels)}
        labels = {BACKGROUND: 0, **values, **({IGNORE: ignored} if ignored else {})}
        declared: dict[str, Any] = {"channel_names": channels, "labels": labels}
        declared |= {"file_ending": ".nii.gz", "numTraining": len(listed)}
        declared["merged_from"] = [str(task.folder) for task in tasks]
        declared |= {"annotated": annotated, "groups": groups, "dataset": listed}
        declared |= _of_labels(tasks)
        declaration_of(declared, folder / DATASET_FILE)
        write_json(temporary / DATASET_FILE, declared)
    head = ("label", "value", *(task.name for task in tasks))
    return [head, *((n, str(v), *(_value(task, n) for task in tasks)) for n, v in values.items())]


def _foreground(task: Task) -> dict[str, tuple[int, ...]]:
    return {name: values for name, values in task.labels.items() if 0 not in values}


def _value(task: Task, name: str) -> str:
    return ", ".join(map(str, task.labels.get(name, ()))) or "not annotated"


def _of_labels(tasks: Sequence[Task]) -> dict[str, Any]:
    """What the tasks declare about single labels."""
    codes: dict[str, Any] = {}
    for task in tasks:
        for name, code in task.codes.items():
            own = code.model_dump(mode="json")
            if codes.setdefault(name, own) != own:
                raise DataError(f"{task.path}: other codes of {name!r} than before; use the same")
    sides = [task.mirrored_labels for task in tasks if task.mirrored_labels is not None]
    pairs = {frozenset(pair): pair for mirrored in sides for pair in mirrored.items()}
    return {"codes": codes} | ({"mirrored_labels": dict(pairs.values())} if sides else {})


def _write(table: NDArray[np.uint16], declared: set[int], pair: tuple[Case, Path]) -> None:
    path = pair[0].label
    label, grid = read_label(path)
    if strange := sorted(set(count_labels(label)) - declared):
        problem = Problem.of("undeclared label", found=", ".join(map(str, strange)))
        raise DataError(f"{path}: {problem.message}")
    write_label(pair[1], table[label], grid)
