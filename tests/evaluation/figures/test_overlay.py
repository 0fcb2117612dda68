from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from autoseg.common.errors import DataError
from autoseg.common.figures import COLOURS
from autoseg.evaluation.figures.overlay import draw_cases, find_image, overlay, worst_to_best
from autoseg.evaluation.scores import Summary
from autoseg.image.view import Exhibit
from tests.evaluation.scores import HIPPOCAMPUS, case, three_cases, write

LABELS: dict[str, tuple[int, ...]] = {"Anterior": (1,), "Posterior": (2,)}
NAME = "hippocampus_003.nii.gz"
IMAGE, TRUTH = HIPPOCAMPUS / "imagesTr" / NAME, HIPPOCAMPUS / "labelsTr" / NAME


def test_overlay_is_a_picture(tmp_path: Path) -> None:
    out = tmp_path / "new" / "overlay.png"
    overlay(Exhibit("a", IMAGE, TRUTH, TRUTH, LABELS, "costs $1_^{x}$, not $2"), out)
    pixels = imread(out)
    rows, columns = pixels.shape[:2]
    assert columns == 1425
    assert rows > columns / 2
    assert pixels[..., :3].std() > 0.1
    third = columns // 3
    left, middle, right = (pixels[:, a : a + third] for a in (0, third, 2 * third))
    assert _colourful(left) < 0.02
    assert _colourful(middle) > 0.03
    assert _colourful(right) > 0.03
    assert [path.name for path in out.parent.iterdir()] == ["overlay.png"]


def _colourful(pixels: np.ndarray) -> float:
    """The share of pixels that are not grey."""
    return float((np.ptp(pixels[..., :3], axis=-1) > 0.2).mean())


def test_svg_is_the_same_twice_and_has_the_given_colours(tmp_path: Path) -> None:
    label = np.zeros((6, 5, 1), np.uint8)
    label[1:3, 1:4] = 1
    label[4, 1:4] = 2
    path = write(tmp_path / "a.nii.gz", label)
    outs = [tmp_path / "1.svg", tmp_path / "2.svg"]
    for out in outs:
        classes = {"x": (1,), "y": (2,)}
        overlay(Exhibit("a", path, path, path, classes, colours={"x": "#123456"}), out)
    assert outs[0].read_bytes() == outs[1].read_bytes()
    text = outs[0].read_text(encoding="utf-8")
    assert "#123456" in text
    assert COLOURS[0].lower() in text
    assert "stroke-dasharray" in text  # y differs from x in grey, too


def test_empty_flat_and_full_label_maps_are_drawn(tmp_path: Path) -> None:
    for value, shape in ((0, (4, 5, 3)), (1, (4, 5, 3)), (1, (1, 5, 3))):
        path = write(tmp_path / "a.nii.gz", np.full(shape, value, np.uint8))
        overlay(Exhibit("a", path, path, path, {"x": (1,)}), tmp_path / "a.png")
        assert imread(tmp_path / "a.png").size


def test_one_row_a_case(tmp_path: Path) -> None:
    label = np.zeros((6, 5, 9), np.uint8)
    label[1:3, 1:4, 7] = 1
    paths = [write(tmp_path / f"{i}.nii.gz", np.roll(label, i, 2)) for i in (0, 1)]
    shown = [Exhibit(p.name, p, p, p, {"x": (1,)}, title=p.name[0]) for p in paths]
    figure = draw_cases(shown)
    words = [axes.get_ylabel() for axes in figure.axes[::3]]
    assert words == ["0\nslice 8 of 9", "1\nslice 9 of 9"]
    assert [axes.get_title() for axes in figure.axes[:3]] == ["image", "reference", "prediction"]


def test_what_stands_beside_a_row_is_not_broken_amid_a_number(tmp_path: Path) -> None:
    label = np.zeros((6, 6, 9), np.uint8)
    label[1:3, 1:4, 7] = 1
    path = write(tmp_path / "a.nii.gz", label)
    title = "patient_0001: Dice left lung 0.9187, right lung 0.9053, infection 0.5000"
    figure = draw_cases([Exhibit("a", path, path, path, {"x": (1,)}, title=title)])
    words = figure.axes[0].get_ylabel().splitlines()
    assert words[:-1] == [
        "patient_0001: Dice left lung 0.9187,",
        "right lung 0.9053, infection 0.5000",
    ]


def test_worst_to_best() -> None:
    assert [c.case for c in worst_to_best(three_cases())] == ["c", "b", "a"]
    tenths = {"p": 4, "q": 1, "r": 9, "s": 5}
    four = Summary(tuple(case(k, x=(n, 10 - n, 10 - n, n)) for k, n in tenths.items()))
    assert [c.case for c in worst_to_best(four)] == ["q", "p", "r"]


def test_fewer_cases() -> None:
    empty, full = case("e", x=(0, 0, 0, 9)), case("f", x=(1, 0, 0, 9))
    assert worst_to_best(Summary((empty,))) == []
    assert worst_to_best(Summary((empty, full))) == [full]


def test_find_image(tmp_path: Path) -> None:
    for name in ("a_0000.nii.gz", "a_0001.nii.gz", "b.nrrd", "ab.nii.gz", "a.txt"):
        (tmp_path / name).touch()
    assert find_image(tmp_path, "a").name == "a_0000.nii.gz"
    assert find_image(tmp_path, "b").name == "b.nrrd"
    with pytest.raises(DataError, match=r"c\.nii\.gz"):
        find_image(tmp_path, "c")
