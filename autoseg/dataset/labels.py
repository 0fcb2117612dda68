"""The labels that a task's `dataset.json` declares, and the order in which regions are painted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from autoseg.common.errors import DataError
from autoseg.dataset.json_values import LONGEST, is_whole, short
from autoseg.image.label_writer import HIGHEST_LABEL

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
