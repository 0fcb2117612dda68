from __future__ import annotations

import json
import platform
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from autoseg import __version__
from autoseg.common.errors import AutosegError
from autoseg.common.files import read_json
from autoseg.evaluation.labels import ScoredClasses, read_declarations
from autoseg.image.image import read_image
from autoseg.prediction.record import LABELS as LABELS_FILE
from autoseg.prediction.record import (
    RECORD,
    PredictionRecord,
    file_facts,
    model_id,
)
from tests.making import tiny_plan
from tests.prediction.making import Pointwise, model_of
from tests.prediction.scans import (
    LABELS,
    PLAN,
    predict,
    predictor_of,
    write_scans,
)

OTHER = tiny_plan(labels=LABELS, training={"seed": 1})


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    return write_scans(tmp_path / "in", "a", "Müller 2")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def test_the_record_names_files_model_and_versions(scans: Path, out: Path) -> None:
    outcome = predict(scans, out)
    record = read_json(out / RECORD)
    assert record["cases"] == outcome.predicted
    assert list(record["cases"]) == ["Müller 2", "a"]
    assert record["plan_id"] == PLAN.id
    assert record["model_id"] == model_id(predictor_of().model)
    assert (record["task"], record["plan"]) == ("Task001_Tiny", "default")
    assert (record["folds"], record["mirrored"], record["format"]) == (["0"], False, "nii.gz")
    case = record["cases"]["a"]
    run = record["runs"][case["run"]]
    assert {key: run[key] for key in ("autoseg", "python", "torch", "device")} == {
        "autoseg": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "device": "cpu",
    }
    assert run["SimpleITK"][0].isdigit()
    assert case["files"] == {"a.nii.gz": file_facts(out / "a.nii.gz")}
    assert case["inputs"] == [str(scans / "a_0000.nii.gz")]
    assert case["input_bytes"] == (scans / "a_0000.nii.gz").stat().st_size
    assert list(case["seconds"]) == ["reading", "preparing", "network", "quality", "writing"]
    assert min(case["seconds"].values()) >= 0


def test_volumes_and_shares_are_recorded(scans: Path, out: Path) -> None:
    case = predict(scans, out).predicted["a"]
    values = read_image([scans / "a_0000.nii.gz"]).array
    lungs, infection = np.count_nonzero(values == 1), np.count_nonzero(values == 2)
    voxel_ml = 1.0 * 2.0 * 2.5 / 1000
    assert case["volume_ml"] == {
        "lungs": pytest.approx(lungs * voxel_ml, abs=1e-6),
        "infection": pytest.approx(infection * voxel_ml, abs=1e-6),
    }
    expected = infection / (lungs + infection)
    assert case["share"] == {"infection": pytest.approx(expected, abs=1e-6)}


def test_an_evaluation_reads_the_names_from_labels_json(scans: Path, out: Path) -> None:
    predict(scans, out)
    written = read_json(out / LABELS_FILE)
    assert written["labels"] == LABELS
    assert written["ignore_label"] is None
    assert "labels" not in read_json(out / RECORD)  # one place only
    declared = read_declarations(scans, out)
    assert declared.model is not None
    found = ScoredClasses.planned(declared.model, declared.evaluation, declared.ignore)
    assert found is not None
    assert found.values == {"lungs": (1, 2), "infection": (3,)}


def test_other_weights_are_another_model() -> None:
    plan = tiny_plan()
    ids = {
        model_id(model_of(plan, *networks))
        for networks in (
            [Pointwise()],
            [Pointwise(slope=2)],
            [Pointwise(shift=1)],
            [Pointwise(), Pointwise()],
            [Pointwise().double()],
        )
    }
    assert len(ids) == 5
    assert model_id(model_of(plan, Pointwise())) == model_id(model_of(OTHER, Pointwise()))
    assert all(len(found) == 12 for found in ids)


def test_predictions_of_another_plan_are_not_mixed(scans: Path, out: Path) -> None:
    predict(scans, out)
    with pytest.raises(AutosegError, match=rf"{RECORD}.* plan_id"):
        predict(scans, out, plan=OTHER)
    facts = file_facts(out / "a.nii.gz")
    (scans / "a_0000.nii.gz").unlink()
    predict(scans, out, overwrite=True, plan=OTHER)
    record = read_json(out / RECORD)
    assert record["outdated"] == {"a.nii.gz": facts}
    assert (record["plan_id"], list(record["cases"])) == (OTHER.id, ["Müller 2"])
    assert len(record["runs"]) == 1


def test_outdated_predictions_of_a_stopped_run_are_recognised(
    scans: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    predict(scans, out)
    PredictionRecord(out, predictor_of(OTHER), "nii.gz").begin(overwrite=True)  # and is killed
    outcome = predict(scans, out, plan=OTHER)
    assert sorted(outcome.predicted) == ["Müller 2", "a"]
    assert "predicting a again: a.nii.gz is of another model" in capsys.readouterr().err
    assert "outdated" not in read_json(out / RECORD)
    PredictionRecord(out, predictor_of(), "nii.gz").begin(overwrite=True)
    with pytest.raises(AutosegError, match=rf"{RECORD}.* plan_id"):
        predict(scans, out, plan=OTHER)


def test_another_plan_may_predict_into_an_emptied_folder(scans: Path, out: Path) -> None:
    predict(scans, out)
    for path in out.glob("*.nii.gz"):
        path.unlink()
    assert sorted(predict(scans, out, plan=OTHER).predicted) == ["Müller 2", "a"]


def test_a_run_notices_that_another_overwrites_its_folder(out: Path) -> None:
    mine = PredictionRecord(out, predictor_of(), "nii.gz")
    mine.begin(overwrite=False)
    mine.add("a", {})
    PredictionRecord(out, predictor_of(OTHER), "nii.gz").begin(overwrite=True)
    with pytest.raises(AutosegError, match=rf"{RECORD}.* plan_id"):
        mine.add("b", {})
    assert read_json(out / RECORD)["cases"] == {}


def test_runs_that_share_a_folder_lose_no_record(out: Path) -> None:
    """They add in turns; the lock prevents simultaneous additions."""
    records = [PredictionRecord(out, predictor_of(), "nii.gz") for _ in range(2)]
    for record in records:
        record.begin(overwrite=False)
    names = [f"case {number}" for number in range(8)]
    for number, name in enumerate(names):
        records[number % 2].add(name, {})
    found = read_json(out / RECORD)
    assert list(found["cases"]) == names
    assert {case["run"] for case in found["cases"].values()} == set(found["runs"])
    assert len(found["runs"]) == 2


@pytest.mark.parametrize("text", ["{", "[]", '{"cases": 1}', "\x00"])
def test_a_damaged_record_is_replaced(scans: Path, out: Path, text: str) -> None:
    predict(scans, out)
    (out / RECORD).write_text(text, encoding="utf-8")
    predict(scans, out, overwrite=True)
    found = json.loads((out / RECORD).read_text(encoding="utf-8"))
    assert list(found["cases"]) == ["Müller 2", "a"]


def test_a_large_record_is_not_written_anew_for_each_case(
    tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"case_{number:02d}" for number in range(24)]
    written: list[int] = []
    write = PredictionRecord._write

    def counted(self: PredictionRecord, found: dict[str, Any]) -> None:
        written.append(len(found["cases"]))
        write(self, found)

    monkeypatch.setattr(PredictionRecord, "_write", counted)
    monkeypatch.setattr("autoseg.prediction.record.SMALL_BYTES", 0)
    outcome = predict(write_scans(tmp_path / "in", *names), out)
    assert read_json(out / RECORD)["cases"] == outcome.predicted
    assert list(outcome.predicted) == names
    assert not (out / ".predictions.jsonl").exists()
    assert written[0] == 0
    assert written[-1] == 24
    assert len(written) < 14  # a case more each time would be 25


@pytest.mark.parametrize("tail", ["", '{"cases": {"b": {"fil'])
def test_the_journal_of_a_killed_run_is_merged(
    scans: Path, out: Path, monkeypatch: pytest.MonkeyPatch, tail: str
) -> None:
    monkeypatch.setattr("autoseg.prediction.record.SMALL_BYTES", 0)
    monkeypatch.setattr(PredictionRecord, "close", lambda _: None)
    first = predict(scans, out)
    name, case = first.predicted.popitem()
    run = {"started": "2026-01-01T00:00:00+0000"}
    shorter = read_json(out / RECORD) | {"cases": first.predicted, "runs": {}}
    (out / RECORD).write_text(json.dumps(shorter), "utf-8")
    line = json.dumps({"cases": {name: case}, "runs": {case["run"]: run}})
    (out / ".predictions.jsonl").write_text(f"{line}\n{tail}", "utf-8")
    again = predict(scans, out)
    assert set(again.skipped) == {"Müller 2", "a"}
    record = read_json(out / RECORD)
    assert record["cases"][name] == case
    assert record["runs"][case["run"]] == run
    assert not (out / ".predictions.jsonl").exists()
