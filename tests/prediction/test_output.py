from __future__ import annotations

from pathlib import Path
from typing import Any

import blosc2
import numpy as np
import pytest
from numpy.typing import NDArray

from autoseg.common.errors import AutosegError
from autoseg.common.files import read_json
from autoseg.image.geometry import SWAPS
from autoseg.image.image import Image, read_geometry, read_image, read_label
from autoseg.image.label_writer import write_label
from autoseg.prediction import output
from autoseg.prediction.batch import Options, predict_cases
from autoseg.prediction.inputs import FoundInputs, Inputs
from autoseg.prediction.output import (
    FORMATS,
    PROBABILITIES,
    check_format,
    ending,
    probability_file,
    volumes,
)
from autoseg.prediction.predictor import Predictor
from tests.dataset.making import write_scan
from tests.dicom_series import write_series
from tests.making import REGIONS, grid, tiny_plan
from tests.prediction.making import Layers, Pointwise, Sided, model_of
from tests.prediction.scans import LABELS
from tests.prediction.scans import PLAN as PLAN_WITH_SHARES
from tests.turning import rotation

SCAN = np.random.default_rng(0).normal(size=(5, 4, 3)).astype(np.float32)
LABEL = np.random.default_rng(1).integers(0, 3, (5, 4, 3)).astype(np.uint8)
PLAN = tiny_plan()


def write(path: Path, label: NDArray[Any], scan: Path) -> None:
    write_label(path, label, read_image([scan]).geometry, like=scan)


def test_every_format_has_an_ending() -> None:
    assert [ending(format) for format in FORMATS] == [".nii.gz", ".nrrd", ".mha", ".dcm"]
    with pytest.raises(AutosegError, match=r"png.*nii\.gz"):
        ending("png")


@pytest.mark.parametrize("theirs", [".nii.gz", ".nrrd", ".mha"])
@pytest.mark.parametrize("format", FORMATS[:3])
def test_the_grid_of_the_scan_is_kept(tmp_path: Path, theirs: str, format: str) -> None:
    scan = tmp_path / f"scan{theirs}"
    direction = rotation((0.9, 0.1, -0.3, 0.2))
    write_scan(scan, SCAN, (0.71, 0.9, 2.3), (-101.37, 55.1, 1e-3), direction.ravel().tolist())
    path = tmp_path / "out" / f"a{ending(format)}"
    write(path, LABEL, scan)
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
    write(path, label, scan)
    types = {8: sitk.sitkUInt8, 16: sitk.sitkUInt16}
    assert sitk.ReadImage(str(path)).GetPixelID() == types[size]
    assert (read_label(path)[0] == label).all()


def test_a_series_becomes_nifti_on_its_grid(tmp_path: Path) -> None:
    array = np.arange(5 * 4 * 3, dtype=np.int16).reshape(5, 4, 3)
    write_series(tmp_path / "in", array, orientation=(0.8, 0.48, 0.36, -0.6, 0.64, 0.48))
    write(tmp_path / "a.nii.gz", LABEL, tmp_path / "in")
    label, geometry = read_label(tmp_path / "a.nii.gz")
    assert (label == LABEL).all()
    assert geometry.differences(read_geometry(tmp_path / "in"), tolerance_mm=1e-4) == []


def test_dicom_seg_needs_dicom_for_every_case(tmp_path: Path) -> None:
    pytest.importorskip("highdicom")
    write_series(tmp_path / "a", np.zeros((4, 3, 5), np.int16))
    inputs = {"a": (tmp_path / "a",), "b": (tmp_path / "b.nii.gz",), "c": (tmp_path / "c.mha",)}
    check_format("dicom-seg", {"a": inputs["a"]})
    check_format("nrrd", inputs)
    with pytest.raises(AutosegError, match=r"b\.nii\.gz \(and 1 more\): --format dicom-seg"):
        check_format("dicom-seg", inputs)


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output, "find_spec", lambda name: None)
    with pytest.raises(AutosegError, match=r"highdicom.*\[dicom\]"):
        check_format("dicom-seg", {})
    check_format("mha", {})


def test_an_output_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    write_scan(tmp_path / "scan.mha", SCAN)
    for format in FORMATS[:3]:
        with pytest.raises(AutosegError, match=r"file.a\."):
            write(tmp_path / "file" / f"a{ending(format)}", LABEL, tmp_path / "scan.mha")


def test_regions_are_written_as_values(tmp_path: Path) -> None:
    write_scan(tmp_path / "scan.nrrd", SCAN)
    label = np.array([0, 1, 4], np.uint8)[LABEL]
    write(tmp_path / "a.nrrd", label, tmp_path / "scan.nrrd")
    assert (read_label(tmp_path / "a.nrrd")[0] == label).all()


def test_volumes_and_shares_golden() -> None:
    label = np.zeros((10, 10, 10), np.uint8)
    label[0] = 1  # 100 voxels of 3 cubic millimetres
    label[1, :5] = 2  # 50
    label[2, 0] = 3  # 10
    geometry = grid((10, 10, 10), (0.5, 2.0, 3.0))
    assert volumes(label, geometry, PLAN_WITH_SHARES) == {
        "volume_ml": {"lungs": 0.45, "infection": 0.03},
        "share": {"infection": 0.0625},
    }
    assert "share" not in volumes(label, geometry, tiny_plan(labels=LABELS))


def test_an_empty_segmentation_has_no_share() -> None:
    nothing = volumes(np.zeros((4, 4, 4), np.uint8), grid((4, 4, 4)), PLAN_WITH_SHARES)
    assert nothing == {
        "volume_ml": {"lungs": 0.0, "infection": 0.0},
        "share": {"infection": None},
    }


def test_arrays_need_not_be_contiguous() -> None:
    label = np.random.default_rng(0).integers(0, 4, (7, 6, 5)).astype(np.uint16)
    turned = label.transpose(2, 0, 1)[::-1]
    assert volumes(turned, grid(turned.shape), PLAN_WITH_SHARES) == volumes(
        label, grid(label.shape), PLAN_WITH_SHARES
    )


STEPS = [{"step": "crop_to_nonzero"}, {"step": "resample", "anisotropy": None}]


def scan(shape: tuple[int, int, int]) -> Image:
    array = np.zeros((1, *shape), np.float32)
    array[0, 1:-2, 2:, :-1] = np.random.default_rng(0).uniform(
        0.2, 2, array[0, 1:-2, 2:, :-1].shape
    )
    return Image(array, grid(shape))


def computed(model: Predictor, image: Image) -> NDArray[np.float32]:
    """All probabilities at once, class by class, along x."""
    out = np.zeros((model.classes.outputs, *image.geometry.size), np.float32)
    for planes in model.planes(model.prepare(image), 0):
        whole = (slice(0, planes.shape[1]), slice(0, planes.shape[2]))
        for index, share in enumerate(out):
            share[planes.rows] = planes.probabilities(index, whole)
    return out


@pytest.mark.parametrize("steps", [[], STEPS])
@pytest.mark.parametrize("shape", [(45, 9, 8), (9, 37, 10), (8, 9, 33), (5, 6, 4)])
def test_the_file_contains_the_computed_probabilities(
    tmp_path: Path, steps: Any, shape: Any
) -> None:
    plan = tiny_plan(preprocessing=steps, target_spacing_mm=[1.3, 0.8, 1.1])
    model, image = Predictor(model_of(plan, Sided()), device="cpu"), scan(shape)
    label = model.segment(model.prepare(image), tmp_path / "a.b2nd")
    file = blosc2.open(str(tmp_path / "a.b2nd"), mode="r")
    assert (file.shape, file.dtype) == ((3, *shape), np.float16)
    assert file.vlmeta["classes"] == ["background", "organ", "tumour"]
    found, expected = file[:], computed(model, image)
    assert np.abs(found - expected).max() <= 6e-4  # half the distance of float16 values below 1
    assert np.abs(found.sum(axis=0, dtype=float) - 1).max() <= 2e-3
    assert (file[2] == found[2]).all()
    ranked = np.sort(found, axis=0)
    clear = ranked[-1] - ranked[-2] > 2e-3
    assert (label == found.argmax(axis=0))[clear].all()
    assert (label == model.predict(image)).all()
    assert [path.name for path in tmp_path.iterdir()] == ["a.b2nd"]


def test_regions_have_no_background_probabilities(tmp_path: Path) -> None:
    model = Predictor(model_of(tiny_plan(**REGIONS, preprocessing=STEPS), Layers(3)), device="cpu")
    image = scan((9, 8, 20))
    model.segment(model.prepare(image), tmp_path / "a.b2nd")
    file = blosc2.open(str(tmp_path / "a.b2nd"), mode="r")
    assert file.vlmeta["classes"] == ["whole", "core", "enhancing"]
    assert np.abs(file[:] - computed(model, image)).max() <= 6e-4
    assert not file[:, 0].any()  # outside of the crop


def test_each_chunk_is_written_once_and_smooth_probabilities_become_small(tmp_path: Path) -> None:
    size = (40, 32, 30)
    with probability_file(tmp_path / "a.b2nd", ["a", "b"], size, SWAPS[2]) as file:
        for start in (0, 16):
            rows = slice(start, min(start + 16, 30))
            for index in (0, 1):
                file(index, rows, np.full((rows.stop - start, 32, 40), index, np.float32))
    found = blosc2.open(str(tmp_path / "a.b2nd"), mode="r")
    assert found.chunks == (1, 40, 32, 16)
    assert (found[1] == 1).all()
    assert (tmp_path / "a.b2nd").stat().st_size < 2 * 40 * 32 * 30 * 2 / 50


def test_an_interrupted_file_does_not_appear(tmp_path: Path) -> None:
    (tmp_path / "a.b2nd").write_bytes(b"old")

    def interrupted() -> None:
        with probability_file(tmp_path / "a.b2nd", ["a"], (4, 4, 4)) as file:
            file(0, slice(0, 4), np.ones((4, 4, 4), np.float32))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert (tmp_path / "a.b2nd").read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 1


def test_an_error_of_blosc2_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        def __init__(self) -> None:
            self.vlmeta: dict[str, Any] = {}

        def __setitem__(self, *_: Any) -> None:
            raise RuntimeError("no space")

    def fill() -> None:
        with probability_file(tmp_path / "a.b2nd", ["a"], (4, 4, 4)) as file:
            file(0, slice(0, 4), np.ones((4, 4, 4), np.float32))

    monkeypatch.setattr(blosc2, "zeros", lambda *_, **__: Full())
    with pytest.raises(AutosegError, match=r"a\.b2nd: no space"):
        fill()


def test_probability_files_are_recorded_and_restored(tmp_path: Path) -> None:
    out, image = tmp_path / "out", scan((9, 8, 7))
    write_scan(tmp_path / "in" / "a.nii.gz", image.array[0])
    inputs: Inputs = {"a": (tmp_path / "in" / "a.nii.gz",)}
    model = Predictor(model_of(tiny_plan(), Pointwise()), device="cpu")
    predict_cases(model, FoundInputs(cases=inputs), out)
    assert not (out / f"a{PROBABILITIES}").exists()
    for _ in range(2):
        outcome = predict_cases(
            model, FoundInputs(cases=inputs), out, options=Options(save_probabilities=True)
        )
        assert list(outcome.predicted) == ["a"]
        files = read_json(out / "predictions.json")["cases"]["a"]["files"]
        assert set(files) == {"a.nii.gz", f"a{PROBABILITIES}"}
        assert files[f"a{PROBABILITIES}"]["bytes"] == (out / f"a{PROBABILITIES}").stat().st_size
        again = predict_cases(
            model, FoundInputs(cases=inputs), out, options=Options(save_probabilities=True)
        )
        assert again.skipped == ("a",)
        (out / f"a{PROBABILITIES}").unlink()
