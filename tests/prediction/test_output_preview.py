"""Pictures of predictions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from numpy.typing import NDArray
from PIL import Image

from autoseg.image.image import from_simpleitk
from autoseg.prediction.output import GAP, LINE, PIXELS, draw_preview, write_png
from tests.making import REGIONS, grid, tiny_plan

PLAN = tiny_plan(labels={"background": [0], "organ": [1], "tumour": [2], "ενδώμ 肺": [5]})
ORANGE, BLUE = (230, 159, 0), (86, 180, 233)
SIZE, SPACING = (12, 16, 8), (2.0, 1.0, 3.0)  # 24 x 16 x 24 mm


def phantom() -> tuple[NDArray[np.int16], NDArray[np.uint8]]:
    """A ramp, a box, and a voxel beside it."""
    image = np.arange(np.prod(SIZE), dtype=np.int16).reshape(SIZE)
    label = np.zeros(SIZE, np.uint8)
    label[2:6, 3:9, 5:7] = 1
    label[8, 4, 5] = 2
    return image, label


def pixels(picture: Image.Image, colour: tuple[int, int, int]) -> NDArray[np.intp]:
    """Rows and columns of a colour, above the legend."""
    found = np.argwhere((np.asarray(picture) == colour).all(-1))
    return found[found[:, 0] < LINE + PIXELS]


def test_each_plane_goes_through_the_largest_class() -> None:
    picture = draw_preview(*phantom(), grid(SIZE, SPACING), PLAN)
    scale = PIXELS / 24  # pixels per mm; the longest side is 24 mm
    assert picture.size[0] == 3 * PIXELS + 2 * GAP
    organ = pixels(picture, ORANGE) - (LINE, 0)
    axial, coronal, sagittal = (
        organ[organ[:, 1] // (PIXELS + GAP) == panel] - (0, panel * (PIXELS + GAP))
        for panel in range(3)
    )
    # rows and columns: y, x; then -z, x; then -z, y, in mm
    for found, low, high in (
        (axial, (3, 4), (9, 12)),
        (coronal, (3, 4), (9, 12)),
        (sagittal, (3, 3), (9, 9)),
    ):
        assert found.min(0) / scale == pytest.approx(low, abs=0.1)
        assert (found.max(0) + 1) / scale == pytest.approx(high, abs=0.1)
    assert len(pixels(picture, BLUE))


@pytest.mark.parametrize("code", ["RAS", "PIL", "SRA", "LPI"])
def test_the_axis_order_of_the_file_does_not_matter(code: str) -> None:
    image, label = phantom()
    expected = np.asarray(draw_preview(image, label, grid(SIZE, SPACING), PLAN))
    turned = []
    for array in (image, label):
        upright = sitk.GetImageFromArray(array.T)
        upright.SetSpacing(SPACING)
        turned.append(from_simpleitk(sitk.DICOMOrient(upright, code)))
    found = draw_preview(
        turned[0].array[0], turned[1].array[0].astype(np.uint8), turned[0].geometry, PLAN
    )
    assert (np.asarray(found) == expected).all()


@pytest.mark.parametrize("size", [(12, 16, 8), (12, 16, 1), (1, 1, 1)])
def test_an_empty_label_map_and_thin_scans(size: tuple[int, int, int], tmp_path: Path) -> None:
    image, label = np.ones(size, np.float32), np.zeros(size, np.uint8)
    picture = draw_preview(image, label, grid(size), tiny_plan(**REGIONS))
    assert not len(pixels(picture, ORANGE))
    write_png(picture, tmp_path / "a.png")
    assert (np.asarray(Image.open(tmp_path / "a.png")) == np.asarray(picture)).all()


def test_many_classes_fill_several_lines() -> None:
    many = {f"a rather long name of a class {i}": [i] for i in range(1, 40)}
    plan = tiny_plan(labels={"background": [0], **many})
    image, label = phantom()
    one, more = (draw_preview(image, label, grid(SIZE), each) for each in (PLAN, plan))
    assert more.height > one.height + 5 * LINE
