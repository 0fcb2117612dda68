"""The fields of a task's `dataset.json`, validated.

Two dialects are understood, also mixed: that of the Medical Segmentation Decathlon and nnU-Net v1
(`modality`, `labels` from value to name, a `training` list), and that of nnU-Net v2
(`channel_names`, `labels` from name to value or values, optional `dataset` with explicit paths).
"""

import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, BeforeValidator, Field, ValidationError

from autoseg.common.errors import AutosegError, DataError, raise_if
from autoseg.common.files import read_json
from autoseg.dataset.problems import TEXT
from autoseg.image.formats import composed, stem_of
from autoseg.image.label_writer import HIGHEST_LABEL
from autoseg.plan.labels import SegmentCode, check_codes

DATASET_FILE = "dataset.json"
PRESENT: tuple[str, ...] = ()  # of a case whose annotated labels are those in its label map
IGNORE = "ignore"  # name of the label for voxels that were not annotated
MAX_SHOWN = 80  # characters of a value in an error message
MUST: dict[str, str] = read_json(Path(__file__).with_name("declaration.json"))  # of each field

LabelValues = dict[str, tuple[int, ...]]
"""Label name -> the values that it covers."""


class ListedCase(NamedTuple):
    """A case whose files `dataset.json` names; `images` and `label` are as written there.

    If `expand` is true, one image name may stand for CASE_0000, CASE_0001, ... (Decathlon).
    """

    name: str
    images: tuple[str, ...]
    label: str
    expand: bool


@dataclass(frozen=True)
class Declaration:
    """The validated fields of a `dataset.json`.

    Attributes:
        path: the file itself.
        channels: names of the image channels, in order.
        labels: label name -> values that it covers, background included. Without regions sorted
            by value; with regions background first, then as declared, because
            `regions_class_order` refers to that order.
        ignore_label: value of voxels that were not annotated, if any.
        regions_class_order: the value that each foreground region paints, in painting order; None
            without regions.
        mirrored_labels: names of labels on one side of the patient -> those on the other; None if
            the file does not say.
        groups: case -> patient.
        group_pattern: regular expression that matches the patient in a case name, if any.
        listed: the cases that are listed by name, or None if the folders define the cases.
        case_count: the declared number of training cases, if any.
        codes: label name -> its codes in DICOM segmentation objects.
        annotated: case, or a pattern of case names such as `site_b_*` -> names of the labels that
            were annotated in it; `PRESENT` means those that occur in its label map.
    """

    path: Path
    channels: tuple[str, ...]
    labels: LabelValues
    ignore_label: int | None
    regions_class_order: tuple[int, ...] | None
    mirrored_labels: dict[str, str] | None
    groups: dict[str, str]
    group_pattern: str | None
    listed: tuple[ListedCase, ...] | None
    case_count: int | None
    licence: str | None
    description: str | None
    codes: dict[str, SegmentCode] = field(default_factory=dict)
    annotated: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def annotated_in(self, cases: Sequence[str]) -> tuple[dict[str, tuple[str, ...]], list[str]]:
        """Return partly annotated case -> labels, and the patterns that match no case.

        A name counts more than a pattern, and an earlier pattern more than a later one.
        """
        found: dict[str, tuple[str, ...]] = {}
        unmatched = []
        for pattern in sorted(self.annotated, key=lambda pattern: pattern not in cases):
            names = [name for name in cases if name == pattern or fnmatchcase(name, pattern)]
            found = dict.fromkeys(names, self.annotated[pattern]) | found
            if not names:
                unmatched.append(pattern)
        return found, unmatched


def read_declaration(folder: Path) -> Declaration:
    """Read and validate `folder/dataset.json`.

    Raises:
        AutosegError: the file is missing or not JSON.
        DataError: a field is missing, has the wrong type, or contradicts another.
    """
    path = folder / DATASET_FILE
    raise_if(not path.exists(), AutosegError(TEXT("no declaration", path=path)))
    return declaration_of(read_json(path), path)


def declaration_of(content: Any, path: Path) -> Declaration:
    """Validate the content of a `dataset.json`; `path` appears in messages.

    Raises:
        DataError: as `read_declaration`.
    """
    if not isinstance(content, dict):
        raise DataError(f"{path}: must be an object with named fields; found {shown(content)}")
    renamed = {"channel_names": content["modality"]} if "modality" in content else {}
    try:
        fields = _Fields.model_validate(renamed | content)
    except ValidationError as error:
        raise DataError(f"{path}: {_explain(error, renamed | content)}") from None
    try:
        labels, ignore_label = _labels(fields.labels)
        pattern = _group_pattern(fields.groups)
        check_codes(fields.codes, labels)
        return Declaration(
            path=path,
            channels=_channels(fields.channel_names),
            labels=labels,
            ignore_label=ignore_label,
            regions_class_order=_painting_order(fields.regions_class_order, labels),
            mirrored_labels=_mirrored(fields.mirrored_labels, labels),
            groups=_groups(fields.groups) if pattern is None else {},
            group_pattern=pattern,
            listed=_listed(fields, content),
            case_count=fields.training_count if type(fields.training_count) is int else None,
            licence=fields.license if fields.licence is None else fields.licence,
            description=fields.description,
            codes=fields.codes,
            annotated=_annotated(fields.annotated, labels),
        )
    except ValueError as error:
        raise DataError(f"{path}: {error}") from None


def _wrong_if(wrong: object, kind: str, **found: Any) -> None:
    """Raise the error of this kind if something is wrong."""
    if wrong:
        raise ValueError(TEXT(kind, **found))


def shown(value: Any) -> str:
    """Return the value as Python writes it, truncated if it is long."""
    text = repr(value)
    return text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 3] + "..."


# What a `dataset.json` may contain.


def _labels_by_name(labels: Any) -> Any:
    """Invert labels that are declared from value to name."""
    if not isinstance(labels, dict) or not all(isinstance(name, str) for name in labels.values()):
        return labels
    named: dict[str, int] = {}
    for value, name in labels.items():
        hint = "; write values without quotes" if name.isdecimal() else ""
        is_long = len(value) > MAX_SHOWN  # Python parses 4300 digits at most
        _wrong_if(not value.isdecimal() or is_long, "value", value=shown(value), hint=hint)
        _wrong_if(name in named, "name twice", name=name, values=(named.get(name), value))
        named[name] = int(value)
    return named


LabelValue = Annotated[int, Field(ge=0, le=HIGHEST_LABEL)]
ChannelName = Annotated[str, Field(min_length=1)]
LabelList = Annotated[list[LabelValue], Field(min_length=1)]
Labels = Annotated[dict[str, LabelValue | LabelList], BeforeValidator(_labels_by_name)]


class _TrainingEntry(BaseModel):
    image: str
    label: str


class _CaseFiles(BaseModel):
    images: list[str] = Field(min_length=1)
    label: str


class _Fields(BaseModel, strict=True):
    channel_names: dict[str, ChannelName] = Field(min_length=1)
    labels: Labels = Field(min_length=1)
    regions_class_order: Any = None
    mirrored_labels: dict[str, str] | None = None
    groups: dict[str, str | int | list[str]] = {}
    dataset: dict[str, _CaseFiles] = {}
    training: list[_TrainingEntry] = []
    training_count: Any = Field(None, alias="numTraining")
    codes: dict[str, SegmentCode] = {}
    annotated: dict[str, Annotated[list[str], Field(min_length=1)] | Literal["present"]] = {}
    licence: str | None = None
    license: str | None = None
    description: str | None = None


def _explain(error: ValidationError, content: dict[str, Any]) -> str:
    """Describe the first error: the innermost value it is about, and what its field must be."""
    first = error.errors(include_url=False)[0]
    field, *inner = first["loc"]
    if first["type"] == "value_error":
        return f'"{field}": {first["ctx"]["error"]}'
    expected = f'"{field}" must {MUST[str(field)]}'
    if field not in content:
        return f"{expected}; it is missing"
    found, where = content[field], str(field)
    with suppress(KeyError, IndexError, TypeError):  # the name of a type that was tried, not a key
        for key in inner:
            found = found[key]
            where += f".{key}"
    return f'{expected}; found "{where}": {shown(found)}'


# Checks beyond types. They raise ValueError.


def _channels(names: dict[str, str]) -> tuple[str, ...]:
    keys = [str(index) for index in range(len(names))]
    _wrong_if(set(names) != set(keys), "channels", found=shown(names))
    return tuple(names[key] for key in keys)


def _labels(declared: dict[str, int | list[int]]) -> tuple[LabelValues, int | None]:
    """Return the labels in the order of `Declaration.labels`, and the ignore label, if any."""
    labels: LabelValues = {}
    for name, covered in declared.items():
        labels[name] = tuple(sorted(covered)) if isinstance(covered, list) else (covered,)
        has_twice = len(set(labels[name])) < len(labels[name])
        _wrong_if(has_twice, "value twice", name=name, found=shown(covered))
    ignored = labels.pop(IGNORE, ())
    others = {value for values in labels.values() for value in values}
    _wrong_if(len(ignored) > 1 or others & {*ignored}, "ignored", found=list(ignored))
    _wrong_if((0,) not in labels.values() or ignored == (0,), "no background")
    _wrong_if(len(labels) < 2, "only background")
    names: dict[tuple[int, ...], str] = {}
    for name, values in labels.items():
        found = {"other": name, "values": ", ".join(map(str, values))}
        _wrong_if(values in names, "same values", one=names.get(values), **found)
        _wrong_if(0 in values and len(values) > 1, "background in region", name=name)
        names[values] = name
    ordered = sorted(labels, key=lambda name: labels[name] != (0,))  # background first
    if not _has_regions(labels):
        ordered.sort(key=lambda name: labels[name])
    return {name: labels[name] for name in ordered}, ignored[0] if ignored else None


def _has_regions(labels: LabelValues) -> bool:
    """Return whether any label covers several values, so that labels may overlap."""
    return any(len(values) > 1 for values in labels.values())


def _painting_order(order: Any, labels: LabelValues) -> tuple[int, ...] | None:
    if not _has_regions(labels):
        return None
    declared = {value for values in labels.values() for value in values if value != 0}
    valid = isinstance(order, list) and all(type(value) is int for value in order)
    valid = valid and len(order) == len(labels) - 1 and declared.issuperset(order)
    _wrong_if(not valid, "order", count=len(labels) - 1, found=shown(order))
    return tuple(order)


def _mirrored(pairs: dict[str, str] | None, labels: LabelValues) -> dict[str, str] | None:
    seen, known = set[str](), _foreground(labels)
    for pair in (pairs or {}).items():
        for name in pair:
            _wrong_if(name not in known, "mirrored, unknown", name=name, known=", ".join(known))
            _wrong_if(name in seen, "mirrored twice", name=name)
            seen.add(name)
        counts = [len(labels[name]) for name in pair]
        _wrong_if(counts[0] != counts[1], "mirrored, unequal", pair=pair, counts=counts)
    return pairs


def _foreground(labels: LabelValues) -> list[str]:
    return [name for name, values in labels.items() if values != (0,)]


def _annotated(
    declared: dict[str, list[str] | Literal["present"]], labels: LabelValues
) -> dict[str, tuple[str, ...]]:
    known = _foreground(labels)
    for case, names in declared.items():
        strange = [name for name in names if name not in known] if names != "present" else []
        _wrong_if(strange, "annotated", names=strange, case=case, known=", ".join(known))
    return {
        composed(case): PRESENT if isinstance(names, str) else tuple(dict.fromkeys(names))
        for case, names in declared.items()
    }


def _group_pattern(groups: dict[str, Any]) -> str | None:
    pattern = groups.get("pattern")
    if len(groups) != 1 or not isinstance(pattern, str):  # a list is the cases of one patient
        return None
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(TEXT("group pattern", pattern=pattern, error=error)) from None
    return pattern


def _groups(declared: dict[str, str | int | list[str]]) -> dict[str, str]:
    """Return case -> patient for either direction of the mapping."""
    if not any(isinstance(patient, list) for patient in declared.values()):
        return {composed(case): str(patient) for case, patient in declared.items()}
    groups: dict[str, str] = {}
    for patient, cases in declared.items():
        if not isinstance(cases, list):
            raise ValueError(TEXT("groups", patient=patient, cases=shown(cases)))
        for case in map(composed, cases):
            one = groups.setdefault(case, patient)
            _wrong_if(one != patient, "two groups", case=case, one=one, other=patient)
    return groups


def _listed(fields: _Fields, content: dict[str, Any]) -> tuple[ListedCase, ...] | None:
    if "dataset" in content:
        for name in fields.dataset:
            is_wrong = not name or name.startswith(".") or "/" in name or "\\" in name
            _wrong_if(is_wrong, "case name", name=name)
        files = fields.dataset.items()
        return tuple(ListedCase(n, tuple(f.images), f.label, expand=False) for n, f in files)
    if "training" in content:
        names = [stem_of(Path(entry.image)).removesuffix("_0000") for entry in fields.training]
        pairs = zip(names, fields.training, strict=True)
        return tuple(ListedCase(n, (entry.image,), entry.label, expand=True) for n, entry in pairs)
    _wrong_if("modality" in content and "channel_names" not in content, "no training")
    return None
