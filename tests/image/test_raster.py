"""Pictures as scans and label maps; the values are those of imageio, tifffile and by hand."""

from __future__ import annotations

from pathlib import Path

import imageio.v3 as imageio
import numpy as np
import pytest
import tifffile
from PIL import Image

from autoseg.common.errors import DataError
from autoseg.image.formats import images_among
from autoseg.image.image import read_geometry, read_image, read_label
from autoseg.image.label_writer import write_label
from tests.making import grid

RNG = np.random.default_rng(0)
GRAY = RNG.integers(0, 255, (5, 7), dtype=np.uint8)  # rows, columns
DEEP = RNG.integers(0, 65535, (5, 7), dtype=np.uint16)
RGB = RNG.integers(0, 255, (5, 7, 3), dtype=np.uint8)
DEEP_RGB = RNG.integers(0, 65535, (5, 7, 3), dtype=np.uint16)
FLOAT = RNG.normal(size=(5, 7)).astype(np.float32)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("a.png", GRAY),
        ("a.png", DEEP),
        ("a.png", RGB),
        ("a.bmp", GRAY),
        ("a.bmp", RGB),
        ("a.tif", GRAY),
        ("a.tiff", DEEP),
        ("a.TIF", RGB),
        ("a.tif", DEEP_RGB),
        ("a.tif", FLOAT),
    ],
)
def test_a_picture_is_a_scan_of_one_plane(tmp_path: Path, name: str, values: np.ndarray) -> None:
    path = tmp_path / name
    if name.lower().endswith((".tif", ".tiff")):
        tifffile.imwrite(path, values, photometric="rgb" if values.ndim == 3 else "minisblack")
    else:
        imageio.imwrite(path, values)
    scan = read_image(path, own_type=True)
    assert scan.array.shape == (1 if values.ndim == 2 else 3, 7, 5, 1)
    assert scan.array.dtype == values.dtype
    for (row, column), _ in np.ndenumerate(values[..., :1].reshape(5, -1)[:, :5]):
        assert (scan.array[:, column, row, 0] == values[row, column]).all()
    assert scan.geometry == grid((7, 5, 1)) == read_geometry(path)


def test_sixteen_bits_a_colour_keep_their_lower_bits(tmp_path: Path) -> None:
    import SimpleITK as sitk

    path = tmp_path / "a.png"
    sitk.WriteImage(sitk.GetImageFromArray(DEEP_RGB, isVector=True), str(path))
    scan = read_image(path, own_type=True)
    assert scan.array.dtype == np.uint16
    assert (scan.array[..., 0].transpose(2, 1, 0) == DEEP_RGB).all()


def test_a_palette_means_colours_in_a_scan_and_labels_in_a_label_map(tmp_path: Path) -> None:
    indices = np.array([[0, 1, 2], [2, 1, 0]], np.uint8)
    picture = Image.fromarray(indices, mode="P")
    picture.putpalette([0, 0, 0, 200, 30, 40, 9, 8, 7])
    picture.save(tmp_path / "a.png")
    label, _ = read_label(tmp_path / "a.png")
    assert (indices == label[..., 0].T).all()
    colours = read_image(tmp_path / "a.png").array
    assert colours[:, 1, 0, 0].tolist() == [200, 30, 40]


def test_transparency_is_left_out_and_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    alpha = np.dstack([RGB, GRAY])
    imageio.imwrite(tmp_path / "a.png", alpha)
    assert (read_image(tmp_path / "a.png").array[..., 0].transpose(2, 1, 0) == RGB).all()
    Image.fromarray(np.dstack([GRAY, GRAY]), mode="LA").save(tmp_path / "b.png")
    assert (read_label(tmp_path / "b.png")[0][..., 0].T == GRAY).all()


def test_label_maps_of_equal_colours_and_of_one_bit(tmp_path: Path) -> None:
    imageio.imwrite(tmp_path / "a.png", np.dstack([GRAY] * 3))
    assert (read_label(tmp_path / "a.png")[0][..., 0].T == GRAY).all()
    Image.fromarray(GRAY > 99).save(tmp_path / "b.png")
    assert ((GRAY > 99) == read_label(tmp_path / "b.png")[0][..., 0].T).all()


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.jpg", b"", "JPEG"),
        ("a.gif", b"", "a.png"),
        ("a.png", b"\x89PNG half", "a.png"),
        ("a.tif", b"II*\0", "a.tif"),
        ("a.bmp", b"", "a.bmp"),
    ],
)
def test_what_is_not_read_is_one_line(
    tmp_path: Path, name: str, content: bytes, words: str
) -> None:
    (tmp_path / name).write_bytes(content)
    for read in (read_image, read_label, read_geometry):
        with pytest.raises(DataError, match=words) as caught:
            read(tmp_path / name)
        assert str(tmp_path / name) in str(caught.value)


def test_pages_colours_and_other_kinds_are_refused_by_name(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", np.stack([GRAY, GRAY]), photometric="minisblack")
    with pytest.raises(DataError, match="2 pages"):
        read_image(tmp_path / "a.tif")
    imageio.imwrite(tmp_path / "b.png", RGB)
    with pytest.raises(DataError, match=r"3 channels.*one value for each pixel"):
        read_label(tmp_path / "b.png")
    Image.fromarray(np.dstack([RGB, GRAY]), mode="CMYK").save(tmp_path / "c.tif")
    with pytest.raises(DataError, match="CMYK"):
        read_image(tmp_path / "c.tif")
    (tmp_path / "d.png").write_bytes((tmp_path / "b.png").read_bytes()[:-30])
    with pytest.raises(DataError, match=r"d\.png"):
        read_image(tmp_path / "d.png")


@pytest.mark.parametrize(("highest", "kind"), [(3, np.uint8), (700, np.uint16)])
def test_a_label_map_is_written_as_png(tmp_path: Path, highest: int, kind: type) -> None:
    label = np.array([[0, 1], [highest, 2], [1, 0]], np.int64)[..., None]
    write_label(tmp_path / "a.png", label, grid(label.shape))
    written = imageio.imread(tmp_path / "a.png")
    assert written.dtype == kind
    assert (written == label[..., 0].T).all()
    assert (read_label(tmp_path / "a.png")[0] == label).all()
    with pytest.raises(DataError, match=r"several planes.*nii"):
        write_label(tmp_path / "b.png", np.zeros((2, 2, 2), np.uint8), grid((2, 2, 2)))


def test_beside_volumes_pictures_are_figures() -> None:
    def names(*given: str) -> list[str]:
        return [path.name for path in images_among(map(Path, given))]

    assert names("a.nii.gz", "dice.png", "notes.txt") == ["a.nii.gz"]
    assert names("a.png", "a.preview.png", "notes.txt") == ["a.png"]
    assert names("a.nii.gz", "a.uncertainty.nii.gz") == ["a.nii.gz"]
