"""Where the files of the cases lie, in the layouts of the Decathlon and of nnU-Net."""

from __future__ import annotations

import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from autoseg.common.errors import DataError
from autoseg.common.files import read_json
from autoseg.common.parallel import in_parallel
from autoseg.dataset.declaration import FILE_NAME, Declaration, ListedCase, declaration_of
from autoseg.dataset.problems import Problem, shown
from autoseg.image.formats import ENDINGS, ending_of, stem_of
from autoseg.image.image import read_label

# The files of one case.


@dataclass(frozen=True)
class Case:
    """One scan and its label map; `images` is one file per channel, or one file with all.

    An image may also be a folder with the slices of one DICOM series.
    """

    name: str
    images: tuple[Path, ...]
    label: Path


IMAGES, LABELS = "imagesTr", "labelsTr"
CHANNEL_NUMBER = re.compile(r"_(\d{4})$")


def find_cases(folder: Path, declared: Declaration) -> tuple[tuple[Case, ...], list[Problem]]:
    """The cases whose files are all there, sorted by name, and what is wrong with the others.

    Raises:
        DataError: there is no case at all.
    """
    if declared.listed is None:
        cases, problems = _cases_in_folders(folder, len(declared.channels))
    else:
        cases, problems = _listed_cases(folder, declared.listed, len(declared.channels))
    if not cases and not problems:
        raise DataError(
            f"{declared.path}: no cases; expected {IMAGES}/CASE_0000.nii.gz and "
            f"{LABELS}/CASE.nii.gz beside it, or a folder per case with imaging.nii.gz and "
            f"segmentation.nii.gz (endings: {', '.join(ENDINGS)})"
        )
    if not problems and declared.case_count not in (None, len(cases)):
        message = f"dataset.json declares numTraining {declared.case_count}; found {len(cases)}"
        problems.append(Problem("", declared.path.name, "count", "warning", message))
    return tuple(sorted(cases, key=lambda case: case.name)), problems


def _listed_cases(
    folder: Path, listed: tuple[ListedCase, ...], channels: int
) -> tuple[list[Case], list[Problem]]:
    cases: list[Case] = []
    problems: list[Problem] = []
    times = Counter(entry.name for entry in listed)
    for entry in listed:
        images = tuple(_resolve(folder, image) for image in entry.images)
        if entry.expand:
            images = _expand(images[0], channels)
        case = Case(entry.name, images, _resolve(folder, entry.label))
        missing = _missing(case, folder)
        problems += missing
        if not missing and times[case.name] == 1:
            cases.append(case)
    problems += [
        Problem(name, "", "listed twice", "error", f"dataset.json lists it {count} times")
        for name, count in times.items()
        if count > 1
    ]
    return cases, problems


def _resolve(folder: Path, written: str) -> Path:
    return folder / os.path.expandvars(written)


def _expand(image: Path, channels: int) -> tuple[Path, ...]:
    """The files of a Decathlon image: itself, or CASE_0000, CASE_0001, ... beside it."""
    stem, ending = stem_of(image), ending_of(image)
    if not stem.endswith("_0000"):
        first = image.with_name(f"{stem}_0000{ending}")
        if os.path.exists(image) or not os.path.exists(first):
            return (image,)
    name = stem.removesuffix("_0000")
    return tuple(image.with_name(f"{name}_{i:04d}{ending}") for i in range(channels))


def _missing(case: Case, folder: Path) -> list[Problem]:
    kinds = [*((image, "image") for image in case.images), (case.label, "label")]
    return [
        missing_file(case.name, kind, shown(path, folder))
        for path, kind in kinds
        if not os.path.exists(path)  # false for a name that no file can have, too
    ]


def missing_file(case: str, kind: str, file: str) -> Problem:
    """The problem that a file is not there; `kind` is image or label."""
    return Problem(case, file, f"missing {kind}", "error", f"{file} is missing")


def _cases_in_folders(folder: Path, channels: int) -> tuple[list[Case], list[Problem]]:
    """Pair imagesTr/CASE_XXXX with labelsTr/CASE; the endings may differ from file to file."""
    images, labels = by_stem(folder / IMAGES), by_stem(folder / LABELS)
    problems = [*ambiguous(images, folder), *ambiguous(labels, folder)]
    cases = []
    used: set[str] = set()
    for name, label in labels.items():
        stems = [name] if name in images else [f"{name}_{i:04d}" for i in range(channels)]
        used.update(stems)
        missing = [stem for stem in stems if stem not in images]
        problems += [missing_file(name, "image", f"{IMAGES}/{stem}.*") for stem in missing]
        if not missing and all(len(files) == 1 for files in (label, *(images[s] for s in stems))):
            cases.append(Case(name, tuple(images[stem][0] for stem in stems), label[0]))
    problems += _without_label(images.keys() - used, set(labels), channels)
    return cases, sorted(problems, key=lambda problem: (problem.case, problem.file))


def by_stem(folder: Path) -> dict[str, list[Path]]:
    """The scans in a folder by stem; a folder in it may be a DICOM series."""
    found: defaultdict[str, list[Path]] = defaultdict(list)
    paths = sorted(folder.iterdir()) if folder.is_dir() else []
    for path in paths:
        if not path.name.startswith(".") and (path.is_dir() or ending_of(path)):
            found[stem_of(path)].append(path)
    return dict(found)


def ambiguous(found: dict[str, list[Path]], folder: Path) -> list[Problem]:
    """The problems that several files have the same stem."""
    return [
        Problem(
            case=CHANNEL_NUMBER.sub("", stem),
            file=shown(paths[0], folder),
            kind="ambiguous",
            severity="error",
            message=f"{' and '.join(path.name for path in paths)} stand for the same; keep one",
        )
        for stem, paths in found.items()
        if len(paths) > 1
    ]


def _without_label(stems: Iterable[str], labelled: set[str], channels: int) -> list[Problem]:
    problems = {}
    for stem in sorted(stems):
        name = CHANNEL_NUMBER.sub("", stem)
        if name in labelled:
            message = f"{IMAGES}/{stem}.* is a channel beyond the {channels} in dataset.json"
            problems[stem] = Problem(name, f"{IMAGES}/{stem}", "channels", "error", message)
        else:
            problems[name] = missing_file(name, "label", f"{LABELS}/{name}.*")
    return list(problems.values())


# A set with one folder per case, which holds `imaging` and `segmentation` (MIScnn's layout).

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
