"""Classes and regions: what the values of a label map mean, how they are evaluated, their codes.

Without regions, each voxel belongs to one class and the network has one softmax output. With
regions (`regions_class_order`), a voxel may belong to several, and each region has a sigmoid
output. Label maps hold one value per voxel in both cases: a region is a set of values, and a
prediction is painted region by region, later ones over earlier ones.

The evaluation affects no model and is not part of a plan's id. The codes say what a class is, in
SNOMED CT: for DICOM segmentation objects.
"""

import hashlib
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, Field, StringConstraints

from autoseg.common.files import read_json
from autoseg.plan.sections import LabelValue, Positive, Section, fault_if

ClassValues = Mapping[str, tuple[int, ...]]  # class name -> its label values


class Classes(NamedTuple):
    """What a plan's network learns to distinguish.

    Attributes:
        names: of all classes, background first.
        parts: label values behind each index of a preprocessed label map, background first. A part
            is a class or, with regions, a single value, which several regions may share.
        members: for each class but the background, the indices of its parts.
        painted: the label value that a prediction writes for each class, background first.
        are_regions: whether classes may overlap.
    """

    names: tuple[str, ...]
    parts: tuple[tuple[int, ...], ...]
    members: tuple[tuple[int, ...], ...]
    painted: tuple[int, ...]
    are_regions: bool

    @property
    def output_names(self) -> tuple[str, ...]:
        """The classes of the output maps: all of them; with regions, without the background."""
        return self.names[1:] if self.are_regions else self.names

    @property
    def outputs(self) -> int:
        """The number of output maps."""
        return len(self.output_names)


def classes_of(labels: ClassValues, regions_class_order: Sequence[int] | None) -> Classes:
    """The classes of checked labels, background first."""
    background, *rest = labels.values()
    if regions_class_order is None:
        painted = [covered[0] for covered in labels.values()]
        alone = tuple((index,) for index in range(1, len(labels)))
        return Classes(tuple(labels), (background, *rest), alone, tuple(painted), False)
    values = sorted({value for covered in rest for value in covered})
    parts = (background, *((value,) for value in values))
    members = tuple(tuple(1 + values.index(value) for value in covered) for covered in rest)
    return Classes(tuple(labels), parts, members, (background[0], *regions_class_order), True)


def check_labels(labels: ClassValues, ignore_label: int | None) -> None:
    """Raise a ValueError unless the first class is the background and no value is repeated."""
    fault_if(not labels or 0 not in next(iter(labels.values())), "no background")
    fault_if(len(labels) < 2, "only background")
    for name, covered in labels.items():
        twice = sorted({value for value in covered if covered.count(value) > 1})
        fault_if(twice, "value twice", name=name, values=twice)
    fault_if(ignore_label in values_of(labels), "ignored", value=ignore_label)


def check_regions(labels: ClassValues, order: Sequence[int] | None) -> None:
    """Raise a ValueError unless overlapping labels have a suitable `regions_class_order`."""
    if order is None:
        for (first, values), (second, others) in combinations(labels.items(), 2):
            shared = sorted(set(values) & set(others))
            fault_if(shared, "shared", one=first, other=second, values=shared)
        return
    needed = len(labels) - 1
    fault_if(len(order) != needed, "order", count=len(order), needed=needed)
    unknown = sorted(set(order) - (values_of(labels) - {0}))
    fault_if(unknown, "order, unknown", values=unknown)
    background, *regions = labels.values()
    shared = sorted({value for covered in regions for value in covered} & set(background))
    fault_if(shared, "background shared", values=shared)


def check_mirrored(labels: ClassValues, pairs: Sequence[tuple[int, int]]) -> None:
    """Raise a ValueError unless the exchange of these values turns each class into a class."""
    _, *foreground = labels.values()
    known = {value for covered in foreground for value in covered}
    seen: set[int] = set()
    for value in (value for pair in pairs for value in pair):
        fault_if(value not in known, "mirrored, unknown", value=value)
        fault_if(value in seen, "mirrored twice", value=value)
        seen.add(value)
    sets = {frozenset(covered) for covered in labels.values()}
    for name, covered in labels.items():
        exchanged = _exchanged(covered, pairs)
        fault_if(exchanged not in sets, "mirrored, incomplete", name=name, values=sorted(exchanged))


def _exchanged(values: Iterable[int], pairs: Sequence[tuple[int, int]]) -> frozenset[int]:
    other = {one: two for pair in pairs for one, two in (pair, pair[::-1])}
    return frozenset(other.get(value, value) for value in values)


def exchange(sets: Sequence[tuple[int, ...]], pairs: Sequence[tuple[int, int]]) -> tuple[int, ...]:
    """For each set of label values, the index of the set that it becomes by the exchange."""
    places = {frozenset(values): index for index, values in enumerate(sets)}
    return tuple(places[_exchanged(values, pairs)] for values in sets)


def values_of(labels: ClassValues) -> set[int]:
    """The values of all classes."""
    return {value for covered in labels.values() for value in covered}


def annotated_part(
    label: NDArray[np.integer[Any]], labels: ClassValues, annotated: Collection[str]
) -> NDArray[np.integer[Any]]:
    """The label map without the values that belong only to classes that were not annotated.

    Args:
        label: a label map of any shape.
        labels: class name -> its values, background included.
        annotated: names of the annotated classes.
    """
    kept = {n: v for n, v in labels.items() if n in annotated or 0 in v}
    unknown = values_of(labels) - values_of(kept)
    return np.where(np.isin(label, list(unknown)), label.dtype.type(0), label)


DEFAULT_TOLERANCE_MM = 1.0


class Tolerance(Section):
    """The tolerance of the normalised surface Dice for some classes."""

    labels: Annotated[tuple[LabelValue, ...], Field(min_length=1)]
    mm: Positive


class Merged(Section):
    """Classes that tables also report together, by the mean of each metric (e.g. both lungs)."""

    name: Annotated[str, Field(min_length=1)]
    labels: Annotated[tuple[LabelValue, ...], Field(min_length=2)]


class Colour(Section):
    """The colour of some classes in figures."""

    labels: Annotated[tuple[LabelValue, ...], Field(min_length=1)]
    colour: str = Field(pattern="^#[0-9A-Fa-f]{6}$")


class Evaluation(Section):
    """How predictions are evaluated."""

    tolerance_mm: Positive = DEFAULT_TOLERANCE_MM
    tolerances: tuple[Tolerance, ...] = ()
    merged: tuple[Merged, ...] = ()
    colours: tuple[Colour, ...] = ()

    def check(self, labels: ClassValues) -> None:
        """Raise a ValueError if a label belongs to no class, or a name is used twice."""
        for key in ("tolerances", "merged", "colours"):
            values = [value for entry in getattr(self, key) for value in entry.labels]
            unknown = [value for value in values if class_of(value, labels) is None]
            fault_if(unknown, "no class", key=f"evaluation.{key}", values=unknown)
        names = [*labels, *(entry.name for entry in self.merged)]
        twice = sorted({name for name in names if names.count(name) > 1})
        fault_if(twice, "row twice", names=twice)

    def tolerance_of(self, labels: ClassValues) -> dict[str, float]:
        """Class -> tolerance in mm."""
        own = {
            name: [entry.mm for entry in self.tolerances if set(entry.labels) & set(covered)]
            for name, covered in labels.items()
        }
        return {name: max(limits, default=self.tolerance_mm) for name, limits in own.items()}

    def colours_of(self, labels: ClassValues) -> dict[str, str]:
        """Class or merged row -> colour, for those that have one.

        A merged row has the colour of its classes if they share one.
        """
        found = {
            name: entry.colour
            for name, covered in labels.items()
            for entry in self.colours
            if set(entry.labels) & set(covered)
        }
        for row, classes in self.rows(labels).items():
            colours = {found.get(name) for name in classes}
            if len(colours) == 1 and (colour := colours.pop()):
                found[row] = colour
        return found

    def rows(self, labels: ClassValues) -> dict[str, tuple[str, ...]]:
        """Name of each merged row -> its classes; rows with missing classes are left out."""
        found = {}
        for entry in self.merged:
            classes = [class_of(value, labels) for value in entry.labels]
            if None not in classes:
                found[entry.name] = tuple(dict.fromkeys(name for name in classes if name))
        return {name: classes for name, classes in found.items() if len(classes) > 1}


def class_of(value: int, labels: ClassValues) -> str | None:
    """The class of a label value; of several classes the smallest; None if there is none."""
    covering = [name for name, covered in labels.items() if value in covered]
    return min(covering, key=lambda name: len(labels[name]), default=None)


PRIVATE_SCHEME = "99AUTOSEG"
Text = Annotated[str, StringConstraints(min_length=1, max_length=64, pattern=r"^[^\\\x00-\x1f]+$")]
Scheme = Annotated[str, StringConstraints(min_length=1, max_length=16, pattern=r"^[^\\\s]+$")]


def _is_sct_number(code: tuple[str, str, str]) -> tuple[str, str, str]:
    fault_if(code[1] == "SCT" and not code[0].isdecimal(), "code", code=code[0])
    return code


Code = Annotated[tuple[Text, Scheme, Text], AfterValidator(_is_sct_number)]
Codes = Mapping[str, "SegmentCode"]  # class -> its codes

TISSUE: Code = ("85756007", "SCT", "Tissue")
ORGAN: Code = ("91723000", "SCT", "Anatomical Structure")
ABNORMAL: Code = ("49755003", "SCT", "Morphologically Abnormal Structure")


class SegmentCode(Section):
    """The codes of a class, each as [value, coding scheme, meaning]."""

    type: Code
    category: Code = ORGAN
    modifiers: tuple[Code, ...] = ()
    region: Code | None = None

    @property
    def is_private(self) -> bool:
        """Whether the type has no meaning outside of autoseg."""
        return self.type[1] == PRIVATE_SCHEME


# Names -> SNOMED CT code and meaning: of organs (singular, without sides), lesions, sides. Organs
# in pairs. Other spellings, irregular plurals and words that add nothing: SNOMED CT has no closer
# structure than a lesion for an infection, or for how it appears in a scan.
SNOMED = read_json(Path(__file__).with_name("snomed.json"))
ORGANS, LESIONS, SIDES, PAIRED, SPELLINGS = SNOMED.values()
KNOWN = {word for text in (*ORGANS, *LESIONS, *SIDES, *SPELLINGS) for word in text.split()}


def check_codes(declared: Codes, labels: ClassValues) -> None:
    """Raise a ValueError if codes are of no class besides the background, which is no segment."""
    classes = [name for name, values in labels.items() if 0 not in values]
    unknown = [name for name in declared if name not in classes]
    fault_if(unknown, "codes", names=unknown, classes=", ".join(classes))


def codes_of(labels: ClassValues, declared: Codes, task: str = "") -> dict[str, SegmentCode]:
    """The codes of each class: declared, or by its name, or private.

    Args:
        labels: the classes.
        declared: by `dataset.json`.
        task: its name gives the organ to classes that are only called `Anterior` or `left`.
    """
    return {name: declared.get(name) or _by_name(name, task) for name in labels}


def _by_name(name: str, task: str) -> SegmentCode:
    words = _spelled(words_of(name))
    code = _read(words)
    if code is None and words and all(word in SIDES for word in words):
        organ = [word for word in _spelled(words_of(task)) if not any(map(str.isdigit, word))]
        code = _read([*words, *organ])
    if code is not None:
        return code
    digest = hashlib.blake2b(name.encode(), digest_size=8).hexdigest()  # the same in every task
    meaning = re.sub(r"[\\\x00-\x1f]", " ", name).strip()[:64] or "class"
    return SegmentCode(type=(digest, PRIVATE_SCHEME, meaning), category=TISSUE)


def words_of(name: str) -> list[str]:
    """The words of a name, such as `RightParotids`: `right`, `parotids`."""
    spaced = re.sub(r"(?<=[a-z\u00df-\u00ff])(?=[A-Z])", " ", name)
    return re.findall(r"[^\W_]+", spaced.casefold())


def _spelled(words: Sequence[str]) -> list[str]:
    """Words in one spelling."""
    return [word for each in words for word in SPELLINGS.get(each, each).split()]


def _read(words: Sequence[str]) -> SegmentCode | None:
    """The codes that words stand for; None if one of them is unknown."""
    singular = [w[:-1] if w not in KNOWN and w[:-1] in KNOWN and w[-1] == "s" else w for w in words]
    known = _spelled(singular)
    sides = [word for word in known if word in SIDES]
    if sides and (text := " ".join(known)) in ORGANS:  # such as left atrium
        return SegmentCode(type=_sct(ORGANS[text]))
    lesions = [word for word in known if word in LESIONS]
    organ = " ".join(word for word in known if word not in SIDES and word not in LESIONS)
    if len(lesions) > 1 or {"left", "right"} <= {*sides} or organ not in ("", *ORGANS):
        return None
    if not (sides or lesions) and organ in PAIRED and singular != [*words]:
        sides = ["bilateral"]
    modifiers = tuple(_sct(SIDES[side]) for side in sides)
    region = _sct(ORGANS[organ]) if organ else None
    if lesions:
        what = _sct(LESIONS[lesions[0]])
        return SegmentCode(type=what, category=ABNORMAL, modifiers=modifiers, region=region)
    return SegmentCode(type=region, modifiers=modifiers) if region else None


def _sct(known: Sequence[str]) -> Code:
    return known[0], "SCT", known[1]
