"""From DICOM series to files in every format, by the command."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from PIL import Image

from autoseg.cli.common import parser
from autoseg.cli.predict import main
from autoseg.common.files import read_json, write_json
from autoseg.image.image import read_geometry, read_label
from autoseg.prediction.output import DEFAULT_FORMAT, FORMATS, ending
from autoseg.prediction.predictor import Predictor
from tests.dataset.making import write_scan
from tests.dicom_series import REPORT, make_object, save, write_series
from tests.forking import fine_pictures
from tests.making import tiny_plan
from tests.prediction.making import save_model
from tests.turning import rotation

__all__ = ["fine_pictures"]

SCAN = np.random.default_rng(0).integers(-3, 4, (9, 8, 7)).astype(np.int16)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save_model(tiny_plan(), tmp_path / "model", "0")


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """One good series, one with a gap, and a report."""
    folder = tmp_path / "archive"
    write_series(folder / "P1" / "good", SCAN)
    write_series(folder / "P2" / "gap", SCAN, PatientID="p2")[3].unlink()
    save(make_object(REPORT, "SR"), folder / "P2" / "report")
    return folder


def predict(model: Path, scans: Path, out: Path, *more: str) -> int:
    words = ["-m", str(model), "-i", str(scans), "-o", str(out), "--device", "cpu", *more]
    return main([*words, "--backend", "torch"])


def test_the_command_knows_every_format() -> None:
    (format,) = (each for each in parser("autoseg_predict")._actions if each.dest == "format")
    assert tuple(format.choices or ()) == FORMATS
    assert format.default == DEFAULT_FORMAT


def test_a_hospital_archive_in_every_format(
    model: Path, archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("highdicom")
    labels = {}
    for format in FORMATS:
        out = tmp_path / format
        assert predict(model, archive, out, "--format", format) == 2  # one scan is refused
        printed = capsys.readouterr().err
        assert "1 predicted, 0 " in printed
        assert "missing" in printed
        assert f"ignored {Path('P2') / 'report'}: " in printed
        written = out / f"p1_4{ending(format)}"
        assert written.exists()
        assert list(read_json(out / "predictions.json")["cases"]) == ["p1_4"]
        if format != "dicom-seg":
            labels[format] = read_label(written)[0]
    assert labels["nii.gz"].any()
    for label in labels.values():
        assert (label == labels["nii.gz"]).all()
    segmentation = pydicom.dcmread(tmp_path / "dicom-seg" / "p1_4.dcm")
    voxels = int(segmentation.pixel_array.sum())
    assert voxels == np.count_nonzero(labels["nii.gz"])


@pytest.mark.parametrize("steps", [[], [{"step": "crop_to_nonzero"}, {"step": "resample"}]])
def test_the_grid_of_the_scan_is_kept_to_the_bit(tmp_path: Path, steps: list[Any]) -> None:
    model = save_model(tiny_plan(preprocessing=steps), tmp_path / "model", "0")
    directions = {
        "LPS": np.eye(3),
        "RAS": np.diag([-1, -1, 1]),
        "LAS": np.diag([1, -1, 1]),
        "LPI": np.diag([1, 1, -1]),
        "oblique": rotation((0.9, 0.1, -0.3, 0.2)),
    }
    for name, direction in directions.items():
        path = tmp_path / "in" / f"{name}_0000.nii.gz"
        write_scan(path, SCAN, (0.71, 0.9, 2.3), (-101.37, 55.1, 1e-3), direction.ravel().tolist())
    assert predict(model, tmp_path / "in", tmp_path / "out") == 0
    for name in directions:
        scan = read_geometry(tmp_path / "in" / f"{name}_0000.nii.gz")
        assert read_geometry(tmp_path / "out" / f"{name}.nii.gz") == scan, name


def test_dicom_seg_of_another_scan_is_one_line_before_anything_is_predicted(
    model: Path, archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("highdicom")
    write_scan(archive / "x.nii.gz", SCAN)
    assert predict(model, archive, tmp_path / "out", "--format", "dicom-seg") == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"error: {archive / 'x.nii.gz'}: --format dicom-seg")
    assert not (tmp_path / "out").exists()


def test_an_archive_of_refused_scans_alone(
    model: Path, archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert predict(model, archive / "P2", tmp_path / "out") == 2
    assert "0 predicted, 0 " in capsys.readouterr().err


@pytest.mark.parametrize("format", ["nii.gz", "dicom-seg"])
def test_previews(
    format: str, model: Path, archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("highdicom")
    out = tmp_path / "out"
    assert predict(model, archive / "P1", out, "--format", format) == 0
    capsys.readouterr()
    options = ("--format", format, "--preview")
    assert predict(model, archive / "P1", out, *options) == 0
    assert "p1_4.preview.png is missing" in capsys.readouterr().err
    png, capture = out / "p1_4.preview.png", out / "p1_4.preview.dcm"
    picture = np.asarray(Image.open(png).convert("RGB"))
    assert capture.exists() == (format == "dicom-seg")
    files = read_json(out / "predictions.json")["cases"]["p1_4"]["files"]
    assert files.keys() == {path.name for path in out.glob("p1_4*")}
    if format == "dicom-seg":
        assert (pydicom.dcmread(capture).pixel_array == picture).all()
    assert predict(model, archive / "P1", out, *options) == 0
    assert "0 predicted, 1 were there" in capsys.readouterr().err


def test_an_unusable_series_is_refused_before_the_network_runs(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("highdicom")
    write_series(tmp_path / "in", SCAN, SOPInstanceUID="1.2.3")
    monkeypatch.setattr(Predictor, "segment", None)
    assert predict(model, tmp_path / "in", tmp_path / "out", "--format", "dicom-seg") == 2
    assert "SOPInstanceUID" in capsys.readouterr().err


def test_what_was_completed_is_recorded(model: Path, tmp_path: Path) -> None:
    pytest.importorskip("highdicom")
    write_series(tmp_path / "in", SCAN, FrameOfReferenceUID=None)
    write_json(model / "card.json", {"content_qualification": "SERVICE"})
    assert predict(model, tmp_path / "in", tmp_path / "out", "--format", "dicom-seg") == 0
    (remark,) = read_json(tmp_path / "out" / "predictions.json")["cases"]["p1_4"]["remarks"]
    assert remark.startswith(f"{tmp_path / 'in'}: FrameOfReferenceUID")
    assert pydicom.dcmread(tmp_path / "out" / "p1_4.dcm").ContentQualification == "SERVICE"
