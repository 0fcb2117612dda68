"""A raw task: a folder with scans and label maps, described by a `dataset.json`.

The files of the cases are found in the layouts of the Decathlon, nnU-Net and MIScnn.
"""

import os
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from autoseg.common.arrays import count_labels
from autoseg.common.errors import DataError
from autoseg.common.files import NO_SUCH_FILE, obstacle, read_json
from autoseg.common.parallel import in_parallel
from autoseg.dataset import declaration
from autoseg.dataset.corrections import CORRECTED, corrected_labels
from autoseg.dataset.declaration import DATASET_FILE, Declaration, LabelValues, ListedCase
from autoseg.dataset.problems import TEXT, Problem, raise_errors, shown_path
from autoseg.image import formats
from autoseg.image.formats import alike, composed, ending_of, stem_of
from autoseg.image.image import read_label

IMAGES, LABELS = "imagesTr", "labelsTr"  # folders of the Decathlon and nnU-Net
IMAGE_STEM, LABEL_STEM = "imaging", "segmentation"  # files in a case folder (MIScnn)
CHANNEL_NUMBER = re.compile(r"_(\d{4})$")
UNNAMED_CHANNEL = "image"
Labels = Mapping[str, Sequence[int]]


@dataclass(frozen=True)
class Case:
    """A scan and its label map; `images` is one file per channel, or one file with all channels.

    An image may also be a folder with the slices of one DICOM series.
    """

    name: str
    images: tuple[Path, ...]
    label: Path


@dataclass(frozen=True, kw_only=True)
class Task(Declaration):
    """A raw data set: what its `dataset.json` declares, and its files.

    Attributes:
        name: name of the folder.
        folder: folder of `dataset.json`.
        cases: sorted by name.
        annotated: partly annotated case -> names of its annotated labels, or `PRESENT`.
    """

    name: str
    folder: Path
    cases: tuple[Case, ...]

    @property
    def declared_values(self) -> set[int]:
        """All values that a label map may contain, background and ignore label included."""
        values = {value for values in self.labels.values() for value in values}
        return values if self.ignore_label is None else values | {self.ignore_label}


def read_task(folder: Path, labels: Labels | None = None, skip: Collection[str] = ()) -> Task:
    """Read a task and require that its files are complete.

    Args:
        folder: folder of the task.
        labels: as for `find_task`.
        skip: cases to leave out, together with their problems.

    Raises:
        AutosegError: `dataset.json` is missing or not JSON.
        DataError: `dataset.json` is invalid, or files are missing (the first ten are named).
    """
    task, problems = find_task(folder, labels)
    raise_errors((p for p in problems if p.case not in skip), task.name)
    return without(task, skip)


def find_task(folder: Path, labels: Labels | None = None) -> tuple[Task, list[Problem]]:
    """Read a task with its complete cases, and the problems of the others.

    Args:
        folder: folder of the task.
        labels: label name -> values, background included, for a task that declares none (a plan
            knows them); by default the label maps of such a task are read to find out.

    Raises:
        AutosegError: `dataset.json` is missing or not JSON.
        DataError: `dataset.json` is invalid, or there is no case at all.
    """
    folder = Path(os.path.abspath(folder))  # unlike Path.resolve, this keeps the name of a link
    if has_case_folders(folder):
        declared, undeclared = declare_case_folders(folder, labels)
        cases, problems = find_case_folders(folder, len(declared.channels))
        problems = [*undeclared, *problems]
    else:
        declared = declaration.read_declaration(folder)
        cases, problems = find_cases(folder, declared)
    corrected = corrected_labels(folder)
    cases = tuple(replace(case, label=corrected.get(case.name, case.label)) for case in cases)
    groups, unmatched = _groups(declared, cases, problems)
    names = {case.name for case in cases} | {problem.case for problem in problems}
    annotated, strange = declared.annotated_in(sorted(names))
    file = declared.path.name
    unmatched += [Problem.of("annotated", "", file, pattern=pattern) for pattern in strange]
    known = vars(declared) | {"groups": groups, "annotated": annotated}
    task = Task(**known, name=folder.name, folder=folder, cases=cases)
    return task, [*problems, *unmatched]


def without(task: Task, names: Collection[str]) -> Task:
    """Return the task without these cases; unknown names are ignored."""
    cases = tuple(case for case in task.cases if case.name not in names)
    groups = {case: patient for case, patient in task.groups.items() if case not in names}
    return replace(task, cases=cases, groups=groups)


def _groups(
    declared: Declaration, cases: Sequence[Case], problems: Sequence[Problem]
) -> tuple[dict[str, str], list[Problem]]:
    """Return case -> patient, and a problem for each entry of "groups" that matches no case."""
    names, file = [case.name for case in cases], declared.path.name
    if declared.group_pattern is None:
        known = {*names, *(problem.case for problem in problems)}
        unmatched = sorted(set(declared.groups) - known)
        groups = {name: declared.groups[name] for name in names if name in declared.groups}
        return groups, [Problem.of("groups", name, file) for name in unmatched]
    matches = {name: re.search(declared.group_pattern, name) for name in names}
    # The patient is the first group of the match, or else the whole match.
    groups = {n: (m[1] if m.re.groups else None) or m[0] for n, m in matches.items() if m}
    if groups or not names:
        return groups, []
    found = {"pattern": declared.group_pattern, "name": names[0]}
    return groups, [Problem.of("groups, pattern", "", file, **found)]


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
        endings = ", ".join(formats.READABLE)
        raise DataError(TEXT("no cases", path=declared.path, endings=endings))
    for message in alike(case.name for case in cases):
        problems.append(Problem.of("names", text=message))
    if not problems and declared.case_count not in (None, len(cases)):
        numbers = {"declared": declared.case_count, "found": len(cases)}
        problems.append(Problem.of("count", "", declared.path.name, **numbers))
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
        missing = list(_missing_files(case, folder))
        problems += missing
        if not missing and counts[case.name] == 1:
            cases.append(case)
    problems += [Problem.of("listed twice", name, count=n) for name, n in counts.items() if n > 1]
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


def _missing_files(case: Case, folder: Path) -> Iterator[Problem]:
    for path, kind in [*((image, "image") for image in case.images), (case.label, "label")]:
        file = shown_path(path, folder)
        if (reason := obstacle(path)).endswith(NO_SUCH_FILE):
            yield Problem.of(f"missing {kind}", case.name, file)
        elif reason:
            yield Problem.of("unreadable", case.name, file, text=reason)


def _cases_in_folders(folder: Path, channels: int) -> tuple[list[Case], list[Problem]]:
    """Pair imagesTr/CASE_XXXX with labelsTr/CASE; file endings may differ."""
    images, labels = by_stem(folder / IMAGES), by_stem(folder / LABELS)
    problems = [*_ambiguous(images, folder), *_ambiguous(labels, folder)]
    cases = []
    used: set[str] = set()
    for name, label in labels.items():
        stems = _stems(name, images, channels)
        used.update(stems)
        missing = [stem for stem in stems if stem not in images]
        problems += [Problem.of("missing image", name, f"{IMAGES}/{stem}.*") for stem in missing]
        if not missing and all(len(files) == 1 for files in (label, *(images[s] for s in stems))):
            cases.append(Case(name, tuple(images[stem][0] for stem in stems), label[0]))
    problems += _unlabelled(images.keys() - used, set(labels), channels)
    return cases, sorted(problems, key=lambda problem: (problem.case, problem.file))


def by_stem(folder: Path) -> dict[str, list[Path]]:
    """Return the scans in a folder by stem; a subfolder may be a DICOM series."""
    found: defaultdict[str, list[Path]] = defaultdict(list)
    entries = _visible(folder)
    files = formats.images_among(entry for entry in entries if not entry.is_dir())
    for path in [*filter(Path.is_dir, entries), *files]:
        found[stem_of(path)].append(path)
    return dict(found)


def _stems(name: str, images: Mapping[str, Sequence[Path]], channels: int) -> list[str]:
    """The stems of a case's images: one for each channel, or one that holds all of them."""
    first, *others = numbered = [f"{name}_{i:04d}" for i in range(channels)]
    if name in images:
        return [name]
    is_alone = images.keys().isdisjoint(others)  # as the RGB pictures of nnU-Net
    return [first] if is_alone and any(map(formats.is_picture, images.get(first, ()))) else numbered


def _visible(folder: Path) -> list[Path]:
    paths = sorted(folder.iterdir()) if folder.is_dir() else []
    return [path for path in paths if not path.name.startswith(".")]


def _ambiguous(found: dict[str, list[Path]], folder: Path) -> Iterator[Problem]:
    """A problem for each stem that several files have."""
    for stem, paths in found.items():
        if len(paths) > 1:
            case, file = CHANNEL_NUMBER.sub("", stem), shown_path(paths[0], folder)
            names = " and ".join(path.name for path in paths)
            yield Problem.of("ambiguous", case, file, found=names)


def _unlabelled(stems: Iterable[str], labelled: set[str], channels: int) -> list[Problem]:
    problems = {}
    for stem in sorted(stems):
        name = CHANNEL_NUMBER.sub("", stem)
        if name in labelled:
            kind, file = "channels, too many", f"{IMAGES}/{stem}"
            problems[stem] = Problem.of(kind, name, file, declared=channels)
        else:
            problems[name] = Problem.of("missing label", name, f"{LABELS}/{name}.*")
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
    folder: Path, labels: Labels | None = None
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
    problem = Problem.of("not declared", "", DATASET_FILE, found=" and ".join(filled))
    return declaration.declaration_of(content, folder / DATASET_FILE), [problem] if filled else []


def find_case_folders(folder: Path, channels: int) -> tuple[tuple[Case, ...], list[Problem]]:
    """Return the complete cases, sorted by name, and the problems of the others."""
    found = [_case_in(path, channels) for path in _subfolders(folder)]
    cases = tuple(each for each in found if isinstance(each, Case))
    return cases, [problem for each in found if isinstance(each, list) for problem in each]


def _labels_in_maps(folder: Path) -> LabelValues:
    """Return the values in all readable label maps, as labels named "1", "2", ...

    Raises:
        DataError: no map has a value above 0.
    """
    maps = [file for path in _subfolders(folder) for file in by_stem(path).get(LABEL_STEM, [])]
    if not (values := set().union(*in_parallel(values_in, maps, 1, "finding labels")) - {0}):
        raise DataError(TEXT("no labels", folder=folder))
    return {"background" if value == 0 else str(value): (value,) for value in [0, *sorted(values)]}


def values_in(path: Path) -> set[int]:
    """Return the values in a label map; none if it cannot be read."""
    try:
        label, _ = read_label(path)
    except DataError:  # the survey reports it
        return set()
    return set(count_labels(label))


def _read_content(folder: Path) -> Any:
    return read_json(folder / DATASET_FILE) if (folder / DATASET_FILE).exists() else {}


def _subfolders(folder: Path) -> list[Path]:
    return [path for path in _visible(folder) if path.is_dir() and path.name != CORRECTED]


def _is_case(path: Path) -> bool:
    return not by_stem(path).keys().isdisjoint({IMAGE_STEM, f"{IMAGE_STEM}_0000", LABEL_STEM})


def _case_in(path: Path, channels: int) -> Case | list[Problem]:
    """Return the case in a folder, or its problems."""
    found = by_stem(path)
    if not _is_case(path):
        return [Problem.of("no case", path.name, path.name)]
    numbered = [f"{IMAGE_STEM}_{number:04d}" for number in range(channels)]
    stems = numbered if numbered[0] in found and IMAGE_STEM not in found else [IMAGE_STEM]
    wanted = {stem: found[stem] for stem in (*stems, LABEL_STEM) if stem in found}
    problems = [replace(problem, case=path.name) for problem in _ambiguous(wanted, path.parent)]
    for stem in (stem for stem in (*stems, LABEL_STEM) if stem not in found):
        kind = "missing label" if stem == LABEL_STEM else "missing image"
        problems.append(Problem.of(kind, path.name, f"{path.name}/{stem}.*"))
    if problems:
        return problems
    return Case(path.name, tuple(found[stem][0] for stem in stems), found[LABEL_STEM][0])
