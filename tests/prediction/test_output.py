from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from autoseg.common.errors import AutosegError
from autoseg.image.image import read_geometry, read_image, read_label
from autoseg.plan.plan import Plan
from autoseg.prediction import output
from autoseg.prediction.output import FORMATS, check_format, ending, write_prediction
from tests.dataset.making import write_scan
from tests.dicom_series import write_series
from tests.making import REGIONS, tiny_plan
from tests.turning import rotation

SCAN = np.random.default_rng(0).normal(size=(5, 4, 3)).astype(np.float32)
LABEL = np.random.default_rng(1).integers(0, 3, (5, 4, 3)).astype(np.uint8)
PLAN = tiny_plan()


def write(path: Path, label: NDArray[Any], scan: Path, plan: Plan, format: str) -> None:
    write_prediction(path, label, read_image([scan]).geometry, (scan,), plan, format)


def test_every_format_has_an_ending() -> None:
    assert [ending(format) for format in FORMATS] == [".nii.gz", ".nrrd", ".mha", ".dcm"]
    with pytest.raises(AutosegError, match="no output format 'png'; choose"):
        ending("png")


@pytest.mark.parametrize("theirs", [".nii.gz", ".nrrd", ".mha"])
@pytest.mark.parametrize("format", FORMATS[:3])
def test_the_grid_of_the_scan_is_kept(tmp_path: Path, theirs: str, format: str) -> None:
    scan = tmp_path / f"scan{theirs}"
    direction = rotation((0.9, 0.1, -0.3, 0.2))
    write_scan(scan, SCAN, (0.71, 0.9, 2.3), (-101.37, 55.1, 1e-3), direction.ravel().tolist())
    path = tmp_path / "out" / f"a{ending(format)}"
    write(path, LABEL, scan, PLAN, format)
    label, geometry = read_label(path)
    assert (label == LABEL).all()
    expected = read_geometry(scan)
    if theirs == ending(format) or format == "mha":
        assert geometry == expected
    assert geometry.differences(expected, tolerance_mm=1e-4) == []


@pytest.mark.parametrize("format", FORMATS[:3])
@pytest.mark.parametrize(("highest", "size"), [(0, 8), (255, 8), (256, 16), (65535, 16)])
def test_the_smallest_type_that_holds_the_values(
    tmp_path: Path, format: str, highest: int, size: int
) -> None:
    import SimpleITK as sitk

    scan = tmp_path / "scan.nii.gz"
    write_scan(scan, SCAN)
    label = np.zeros((5, 4, 3), np.int64)
    label[4, 3, 2] = highest
    path = tmp_path / f"a{ending(format)}"
    write(path, label, scan, PLAN, format)
    types = {8: sitk.sitkUInt8, 16: sitk.sitkUInt16}
    assert sitk.ReadImage(str(path)).GetPixelID() == types[size]
    assert (read_label(path)[0] == label).all()


def test_a_series_becomes_nifti_on_its_grid(tmp_path: Path) -> None:
    array = np.arange(5 * 4 * 3, dtype=np.int16).reshape(5, 4, 3)
    write_series(tmp_path / "in", array, orientation=(0.8, 0.48, 0.36, -0.6, 0.64, 0.48))
    write(tmp_path / "a.nii.gz", LABEL, tmp_path / "in", PLAN, "nii.gz")
    label, geometry = read_label(tmp_path / "a.nii.gz")
    assert (label == LABEL).all()
    assert geometry.differences(read_geometry(tmp_path / "in"), tolerance_mm=1e-4) == []


def test_dicom_seg_needs_dicom_for_every_case(tmp_path: Path) -> None:
    pytest.importorskip("highdicom")
    write_series(tmp_path / "a", np.zeros((4, 3, 5), np.int16))
    inputs = {"a": (tmp_path / "a",), "b": (tmp_path / "b.nii.gz",), "c": (tmp_path / "c.mha",)}
    check_format("dicom-seg", {"a": inputs["a"]})
    check_format("nrrd", inputs)
    told = (
        r"b\.nii\.gz \(and 1 more\): --format dicom-seg needs a DICOM series as input; choose nii"
    )
    with pytest.raises(AutosegError, match=told):
        check_format("dicom-seg", inputs)


def test_a_missing_library_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output, "find_spec", lambda name: None)
    with pytest.raises(AutosegError, match=r"highdicom.*\[dicom\]"):
        check_format("dicom-seg", {})
    check_format("mha", {})


def test_an_output_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    write_scan(tmp_path / "scan.mha", SCAN)
    for format in FORMATS[:3]:
        with pytest.raises(AutosegError, match="cannot write"):
            write(
                tmp_path / "file" / f"a{ending(format)}", LABEL, tmp_path / "scan.mha", PLAN, format
            )


def test_regions_are_plain_values_in_an_image(tmp_path: Path) -> None:
    write_scan(tmp_path / "scan.nrrd", SCAN)
    label = np.array([0, 1, 4], np.uint8)[LABEL]
    write(tmp_path / "a.nrrd", label, tmp_path / "scan.nrrd", tiny_plan(**REGIONS), "nrrd")
    assert (read_label(tmp_path / "a.nrrd")[0] == label).all()
