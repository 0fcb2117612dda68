"""Classes and regions: what the values of a label map mean to a network.

Without regions a voxel has one class, and the network gives one softmax over all of them. With
regions (`regions_class_order`) a voxel may lie in several, and the network gives each region a
sigmoid of its own. Label maps hold one value a voxel all the same: regions are made of values, and
a prediction is painted region by region, later ones over earlier ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

Labels = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Classes:
    """What a plan's network learns to tell apart.

    Attributes:
        names: of all classes, background first.
        parts: label values behind each index of a preprocessed label map, background first. A part
            is a class, or with regions a single value, which several regions may share.
        members: for each class but the background, the indices of the parts that it is made of.
        painted: the label value that a prediction writes for each class, background first.
        are_regions: whether classes may overlap.
    """

    names: tuple[str, ...]
    parts: tuple[tuple[int, ...], ...]
    members: tuple[tuple[int, ...], ...]
    painted: tuple[int, ...]
    are_regions: bool

    @property
    def outputs(self) -> int:
        """Maps that the network gives: one a class; of regions the background has none."""
        return len(self.names) - self.are_regions


def classes_of(labels: Labels, regions_class_order: Sequence[int] | None) -> Classes:
    """The classes of checked labels, background first."""
    names = tuple(labels)
    background, *rest = labels.values()
    if regions_class_order is None:
        return Classes(
            names=names,
            parts=(background, *rest),
            members=tuple((index,) for index in range(1, len(names))),
            painted=(background[0], *(covered[0] for covered in rest)),
            are_regions=False,
        )
    values = sorted({value for covered in rest for value in covered})
    return Classes(
        names=names,
        parts=(background, *((value,) for value in values)),
        members=tuple(tuple(1 + values.index(value) for value in covered) for covered in rest),
        painted=(background[0], *regions_class_order),
        are_regions=True,
    )


def check_labels(labels: Labels, ignore_label: int | None) -> None:
    """Raise a ValueError unless the first class is the background and values stand alone."""
    if not labels or 0 not in next(iter(labels.values())):
        raise ValueError("labels: the first class is the background, which covers the value 0")
    if len(labels) < 2:
        raise ValueError("labels: there is nothing to find besides the background")
    for name, covered in labels.items():
        if twice := sorted({value for value in covered if covered.count(value) > 1}):
            raise ValueError(f"labels: the value {twice[0]} stands twice in {name!r}; keep one")
    if ignore_label in values_of(labels):
        raise ValueError(
            f"ignore_label is {ignore_label}, which a class of labels covers; a value "
            "is either learnt or ignored"
        )


def check_regions(labels: Labels, order: Sequence[int] | None) -> None:
    """Raise a ValueError unless labels that overlap have an order of painting that fits them."""
    if order is None:
        if found := find_overlap(labels):
            first, second, value = found
            raise ValueError(
                f"labels: {first!r} and {second!r} both cover the value {value}; give "
                "regions_class_order, the value that each class paints, or keep them apart"
            )
        return
    if len(order) != len(labels) - 1:
        raise ValueError(
            f"regions_class_order has {len(order)} values for {len(labels) - 1} classes besides "
            "the background; give one for each"
        )
    if unknown := sorted(set(order) - values_of(labels) | ({0} & set(order))):
        raise ValueError(f"regions_class_order: no class covers the value {unknown[0]}")
    background, *regions = labels.values()
    if shared := sorted({value for covered in regions for value in covered} & set(background)):
        raise ValueError(
            f"labels: the background and a region both cover the value {shared[0]}; take it out "
            "of one"
        )


def values_of(labels: Labels) -> set[int]:
    """Every value that a class covers."""
    return {value for covered in labels.values() for value in covered}


def find_overlap(labels: Labels) -> tuple[str, str, int] | None:
    """Two classes and a value that both cover, if there are any."""
    seen: dict[int, str] = {}
    for name, covered in labels.items():
        for value in covered:
            if value in seen and seen[value] != name:
                return seen[value], name, value
            seen[value] = name
    return None
