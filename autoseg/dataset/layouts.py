"""The files of the cases, in the layouts of the Decathlon, nnU-Net and MIScnn."""

from __future__ import annotations

import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from autoseg.common.arrays import count_labels
from autoseg.common.errors import DataError
from autoseg.common.files import NO_SUCH_FILE, obstacle, read_json
from autoseg.common.parallel import in_parallel
from autoseg.dataset.declaration import (
    DATASET_FILE,
    Declaration,
    LabelValues,
    ListedCase,
    declaration_of,
)
from autoseg.dataset.problems import Problem, shown_path
from autoseg.image.formats import ENDINGS, alike, composed, ending_of, stem_of
from autoseg.image.image import read_label

IMAGES, LABELS = "imagesTr", "labelsTr"  # folders of the Decathlon and nnU-Net
IMAGE_STEM, LABEL_STEM = "imaging", "segmentation"  # files in a case folder (MIScnn)
CHANNEL_NUMBER = re.compile(r"_(\d{4})$")
UNNAMED_CHANNEL = "image"


@dataclass(frozen=True)
class Case:
    """A scan and its label map; `images` is one file per channel, or one file with all channels.

    An image may also be a folder with the slices of one DICOM series.
    """

    name: str
    images: tuple[Path, ...]
    label: Path


# The layouts of the Decathlon and nnU-Net.


def find_cases(folder: Path, declared: Declaration) -> tuple[tuple[Case, ...], list[Problem]]:
    """Return the complete cases, sorted by name, and the problems of the others.

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
    for message in alike(case.name for case in cases):
        problems.append(Problem("", "", "names", "warning", message))
    if not problems and declared.case_count not in (None, len(cases)):
        message = f"dataset.json declares numTraining {declared.case_count}; found {len(cases)}"
        problems.append(Problem("", declared.path.name, "count", "warning", message))
    return tuple(sorted(cases, key=lambda case: case.name)), problems


def _listed_cases(
    folder: Path, listed: tuple[ListedCase, ...], channels: int
) -> tuple[list[Case], list[Problem]]:
    cases: list[Case] = []
    problems: list[Problem] = []
    counts = Counter(entry.name for entry in listed)
    for entry in listed:
        images = tuple(_resolve(folder, image) for image in entry.images)
        if entry.expand:
            images = _expand(images[0], channels)
        case = Case(entry.name, images, _resolve(folder, entry.label))
        missing = _missing_files(case, folder)
        problems += missing
        if not missing and counts[case.name] == 1:
            cases.append(case)
    problems += [
        Problem(name, "", "listed twice", "error", f"dataset.json lists it {count} times")
        for name, count in counts.items()
        if count > 1
    ]
    return cases, problems


def _resolve(folder: Path, written: str) -> Path:
    """The file, also if its name has composed characters on the disk, and not in dataset.json."""
    path = folder / os.path.expandvars(written)
    if path.name.isascii() or os.path.lexists(path):
        return path
    same = (entry for entry in _visible(path.parent) if composed(entry.name) == composed(path.name))
    return next(same, path)


def _expand(image: Path, channels: int) -> tuple[Path, ...]:
    """Return the files of a Decathlon image: itself, or CASE_0000, CASE_0001, ... beside it."""
    stem, ending = stem_of(image), ending_of(image)
    if not stem.endswith("_0000"):
        first = image.with_name(f"{stem}_0000{ending}")
        if os.path.exists(image) or not os.path.exists(first):
            return (image,)
    name = stem.removesuffix("_0000")
    return tuple(image.with_name(f"{name}_{i:04d}{ending}") for i in range(channels))


def _missing_files(case: Case, folder: Path) -> list[Problem]:
    kinds = [*((image, "image") for image in case.images), (case.label, "label")]
    problems = []
    for path, kind in kinds:
        file = shown_path(path, folder)
        if (reason := obstacle(path)).endswith(NO_SUCH_FILE):
            problems.append(_missing(case.name, kind, file))
        elif reason:
            problems.append(Problem(case.name, file, "unreadable", "error", reason))
    return problems


def _missing(case: str, kind: str, file: str) -> Problem:
    return Problem(case, file, f"missing {kind}", "error", f"{file} is missing")


def _cases_in_folders(folder: Path, channels: int) -> tuple[list[Case], list[Problem]]:
    """Pair imagesTr/CASE_XXXX with labelsTr/CASE; file endings may differ."""
    images, labels = _by_stem(folder / IMAGES), _by_stem(folder / LABELS)
    problems = [*_ambiguous(images, folder), *_ambiguous(labels, folder)]
    cases = []
    used: set[str] = set()
    for name, label in labels.items():
        stems = [name] if name in images else [f"{name}_{i:04d}" for i in range(channels)]
        used.update(stems)
        missing = [stem for stem in stems if stem not in images]
        problems += [_missing(name, "image", f"{IMAGES}/{stem}.*") for stem in missing]
        if not missing and all(len(files) == 1 for files in (label, *(images[s] for s in stems))):
            cases.append(Case(name, tuple(images[stem][0] for stem in stems), label[0]))
    problems += _unlabelled(images.keys() - used, set(labels), channels)
    return cases, sorted(problems, key=lambda problem: (problem.case, problem.file))


def _by_stem(folder: Path) -> dict[str, list[Path]]:
    """Return the scans in a folder by stem; a subfolder may be a DICOM series."""
    found: defaultdict[str, list[Path]] = defaultdict(list)
    for path in _visible(folder):
        if path.is_dir() or ending_of(path):
            found[stem_of(path)].append(path)
    return dict(found)


def _visible(folder: Path) -> list[Path]:
    paths = sorted(folder.iterdir()) if folder.is_dir() else []
    return [path for path in paths if not path.name.startswith(".")]


def _ambiguous(found: dict[str, list[Path]], folder: Path) -> list[Problem]:
    """Return a problem for each stem that several files have."""
    return [
        Problem(
            case=CHANNEL_NUMBER.sub("", stem),
            file=shown_path(paths[0], folder),
            kind="ambiguous",
            severity="error",
            message=f"{' and '.join(path.name for path in paths)} have the same stem; keep one",
        )
        for stem, paths in found.items()
        if len(paths) > 1
    ]


def _unlabelled(stems: Iterable[str], labelled: set[str], channels: int) -> list[Problem]:
    problems = {}
    for stem in sorted(stems):
        name = CHANNEL_NUMBER.sub("", stem)
        if name in labelled:
            message = f"{IMAGES}/{stem}.* exceeds the {channels} channels of dataset.json"
            problems[stem] = Problem(name, f"{IMAGES}/{stem}", "channels", "error", message)
        else:
            problems[name] = _missing(name, "label", f"{LABELS}/{name}.*")
    return list(problems.values())


# The layout of MIScnn: one folder per case, which contains `imaging` and `segmentation`.


def has_case_folders(folder: Path) -> bool:
    """Return whether a task has case folders, but neither `imagesTr` nor a list of cases."""
    if (folder / IMAGES).is_dir() or (folder / LABELS).is_dir():
        return False
    content = _read_content(folder)
    listed = not isinstance(content, dict) or {"training", "dataset"} & set(content)
    return not listed and any(_is_case(path) for path in _subfolders(folder))


def declare_case_folders(
    folder: Path, labels: Mapping[str, Sequence[int]] | None = None
) -> tuple[Declaration, list[Problem]]:
    """Return the task's declaration with missing fields filled in, and a warning if there were any.

    Undeclared channels default to one, "image". Undeclared labels default to `labels`, or, if that
    is None, to the values in the label maps, named "1", "2", ...

    Raises:
        AutosegError: `dataset.json` is not JSON.
        DataError: a field is invalid, or the label maps contain only background.
    """
    content: dict[str, Any] = dict(_read_content(folder))
    filled = []
    if "modality" in content:  # renamed, because with it a list of cases would be required
        content.setdefault("channel_names", content["modality"])
    if "channel_names" not in content:
        content["channel_names"] = {"0": UNNAMED_CHANNEL}
        filled.append(f"one channel, {UNNAMED_CHANNEL!r}")
    if "labels" not in content:
        found = _labels_in_maps(folder) if labels is None else labels
        content["labels"] = {name: list(values) for name, values in found.items()}
        names = ", ".join(repr(name) for name in found if name != "background")
        filled.append(f"the labels {names}, found in the label maps")
    declared = declaration_of(content, folder / DATASET_FILE)
    if not filled:
        return declared, []
    message = (
        f"not declared in {DATASET_FILE}; assuming {' and '.join(filled)}; declare "
        '"channel_names" (call a CT "CT") and "labels" there'
    )
    return declared, [Problem("", DATASET_FILE, "not declared", "warning", message)]


def find_case_folders(folder: Path, channels: int) -> tuple[tuple[Case, ...], list[Problem]]:
    """Return the complete cases, sorted by name, and the problems of the others."""
    cases: list[Case] = []
    problems: list[Problem] = []
    for path in _subfolders(folder):
        case, found = _case_in(path, channels)
        problems += found
        if case is not None:
            cases.append(case)
    return tuple(cases), problems


def _labels_in_maps(folder: Path) -> LabelValues:
    """Return the values in all readable label maps, as labels named "1", "2", ...

    Raises:
        DataError: no map has a value above 0.
    """
    maps = [file for path in _subfolders(folder) for file in _by_stem(path).get(LABEL_STEM, [])]
    values = set().union(*in_parallel(values_in, maps, 1, "finding labels")) - {0}
    if not values:
        raise DataError(
            f"{folder}: no readable label map has a value above 0; "
            f"correct the maps, or declare the labels in {DATASET_FILE}"
        )
    return {"background" if value == 0 else str(value): (value,) for value in [0, *sorted(values)]}


def values_in(path: Path) -> set[int]:
    """Return the values in a label map; none if it cannot be read."""
    try:
        label, _ = read_label(path)
    except DataError:  # the survey reports it
        return set()
    return set(count_labels(label))


def _read_content(folder: Path) -> Any:
    path = folder / DATASET_FILE
    return read_json(path) if path.exists() else {}


def _subfolders(folder: Path) -> list[Path]:
    return [path for path in _visible(folder) if path.is_dir()]


def _is_case(path: Path) -> bool:
    return not _by_stem(path).keys().isdisjoint({IMAGE_STEM, f"{IMAGE_STEM}_0000", LABEL_STEM})


def _case_in(path: Path, channels: int) -> tuple[Case | None, list[Problem]]:
    """Return the case in a folder, or its problems."""
    found = _by_stem(path)
    if not _is_case(path):
        message = f"contains neither {IMAGE_STEM}.* nor {LABEL_STEM}.*; skipped"
        return None, [Problem(path.name, path.name, "no case", "warning", message)]
    numbered = [f"{IMAGE_STEM}_{number:04d}" for number in range(channels)]
    stems = numbered if numbered[0] in found and IMAGE_STEM not in found else [IMAGE_STEM]
    wanted = {stem: found[stem] for stem in (*stems, LABEL_STEM) if stem in found}
    problems = [replace(problem, case=path.name) for problem in _ambiguous(wanted, path.parent)]
    problems += [
        _missing(path.name, "label" if stem == LABEL_STEM else "image", f"{path.name}/{stem}.*")
        for stem in (*stems, LABEL_STEM)
        if stem not in found
    ]
    if problems:
        return None, problems
    return Case(path.name, tuple(found[stem][0] for stem in stems), found[LABEL_STEM][0]), []
