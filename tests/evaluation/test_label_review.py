"""Labels that are wrong in a known way, against predictions that are nearly right."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from autoseg.common.errors import DataError
from autoseg.evaluation.evaluate import LabelMapPair
from autoseg.evaluation.label_review import (
    NONE,
    Finding,
    read_kept,
    review,
    write_review,
)
from autoseg.evaluation.labels import ScoredClasses
from autoseg.image.label_writer import write_label
from tests.making import grid

LabelMap = NDArray[Any]
CLASSES = ScoredClasses({"head": (1,), "body": (2,)})
CASES, SIZE, SPACING_MM = 14, (44, 40, 20), (1.0, 1.0, 2.0)
WRONG = "case_05"


def anatomy(seed: int) -> LabelMap:
    """Two ellipsoids that touch, of a size and place of this case's own."""
    rng = np.random.default_rng(seed)
    middle = np.array(SIZE) / 2 + rng.uniform(-2, 2, 3)
    radii = np.array([7.0, 6.0, 4.5]) * rng.uniform(0.85, 1.2, 3)
    places = np.moveaxis(np.indices(SIZE), 0, -1) - middle
    label = np.zeros(SIZE, np.uint8)
    label[(((places - [-5, 0, 0]) / radii) ** 2).sum(-1) < 1] = 2
    label[(((places - [6, 2, 0]) / radii) ** 2).sum(-1) < 0.6] = 1
    return label


def predicted(label: LabelMap, seed: int) -> LabelMap:
    """The map with a rough surface."""
    rng = np.random.default_rng(1000 + seed)
    found = np.zeros_like(label)
    for value in (2, 1):
        inside = ndimage.gaussian_filter((label == value).astype(float), 0.7)
        noise = ndimage.gaussian_filter(rng.standard_normal(label.shape), 1.5)
        found[inside + 0.1 * noise / noise.std() * (inside > 0.05) > 0.5] = value
    return found


def exchanged(label: LabelMap) -> LabelMap:
    return np.choose(label, [0, 2, 1]).astype(np.uint8)


def without_head(label: LabelMap) -> LabelMap:
    return np.where(label == 1, 0, label)


def shifted(label: LabelMap) -> LabelMap:
    return np.roll(label, (3, 0, 1), axis=(0, 1, 2))


def with_shifted_head(label: LabelMap) -> LabelMap:
    head = np.roll(label == 1, 4, 1)
    return np.where(head, 1, np.where(label == 1, 0, label))


def eroded(label: LabelMap) -> LabelMap:
    kept = [ndimage.binary_erosion(label == value, iterations=2) for value in (1, 2)]
    return np.asarray(kept[0] + 2 * kept[1], np.uint8)


def dilated(label: LabelMap) -> LabelMap:
    return np.where(ndimage.binary_dilation(label == 2, iterations=2), 2, label).astype(np.uint8)


def mirrored(label: LabelMap) -> LabelMap:
    return label[::-1].copy()


def with_island(label: LabelMap) -> LabelMap:
    out = label.copy()
    out[2:4, 2:5, 3:6] = 2
    return out


def with_gap(label: LabelMap) -> LabelMap:
    out = label.copy()
    out[:, :, SIZE[2] // 2] = 0
    return out


def cut_off(label: LabelMap) -> LabelMap:
    out = label.copy()
    out[: np.flatnonzero((label == 2).any((1, 2)))[0] + 5] = 0
    return out


ERRORS: list[tuple[Callable[[LabelMap], LabelMap], str, tuple[str, ...]]] = [
    (exchanged, "classes exchanged", ("head", "body")),
    (without_head, "class missing", ("head",)),
    (np.zeros_like, "label map empty", ("head", "body")),
    (shifted, "shifted", ("head", "body")),
    (with_shifted_head, "shifted", ("head",)),
    (eroded, "too thin", ("head", "body")),
    (dilated, "too thick", ("body",)),
    (mirrored, "left and right exchanged", ("head", "body")),
    (with_island, "islands", ("body",)),
    (with_gap, "slice left out", ("head", "body")),
    (cut_off, "ends at a slice boundary", ("body",)),
]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, LabelMapPair]:
    """Cases with right labels; bodies to the patient's right, as the grid is LPS."""
    folder, found = tmp_path_factory.mktemp("cases"), {}
    for seed in range(CASES):
        name = f"case_{seed:02d}"
        found[name] = folder / f"{name}.nii.gz", folder / "p" / f"{name}.nii.gz"
        label = anatomy(seed)
        for path, array in zip(found[name], (label, predicted(label, seed)), strict=True):
            write_label(path, array, grid(SIZE, SPACING_MM))
    return found


def with_label(
    pairs: dict[str, LabelMapPair], folder: Path, label: LabelMap
) -> dict[str, LabelMapPair]:
    path = folder / f"{WRONG}.nii.gz"
    write_label(path, label.astype(np.uint8), grid(SIZE, SPACING_MM))
    return pairs | {WRONG: (path, pairs[WRONG][1])}


def test_right_labels_are_not_suspicious(pairs: dict[str, LabelMapPair]) -> None:
    found = review(pairs, CLASSES, [], 1)
    assert {of.case for of in found} == set(pairs)
    assert [of.suspicion for of in found] == [NONE] * CASES


@pytest.mark.parametrize(("change", "name", "classes"), ERRORS)
def test_an_error_is_first_and_named(
    pairs: dict[str, LabelMapPair],
    tmp_path: Path,
    change: Callable[[LabelMap], LabelMap],
    name: str,
    classes: tuple[str, ...],
) -> None:
    found = review(with_label(pairs, tmp_path, change(anatomy(5))), CLASSES, [], 1)
    assert (found[0].case, found[0].suspicion, found[0].classes) == (WRONG, name, classes)
    assert {of.suspicion for of in found[1:]} == {NONE}
    if change is shifted:  # 3 voxels to the left, and one of 2 mm to the head
        assert "(3, 0, 2) mm" in found[0].evidence


def test_labels_of_another_scan(pairs: dict[str, LabelMapPair], tmp_path: Path) -> None:
    found = review(with_label(pairs, tmp_path, anatomy(9)), CLASSES, [], 1)
    assert found[0].case == WRONG
    assert found[0].suspicion.startswith("labels of another scan: duplicate")
    assert "case_09" in found[0].evidence
    other = np.roll(anatomy(9), 1, 0)
    other[np.unravel_index(np.flatnonzero(other)[0], SIZE)] = 0  # no exact copy
    found = review(with_label(pairs, tmp_path, other), CLASSES, [], 1)
    assert (found[0].case, found[0].suspicion) == (WRONG, "labels of another scan")


def test_sides_are_exchanged(pairs: dict[str, LabelMapPair], tmp_path: Path) -> None:
    wrong = with_label(pairs, tmp_path, exchanged(anatomy(5)))
    found = review(wrong, CLASSES, [{"head", "body"}], 1)
    assert (found[0].case, found[0].suspicion) == (WRONG, "left and right exchanged")


def test_classes_that_were_not_annotated_are_not_missing(
    pairs: dict[str, LabelMapPair], tmp_path: Path
) -> None:
    wrong = with_label(pairs, tmp_path, without_head(anatomy(5)))
    partly = ScoredClasses(CLASSES.values, annotated={WRONG: ("body",)})
    assert {of.suspicion for of in review(wrong, partly, [], 1)} == {NONE}


def test_ignored_voxels_are_no_difference(pairs: dict[str, LabelMapPair], tmp_path: Path) -> None:
    wrong = with_label(pairs, tmp_path, np.where(anatomy(5) == 1, 7, anatomy(5)))
    found = review(wrong, ScoredClasses(CLASSES.values, ignore=7), [], 1)
    assert found[0].case != WRONG or found[0].suspicion != "class missing"


FINDINGS = [
    Finding("a", "shifted", ("head",), 9.0, "by 3 voxels, to the left", 0.5, 0.9),
    Finding("b", "too thin", ("body",), 7.0, "by 2 voxels", 0.6, 0.8),
    Finding("c", NONE, (), 0.1, "", None),
]


def test_kept_cases_come_last_and_stay_kept(tmp_path: Path) -> None:
    path = tmp_path / "label_review.csv"
    assert read_kept(path) == {}
    write_review(path, FINDINGS, {})
    with path.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(row["rank"], row["case"]) for row in rows] == [("1", "a"), ("2", "b"), ("3", "c")]
    # As a spreadsheet of a country with decimal commas saves it.
    text = path.read_text(encoding="utf-8").replace('"', "").replace("3 voxels, to", "3 voxels to")
    lines = [line.replace(",", ";") for line in text.splitlines()]
    lines[1] += "x"
    path.write_text("\ufeff" + "\r\n".join(lines) + "\r\n", encoding="utf-8")
    kept = read_kept(path)
    assert kept == {"a": "x"}
    write_review(path, FINDINGS, kept)
    with path.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(row["rank"], row["case"]) for row in rows] == [("1", "b"), ("2", "c"), ("", "a")]
    assert read_kept(path) == {"a": "x"}


def test_a_file_without_its_columns_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "label_review.csv"
    path.write_text("name,notes\na,keep\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"label_review\.csv.*kept"):
        read_kept(path)
