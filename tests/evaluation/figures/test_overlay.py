from __future__ import annotations

import base64
import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.image import imread
from numpy.typing import NDArray

from autoseg.common.errors import DataError
from autoseg.common.figures import COLOURS, pixels_of
from autoseg.evaluation.figures.overlay import (
    draw_cases,
    find_image,
    overlay,
    volume_of,
    worst_to_best,
)
from autoseg.evaluation.scores import Summary
from autoseg.image.geometry import Geometry
from autoseg.image.image import read_label
from autoseg.image.label_writer import write_label
from autoseg.image.picture import draw_view
from autoseg.image.view import Exhibit, read_view
from tests.evaluation.scores import HIPPOCAMPUS, case, three_cases, write
from tests.forking import fine_pictures

__all__ = ["fine_pictures"]

LABELS: dict[str, tuple[int, ...]] = {"Anterior": (1,), "Posterior": (2,)}
NAME = "hippocampus_003.nii.gz"
IMAGE, TRUTH = HIPPOCAMPUS / "imagesTr" / NAME, HIPPOCAMPUS / "labelsTr" / NAME


def test_image_contours_and_errors_in_three_planes(tmp_path: Path) -> None:
    out = tmp_path / "new" / "overlay.png"
    label, geometry = read_label(TRUTH)
    other = write_shifted(tmp_path / "other.nii.gz", label, geometry)
    exhibit = Exhibit("a", IMAGE, TRUTH, other, LABELS, "costs $1_^{x}$, not $2")
    figure = draw_view(read_view(exhibit), exhibit.title)
    assert len(figure.axes) == 9
    assert "costs $1_^{x}$, not $2" in [text.get_text() for text in figure.texts]
    overlay(exhibit, out)
    assert [path.name for path in out.parent.iterdir()] == ["overlay.png"]
    pixels = pixels_of(figure)
    image, contours, errors = (_colourful(pixels, axes) for axes in figure.axes[::3])
    assert image < 0.01
    assert 0.01 < contours < 0.3
    assert 0.01 < errors < 0.3
    letters = {text.get_text() for text in figure.axes[0].texts}
    assert letters == {"R", "L", "A", "P"}


def write_shifted(path: Path, label: NDArray[Any], geometry: Geometry) -> Path:
    write_label(path, np.roll(label, 1, axis=0), geometry)
    return path


def _colourful(pixels: NDArray[np.uint8], axes: Axes) -> float:
    """The share of pixels of a panel that are not grey."""
    height, width = pixels.shape[:2]
    box = axes.get_position()
    rows = slice(round(height * (1 - box.y1)) + 3, round(height * (1 - box.y0)) - 3)
    part = pixels[rows, round(width * box.x0) + 3 : round(width * box.x1) - 3].astype(int)
    return float((np.ptp(part, axis=-1) > 50).mean())


def test_a_volume_is_what_the_viewer_draws() -> None:
    """The layers, unpacked with the standard library, are the cropped arrays."""
    label, geometry = read_label(TRUTH)
    found = volume_of(Exhibit("a", IMAGE, TRUTH, TRUTH, LABELS))
    x, y, z = found["size"]
    layers = {
        name: np.frombuffer(gzip.decompress(base64.b64decode(text)), np.uint8).reshape(z, y, x)
        for name, text in found["layers"].items()
    }
    assert [(layers["reference"] == v).sum() for v in (1, 2)] == [
        (label == v).sum() for v in (1, 2)
    ]
    assert (layers["reference"] == layers["prediction"]).all()
    assert not layers["difference"].any()
    assert found["spacing"] == pytest.approx(geometry.spacing_mm)
    assert found["note"] == ""
    small = volume_of(Exhibit("a", IMAGE, TRUTH, TRUTH, LABELS), most_bytes=20_000)
    assert sum(map(len, small["layers"].values())) <= 20_000
    step = round(small["spacing"][0] / geometry.spacing_mm[0])
    assert step > 1
    assert str(step) in small["note"]


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
    words = [text.get_text() for text in figure.texts if "slice" in text.get_text()]
    assert words == ["0 (slice 8 of 9)", "1 (slice 9 of 9)"]
    assert len(figure.axes) == 6


def test_many_classes_have_numbers_and_the_hidden_ones_are_named(tmp_path: Path) -> None:
    label = np.zeros((40, 40, 12), np.uint8)
    for i in range(30):
        x, y = divmod(i, 6)
        label[8 * x : 8 * x + 5, 6 * y : 6 * y + 4, 2 if i < 25 else 10] = i + 1
    path = write(tmp_path / "a.nii.gz", label)
    exhibit = Exhibit("a", path, path, path, {f"organ {i}": (i,) for i in range(1, 31)})
    figure = draw_view(read_view(exhibit), at=(2, 1, 2))
    numbers = {text.get_text() for axes in figure.axes for text in axes.texts}
    assert {"1", "25"} <= numbers
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert "1  organ 1" in legend
    assert any("organ 30" in text.get_text() for text in figure.texts)


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
