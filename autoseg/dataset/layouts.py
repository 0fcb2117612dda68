"""Where the files of the cases lie, in the layouts of the Decathlon and of nnU-Net."""

from __future__ import annotations

import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path

from autoseg.common.errors import DataError
from autoseg.dataset.case import Case
from autoseg.dataset.declaration import Declaration, ListedCase
from autoseg.dataset.verify import Problem, shown
from autoseg.image.formats import ENDINGS, ending_of, stem_of

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
