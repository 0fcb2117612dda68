"""What a task's `dataset.json` declares, in either dialect, checked field by field.

Two dialects are understood, also mixed: the Medical Segmentation Decathlon's, which nnU-Net v1
shares (`modality`, `labels` from value to name, a `training` list), and nnU-Net v2's
(`channel_names`, `labels` from name to value or values, optional `dataset` with explicit paths).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autoseg.common.errors import AutosegError, DataError
from autoseg.common.files import read_json
from autoseg.image.formats import stem_of
from autoseg.image.label_writer import HIGHEST_LABEL

# Values of a JSON file that a person wrote: what they are, and how a message shows them.

LONGEST = 80  # characters of a value in a message


def is_whole(value: Any) -> bool:
    """Whether it is a whole number; true and false are none, though Python counts with them."""
    return isinstance(value, int) and not isinstance(value, bool)


def kind_of(value: Any) -> str:
    """What it is in words, if it is no object."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return {list: "a list", str: "text", type(None): "null"}.get(type(value), "a number")


def short(value: Any) -> str:
    """The value as Python writes it, cut off where it is long."""
    text = "nothing" if value is None else repr(value)
    return text if len(text) <= LONGEST else text[: LONGEST - 3] + "..."


# The labels that a task's `dataset.json` declares, and the order in which regions are painted.

IGNORE = "ignore"
Labels = dict[str, tuple[int, ...]]


def read_labels(fields: dict[str, Any], path: Path) -> tuple[Labels, int | None]:
    """Name -> values, as `Declaration.labels` orders them, and the ignore label, if any.

    Args:
        fields: of the file.
        path: the file, for messages.

    Raises:
        DataError: "labels" is missing or wrong.
    """
    labels = _written(fields, path)
    ignore_label = _take_ignore_label(labels, path)
    _check_labels(labels, ignore_label, path)
    return _in_order(labels), ignore_label


def _written(fields: dict[str, Any], path: Path) -> Labels:
    declared = fields.get("labels")
    if not isinstance(declared, dict) or not declared:
        raise DataError(
            f'{path}: "labels" must map names to values, for example '
            f'{{"background": 0, "tumour": 1}}; found {short(declared)}'
        )
    if all(isinstance(name, str) for name in declared.values()):
        return _labels_by_value(declared, path)
    return {name: _values(name, value, path) for name, value in declared.items()}


def _labels_by_value(declared: dict[str, str], path: Path) -> Labels:
    labels: Labels = {}
    named_first = not any(map(str.isdecimal, declared))
    if named_first and all(map(str.isdecimal, declared.values())):
        raise DataError(
            f'{path}: "labels" has its values as text: {short(declared)}; write them without quotes'
        )
    for value, name in declared.items():
        if not value.isdecimal() or len(value) > LONGEST:  # Python counts in 4300 digits at most
            raise DataError(
                f'{path}: "labels" has the value {short(value)}; it must be a whole number'
            )
        if name in labels:
            raise DataError(
                f'{path}: "labels" gives the name {name!r} to {labels[name][0]} and {value}; '
                "give each value its own name"
            )
        labels[name] = _values(name, int(value), path)
    return labels


def _values(name: str, declared: Any, path: Path) -> tuple[int, ...]:
    values = tuple(declared) if isinstance(declared, list) else (declared,)
    whole = all(is_whole(value) and 0 <= value <= HIGHEST_LABEL for value in values)
    if not values or not whole or len(set(values)) < len(values):
        raise DataError(
            f"{path}: label {name!r} is {short(declared)}; it must be a whole number from 0 to "
            f"{HIGHEST_LABEL}, or a list of different ones"
        )
    return tuple(sorted(values))


def _take_ignore_label(labels: Labels, path: Path) -> int | None:
    values = labels.pop(IGNORE, None)
    if values is None:
        return None
    if len(values) != 1 or any(values[0] in others for others in labels.values()):
        raise DataError(
            f"{path}: label 'ignore' covers {list(values)}; it needs one value of its own"
        )
    return values[0]


def _check_labels(labels: Labels, ignore_label: int | None, path: Path) -> None:
    if (0,) not in labels.values() or ignore_label == 0:
        raise DataError(f'{path}: no label has the value 0; declare "background": 0')
    if len(labels) < 2:
        raise DataError(f'{path}: "labels" has nothing to segment beside the background')
    names: dict[tuple[int, ...], str] = {}
    for name, values in labels.items():
        if values in names:
            raise DataError(
                f"{path}: labels {names[values]!r} and {name!r} both have the value "
                f"{', '.join(map(str, values))}; give each its own"
            )
        if 0 in values and len(values) > 1:
            raise DataError(
                f"{path}: region {name!r} covers 0, which is the background; take it out"
            )
        names[values] = name


def _has_regions(labels: Labels) -> bool:
    """Whether a label covers several values, so that labels may overlap."""
    return any(len(values) > 1 for values in labels.values())


def _in_order(labels: Labels) -> Labels:
    if _has_regions(labels):
        return dict(sorted(labels.items(), key=lambda item: item[1] != (0,)))
    return dict(sorted(labels.items(), key=lambda item: item[1]))


def read_painting_order(
    fields: dict[str, Any], labels: Labels, path: Path
) -> tuple[int, ...] | None:
    """The value that each foreground region paints, in painting order; None without regions.

    Raises:
        DataError: it is missing, or does not fit the labels.
    """
    if not _has_regions(labels):
        return None
    order: Any = fields.get("regions_class_order")
    declared = {value for values in labels.values() for value in values if value != 0}
    well_formed = isinstance(order, list) and all(is_whole(value) for value in order)
    if not well_formed or len(order) != len(labels) - 1 or not declared.issuperset(order):
        raise DataError(
            f'{path}: "regions_class_order" must list {len(labels) - 1} declared values, one for '
            f"each region in the order of painting; found {short(order)}"
        )
    return tuple(order)


FILE_NAME = "dataset.json"


@dataclass(frozen=True)
class ListedCase:
    """A case whose files `dataset.json` names; `images` and `label` as written there.

    `expand` is true for one image name that may stand for CASE_0000, CASE_0001, ... (Decathlon).
    """

    name: str
    images: tuple[str, ...]
    label: str
    expand: bool


@dataclass(frozen=True)
class Declaration:
    """The checked fields of a `dataset.json`.

    Attributes:
        path: the file itself.
        channels: names of the image channels, in order.
        labels: name -> values that it covers, background included. Without regions in order of
            value; with regions background first, then as declared, because `regions_class_order`
            counts in that order.
        ignore_label: value of voxels that nobody annotated.
        regions_class_order: the value that each foreground region paints, in painting order.
        groups: case -> patient.
        group_pattern: regular expression that finds the patient in a case's name, if any.
        listed: the cases by name, or None where the folders decide.
        case_count: the declared number of training cases, if any.
    """

    path: Path
    channels: tuple[str, ...]
    labels: dict[str, tuple[int, ...]]
    ignore_label: int | None
    regions_class_order: tuple[int, ...] | None
    groups: dict[str, str]
    group_pattern: str | None
    listed: tuple[ListedCase, ...] | None
    case_count: int | None
    licence: str | None
    description: str | None


def read_declaration(folder: Path) -> Declaration:
    """Read and check `folder/dataset.json`.

    Raises:
        AutosegError: the file is missing or not JSON.
        DataError: a field is missing, has the wrong type, or contradicts another.
    """
    path = folder / FILE_NAME
    if not path.exists():
        raise AutosegError(
            f"{path} is missing; write it with channel_names and labels, beside imagesTr and "
            "labelsTr (or give each case a folder with imaging.nii.gz and segmentation.nii.gz)"
        )
    return declaration_of(read_json(path), path)


def declaration_of(fields: Any, path: Path) -> Declaration:
    """Check the content of a `dataset.json`; `path` is named in messages.

    Raises:
        DataError: as `read_declaration`.
    """
    if not isinstance(fields, dict):
        raise DataError(f"{path}: holds {kind_of(fields)}; it must be an object with named fields")
    labels, ignore_label = read_labels(fields, path)
    count = fields.get("numTraining")
    pattern = _group_pattern(fields, path)
    return Declaration(
        path=path,
        channels=_channels(fields, path),
        labels=labels,
        ignore_label=ignore_label,
        regions_class_order=read_painting_order(fields, labels, path),
        groups=_groups(fields, path) if pattern is None else {},
        group_pattern=pattern,
        listed=_listed(fields, path),
        case_count=count if is_whole(count) else None,
        licence=_text(fields, ("licence", "license"), path),
        description=_text(fields, ("description",), path),
    )


def _channels(fields: dict[str, Any], path: Path) -> tuple[str, ...]:
    key = next((key for key in ("channel_names", "modality") if key in fields), None)
    if key is None:
        raise DataError(
            f'{path}: neither "channel_names" nor "modality" is there; '
            'name the channels, for example "channel_names": {"0": "CT"}'
        )
    names = fields[key]
    if not isinstance(names, dict) or set(names) != {str(i) for i in range(len(names))}:
        raise DataError(f'{path}: "{key}" must map "0", "1", ... to names; found {short(names)}')
    channels = tuple(names[str(i)] for i in range(len(names)))
    if not channels or not all(isinstance(name, str) and name for name in channels):
        raise DataError(f'{path}: "{key}" needs a name for each channel; found {short(names)}')
    return channels


def _group_pattern(fields: dict[str, Any], path: Path) -> str | None:
    declared = fields.get("groups")
    if not isinstance(declared, dict) or set(declared) != {"pattern"}:
        return None
    pattern = declared["pattern"]
    if not isinstance(pattern, str):  # the cases of a patient called "pattern"
        return None
    try:
        re.compile(pattern)
    except re.error as error:
        raise DataError(
            f'{path}: "groups" has the pattern {pattern!r}, which is no regular expression: {error}'
        ) from error
    return pattern


def _groups(fields: dict[str, Any], path: Path) -> dict[str, str]:
    declared = fields.get("groups", {})
    wrong = DataError(
        f'{path}: "groups" must map each case to its patient, or each patient to a list of cases, '
        f'or be {{"pattern": REGULAR_EXPRESSION}}; '
        f"found {short(declared)}"
    )
    if not isinstance(declared, dict):
        raise wrong
    if all(isinstance(patient, str) or is_whole(patient) for patient in declared.values()):
        return {case: str(patient) for case, patient in declared.items()}
    groups: dict[str, str] = {}
    for patient, cases in declared.items():
        if not isinstance(cases, list) or not all(isinstance(case, str) for case in cases):
            raise wrong
        for case in cases:
            if groups.get(case, patient) != patient:
                raise DataError(
                    f'{path}: "groups" puts the case {case} under {groups[case]} and {patient}; '
                    "a case has one patient"
                )
            groups[case] = patient
    return groups


def _listed(fields: dict[str, Any], path: Path) -> tuple[ListedCase, ...] | None:
    if "dataset" in fields:
        return _explicit_cases(fields["dataset"], path)
    if "training" in fields:
        return _training_list(fields["training"], path)
    if "modality" in fields and "channel_names" not in fields:
        raise DataError(
            f'{path}: "training" is missing; list the cases as '
            '[{"image": "./imagesTr/CASE.nii.gz", "label": "./labelsTr/CASE.nii.gz"}, ...]'
        )
    return None


def _explicit_cases(declared: Any, path: Path) -> tuple[ListedCase, ...]:
    if not isinstance(declared, dict):
        raise DataError(f'{path}: "dataset" must map cases to files; found {short(declared)}')
    return tuple(_explicit_case(name, files, path) for name, files in declared.items())


def _explicit_case(name: str, files: Any, path: Path) -> ListedCase:
    images = files.get("images") if isinstance(files, dict) else None
    label = files.get("label") if isinstance(files, dict) else None
    if not isinstance(images, list) or not images or not all(isinstance(i, str) for i in images):
        raise DataError(f'{path}: case {name}: "images" must be a list of paths')
    if not isinstance(label, str):
        raise DataError(f'{path}: case {name}: "label" must be a path')
    if not name or name.startswith(".") or "/" in name or "\\" in name:
        raise DataError(f"{path}: case {name!r} cannot name a file; rename it")
    return ListedCase(name, tuple(images), label, expand=False)


def _training_list(declared: Any, path: Path) -> tuple[ListedCase, ...]:
    if not isinstance(declared, list):
        raise DataError(f'{path}: "training" must be a list of cases; found {short(declared)}')
    cases = []
    for number, files in enumerate(declared):
        image = files.get("image") if isinstance(files, dict) else None
        label = files.get("label") if isinstance(files, dict) else None
        if not isinstance(image, str) or not isinstance(label, str):
            raise DataError(
                f'{path}: entry {number} of "training" must be {{"image": PATH, "label": PATH}}; '
                f"found {short(files)}"
            )
        name = stem_of(Path(image)).removesuffix("_0000")
        cases.append(ListedCase(name, (image,), label, expand=True))
    return tuple(cases)


def _text(fields: dict[str, Any], keys: tuple[str, ...], path: Path) -> str | None:
    value = next((fields[key] for key in keys if fields.get(key) is not None), None)
    if value is not None and not isinstance(value, str):
        raise DataError(f'{path}: "{keys[0]}" must be text; found {short(value)}')
    return value
