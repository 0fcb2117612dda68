"""What `autoseg_predict` does with scans that are unlike those that trained the model."""

from __future__ import annotations

import gzip
import shutil
import struct
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest

from autoseg.cli.predict import main
from autoseg.common.files import read_json
from autoseg.dataset.task import read_task
from autoseg.fingerprint import survey
from autoseg.image.image import read_image
from autoseg.models.folder import FINGERPRINT
from tests.dataset.making import HIPPOCAMPUS, write_scan
from tests.dicom_series import write_series
from tests.making import tiny_plan
from tests.prediction.making import save_model
from tests.prediction.scans import files_in

Capture = pytest.CaptureFixture[str]
RAS = (-1.0, 0.0, 0.0, 0.0, -1.0, 0.0, 0.0, 0.0, 1.0)
FITS, DIFFERS = "hippocampus_040", "coarse"


@pytest.fixture
def arguments(tmp_path: Path) -> list[str]:
    """A scan that fits and one with voxels of 4 mm, and a model that was never trained."""
    plan = tiny_plan(
        channels=["MRI"], preprocessing=[{"step": "z_score"}], inference={"overlap": [0, 0, 0]}
    )
    model = save_model(plan, tmp_path / "model", "0")
    task = read_task(HIPPOCAMPUS)
    survey(replace(task, cases=task.cases[:6]), 1)[0].save(model / FINGERPRINT)
    (tmp_path / "in").mkdir()
    scan = HIPPOCAMPUS / "imagesTs" / f"{FITS}.nii.gz"
    shutil.copy(scan, tmp_path / "in")
    coarse = read_image(scan).array[0, ::4, ::4, ::4]
    write_scan(tmp_path / "in" / f"{DIFFERS}.nii.gz", coarse, (4, 4, 4), direction=RAS)
    paths = {"-i": tmp_path / "in", "-o": tmp_path / "out", "-m": model}
    words = [str(word) for pair in paths.items() for word in pair]
    return [*words, "--device", "cpu", "--backend", "torch"]


def warnings_of(capsys: Capture) -> tuple[list[str], list[str]]:
    """The warnings, and the last lines."""
    lines = capsys.readouterr().err.splitlines()
    return [line for line in lines if line.startswith("warning: ")], lines[-3:]


def test_a_scan_that_differs_is_predicted_with_one_warning(
    arguments: list[str], tmp_path: Path, capsys: Capture
) -> None:
    assert main(arguments) == 0
    (warning,), lines = warnings_of(capsys)
    assert f" {DIFFERS} " in warning
    assert "spacing is 4 x 4 x 4 mm (training scans: 1 x 1 x 1 mm)" in warning
    assert lines[-2] == "2 predicted (1 differ), 0 were there already, 0 refused"
    assert lines[-1].startswith(f"differs {DIFFERS}: spacing")
    record = read_json(tmp_path / "out" / "predictions.json")
    assert record["cases"][FITS]["differs"] == {}
    assert "4 x 4 x 4 mm" in record["cases"][DIFFERS]["differs"]["spacing"]
    assert {run["not_checked"] for run in record["runs"].values()} == {""}


def test_strict_refuses_it(arguments: list[str], tmp_path: Path, capsys: Capture) -> None:
    assert main([*arguments, "--strict"]) == 2
    warnings, lines = warnings_of(capsys)
    assert warnings == []
    assert lines[-2] == "1 predicted, 0 were there already, 1 refused"
    assert lines[-1].startswith(f"refused {DIFFERS}: {tmp_path / 'in' / DIFFERS}.nii.gz: ")
    assert "4 x 4 x 4 mm" in lines[-1]
    assert f"{DIFFERS}.nii.gz" not in files_in(tmp_path / "out")


def test_without_fingerprint_it_is_said_once(
    arguments: list[str], tmp_path: Path, capsys: Capture
) -> None:
    (tmp_path / "model" / FINGERPRINT).unlink()
    assert main(arguments) == 0
    text = capsys.readouterr().err
    assert text.count("not checked") == 1
    record = read_json(tmp_path / "out" / "predictions.json")
    (run,) = record["runs"].values()
    assert "fingerprint.json" in run["not_checked"]


def test_a_ct_series_for_an_mr_model(arguments: list[str], tmp_path: Path, capsys: Capture) -> None:
    shutil.rmtree(tmp_path / "in")
    rng = np.random.default_rng(0)
    values = rng.integers(-1000, 1000, (20, 18, 12)).astype(np.int16)
    write_series(tmp_path / "in" / "ct", values)
    assert main([*arguments, "--format", "dicom-seg"]) == 0
    (warning,), _ = warnings_of(capsys)
    assert "modality is CT (channel of the model: MRI)" in warning
    (file,) = (tmp_path / "out").glob("*.dcm")
    segmentation = pydicom.dcmread(file)
    assert segmentation.SeriesDescription.startswith("DIFFERS")
    assert "modality" in segmentation.SeriesDescription
    assert len(segmentation.SeriesDescription) <= 64
    assert main([*arguments, "--strict", "--overwrite"]) == 2


def test_what_was_guessed_is_recorded_with_the_zip_file(
    arguments: list[str], tmp_path: Path, capsys: Capture
) -> None:
    stored = bytearray(gzip.decompress((tmp_path / "in" / f"{FITS}.nii.gz").read_bytes()))
    struct.pack_into("<2h", stored, 252, 0, 0)  # qform_code and sform_code
    with zipfile.ZipFile(tmp_path / "study.zip", "w") as file:
        file.writestr("a/imaging.nii", stored)
        file.writestr("a.nii/readme.txt", "no scan")
    arguments[1] = str(tmp_path / "study.zip")
    assert main(arguments) == 2
    case = read_json(tmp_path / "out" / "predictions.json")["cases"]["a"]
    assert case["inputs"] == [str(tmp_path / "study.zip" / "a" / "imaging.nii")]
    (warning,), lines = warnings_of(capsys)
    assert warning == f"warning: {case['remarks'][0]}"
    assert "imaging.nii: states no orientation" in warning
    assert str(tmp_path / "study.zip" / "a.nii") in lines[-1]
