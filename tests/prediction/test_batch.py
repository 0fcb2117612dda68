from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from autoseg.errors import AutosegError, DataError
from autoseg.files import read_json
from autoseg.image import read_geometry, read_image, read_label
from autoseg.planning.plan import Plan
from autoseg.prediction.batch import RECORD, predict_cases, volumes
from autoseg.prediction.inputs import find_inputs
from autoseg.prediction.predictor import Predictor
from tests.dataset.making import write_scan
from tests.making import grid, tiny_plan
from tests.prediction.making import Pointwise, model_of

LABELS = {"background": [0], "lungs": [1, 2], "infection": [3]}
SHARE = {"label": 3, "container": [1, 2]}
PLAN = tiny_plan(labels=LABELS, shares=[SHARE])
LAS = (1.0, 0.0, 0.0, 0.0, -1.0, 0.0, 0.0, 0.0, 1.0)
OBLIQUE = (0.8, -0.6, 0.0, 0.48, 0.64, -0.6, 0.36, 0.48, 0.8)


def predictor_of(plan: Plan = PLAN) -> Predictor:
    return Predictor(model_of(plan, Pointwise()), device="cpu")


def write_scans(folder: Path, *names: str) -> Path:
    for seed, name in enumerate(names):
        values = np.random.default_rng(seed).integers(0, 3, (6, 5, 4)).astype(np.float32)
        write_scan(folder / f"{name}_0000.nii.gz", values, (1.0, 2.0, 2.5))
    return folder


def predict(folder: Path, out: Path, overwrite: bool = False, plan: Plan = PLAN) -> Any:
    return predict_cases(predictor_of(plan), find_inputs(folder, plan.channels), out, overwrite)


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    return write_scans(tmp_path / "in", "a", "Müller 2")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "aus gabe"


def test_every_case_becomes_one_label_map(scans: Path, out: Path) -> None:
    outcome = predict(scans, out)
    assert sorted(path.name for path in out.iterdir()) == [
        "Müller 2.nii.gz",
        "a.nii.gz",
        RECORD,
    ]
    assert (outcome.skipped, outcome.failed) == ((), {})
    for name in ("a", "Müller 2"):
        label, _ = read_label(out / f"{name}.nii.gz")
        values = read_image([scans / f"{name}_0000.nii.gz"]).array[0]
        assert (label == np.array([0, 1, 3])[values.astype(int)]).all()


def test_the_record_says_what_was_done_with_what(scans: Path, out: Path) -> None:
    outcome = predict(scans, out)
    record = read_json(out / RECORD)
    assert record["cases"] == outcome.predicted
    assert list(record["cases"]) == ["Müller 2", "a"]
    assert record["plan_id"] == PLAN.id
    assert (record["task"], record["plan"]) == ("Task001_Tiny", "default")
    assert record["folds"] == ["0"]
    assert record["labels"] == LABELS
    assert record["ignore_label"] is None
    case = record["cases"]["a"]
    values = read_image([scans / "a_0000.nii.gz"]).array
    lungs, infection = np.count_nonzero(values == 1), np.count_nonzero(values == 2)
    assert case["file"] == "a.nii.gz"
    assert case["inputs"] == [str(scans / "a_0000.nii.gz")]
    assert case["seconds"] >= 0
    voxel_ml = 1.0 * 2.0 * 2.5 / 1000
    assert case["volume_ml"] == {
        "lungs": pytest.approx(lungs * voxel_ml, abs=1e-6),
        "infection": pytest.approx(infection * voxel_ml, abs=1e-6),
    }
    expected = infection / (lungs + infection)
    assert case["share"] == {"infection": pytest.approx(expected, abs=1e-6)}


def test_volumes_and_shares_golden() -> None:
    label = np.zeros((10, 10, 10), np.uint8)
    label[0] = 1  # 100 voxels of 3 cubic millimetres
    label[1, :5] = 2  # 50
    label[2, 0] = 3  # 10
    geometry = grid((10, 10, 10), (0.5, 2.0, 3.0))
    assert volumes(label, geometry, PLAN) == {
        "volume_ml": {"lungs": 0.45, "infection": 0.03},
        "share": {"infection": 0.0625},
    }
    assert "share" not in volumes(label, geometry, tiny_plan(labels=LABELS))


def test_an_empty_segmentation_has_no_share() -> None:
    nothing = volumes(np.zeros((4, 4, 4), np.uint8), grid((4, 4, 4)), PLAN)
    assert nothing == {
        "volume_ml": {"lungs": 0.0, "infection": 0.0},
        "share": {"infection": None},
    }


@pytest.mark.parametrize("steps", [[], [{"step": "crop_to_nonzero"}, {"step": "resample"}]])
def test_the_grid_of_the_scan_is_kept_to_the_bit(tmp_path: Path, out: Path, steps: Any) -> None:
    values = np.random.default_rng(0).normal(size=(9, 8, 7)).astype(np.float32)
    place = (-101.37, 55.1, 1e-3)
    write_scan(tmp_path / "in" / "las.nii.gz", values, (0.71, 0.71, 2.3), place, LAS)
    write_scan(tmp_path / "in" / "oblique.nii.gz", values, (0.71, 0.9, 2.3), place, OBLIQUE)
    plan = tiny_plan(preprocessing=steps)
    assert predict(tmp_path / "in", out, plan=plan).failed == {}
    for name in ("las", "oblique"):
        was = read_geometry(tmp_path / "in" / f"{name}.nii.gz")
        now = read_geometry(out / f"{name}.nii.gz")
        assert (now.size, now.spacing_mm, now.origin_mm) == (
            was.size,
            was.spacing_mm,
            was.origin_mm,
        )
        if name == "las":
            assert now.direction == was.direction
        # NIfTI has no exact place for oblique directions: they pass through 32 bits.
        assert now.direction == pytest.approx(was.direction, abs=1e-7)


def test_a_bad_case_does_not_stop_the_others(scans: Path, out: Path) -> None:
    (scans / "bad.nii.gz").write_bytes(b"no scan")
    write_scan(scans / "two_0000.nii.gz", np.zeros((4, 4, 4), np.float32))
    write_scan(scans / "two_0001.nii.gz", np.zeros((4, 4, 4), np.float32))
    outcome = predict(scans, out)
    assert sorted(outcome.predicted) == ["Müller 2", "a"]
    assert sorted(outcome.failed) == ["bad", "two"]
    assert "bad.nii.gz" in outcome.failed["bad"]
    assert "two_0000.nii.gz: the scan has 2 channels, the model needs 1" in outcome.failed["two"]
    assert sorted(read_json(out / RECORD)["cases"]) == ["Müller 2", "a"]
    assert not (out / "bad.nii.gz").exists()
    with pytest.raises(DataError, match=r"bad\.nii\.gz.* \(and 1 more\)"):
        outcome.raise_failures()


def test_no_failure_raises_nothing(scans: Path, out: Path) -> None:
    predict(scans, out).raise_failures()


def test_what_is_there_is_skipped_and_keeps_its_record(scans: Path, out: Path) -> None:
    predict(scans, out)
    before = (out / "a.nii.gz").stat().st_mtime_ns, read_json(out / RECORD)["cases"]["a"]
    write_scans(scans, "a", "Müller 2", "new")
    outcome = predict(scans, out)
    assert (sorted(outcome.predicted), sorted(outcome.skipped)) == (["new"], ["Müller 2", "a"])
    record = read_json(out / RECORD)["cases"]
    assert list(record) == ["Müller 2", "a", "new"]
    assert ((out / "a.nii.gz").stat().st_mtime_ns, record["a"]) == before


def test_overwrite_predicts_again(scans: Path, out: Path) -> None:
    predict(scans, out)
    write_scan(scans / "a_0000.nii.gz", np.ones((3, 3, 3), np.float32))
    outcome = predict(scans, out, overwrite=True)
    assert sorted(outcome.predicted) == ["Müller 2", "a"]
    label, _ = read_label(out / "a.nii.gz")
    assert label.shape == (3, 3, 3)
    assert (label == 1).all()


def test_a_run_that_is_stopped_keeps_the_records_of_what_it_has_done(
    scans: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    predictor = predictor_of()
    inputs = find_inputs(scans, PLAN.channels)
    first, second = inputs
    inputs[second] = (scans / "gone.nii.gz",)

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("autoseg.prediction.batch.say", interrupt)  # the second case fails
    with pytest.raises(KeyboardInterrupt):
        predict_cases(predictor, inputs, out, overwrite=False)
    assert list(read_json(out / RECORD)["cases"]) == [first]


def test_predictions_of_another_plan_are_not_taken_for_ours(scans: Path, out: Path) -> None:
    predict(scans, out)
    other = tiny_plan(labels=LABELS, training={"seed": 1})
    with pytest.raises(AutosegError, match=r"another plan_id than this run.*choose another -o"):
        predict(scans, out, plan=other)
    (scans / "a_0000.nii.gz").unlink()
    predict(scans, out, overwrite=True, plan=other)
    record = read_json(out / RECORD)
    assert (record["plan_id"], list(record["cases"])) == (other.id, ["Müller 2"])


def test_a_damaged_record_is_written_anew(scans: Path, out: Path) -> None:
    predict(scans, out)
    (out / RECORD).write_text("{", encoding="utf-8")
    predict(scans, out, overwrite=True)
    assert list(json.loads((out / RECORD).read_text(encoding="utf-8"))["cases"]) == [
        "Müller 2",
        "a",
    ]


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_prediction_never_replaces_its_scan(tmp_path: Path, overwrite: bool) -> None:
    write_scan(tmp_path / "a.nii.gz", np.ones((4, 4, 4), np.float32))
    before = (tmp_path / "a.nii.gz").read_bytes()
    with pytest.raises(AutosegError, match=r"a\.nii\.gz: the prediction would replace its scan"):
        predict(tmp_path, tmp_path, overwrite)
    assert (tmp_path / "a.nii.gz").read_bytes() == before


def test_an_output_folder_that_cannot_be_made(scans: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(AutosegError, match="cannot write"):
        predict(scans, tmp_path / "file" / "out")
