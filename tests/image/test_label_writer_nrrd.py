from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoseg.image.geometry import Geometry
from autoseg.image.image import read_geometry, read_image, read_label
from autoseg.image.label_writer import write_label
from tests.dataset.making import write_4d, write_scan
from tests.turning import TURNS, rotation

SCAN = np.random.default_rng(0).normal(size=(5, 4, 3)).astype(np.float32)
LABEL = np.arange(60, dtype=np.uint8).reshape(5, 4, 3)
SLANTED = rotation((0.9, 0.1, -0.3, 0.2))


def copied(scan: Path, ending: str) -> tuple[Geometry, Geometry]:
    """The grids of a scan and of a label map written like it, both as SimpleITK reads them."""
    geometry = read_image([scan]).geometry
    path = scan.parent / f"label{ending}"
    write_label(path, LABEL, geometry, like=scan)
    label, found = read_label(path)
    assert (label == LABEL).all()
    return found, geometry


@settings(max_examples=60, deadline=None)
@given(
    TURNS,
    st.tuples(*[st.floats(0.05, 20)] * 3),
    st.tuples(*[st.floats(-2000, 2000)] * 3),
    st.sampled_from([".nrrd", ".mha"]),
)
def test_every_grid_is_kept_to_the_bit(
    tmp_path_factory: pytest.TempPathFactory,
    turn: tuple[float, ...],
    spacing_mm: tuple[float, ...],
    origin_mm: tuple[float, ...],
    ending: str,
) -> None:
    scan = tmp_path_factory.mktemp("nrrd") / f"scan{ending}"
    write_scan(scan, SCAN, spacing_mm, origin_mm, rotation(turn).ravel().tolist())
    found, expected = copied(scan, ending)
    assert found == expected


@pytest.mark.parametrize("theirs", [".nii.gz", ".nrrd"])
def test_mha_keeps_any_grid_to_the_bit(tmp_path: Path, theirs: str) -> None:
    scan = tmp_path / f"scan{theirs}"
    write_scan(scan, SCAN, (0.71, 0.9, 2.3), (-101.37, 55.1, 1e-3), SLANTED.ravel().tolist())
    found, expected = copied(scan, ".mha")
    assert found == expected


def test_nrrd_of_an_oblique_nifti_differs_in_the_last_bit_at_most(tmp_path: Path) -> None:
    scan = tmp_path / "scan.nii"
    write_scan(scan, SCAN, (0.71, 0.9, 2.3), (-101.37, 55.1, 1e-3), SLANTED.ravel().tolist())
    found, expected = copied(scan, ".nrrd")
    assert (found.size, found.origin_mm) == (expected.size, expected.origin_mm)
    assert found.spacing_mm == pytest.approx(expected.spacing_mm, rel=5e-16)
    assert found.direction == pytest.approx(expected.direction, abs=5e-16)


@pytest.mark.parametrize(
    "grid",
    [
        "space: right-anterior-superior\nspace directions: (0.7,0.0001,0) (0,0.9,0) (0,0,-2.3)\n"
        "space origin: (3.1,-4,5)\n",
        "space: LAS\nspace directions: (0,0.7,0) (0.9,0,0) (0,0,2.3)\n",
        "space dimension: 3\nspace directions: (0.7,0,0) (0,0.9,0) (0,0,2.3)\n",
        "spacings: 0.7 0.9 2.3\n",
        "",
    ],
    ids=["RAS, sheared within the tolerance", "LAS, no origin", "no space", "spacings", "nothing"],
)
@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_headers_of_other_programs(tmp_path: Path, grid: str, line_end: str) -> None:
    header = f"NRRD0005\n# ours\ntype: float\ndimension: 3\nsizes: 5 4 3\n{grid}"
    header += "endian: little\nencoding: raw\nmodality:=CT\n\n"
    scan = tmp_path / "scan.nrrd"
    voxels = np.ascontiguousarray(SCAN.T).tobytes()
    scan.write_bytes(header.replace("\n", line_end).encode() + voxels)
    assert (read_image([scan]).array[0] == SCAN).all()
    found, expected = copied(scan, ".nrrd")
    assert found == expected


def test_four_dimensions(tmp_path: Path) -> None:
    import SimpleITK as sitk

    scan = tmp_path / "scan.nrrd"
    write_4d(scan, np.stack([SCAN, SCAN]))
    picture = sitk.ReadImage(str(scan))
    picture.SetSpacing([0.71, 0.9, 2.3, 1.5])
    picture.SetOrigin([-101.37, 55.1, 1e-3, 0])
    turned = np.eye(4)
    turned[:3, :3] = SLANTED
    picture.SetDirection(turned.ravel().tolist())
    sitk.WriteImage(picture, str(scan))
    found, expected = copied(scan, ".nrrd")
    assert found == expected
    assert expected.spacing_mm == pytest.approx((0.71, 0.9, 2.3))


def test_channels_as_vectors(tmp_path: Path) -> None:
    import SimpleITK as sitk

    scan = tmp_path / "scan.nrrd"
    array = np.stack([SCAN, -SCAN, SCAN])
    picture = sitk.GetImageFromArray(np.ascontiguousarray(array.T), isVector=True)
    picture.SetSpacing((0.71, 0.9, 2.3))
    picture.SetDirection(SLANTED.ravel().tolist())
    sitk.WriteImage(picture, str(scan))
    found, expected = copied(scan, ".nrrd")
    assert found == expected
    assert read_geometry(scan) == expected
