"""Which error in a label map would explain how it differs from the out-of-fold prediction.

Errors that people make are undone one by one: classes are exchanged back, labels are moved, made
thicker, ... A `Repair` is what the labels would score then. What the scores mean is decided in
`label_review`, which knows the other cases.

Scores are arrays (class), with NaN where a class is nowhere. Each class is looked at in its own
box, so that small ones are not thinned out.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt, shift
from scipy.optimize import linear_sum_assignment
from skimage.registration import phase_cross_correlation

from autoseg.common import arrays
from autoseg.evaluation.evaluate import LabelMapPair
from autoseg.evaluation.labels import ScoredClasses
from autoseg.image.formats import stem_of
from autoseg.image.geometry import Turn, check_same_grid, orientation_of
from autoseg.image.image import read_label

EXCHANGED, SIDES = "classes exchanged", "left and right exchanged"
SHIFTED, THIN, THICK = "shifted", "too thin", "too thick"
CUT, LEFT_OUT, ISLANDS = "ends at a slice boundary", "slice left out", "islands"
AXES = ("left-right", "front-back", "head-foot")

MOST_VOXELS = 1 << 19  # of a box that is searched; larger ones are thinned out
MARGIN = 4  # voxels around it
LARGEST_OFFSET = 3  # voxels
LEAST_SLICES, LEAST_ISLAND = 4, 3  # slices of a class, voxels
LEAST_FILL = 0.3  # of the area nearby: labels or a prediction that end abruptly

Scores = NDArray[np.float64]
Masks = NDArray[np.bool_]


class Repair(NamedTuple):
    """An error undone.

    Attributes:
        name: of the error.
        dice: of each class then.
        classes: the indices of those with the error.
        detail: where, and how large it is.
    """

    name: str
    dice: Scores
    classes: Sequence[int]
    detail: str


@dataclass(frozen=True)
class Measured:
    """One case.

    Attributes:
        dice: of label and prediction.
        sizes: voxels of each class, then extents along x, y, z, of label and prediction: (2, ...).
        repairs: errors undone.
        content: identifies the labels, wherever they are; empty without labels.
    """

    dice: Scores
    sizes: NDArray[np.int64]
    repairs: list[Repair] = field(default_factory=list)
    content: str = ""


class _Part(NamedTuple):
    """Label and prediction in a box.

    Attributes:
        label, predicted: masks (layer, x, y, z).
        step: of the thinning, for each axis.
        spacing_mm: of the full grid.
    """

    label: Masks
    predicted: Masks
    step: NDArray[np.int64]
    spacing_mm: Sequence[float]


Maps = tuple[arrays.LabelMap, arrays.LabelMap, Sequence[float]]  # and the spacing
Found = tuple[str, Scores, str]  # an error, the Dice of each layer without it, and details


def measure(
    pair: LabelMapPair, classes: ScoredClasses, sides: Sequence[set[str | None]]
) -> Measured:
    """Compare the label map of a case with its out-of-fold prediction.

    Args:
        pair: both files.
        classes: what their values mean.
        sides: pairs of classes that are left and right of each other.

    Raises:
        DataError: a file cannot be read, or the grids differ.
    """
    label, predicted, spacing_mm = _read(pair, classes)
    values, every = _layers(classes)
    boxes = [arrays.bounding_box(each) for each in (label, predicted)]
    hull = arrays.union_of_boxes(boxes) or (slice(0, 1),) * 3
    parts = [_cut((label[hull], predicted[hull], spacing_mm), [of, every]) for of in values]
    before = np.array([_dice(part.label, part.predicted)[0] for part in parts])
    extents = [[side.stop - side.start for side in box or (slice(0, 0),) * 3] for box in boxes]
    counts = [[np.count_nonzero(of[0]) * part.step.prod() for of in part[:2]] for part in parts]
    sizes = np.hstack([np.transpose(counts), extents])
    if boxes[0] is None or boxes[1] is None:
        return Measured(before, sizes)
    whole = _cut((label, predicted, spacing_mm), [every, *values])
    turned = _cut((label[::-1], predicted, spacing_mm), [every, *values])
    mirrored = _dice(turned.label, turned.predicted)
    start = _dice(whole.label, whole.predicted)
    repairs = [*_exchange(whole, before, list(classes.values), sides)]
    for name, of, text in ((SIDES, mirrored, "the whole map is mirrored"), _shift(whole)):
        repairs.append(Repair(name, before + (of - start)[1:], range(len(values)), text))
    for c, part in enumerate(parts):
        if part.label[0].any() and part.predicted[0].any():
            for name, of, text in (_shift(part), *_offsets(part), *_slices(part), *_islands(part)):
                scores = before.copy()
                scores[c] = of[0]
                repairs.append(Repair(name, scores, [c], text))
    for name in (THIN, THICK, CUT, LEFT_OUT, ISLANDS):
        repairs += _together(before, name, repairs)
    crop = np.ascontiguousarray(label[boxes[0]])
    content = hashlib.sha256(repr(crop.shape).encode() + crop.tobytes()).hexdigest()
    return Measured(before, sizes, repairs, content)


def fit(pair: LabelMapPair, classes: ScoredClasses) -> Scores:
    """The Dice of a label map where it fits the prediction of another scan best."""
    maps = [_read((path, path), classes) for path in pair]
    parts = [each[arrays.bounding_box(each) or ()] for each, *_ in maps]
    shape = np.max([part.shape for part in parts], axis=0)
    label, predicted = (np.pad(of, [(0, n) for n in shape - of.shape]) for of in parts)
    values, every = _layers(classes)
    return _shift(_cut((label, predicted, maps[0][2]), [every, *values]))[1][1:]


def _layers(classes: ScoredClasses) -> tuple[list[tuple[int, ...]], list[int]]:
    """The values of each class, and of all together."""
    values = list(classes.values.values())
    return values, [value for of in values for value in of]


def _dice(label: Masks, predicted: Masks) -> Scores:
    """The Dice of each layer."""
    masks = label & predicted, label, predicted
    both, one, other = (np.count_nonzero(of, axis=(1, 2, 3)) for of in masks)
    with np.errstate(invalid="ignore"):
        return np.asarray(2 * both / (one + other))


def _read(pair: LabelMapPair, classes: ScoredClasses) -> Maps:
    """Both maps, x, y, z pointing to the left, back and head, and the spacing."""
    (label, geometry), (predicted, found) = map(read_label, pair)
    check_same_grid(found, pair[1], geometry, pair[0])
    if classes.ignore is not None:
        valid = label != classes.ignore
        label, predicted = label * valid, predicted * valid
    known = classes.of_case(stem_of(pair[0]))
    if len(known.values) < len(classes.values):  # a partly annotated case
        label, predicted = (m * arrays.members(m, _layers(known)[1]) for m in (label, predicted))
    turn = Turn.between(orientation_of(geometry), "LPS")
    return turn.array(label), turn.array(predicted), turn.triple(geometry.spacing_mm)


def _cut(maps: Maps, layers: Sequence[Sequence[int]]) -> _Part:
    """The box of the first layer of both maps, thinned out along the finest axes if it is large."""
    label, predicted, spacing_mm = maps
    found = [arrays.bounding_box(arrays.members(each, layers[0])) for each in (label, predicted)]
    box = arrays.union_of_boxes(found) or (slice(0, 1),) * 3
    box = tuple(slice(max(0, side.start - MARGIN), side.stop + MARGIN) for side in box)
    step, shape = np.ones(3, int), np.array(label[box].shape)
    while np.prod(-(-shape // step)) > MOST_VOXELS:
        step[np.argmin(spacing_mm * step)] += 1
    thin = tuple(slice(None, None, int(each)) for each in step)
    cut = [np.pad(each[box][thin], MARGIN) for each in (label, predicted)]
    one, other = (np.array([arrays.members(each, of) for of in layers]) for each in cut)
    return _Part(one, other, step, spacing_mm)


def _exchange(
    part: _Part, before: Scores, names: Sequence[str], sides: Sequence[set[str | None]]
) -> Iterator[Repair]:
    """The names of the classes exchanged so that they fit best."""
    one, other = (of[1:].reshape(len(names), -1) for of in part[:2])
    shared = one.any(axis=0) & other.any(axis=0)  # floats of the other voxels may fill the memory
    both = one[:, shared].astype(np.float32) @ other[:, shared].astype(np.float32).T
    matrix = 2 * both / np.maximum(1, one.sum(axis=1)[:, None] + other.sum(axis=1))
    found = linear_sum_assignment(-matrix)[1]
    moved = [i for i, j in enumerate(found) if i != j and matrix[i, j] > 0]
    if moved:
        pairs = [(names[i], names[found[i]]) for i in moved]
        kind = SIDES if all({*pair} in sides for pair in pairs) else EXCHANGED
        scores = before.copy()
        scores[moved] = matrix[moved, found[moved]]
        yield Repair(kind, scores, moved, ", ".join(f"{a} looks like {b}" for a, b in pairs))


def _together(before: Scores, name: str, found: Sequence[Repair]) -> Iterator[Repair]:
    """The same error in all classes in which undoing it helps about as much."""
    ordered = sorted(found, key=lambda of: float(np.nansum(of.dice)))
    best = {of.classes[0]: of for of in ordered if of.name == name}  # the last of each class
    gains = {c: np.nansum(of.dice - before) for c, of in best.items()}
    chosen = [c for c, gain in gains.items() if 2 * gain >= max(gains.values())]
    if len(chosen) > 1:
        scores = before + sum(np.nan_to_num(best[c].dice - before) for c in chosen)
        detail = "; ".join(dict.fromkeys(best[c].detail for c in chosen))
        yield Repair(name, scores, sorted(chosen), detail)


def _shift(part: _Part) -> Found:
    """All layers moved to where the first one overlaps most with the prediction."""
    room = [(0, size // 2) for size in part.label.shape[1:]]
    there, here = (np.pad(of[0], room).astype(np.float32) for of in (part.predicted, part.label))
    by = phase_cross_correlation(there, here, normalization=None)[0].astype(int)
    moved = shift(part.label.view(np.uint8), (0, *by), order=0).view(bool)
    voxels = -by * part.step
    mm = ", ".join(f"{of:.3g}" for of in voxels * part.spacing_mm)
    about = "about " * bool(part.step.max() > 1)
    detail = f"by {about}{np.linalg.norm(voxels):.2g} voxels: ({mm}) mm towards left, back, head"
    return SHIFTED, _dice(moved, part.predicted), detail


def _offsets(part: _Part) -> Iterator[Found]:
    """A class made thicker, or thinner, where that brings it closer to the prediction."""
    label, predicted = part.label[:1], part.predicted[:1]
    near, far = (distance_transform_edt(~of[0])[None] for of in (label, predicted))
    deep, core = (distance_transform_edt(of[0])[None] for of in (label, predicted))
    ratio = np.count_nonzero(label) / np.count_nonzero(predicted)
    for name in (THIN, THICK):
        tries = []
        for n in range(1, LARGEST_OFFSET + 1):
            other, changed = (near <= n, core > n) if name == THIN else (deep > n, far <= n)
            tries += [(_dice(other, predicted), n), (_dice(label, changed), n)]
        found, n = max(tries, key=lambda each: float(each[0][0]))
        if found > _dice(label, predicted):
            detail = f"by {n * part.step.max()} voxels, volume {ratio:.2f} of the prediction's"
            yield name, found, detail


def _slices(part: _Part) -> Iterator[Found]:
    """Predicted slices without a label: between labelled ones, or beyond an abrupt end."""
    unlabelled = part.predicted[0] & ~part.label[1]
    for axis in range(3):
        masks = part.label[0], part.predicted[0], unlabelled
        here, there, lacks = (of.sum(axis=tuple({0, 1, 2} - {axis})) for of in masks)
        used = np.flatnonzero(here)
        if len(used) < LEAST_SLICES:
            continue
        inner = np.arange(used[0], used[-1])
        around = np.interp(inner, used, here[used])
        gaps = inner[(here[inner] == 0) & (lacks[inner] >= LEAST_FILL * around)]
        wanted = [(LEFT_OUT, gaps)]
        for end, way in ((used[0], -1), (used[-1], 1)):
            is_flat = here[end] >= LEAST_FILL * here.max() and there[end] > 0
            if is_flat and 2 * lacks[end + way] >= there[end]:
                outside = np.flatnonzero(lacks)
                wanted.append((CUT, outside[(outside - end) * way > 0]))
        for name, slices in wanted:
            if len(slices):
                without, lacking = part.predicted[:1].copy(), np.moveaxis(unlabelled, axis, 0)
                np.moveaxis(without[0], axis, 0)[slices] &= ~lacking[slices]
                detail = f"{len(slices) * part.step[axis]} slices ({AXES[axis]}) with "
                detail += f"{lacks[slices].sum() * part.step.prod()} predicted voxels and no label"
                yield name, _dice(part.label[:1], without), detail


def _islands(part: _Part) -> Iterator[Found]:
    """The parts of a class that are apart from the rest, where nothing is predicted."""
    components, count = arrays.connected_components(part.label[0])
    if count > 1:
        sizes = np.bincount(components.ravel())
        sizes[[0, *np.unique(components[part.predicted[1]])]] = 0
        islands = np.flatnonzero(sizes >= LEAST_ISLAND)
        without = part.label[:1] & ~np.isin(components, islands)
        detail = f"{len(islands)} with {sizes[islands].sum() * part.step.prod()} voxels"
        yield ISLANDS, _dice(without, part.predicted[:1]), detail
