"""Classes and regions: what the values of a label map mean to a network.

Without regions, each voxel belongs to one class and the network has one softmax output. With
regions (`regions_class_order`), a voxel may belong to several, and each region has a sigmoid
output. Label maps hold one value per voxel in both cases: a region is a set of values, and a
prediction is painted region by region, later ones over earlier ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

ClassValues = Mapping[str, tuple[int, ...]]  # class name -> its label values


@dataclass(frozen=True)
class Classes:
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
        members = tuple((index,) for index in range(1, len(labels)))
        painted = [covered[0] for covered in labels.values()]
        return Classes(tuple(labels), (background, *rest), members, tuple(painted), False)
    values = sorted({value for covered in rest for value in covered})
    return Classes(
        names=tuple(labels),
        parts=(background, *((value,) for value in values)),
        members=tuple(tuple(1 + values.index(value) for value in covered) for covered in rest),
        painted=(background[0], *regions_class_order),
        are_regions=True,
    )


def check_labels(labels: ClassValues, ignore_label: int | None) -> None:
    """Raise a ValueError unless the first class is the background and no value is repeated."""
    if not labels or 0 not in next(iter(labels.values())):
        raise ValueError("labels: the first class must be the background with the value 0")
    if len(labels) < 2:
        raise ValueError("labels: give at least one class besides the background")
    for name, covered in labels.items():
        if twice := sorted({value for value in covered if covered.count(value) > 1}):
            raise ValueError(f"labels: {name!r} has the value {twice[0]} twice; remove one")
    if ignore_label in values_of(labels):
        raise ValueError(
            f"ignore_label is {ignore_label}, also in labels; use another, or remove it there"
        )


def check_regions(labels: ClassValues, order: Sequence[int] | None) -> None:
    """Raise a ValueError unless overlapping labels have a suitable `regions_class_order`."""
    if order is None:
        for (first, values), (second, others) in combinations(labels.items(), 2):
            if shared := set(values) & set(others):
                raise ValueError(
                    f"labels: {first!r} and {second!r} share the value {min(shared)}; make them "
                    "disjoint, or give regions_class_order, the value that each class paints"
                )
        return
    if len(order) != len(labels) - 1:
        raise ValueError(
            f"regions_class_order has {len(order)} values for {len(labels) - 1} classes besides "
            "the background; give one value per class"
        )
    if unknown := sorted(set(order) - (values_of(labels) - {0})):
        raise ValueError(f"regions_class_order: {unknown[0]} is not a value of any class")
    background, *regions = labels.values()
    if shared := {value for covered in regions for value in covered} & set(background):
        raise ValueError(f"labels: background and region share the value {min(shared)}; remove one")


def check_mirrored(labels: ClassValues, pairs: Sequence[tuple[int, int]]) -> None:
    """Raise a ValueError unless the exchange of these values turns each class into a class."""
    _, *foreground = labels.values()
    known = {value for covered in foreground for value in covered}
    seen: set[int] = set()
    for value in (value for pair in pairs for value in pair):
        if value not in known:
            raise ValueError(f"mirrored_labels: {value} is not a value of any class; remove it")
        if value in seen:
            raise ValueError(f"mirrored_labels: {value} is there twice; pair each value once")
        seen.add(value)
    sets = {frozenset(covered) for covered in labels.values()}
    for name, covered in labels.items():
        if _exchanged(covered, pairs) not in sets:
            raise ValueError(
                f"mirrored_labels: {name!r} would become {sorted(_exchanged(covered, pairs))}, "
                "which is not a class; pair all its values"
            )


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
