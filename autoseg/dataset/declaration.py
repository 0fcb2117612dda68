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
from autoseg.dataset.json_values import is_whole, kind_of, short
from autoseg.dataset.labels import read_labels, read_painting_order
from autoseg.image.formats import stem_of

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
