from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from autoseg.common.errors import AutosegError, DataError, RunError, Stopped
from autoseg.common.files import read_json
from autoseg.image.image import read_geometry, read_image, read_label
from autoseg.prediction.batch import Outcome, predict_cases, show
from autoseg.prediction.inputs import FoundInputs
from autoseg.prediction.output import output_path
from autoseg.prediction.predictor import Predictor
from autoseg.prediction.record import LABELS as LABELS_FILE
from autoseg.prediction.record import RECORD
from tests.dataset.making import write_scan
from tests.making import tiny_plan
from tests.prediction.making import Pointwise, model_of
from tests.prediction.scans import PLAN, files_in, inputs_of, predict, write_scans

LAS = (1.0, 0.0, 0.0, 0.0, -1.0, 0.0, 0.0, 0.0, 1.0)
OBLIQUE = (0.8, -0.6, 0.0, 0.48, 0.64, -0.6, 0.36, 0.48, 0.8)
SIDE_FILES = {RECORD, LABELS_FILE}


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    return write_scans(tmp_path / "in", "a", "Müller 2")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "aus gabe"


def test_every_case_becomes_one_label_map(scans: Path, out: Path) -> None:
    outcome = predict(scans, out)
    assert files_in(out) == {"Müller 2.nii.gz", "a.nii.gz", *SIDE_FILES}
    assert (outcome.skipped, outcome.refused, outcome.failed) == ((), {}, {})
    for name in ("a", "Müller 2"):
        label, _ = read_label(out / f"{name}.nii.gz")
        values = read_image([scans / f"{name}_0000.nii.gz"]).array[0]
        assert (label == np.array([0, 1, 3])[values.astype(int)]).all()


@pytest.mark.parametrize("steps", [[], [{"step": "crop_to_nonzero"}, {"step": "resample"}]])
def test_the_grid_of_the_scan_is_kept(tmp_path: Path, out: Path, steps: Any) -> None:
    values = np.random.default_rng(0).normal(size=(9, 8, 7)).astype(np.float32)
    place = (-101.37, 55.1, 1e-3)
    write_scan(tmp_path / "in" / "las.nii.gz", values, (0.71, 0.71, 2.3), place, LAS)
    write_scan(tmp_path / "in" / "oblique.nii.gz", values, (0.71, 0.9, 2.3), place, OBLIQUE)
    assert predict(tmp_path / "in", out, plan=tiny_plan(preprocessing=steps)).is_complete
    for name in ("las", "oblique"):
        was = read_geometry(tmp_path / "in" / f"{name}.nii.gz")
        assert read_geometry(out / f"{name}.nii.gz") == was


@pytest.mark.parametrize("format", ["nrrd", "mha"])
def test_another_format(scans: Path, out: Path, format: str) -> None:
    predict(scans, out, format=format)
    assert files_in(out) == {f"a.{format}", f"Müller 2.{format}", *SIDE_FILES}
    assert output_path(out, "a", format).exists()
    predict(scans, out.with_name("nifti"))
    nifti = read_label(output_path(out.with_name("nifti"), "a"))
    assert (read_label(out / f"a.{format}")[0] == nifti[0]).all()
    assert predict(scans, out, format=format).skipped == ("Müller 2", "a")
    with pytest.raises(AutosegError, match=f"{RECORD}.* format"):
        predict(scans, out)


def test_a_refused_scan_does_not_stop_the_other_cases(scans: Path, out: Path) -> None:
    (scans / "bad.nii.gz").write_bytes(b"no scan")
    write_scan(scans / "two_0000.nii.gz", np.zeros((4, 4, 4), np.float32))
    inputs = inputs_of(scans)
    inputs["two"] = (inputs["two"][0], inputs["two"][0])
    predictor = Predictor(model_of(PLAN, Pointwise()), device="cpu")
    outcome = predict_cases(
        predictor, FoundInputs(cases=inputs, refused={"odd": "odd: no scan"}), out
    )
    assert sorted(outcome.predicted) == ["Müller 2", "a"]
    assert sorted(outcome.refused) == ["bad", "odd", "two"]
    assert "bad.nii.gz" in outcome.refused["bad"]
    assert "two_0000.nii.gz: the scan has 2 channels" in outcome.refused["two"]
    assert sorted(read_json(out / RECORD)["cases"]) == ["Müller 2", "a"]
    assert files_in(out) == {"Müller 2.nii.gz", "a.nii.gz", *SIDE_FILES}
    with pytest.raises(DataError, match=r"odd: no scan \(and 2 more\)"):
        outcome.raise_failures()


class Failing(nn.Module):
    """A network that fails for scans of some value."""

    def __init__(self, error: BaseException, value: float = 2.0) -> None:
        super().__init__()
        self.error, self.value = error, value
        self.network = Pointwise()

    def forward(self, patches: Tensor) -> Tensor:
        if float(patches.max()) == self.value:
            raise self.error
        found: Tensor = self.network(patches)
        return found


def predict_failing(scans: Path, out: Path, error: BaseException) -> Any:
    write_scan(scans / "b.nii.gz", np.eye(4, dtype=np.float32)[..., None].repeat(4, axis=2))
    predictor = Predictor(model_of(PLAN, Failing(error)), device="cpu")
    return predict_cases(predictor, FoundInputs(cases=inputs_of(scans)), out)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (MemoryError(), "failed a: out of memory"),
        (torch.OutOfMemoryError("CUDA out of memory"), "CUDA out of memory (OutOfMemoryError)"),
        (RuntimeError("two\nlines"), "failed a: two lines (RuntimeError)"),
    ],
)
def test_an_unexpected_error_does_not_stop_the_other_cases(
    scans: Path, out: Path, error: Exception, message: str
) -> None:
    outcome = predict_failing(scans, out, error)
    assert (list(outcome.predicted), sorted(outcome.failed)) == (["b"], ["Müller 2", "a"])
    assert any(message in f"{state} {name}: {why}" for state, name, why in outcome.missing())
    assert files_in(out) == {"b.nii.gz", *SIDE_FILES}
    with pytest.raises(type(error)):
        outcome.raise_failures()


@pytest.mark.parametrize("error", [KeyboardInterrupt(), Stopped("stopped", 15), RunError("no")])
def test_a_signal_ends_the_run_and_leaves_complete_files(
    scans: Path, out: Path, error: BaseException
) -> None:
    write_scans(scans, "z")
    with pytest.raises(type(error)):
        predict_failing(scans, out, error)
    found = files_in(out)
    assert found <= {"b.nii.gz", *SIDE_FILES}  # no claim and no unfinished file is left
    assert found >= SIDE_FILES


def test_a_failed_case_releases_its_arrays(scans: Path, out: Path) -> None:
    outcome = predict_failing(scans, out, MemoryError())
    frame = outcome.failed["a"].__traceback__
    while frame is not None:
        held = [value for value in frame.tb_frame.f_locals.values() if hasattr(value, "shape")]
        assert held == []
        frame = frame.tb_next


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_prediction_never_replaces_its_scan(tmp_path: Path, overwrite: bool) -> None:
    write_scan(tmp_path / "a.nii.gz", np.ones((4, 4, 4), np.float32))
    before = (tmp_path / "a.nii.gz").read_bytes()
    with pytest.raises(AutosegError, match=r"a\.nii\.gz"):
        predict(tmp_path, tmp_path, overwrite)
    assert (tmp_path / "a.nii.gz").read_bytes() == before


def test_an_output_folder_that_cannot_be_created(scans: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(AutosegError, match=r"file.out"):
        predict(scans, tmp_path / "file" / "out")


def error_of(text: str) -> Exception:
    try:
        raise RuntimeError(text)
    except RuntimeError as error:
        return error


REFUSED = {"bad [1]": "bad [1].nii.gz: no scan", "worse": "worse.nii.gz: no scan either"}
MIXED = Outcome({"a": {}}, ("b", "c"), REFUSED, {"d": MemoryError()})


@pytest.mark.parametrize(
    ("outcome", "complete", "our_fault"),
    [
        (Outcome(), True, False),
        (Outcome({"a": {}}, ("b",)), True, False),
        (Outcome(refused=REFUSED), False, False),
        (Outcome(failed={"d": MemoryError()}), False, True),
        (Outcome(refused=REFUSED, failed={"d": MemoryError()}), False, True),
        (MIXED, False, False),
    ],
)
def test_complete_and_our_fault(outcome: Outcome, complete: bool, our_fault: bool) -> None:
    assert (outcome.is_complete, outcome.is_our_fault) == (complete, our_fault)


def test_show_prints_plain_lines(capsys: pytest.CaptureFixture[str]) -> None:
    show(MIXED)
    assert capsys.readouterr().err.splitlines() == [
        "1 predicted, 2 were there already, 2 refused, 1 failed",
        "refused bad [1]: bad [1].nii.gz: no scan",
        "refused worse: worse.nii.gz: no scan either",
        next(f"failed {name}: {why}" for state, name, why in MIXED.missing() if state == "failed"),
    ]
    show(Outcome({"a": {}}))
    assert capsys.readouterr().err == "1 predicted, 0 were there already, 0 refused\n"


def test_failures_are_raised(capsys: pytest.CaptureFixture[str]) -> None:
    Outcome({"a": {}}, ("b",)).raise_failures()
    with pytest.raises(DataError, match=r"bad \[1\].nii.gz: no scan \(and 1 more\)"):
        Outcome(refused=REFUSED).raise_failures()
    with pytest.raises(MemoryError):
        MIXED.raise_failures()
    assert issubclass(RunError, RuntimeError)
    show(Outcome(failed={"d": error_of("from here")}), debug=True)
    assert "in error_of\n    raise RuntimeError(text)" in capsys.readouterr().err
