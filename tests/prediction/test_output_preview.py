"""Pictures of predictions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from numpy.typing import NDArray

from autoseg.common.figures import pixels_of, save_figure
from autoseg.image.image import from_simpleitk
from autoseg.prediction.output import draw_preview
from tests.forking import fine_pictures
from tests.making import REGIONS, grid, tiny_plan

__all__ = ["fine_pictures"]

PLAN = tiny_plan(labels={"background": [0], "organ": [1], "tumour": [2], "ενδώμ 肺": [5]})
ORANGE = (230, 159, 0)
SIZE, SPACING = (12, 16, 8), (2.0, 1.0, 3.0)  # 24 x 16 x 24 mm


def phantom() -> tuple[NDArray[np.int16], NDArray[np.uint8]]:
    """A ramp, a box, and a voxel beside it."""
    image = np.arange(np.prod(SIZE), dtype=np.int16).reshape(SIZE)
    label = np.zeros(SIZE, np.uint8)
    label[2:6, 3:9, 5:7] = 1
    label[8, 4, 5] = 2
    return image, label


def coloured(pixels: NDArray[np.uint8], colour: tuple[int, int, int]) -> int:
    return int((np.abs(pixels.astype(int) - colour).max(-1) < 20).sum())


def test_three_planes_have_the_contours_of_the_classes() -> None:
    figure = draw_preview(*phantom(), grid(SIZE, SPACING), PLAN)
    axes = figure.axes
    assert len(axes) == 3
    sizes = [np.asarray(ax.get_position().size) * figure.get_size_inches() for ax in axes]
    axial, coronal, sagittal = (size / sizes[0][0] * 24 for size in sizes)
    assert axial == pytest.approx((24, 16))
    assert coronal == pytest.approx((24, 24))
    assert sagittal == pytest.approx((16, 24))
    assert coloured(pixels_of(figure), ORANGE) > 500


@pytest.mark.parametrize("code", ["RAS", "PIL", "SRA", "LPI"])
def test_the_axis_order_of_the_file_does_not_matter(code: str) -> None:
    image, label = phantom()
    expected = pixels_of(draw_preview(image, label, grid(SIZE, SPACING), PLAN))
    turned = []
    for array in (image, label):
        upright = sitk.GetImageFromArray(array.T)
        upright.SetSpacing(SPACING)
        turned.append(from_simpleitk(sitk.DICOMOrient(upright, code)))
    found = draw_preview(
        turned[0].array[0], turned[1].array[0].astype(np.uint8), turned[0].geometry, PLAN
    )
    assert (pixels_of(found) == expected).all()


@pytest.mark.parametrize("size", [(12, 16, 8), (12, 16, 1), (1, 1, 1)])
def test_an_empty_label_map_and_thin_scans(size: tuple[int, int, int], tmp_path: Path) -> None:
    image, label = np.ones(size, np.float32), np.zeros(size, np.uint8)
    figure = draw_preview(image, label, grid(size), tiny_plan(**REGIONS))
    assert coloured(pixels_of(figure), ORANGE) == 0
    save_figure(figure, tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size
