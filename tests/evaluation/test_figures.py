from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from autoseg.errors import AutosegError, DataError
from autoseg.evaluation.figures import (
    COLOURS,
    _choose_slices,
    _slicing_axis,
    _Upright,
    box_plot,
    overlay,
)
from autoseg.evaluation.summary import Summary
from autoseg.image import Geometry
from tests.evaluation.scores import HIPPOCAMPUS, UPRIGHT, case, three_cases, write

LABELS: dict[str, tuple[int, ...]] = {"Anterior": (1,), "Posterior": (2,)}
NAME = "hippocampus_003.nii.gz"


def test_overlay_is_a_picture(tmp_path: Path) -> None:
    out = tmp_path / "new" / "overlay.png"
    truth = HIPPOCAMPUS / "labelsTr" / NAME
    overlay(HIPPOCAMPUS / "imagesTr" / NAME, truth, truth, out, LABELS, "costs $1, not $2")
    pixels = imread(out)
    rows, columns = pixels.shape[:2]
    assert columns == 1530
    assert rows > columns
    assert pixels[..., :3].std() > 0.1
    left, middle, right = (pixels[:, a : a + columns // 3] for a in range(0, columns - 2, 510))
    assert _colourful(left) < 0.01
    assert _colourful(middle) > 0.03
    assert _colourful(right) > 0.03
    assert [path.name for path in out.parent.iterdir()] == ["overlay.png"]


def _colourful(pixels: np.ndarray) -> float:
    """The share of pixels that are not grey."""
    return float((np.ptp(pixels[..., :3], axis=-1) > 0.2).mean())


def test_svg_is_the_same_twice(tmp_path: Path) -> None:
    label = np.zeros((6, 5, 1), np.uint8)
    label[1:3, 1:4] = 1
    path = write(tmp_path / "a.nii.gz", label)
    outs = [tmp_path / "1.svg", tmp_path / "2.svg"]
    for out in outs:
        overlay([path], path, path, out, {"x": (1,)}, "a")
    assert outs[0].read_bytes() == outs[1].read_bytes()
    text = outs[0].read_text(encoding="utf-8")
    assert "<svg" in text
    assert COLOURS[0].lower() in text


def test_empty_flat_and_full_label_maps_are_drawn(tmp_path: Path) -> None:
    for value, shape in ((0, (4, 5, 3)), (1, (4, 5, 3)), (1, (1, 5, 3))):
        path = write(tmp_path / "a.nii.gz", np.full(shape, value, np.uint8))
        overlay(path, path, path, tmp_path / "a.png", {"x": (1,)}, "")
        assert imread(tmp_path / "a.png").size


def test_other_grid_and_other_ending(tmp_path: Path) -> None:
    path = write(tmp_path / "a.nii.gz", np.zeros((4, 4, 4), np.uint8))
    other = write(tmp_path / "b.nii.gz", np.zeros((4, 4, 4), np.uint8), spacing_mm=(1, 1, 2))
    with pytest.raises(DataError, match=r"b\.nii\.gz: not on the grid of .*a\.nii\.gz: spacing"):
        overlay(path, path, other, tmp_path / "a.png", LABELS, "")
    with pytest.raises(AutosegError, match=r"as \.png or \.svg, not as '\.jpg'"):
        overlay(path, path, path, tmp_path / "a.jpg", LABELS, "")


@pytest.mark.parametrize(
    ("spacing_mm", "axis"),
    [((1, 1, 1), 2), ((0.8, 0.8, 5), 2), ((1, 1, 0.6), 2), ((5, 1, 1), 0), ((1, 3.3, 1.1), 1)],
)
def test_slicing_axis(spacing_mm: tuple[float, ...], axis: int) -> None:
    assert _slicing_axis(spacing_mm) == axis


def test_slices() -> None:
    foreground = np.zeros((4, 4, 30), bool)
    foreground[1, 1, 4:25] = True
    foreground[:, :, 21] = True
    assert _choose_slices(foreground, 2) == [9, 14, 19, 21]
    assert _choose_slices(foreground, 0) == [1, 2]
    assert _choose_slices(np.zeros((4, 4, 30), bool), 2) == [15]


def test_patients_are_turned_upright() -> None:
    array = np.arange(24).reshape(2, 3, 4)
    spacing = (1.0, 2.0, 3.0)
    same = _Upright.of(Geometry((2, 3, 4), spacing, (0, 0, 0), UPRIGHT))
    assert np.array_equal(same.turn(array), array)
    backwards = _Upright.of(Geometry((2, 3, 4), spacing, (0, 0, 0), (-1, 0, 0, 0, -1, 0, 0, 0, 1)))
    assert np.array_equal(backwards.turn(array), array[::-1, ::-1])
    # Sagittal: voxel axes run to the back, to the feet, to the left.
    sagittal = _Upright.of(Geometry((2, 3, 4), spacing, (0, 0, 0), (0, 0, 1, 1, 0, 0, 0, -1, 0)))
    assert sagittal.spacing_mm == (3.0, 1.0, 2.0)
    assert np.array_equal(sagittal.turn(array), array.transpose(2, 0, 1)[:, :, ::-1])


def test_turning_upright_equals_itk() -> None:
    import SimpleITK as sitk

    rng = np.random.default_rng(0)
    for _ in range(40):
        # A patient axis for every voxel axis, tilted by up to some 20 degrees.
        turned = np.eye(3)[rng.permutation(3)] * rng.choice([-1, 1], 3)
        u, _, v = np.linalg.svd(turned + rng.uniform(-0.2, 0.2, (3, 3)))
        direction = u @ v
        if np.linalg.det(direction) < 0:
            direction[:, 0] *= -1
        picture = sitk.GetImageFromArray(rng.integers(0, 99, (4, 3, 2)))
        picture.SetDirection(direction.ravel())
        expected = sitk.GetArrayFromImage(sitk.DICOMOrient(picture, "LPS")).T
        geometry = Geometry((2, 3, 4), (1, 1, 1), (0, 0, 0), tuple(direction.ravel()))
        array = sitk.GetArrayFromImage(picture).T
        mine = _Upright.of(geometry).turn(array)
        assert np.array_equal(mine, expected), direction


def test_box_plot(tmp_path: Path) -> None:
    out = tmp_path / "dice.png"
    box_plot(three_cases(), out)
    pixels = imread(out)
    assert pixels.shape[0] == 600
    assert pixels[..., :3].std() > 0.05
    box_plot(Summary((case("a", x=(0, 0, 0, 8)),)), tmp_path / "dice.svg")  # no Dice at all
    assert "<svg" in (tmp_path / "dice.svg").read_text(encoding="utf-8")
