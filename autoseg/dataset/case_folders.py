"""A set with one folder per case, which holds `imaging` and `segmentation` (MIScnn's layout)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from autoseg.common.errors import DataError
from autoseg.common.files import read_json
from autoseg.common.parallel import in_parallel
from autoseg.dataset.case import Case
from autoseg.dataset.declaration import FILE_NAME, Declaration, declaration_of
from autoseg.dataset.layouts import IMAGES, LABELS, ambiguous, by_stem, missing_file
from autoseg.dataset.verify import Problem
from autoseg.image.image import read_label

IMAGE, LABEL = "imaging", "segmentation"
CHANNEL = "image"


def in_case_folders(folder: Path) -> bool:
    """Whether a task is laid out so: no `imagesTr`, no list of cases, and a case folder."""
    if (folder / IMAGES).is_dir() or (folder / LABELS).is_dir():
        return False
    fields = _written(folder)
    listed = not isinstance(fields, dict) or {"training", "dataset"} & set(fields)
    return not listed and any(_is_case(path) for path in _folders(folder))


def declare_case_folders(
    folder: Path, labels: Mapping[str, Sequence[int]] | None = None
) -> tuple[Declaration, list[Problem]]:
    """The task's `dataset.json`, with what it lacks filled in; filling in is told as a warning.

    Channels that are not declared are one, "image". Labels that are not declared are `labels`, or,
    if that is None, the values found in the label maps, named "1", "2", ...

    Raises:
        AutosegError: `dataset.json` is not JSON.
        DataError: it is wrong, or there is nothing but background in the label maps.
    """
    fields: dict[str, Any] = dict(_written(folder))
    filled = []
    if "modality" in fields:
        fields.setdefault("channel_names", fields["modality"])
    if "channel_names" not in fields:
        fields["channel_names"] = {"0": CHANNEL}
        filled.append(f"one channel, {CHANNEL!r}")
    if "labels" not in fields:
        fields["labels"] = labels_in_maps(folder) if labels is None else _plain(labels)
        names = ", ".join(repr(name) for name in fields["labels"] if name != "background")
        filled.append(f"the labels {names}, as found in the label maps")
    declared = declaration_of(fields, folder / FILE_NAME)
    if not filled:
        return declared, []
    message = (
        f"without a word in {FILE_NAME}, taken to be: {' and '.join(filled)}; declare "
        '"channel_names" (call a CT "CT") and "labels" there'
    )
    return declared, [Problem("", FILE_NAME, "not declared", "warning", message)]


def find_case_folders(folder: Path, channels: int) -> tuple[tuple[Case, ...], list[Problem]]:
    """The cases whose files are all there, sorted by name, and what is wrong with the others."""
    cases: list[Case] = []
    problems: list[Problem] = []
    for path in _folders(folder):
        case, found = _case(path, channels)
        problems += found
        if case is not None:
            cases.append(case)
    return tuple(cases), problems


def labels_in_maps(folder: Path) -> dict[str, int]:
    """The values in all label maps that can be read, as labels named "1", "2", ...

    Raises:
        DataError: no map has a value above 0.
    """
    stems = [by_stem(path).get(LABEL, []) for path in _folders(folder)]
    maps = [path for paths in stems for path in paths]
    values = set().union(*in_parallel(_values_in, maps, 1, "finding labels")) - {0}
    if not values:
        raise DataError(
            f"{folder}: no label map can be read that has a label above 0; "
            f"correct the maps, or declare the labels in {FILE_NAME}"
        )
    return {"background": 0} | {str(value): value for value in sorted(values)}


def _values_in(path: Path) -> set[int]:
    try:
        label, _ = read_label(path)
    except DataError:  # the survey tells it with all the rest
        return set()
    there = np.zeros(int(label.max()) + 1, dtype=bool)
    for plane in label:  # plane by plane: indexing copies the indices as int64
        there[plane] = True
    return set(np.flatnonzero(there).tolist())


def _plain(labels: Mapping[str, Sequence[int]]) -> dict[str, list[int]]:
    return {name: list(values) for name, values in labels.items()}


def _written(folder: Path) -> Any:
    path = folder / FILE_NAME
    return read_json(path) if path.exists() else {}


def _folders(folder: Path) -> list[Path]:
    inside = folder.iterdir() if folder.is_dir() else ()
    return sorted(path for path in inside if path.is_dir() and not path.name.startswith("."))


def _is_case(path: Path) -> bool:
    return not by_stem(path).keys().isdisjoint({IMAGE, f"{IMAGE}_0000", LABEL})


def _case(path: Path, channels: int) -> tuple[Case | None, list[Problem]]:
    """The case in a folder, or what is wrong with it."""
    found = by_stem(path)
    if not _is_case(path):
        message = f"holds neither {IMAGE}.* nor {LABEL}.*; it is left out"
        return None, [Problem(path.name, path.name, "no case", "warning", message)]
    numbered = [f"{IMAGE}_{number:04d}" for number in range(channels)]
    stems = numbered if numbered[0] in found and IMAGE not in found else [IMAGE]
    wanted = {stem: found[stem] for stem in (*stems, LABEL) if stem in found}
    problems = [replace(problem, case=path.name) for problem in ambiguous(wanted, path.parent)]
    problems += [
        missing_file(path.name, "label" if stem == LABEL else "image", f"{path.name}/{stem}.*")
        for stem in (*stems, LABEL)
        if stem not in found
    ]
    if problems:
        return None, problems
    return Case(path.name, tuple(found[stem][0] for stem in stems), found[LABEL][0]), []
