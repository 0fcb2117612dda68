"""What `autoseg_predict` says in the end, and its exit status."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from autoseg.cli.predict import main
from autoseg.prediction.predictor import Predictor
from tests.dataset.making import HIPPOCAMPUS
from tests.making import tiny_plan
from tests.prediction.making import save_model
from tests.prediction.scans import files_in

Capture = pytest.CaptureFixture[str]
SCANS = ("hippocampus_040", "hippocampus_088")


@pytest.fixture
def arguments(tmp_path: Path) -> list[str]:
    """Two real scans, and a model that was never trained."""
    plan = tiny_plan(channels=["MRI"], inference={"overlap": [0, 0, 0]})
    model = save_model(plan, tmp_path / "model", "0")
    (tmp_path / "in").mkdir()
    for name in SCANS:
        shutil.copy(HIPPOCAMPUS / "imagesTs" / f"{name}.nii.gz", tmp_path / "in")
    paths = {"-i": tmp_path / "in", "-o": tmp_path / "out", "-m": model}
    words = [str(word) for pair in paths.items() for word in pair]
    return [*words, "--device", "cpu", "--backend", "torch"]


def last_lines(capsys: Capture, count: int) -> list[str]:
    return capsys.readouterr().err.splitlines()[-count:]


def test_all_is_done(arguments: list[str], tmp_path: Path, capsys: Capture) -> None:
    assert main(arguments) == 0
    assert last_lines(capsys, 1) == ["2 predicted, 0 were there already, 0 refused"]
    assert main(arguments) == 0
    assert last_lines(capsys, 1) == ["0 predicted, 2 were there already, 0 refused"]
    names = {f"{name}.nii.gz" for name in SCANS}
    assert files_in(tmp_path / "out") == {"labels.json", "predictions.json", *names}


def test_some_are_refused(arguments: list[str], tmp_path: Path, capsys: Capture) -> None:
    scan = tmp_path / "in" / f"{SCANS[0]}.nii.gz"
    scan.write_bytes(scan.read_bytes()[:5000])
    assert main(arguments) == 2
    counts, refused = last_lines(capsys, 2)
    assert counts == "1 predicted, 0 were there already, 1 refused"
    assert refused.startswith(f"refused {SCANS[0]}: {scan}: ")
    assert main(arguments) == 2
    assert last_lines(capsys, 2)[0] == "0 predicted, 1 were there already, 1 refused"


def test_all_fail_and_not_for_their_scans(
    arguments: list[str], capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_out(*_: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(Predictor, "segment", run_out)
    assert main(arguments) == 1
    assert last_lines(capsys, 2)[0] == "0 predicted, 0 were there already, 0 refused, 2 failed"
    assert main([*arguments, "--debug"]) == 1
    printed = capsys.readouterr().err
    assert printed.count("Traceback (most recent call last)") == 2
    assert "in run_out" in printed
