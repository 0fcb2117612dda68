from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from autoseg.image.geometry import Geometry
from autoseg.image.image import read_geometry, read_image, read_label
from autoseg.image.label_writer import write_label
from autoseg.image.nifti import as_stored
from tests.dataset.making import write_4d, write_scan
from tests.image.test_nifti import big_endian
from tests.turning import TURNS, rotation

SCAN = np.random.default_rng(0).normal(size=(5, 4, 3)).astype(np.float32)
LABEL = np.arange(60, dtype=np.uint8).reshape(5, 4, 3)
SPACING_MM, ORIGIN_MM = (0.71, 0.9, 2.3), (-101.37, 55.1, 1e-3)
SLANTED = rotation((0.9, 0.1, -0.3, 0.2))
QFORM, SFORM = 252, 254  # where the codes stand


def header_of(path: Path) -> bytearray:
    return bytearray(path.read_bytes()[:352])


def place(path: Path, header: bytearray) -> Path:
    """A scan whose header says so."""
    path.write_bytes(bytes(header) + np.ascontiguousarray(SCAN.T).tobytes())
    return path


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    """An oblique scan as ITK writes it."""
    path = tmp_path / "scan.nii"
    write_scan(path, SCAN, SPACING_MM, ORIGIN_MM, SLANTED.ravel().tolist())
    return path


def copied(scan: Path, ending: str = ".nii.gz") -> tuple[Geometry, Geometry]:
    """The grids of a scan and of a label map written like it, both as SimpleITK reads them."""
    geometry = read_image([scan]).geometry
    path = scan.parent / "out" / f"label{ending}"
    write_label(path, LABEL, geometry, like=scan)
    label, found = read_label(path)
    assert label.dtype == np.uint8
    assert (label == LABEL).all()
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]
    return found, geometry


@settings(max_examples=60, deadline=None)
@given(
    TURNS,
    st.tuples(*[st.floats(0.05, 20)] * 3),
    st.tuples(*[st.floats(-2000, 2000)] * 3),
    st.sampled_from([".nii", ".nii.gz"]),
    st.tuples(*[st.sampled_from([-1, 1])] * 3),
)
def test_every_grid_is_kept_to_the_bit(
    tmp_path_factory: pytest.TempPathFactory,
    turn: tuple[float, ...],
    spacing_mm: tuple[float, ...],
    origin_mm: tuple[float, ...],
    ending: str,
    flips: tuple[int, ...],
) -> None:
    direction = rotation(turn) * flips  # LPS, RAS, LAS, LPI, ... and left-handed ones, turned
    scan = tmp_path_factory.mktemp("nifti") / f"scan{ending}"
    write_scan(scan, SCAN, spacing_mm, origin_mm, direction.ravel().tolist())
    found, expected = copied(scan)
    assert found == expected


@pytest.mark.parametrize(("qform", "sform"), [(0, 0), (0, 1), (1, 0), (1, 1), (2, 4), (0, 2)])
def test_whichever_form_a_header_has(scan: Path, qform: int, sform: int) -> None:
    header = header_of(scan)
    struct.pack_into("<2h", header, QFORM, qform, sform)
    found, expected = copied(place(scan, header))
    assert found == expected


def test_forms_that_differ(scan: Path) -> None:
    """Which one ITK prefers is its own affair: it is the same for both files."""
    header = header_of(scan)
    struct.pack_into("<3f", header, 256, 0.1, 0.2, 0.3)
    struct.pack_into("<3f", header, 268, 5, 6, 7)
    found, expected = copied(place(scan, header))
    assert found == expected


@pytest.mark.parametrize("tilt", [1e-5, 5e-5])
def test_a_form_sheared_within_the_tolerance(scan: Path, tilt: float) -> None:
    header = header_of(scan)
    rows = np.array([[1, tilt, 0, -9], [0, 1, 0, 8], [0, 0, 1, 7]]) * [*SPACING_MM, 1]
    struct.pack_into("<2h", header, QFORM, 0, 1)
    struct.pack_into("<12f", header, 280, *rows.ravel().tolist())
    found, expected = copied(place(scan, header))
    assert found == expected


@pytest.mark.parametrize("units", [0, 1, 2, 3, 10])
def test_other_units_than_millimetres(scan: Path, units: int) -> None:
    header = header_of(scan)
    header[123] = units
    found, expected = copied(place(scan, header))
    assert found == expected


def test_the_other_byte_order(scan: Path) -> None:
    scan.write_bytes(big_endian(scan.read_bytes()))
    assert scan.read_bytes()[:4] == b"\0\0\x01\x5c"
    found, expected = copied(scan)
    assert found == expected
    assert expected.spacing_mm == pytest.approx(SPACING_MM)


def test_four_dimensions(tmp_path: Path) -> None:
    import SimpleITK as sitk

    scan = tmp_path / "scan.nii.gz"
    write_4d(scan, np.stack([SCAN, SCAN]))
    picture = sitk.ReadImage(str(scan))
    picture.SetSpacing([*SPACING_MM, 1.5])
    picture.SetOrigin([*ORIGIN_MM, 0])
    turned = np.eye(4)
    turned[:3, :3] = SLANTED
    picture.SetDirection(turned.ravel().tolist())
    sitk.WriteImage(picture, str(scan))
    found, expected = copied(scan)
    assert found == expected
    assert expected.spacing_mm == pytest.approx(SPACING_MM)


def test_the_same_label_map_gives_the_same_bytes(scan: Path) -> None:
    written = []
    for name in ("a", "b"):
        path = scan.parent / f"{name}.nii.gz"
        write_label(path, LABEL, read_geometry(scan), like=scan)
        written.append(path.read_bytes())
    assert written[0] == written[1]


def test_what_itk_would_write_is_in_the_header(scan: Path) -> None:
    """All but the grid, which it would round, and words."""
    label = LABEL.astype(np.uint16) + 300
    write_label(scan.parent / "ours.nii", label, read_geometry(scan), like=scan)
    write_label(scan.parent / "itk.nii", label, read_geometry(scan))
    ours, itk = header_of(scan.parent / "ours.nii"), header_of(scan.parent / "itk.nii")
    for start, stop in ((0, 4), (40, 42), (42, 48), (70, 74), (108, 116), (344, 352)):
        assert ours[start:stop] == itk[start:stop], start
    assert read_label(scan.parent / "ours.nii")[0].dtype == np.uint16
    assert (read_label(scan.parent / "ours.nii")[0] == label).all()


def test_a_plain_scan_named_as_if_it_were_packed(scan: Path) -> None:
    found, expected = copied(scan.rename(scan.with_name("scan.nii.gz")), ".nii")
    assert found == expected


def test_a_grid_of_another_format_is_as_near_as_32_bits_allow(tmp_path: Path) -> None:
    scan = tmp_path / "scan.mha"
    write_scan(scan, SCAN, SPACING_MM, ORIGIN_MM, SLANTED.ravel().tolist())
    found, expected = copied(scan)
    assert found.spacing_mm == pytest.approx(expected.spacing_mm, rel=6e-8)
    assert found.origin_mm == pytest.approx(expected.origin_mm, rel=6e-8)
    assert found.direction == pytest.approx(expected.direction, abs=2e-7)


@given(
    hnp.arrays(st.sampled_from([np.uint8, np.uint16]), st.tuples(*[st.integers(1, 6)] * 3)),
    st.permutations(range(3)),
)
def test_voxels_are_turned_as_numpy_turns_them(label: NDArray[Any], axes: list[int]) -> None:
    label = label.transpose(axes)  # any order in memory
    stored = as_stored(label)
    assert stored.flags.c_contiguous
    assert stored.dtype == label.dtype.newbyteorder("<")
    assert np.array_equal(stored, label.T)


def test_a_label_map_is_packed_without_a_time_or_a_name(scan: Path) -> None:
    copied(scan)
    first = (scan.parent / "out" / "label.nii.gz").read_bytes()
    assert first[:4] == b"\x1f\x8b\x08\x00"  # no name
    assert first[4:8] == bytes(4)  # no time
    write_label(scan.parent / "out" / "other.nii.gz", LABEL, read_geometry(scan), like=scan)
    assert (scan.parent / "out" / "other.nii.gz").read_bytes() == first
